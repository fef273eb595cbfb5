# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limit each workspace to its share of the audit trail, so that it cannot fill the disk or hide the records of others.

The watcher counts the bytes that each workspace adds to the daemon's log per day (UTC). Above its share, a workspace's
commands are recorded without their arguments, which make records large; the watcher counts these commands. Above twice
its share, its commands are not recorded until the day ends, and the time is noted. Both use kernel rules for the
workspace's number. The trail itself, the state file and the node's journal report each gap.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .. import atomic, process
from . import audit_registry

STATE = "/var/lib/spt-flow/audit-shares"
"""Outside the trail's directory, because writes there are recorded."""
PAUSE = 0.5
SAVE, DEAD = 5, 60
"""Seconds between two writes of the state, and after how many without one the watcher counts as dead."""
EVENTS = 2_000
"""How many events are remembered while their records may still arrive."""
REASSERT = 15
"""Seconds after which rules that were removed by others are set again."""
DETAILS = ("EXECVE", "PATH", "CWD", "PROCTITLE")
_SERIAL = re.compile(rb"^(?:node=\S+ )?type=(\S+) msg=audit\([\d.]+:(\d+)\)")
_AUID = re.compile(rb" auid=(7\d{5}) ")
_COMMAND = re.compile(rb" syscall=(?:59|322|11|358|221|281|387) ")
"""execve and execveat on x86-64, 32-bit x86, AArch64 and ARM."""


def auditctl(words: Sequence[str]) -> bool:
    return not process.run("auditctl", *words).returncode


def rules(number: int, level: int) -> list[list[str]]:
    """Return the kernel's rules of a level, without the option that adds or removes them."""
    who = f"auid={number}"
    if level == 1:
        return [["always,exclude", "-F", who, "-F", f"msgtype={kind}"] for kind in DETAILS]
    return [["never,exit", "-F", who]] if level == 2 else []


