# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Liveness: idle stop, keep-alive, deadline. Activity is a change of samples (docs/decisions/idle-and-keepalive.md)."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .contract import Contract, Failure, Paths, write_file
from .record import printable

SAMPLE = 30.0
RECENT = 300.0
LONGEST_KEEPALIVE = 24.0
# An open tab without a user sends 35 bytes a second on each of its two connections (code-server 4.139, measured), and
# code-server's heartbeat continues. A user who types or clicks sends many times that.
UNTOUCHED = 50.0
TOUCHED = 1500.0
SESSION = "an SSH session is open"


@dataclass(frozen=True)
class Seen:
    """One sample: number of SSH sessions, time of the IDE's heartbeat (ns), last input of each terminal.

    ``traffic``: bytes that each connection to the IDE has sent so far; ``None`` if the kernel does not tell.
    """

    sessions: int = 0
    heartbeat: int = 0
    terminals: dict[str, float] = field(default_factory=dict)
    keepalive: str = ""
    traffic: dict[str, int] | None = None


@dataclass(frozen=True)
class Verdict:
    """The liveness record, the reason to stop now (or an empty text), and the seconds to the next sample."""

    record: dict[str, Any]
    stop: str
    wait: float


class Liveness:
    """Decides from samples. ``boot`` is ``CLOCK_BOOTTIME`` (it includes suspended time), ``wall`` the epoch.

    Seconds of the agent's clock are converted into real ones here, by the setting tick.
    """

    def __init__(self, contract: Contract, boot: float, wall: float) -> None:
        tick = contract.tick
        self._idle = contract.idle_stop / tick
        self._recent = min(RECENT / tick, self._idle / 4) if self._idle else RECENT / tick
        self._sample = max(0.2, SAMPLE / tick)
        self._longest = LONGEST_KEEPALIVE * 3600 / tick
        self._deadline = contract.deadline
        # Setting the clock back must not extend the deadline.
        self._deadline_boot = boot + contract.deadline - wall if contract.deadline else math.inf
        self._active = boot
        self._why = "just started"
        self._since = wall
        self._shown = ""
        self._before: Seen | None = None
        self._traffic: tuple[float, dict[str, int]] | None = None
        self._keep_text = ""
        self._keep_until = 0.0
        self._keep_wall = 0.0
        self._keep_by = ""

    def sample(self, boot: float, wall: float, seen: Seen) -> Verdict:
        """Return the verdict for one sample."""
        why = self._activity(boot, seen)
        self._before = seen
        if why:
            self._active, self._why = boot, why
        self._read_keepalive(boot, wall, seen.keepalive)
        kept = max(0.0, self._keep_until - boot)
        left = self._active + self._idle - boot if self._idle else math.inf
        left = max(left, kept)
        if seen.sessions:
            left = math.inf
        deadline = min(self._deadline - wall, self._deadline_boot - boot) if self._deadline else math.inf
        record = self._record(boot, wall, bool(seen.sessions), kept, left, deadline)
        wait = min(self._sample, max(0.05, min(left, deadline)))
        if deadline <= 0:
            return Verdict({**record, "reason": "the deadline has come"}, "The deadline has come.", 0.0)
        if left <= 0:
            return Verdict({**record, "reason": "idle for too long"}, "Nobody used the workspace for too long.", 0.0)
        return Verdict(record, "", wait)

    def _activity(self, boot: float, seen: Seen) -> str:
        """Return why ``seen`` counts as activity, or an empty text."""
        touched = self._touched(boot, seen)
        if seen.sessions:
            return SESSION
        if self._before is None:
            return ""
        if touched:
            return "the IDE is in use"
        if any(self._before.terminals.get(name) != when for name, when in seen.terminals.items()):
            return "a terminal is in use"
        return ""

    def _touched(self, boot: float, seen: Seen) -> bool:
        """Return whether a user works in the IDE; use code-server's heartbeat only if there are no traffic counters."""
        if seen.traffic is None:
            return bool(self._before and seen.heartbeat and seen.heartbeat != self._before.heartbeat)
        if self._traffic is None:
            self._traffic = boot, seen.traffic
            return False
        since, before = self._traffic
        # A rate needs a whole interval, and opening a session causes an extra sample.
        if boot - since < 0.9 * self._sample:
            return False
        self._traffic = boot, seen.traffic
        limit = max(TOUCHED, UNTOUCHED * (boot - since))
        return any(sent - before.get(peer, 0) > limit for peer, sent in seen.traffic.items())

    def _read_keepalive(self, boot: float, wall: float, text: str) -> None:
        """Compare a keep-alive with the time of day once; afterwards use the monotonic clock."""
        if text == self._keep_text:
            return
        self._keep_text, self._keep_until, self._keep_by = text, 0.0, ""
        grant = valid_keepalive(text, wall, self._longest)
        if grant:
            self._keep_until = boot + grant["until"] - wall
            self._keep_wall = grant["until"]
            self._keep_by = printable(str(grant.get("by", "")))[:64]

    def _record(
        self, boot: float, wall: float, session: bool, kept: float, left: float, deadline: float
    ) -> dict[str, Any]:
        # The end of a session is known exactly; other activity ends when it is no longer seen.
        quiet = not session and (self._why == SESSION or boot - self._active > self._recent)
        why = self._why if not quiet else ("kept alive" if kept else "idle")
        if quiet and not self._idle and not kept:
            why = "runs until it is stopped" if not self._deadline else "runs until its deadline"
        if why != self._shown:
            self._shown = why
            self._since = wall - (boot - self._active)
        # During activity the stop time moves with every sample, so it is reported only afterwards.
        if not quiet and why != "just started":
            left = math.inf
        left = min(left, deadline)
        return {
            "reason": why,
            "since": round(self._since),
            "stops_at": None if math.isinf(left) else round(wall + left),
            "keepalive_until": round(self._keep_wall) if kept else None,
            "keepalive_by": self._keep_by if kept else "",
        }

    @staticmethod
    def changed(old: dict[str, Any], new: dict[str, Any]) -> bool:
        """Return whether the records differ by more than rounding."""
        for key in {*old, *new}:
            a, b = old.get(key), new.get(key)
            close = isinstance(a, (int, float)) and isinstance(b, (int, float)) and abs(a - b) <= 2
            if a != b and not close:
                return True
        return False