class Shares:
    """The bytes each workspace wrote today, and its gaps."""

    def __init__(self, share: int, state: str = STATE, registry: str = audit_registry.PLACE) -> None:
        self.share, self.state = share, Path(state)
        self.keys = audit_registry.Registry(registry)
        self.day = ""
        self.bytes: dict[int, int] = {}
        self.over: dict[int, dict[str, Any]] = {}
        self._events: OrderedDict[bytes, int] = OrderedDict()
        self._asserted = self._saved = 0.0
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            self._restore(json.loads((self.state / "shares.json").read_text(encoding="utf-8")))

    def _restore(self, found: dict[str, Any]) -> None:
        self.day = str(found["day"])
        self.bytes = {int(number): int(size) for number, size in found["bytes"].items()}
        self.over = {int(number): dict(entry) for number, entry in found["over"].items()}

    # Counting

    def count(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            match = _SERIAL.match(line)
            if not match:
                continue
            number = self._number(match[1], match[2], line)
            if number:
                self.bytes[number] = self.bytes.get(number, 0) + len(line)

    def _number(self, kind: bytes, serial: bytes, line: bytes) -> int:
        """Return the workspace of a record. The first record of an event names it."""
        if kind == b"SYSCALL":
            found = _AUID.search(line)
            number = int(found[1]) if found else 0
            self._events[serial] = number
            if len(self._events) > EVENTS:
                self._events.popitem(last=False)
            entry = self.over.get(number)
            if entry and entry["level"] == 1 and _COMMAND.search(line):
                entry["commands"] += 1
            return number
        return self._events.get(serial, 0)

    # Acting

    def act(self, now: float) -> None:
        """Apply and remove rules as the counts require."""
        today = time.strftime("%Y-%m-%d", time.gmtime(now))
        self.day = self.day or today
        if today != self.day:
            for number in list(self.over):
                self._end(number, now)
            self.day, self.bytes = today, {}
            self.save()
        for number, size in list(self.bytes.items()):
            level = min(2, size // self.share)
            if level > self.over.get(number, {}).get("level", 0):
                self._begin(number, level, now)
        if now - self._asserted >= REASSERT:
            self._reassert(now)
        if now - self._saved >= SAVE:
            self.save()

    def _begin(self, number: int, level: int, now: float) -> None:
        before = self.over.get(number)
        if before:
            self._note({**before, "until": now})
        owner, workspace = audit_registry.name(number, self.keys)
        entry = {"number": number, "owner": owner, "workspace": workspace, "level": level, "since": now, "commands": 0}
        self.over[number] = entry
        done = [auditctl(["-A" if level == 2 else "-a", *words]) for words in rules(number, level)]
        entry["held"] = all(done)
        if before:
            for words in rules(number, before["level"]):
                auditctl(["-d", *words])
        self.save()
        self._say(sentence(entry))

    def _end(self, number: int, now: float) -> None:
        entry = self.over.pop(number)
        for words in rules(number, entry["level"]):
            auditctl(["-d", *words])
        self._note({**entry, "until": now})
        self._say(f"{entry['owner']}/{entry['workspace']} is recorded in full again.")

    def _reassert(self, now: float) -> None:
        """Set the rules again: loading the node's rules drops all others. Rules cannot be added twice."""
        self._asserted = now
        for number, entry in self.over.items():
            for words in rules(number, entry["level"]):
                auditctl(["-A" if entry["level"] == 2 else "-a", *words])

    def _say(self, text: str) -> None:
        auditctl(["-m", f"spt-flow-share: {text}"])
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def _note(self, entry: dict[str, Any]) -> None:
        """Store a gap of the trail that has ended, for ``report``."""
        with open(self.state / "gaps", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def save(self) -> None:
        self._saved = time.time()
        text = json.dumps({"day": self.day, "bytes": self.bytes, "over": self.over})
        atomic.write(self.state / "shares.json", text, 0o644)


def sentence(entry: dict[str, Any]) -> str:
    """Describe what is missing from the trail for a workspace over its share."""
    who, since = f"{entry['owner']}/{entry['workspace']}", time.strftime("%H:%M:%S", time.gmtime(entry["since"]))
    end = time.strftime(" until %H:%M:%S UTC", time.gmtime(entry["until"])) if "until" in entry else " UTC"
    if not entry.get("held", True):
        return f"{who} is over its share of the trail since {since}{end}; the rules are locked, so it is not limited."
    if entry["level"] == 1:
        return f"{who} is over its share: {entry['commands']} commands recorded without arguments since {since}{end}."
    return f"{who} is at twice its share: its commands were not recorded since {since}{end}."


def gaps(state: str = STATE, since: float = 0) -> list[dict[str, Any]]:
    """Return the gaps of the trail since ``since``, ended or not, sorted by time."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in Path(state, "gaps").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    found += current(state)
    return sorted((gap for gap in found if gap.get("until", since) >= since), key=lambda gap: float(gap["since"]))


def current(state: str = STATE) -> list[dict[str, Any]]:
    """Return the workspaces that are over their share now."""
    try:
        text = Path(state, "shares.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return list(json.loads(text)["over"].values())


def alive(state: str = STATE, wait: float = 3) -> bool:
    """Return whether the watcher wrote its state recently, waiting up to ``wait`` seconds for one that just started."""
    deadline = time.monotonic() + wait
    while True:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.stat(Path(state, "shares.json")).st_mtime < DEAD:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def forget(days: int, state: str = STATE, now: float | None = None) -> None:
    """Delete gaps that are older than the trail."""
    kept = gaps(state, (time.time() if now is None else now) - days * 86400)
    Path(state).mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = Path(state, ".gaps")
    fresh.write_text("".join(json.dumps(gap) + "\n" for gap in kept if "until" in gap), encoding="utf-8")
    fresh.replace(Path(state, "gaps"))


class Tail:
    """Read the lines that the daemon appends to its log, across rotations."""

    def __init__(self, log: str, end: bool = True) -> None:
        self.log, self.part = log, b""
        self.file: BinaryIO | None = None
        self._open()
        if self.file and end:
            self.file.seek(0, os.SEEK_END)

    def _open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.file = open(self.log, "rb")  # noqa: SIM115

    def lines(self) -> list[bytes]:
        found = self._rest()
        if self.file is None or self._replaced():
            self._open()
            found += self._rest()
        return found

    def _rest(self) -> list[bytes]:
        if self.file is None:
            return []
        *found, self.part = (self.part + self.file.read(16 << 20)).split(b"\n")
        return found

    def _replaced(self) -> bool:
        if self.file is None:
            raise AssertionError("self.file must be set here")
        try:
            here = os.stat(self.log)
        except FileNotFoundError:
            return False
        mine = os.fstat(self.file.fileno())
        if (here.st_ino, here.st_dev) == (mine.st_ino, mine.st_dev) or self.file.tell() < mine.st_size:
            return False
        self.file.close()
        self.file, self.part = None, b""
        return True


def watch(log: str, share: int, state: str = STATE, registry: str = audit_registry.PLACE) -> None:
    """Enforce the shares of all workspaces, forever."""
    Path(state).mkdir(mode=0o700, parents=True, exist_ok=True)
    shares, tail = Shares(share, state, registry), Tail(log)
    while True:
        lines = tail.lines()
        shares.count(lines)
        shares.act(time.time())
        if not lines:
            time.sleep(PAUSE)