def valid_keepalive(text: str, wall: float, longest: float) -> dict[str, Any] | None:
    """Return the keep-alive in ``text`` if it is valid: not over, at most 24 h ahead, not granted in the future."""
    try:
        grant = json.loads(text)
        until, granted = float(grant["until"]), float(grant["granted_at"])
    except (ValueError, TypeError, KeyError):
        return None
    return {**grant, "until": until} if granted <= wall + 60 and wall < until <= wall + longest + 60 else None


def look(paths: Paths, terminals: Path, port: int = 0) -> Seen:
    """Take a sample."""
    inputs = {place.name: times.st_atime for place in terminals.glob("[0-9]*") if (times := _times(place))}
    beat = _times(paths.heartbeat)
    try:
        keepalive = paths.keepalive.read_text()[:4096]
    except (OSError, ValueError):
        keepalive = ""
    return Seen(
        live_sessions(paths), beat.st_mtime_ns if beat else 0, inputs, keepalive, ide_traffic(port) if port else None
    )


def ide_traffic(port: int) -> dict[str, int] | None:
    """Return the bytes that each peer has sent to ``port`` so far; ``None`` if the kernel's table is unreadable."""
    argv = ["ss", "-HtniO", "state", "established", f"sport = :{port}"]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode:
        return None
    return {
        line.split()[3]: int(sent[1])
        for line in done.stdout.splitlines()
        if (sent := re.search(r"\bbytes_received:(\d+)", line))
    }


def _times(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def live_sessions(paths: Paths) -> int:
    """Return the number of SSH sessions whose process holds its lock; remove leftovers of killed ones."""
    live = 0
    for lock in paths.sessions.glob("*/lock"):
        try:
            descriptor = os.open(lock, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            live += 1
        else:
            shutil.rmtree(lock.parent, ignore_errors=True)
        finally:
            os.close(descriptor)
    return live


def grant_keepalive(paths: Paths, contract: Contract, hours: float, by: str) -> dict[str, Any]:
    """Delay the idle stop for ``hours`` from now; 0 withdraws it."""
    if not 0 <= hours <= LONGEST_KEEPALIVE:
        raise Failure(f"A workspace can be kept alive for 0 to {LONGEST_KEEPALIVE:.0f} hours, not {hours:g}.", 2)
    now = time.time()
    try:
        if hours == 0:
            paths.keepalive.unlink(missing_ok=True)
            return {"granted_at": now, "until": None, "by": ""}
        grant = {"granted_at": now, "until": now + hours * 3600 / contract.tick, "by": printable(by)[:64]}
        paths.state.mkdir(parents=True, exist_ok=True)
        write_file(paths.keepalive, json.dumps(grant))
    except OSError as error:
        raise Failure(f"The keep-alive could not be written to {paths.keepalive}: {error.strerror}.") from None
    return grant
