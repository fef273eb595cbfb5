# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit trail of a node, read for people.

The kernel writes one event as several lines with one serial number; arguments with unusual characters are
hexadecimal and long ones come
in pieces. The number in ``auid`` names the workspace (``registry``); on the host itself it is the uid that logged in.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import FlowError, InvalidInput, NotFound, Unhealthy
from . import audit_registry, audit_share
from .audit_registry import UNSET, Registry, name

REGISTRY = audit_registry.PLACE
LOG = "/var/log/audit/audit.log"
WINDOW = 5_000
KEYS = ("spt-flow-priv", "spt-flow-host", "spt-flow-root")
IDS = "spt-flow-ids"
CALLS = {
    (arch, str(number)): name
    for arch, numbers in {
        "c000003e": {105: "setuid", 113: "setreuid", 117: "setresuid", 122: "setfsuid", 126: "capset", 157: "prctl"},
        "c00000b7": {145: "setreuid", 146: "setuid", 147: "setresuid", 151: "setfsuid", 91: "capset", 167: "prctl"},
    }.items()
    for number, name in numbers.items()
}
"""Calls that change ids or capabilities, by the kernel's names of the processor and numbers."""

_HEAD = re.compile(r"^(?:node=\S+ )?type=(?P<type>\S+) msg=audit\((?P<time>\d+\.\d+):(?P<serial>\d+)\): ?(?P<rest>.*)$")
_FIELD = re.compile(r'(?P<name>[\w\[\]-]+)=(?P<value>"[^"]*"|\'[^\']*\'|\S*)')
_PIECE = re.compile(r"a(?P<number>\d+)(?:\[(?P<piece>\d+)\])?$")


@dataclass
class Event:
    """One command or one change of ids.

    ``time`` is in epoch seconds; ``auid`` is a workspace's number, a uid of the host or UNSET.
    """

    time: float
    serial: int
    fields: dict[str, str] = field(default_factory=dict)
    argv: list[str] = field(default_factory=list)
    cwd: str = ""
    title: str = ""

    @property
    def auid(self) -> int:
        return int(self.fields.get("auid", UNSET))

    @property
    def command(self) -> str:
        """The command as it was given, each argument readable and on one line."""
        if self.keys & {IDS}:
            call = CALLS.get((self.fields.get("arch", ""), self.fields.get("syscall", "")), "ids changed")
            return f"[{call}] {_shown(self.title or self.text('comm'))}"
        if self.argv:
            return " ".join(_shown(word) for word in self.argv)
        return f"{_shown(self.text('exe') or self.text('comm'))} (arguments not kept)"

    @property
    def keys(self) -> set[str]:
        """The keys of the rules that recorded it."""
        return set(self.text("key").split("\x01"))

    def text(self, name: str) -> str:
        return decode(self.fields.get(name, ""))


def decode(value: str) -> str:
    """A field's text: quoted as it stands, otherwise hexadecimal when it is; ``(null)`` is empty."""
    if value[:1] in ("'", '"'):
        return value[1:-1]
    if value == "(null)":
        return ""
    if len(value) % 2 == 0 and re.fullmatch(r"[0-9A-F]+", value):
        return bytes.fromhex(value).decode("utf-8", "backslashreplace")
    return value


def _shown(word: str) -> str:
    if word and re.fullmatch(r"[\w@%+=:,./-]+", word):
        return word
    return "'" + word.encode("unicode_escape").decode().replace("'", "\\'") + "'"


def events(lines: Iterable[str]) -> Iterator[Event]:
    """Commands and changes of ids in the order in which they began.

    Lines of several events may be mixed, and under load a record may come after the one that ends its event, so an
    event stays open
    for the next ``WINDOW`` events.
    """
    open_: dict[tuple[str, str], tuple[Event, dict[int, dict[int, str]]]] = {}
    for line in lines:
        head = _HEAD.match(line.partition("\x1d")[0].rstrip())
        if not head:
            continue
        new: tuple[Event, dict[int, dict[int, str]]] = (Event(float(head["time"]), int(head["serial"])), {})
        _take(*open_.setdefault((head["time"], head["serial"]), new), head["type"], head["rest"])
        if len(open_) > WINDOW:
            yield from _complete(*open_.pop(next(iter(open_))))
    for event, pieces in open_.values():
        yield from _complete(event, pieces)


def _take(event: Event, pieces: dict[int, dict[int, str]], kind: str, rest: str) -> None:
    found = {match["name"]: match["value"] for match in _FIELD.finditer(rest)}
    if kind == "SYSCALL":
        event.fields.update(found)
    elif kind == "CWD":
        event.cwd = decode(found.get("cwd", ""))
    elif kind == "PROCTITLE":
        event.title = decode(found.get("proctitle", "")).replace("\0", " ")
    elif kind == "EXECVE":
        for name, value in found.items():
            match = _PIECE.fullmatch(name)
            if match:
                pieces.setdefault(int(match["number"]), {})[int(match["piece"] or 0)] = value


def _complete(event: Event, pieces: dict[int, dict[int, str]]) -> Iterator[Event]:
    if pieces or event.keys & {*KEYS, IDS}:
        for _number, parts in sorted(pieces.items()):
            ordered = [parts[piece] for piece in sorted(parts)]
            # Pieces of a long argument are cut anywhere, also within a character: join first, decode then.
            event.argv.append(decode("".join(ordered)) if len(ordered) > 1 else decode(ordered[0]))
        yield event


# Reading the trail


def files(log: str = LOG, since: float = 0) -> list[Path]:
    """The logs that can hold something since ``since``, oldest first: archived, rotated, current."""
    current = Path(log)
    rotated = sorted(current.parent.glob(current.name + ".[0-9]*"), key=lambda p: -int(p.suffix[1:]))
    archived = sorted((current.parent / "archive").glob("audit-*.log.gz"))
    return [p for p in (*archived, *rotated, current) if p.exists() and p.stat().st_mtime >= since]


def read(paths: Iterable[Path]) -> Iterator[str]:
    """The lines of every log, packed ones included."""
    for path in paths:
        with gzip.open(path, "rt", errors="replace") if path.suffix == ".gz" else path.open(errors="replace") as file:
            yield from file


def report(
    owner: str = "",
    workspace: str = "",
    since: float = 0,
    log: str = LOG,
    registry_path: str = REGISTRY,
    ids: bool = False,
) -> list[dict[str, Any]]:
    """Commands as plain data: time, owner, workspace, command, exe, cwd, uid, euid, tty, pid, ok; filtered, in order
    of time. With ``ids`` also changes of user ids and capabilities."""
    if not Path(log).exists():
        raise NotFound(f"There is no audit log {log} on this node.", "Run the role host_audit.")
    keys, found = Registry(registry_path), []
    wanted = {*KEYS, IDS} if ids else {*KEYS}
    for event in events(read(files(log, since))):
        if event.time < since or not event.keys & wanted:
            continue
        who = name(event.auid, keys)
        if owner in ("", who[0]) and workspace in ("", who[1]):
            found.append(_row(event, who))
    return sorted(found, key=lambda row: (row["time"], row["serial"]))


def _row(event: Event, who: tuple[str, str]) -> dict[str, Any]:
    numbers = {n: int(event.fields.get(n, UNSET)) for n in ("uid", "euid", "pid")}
    row = {"time": event.time, "serial": event.serial, "owner": who[0], "workspace": who[1], "command": event.command}
    row.update(exe=event.text("exe"), cwd=event.cwd, tty=event.text("tty"), ok=event.fields.get("success") == "yes")
    return {**row, **numbers}


def since_time(text: str, now: float) -> float:
    """``30m``, ``2h``, ``7d`` ago, an ISO time in the node's zone or epoch seconds."""
    match = re.fullmatch(r"(\d+)\s*([smhd])", text.strip())
    if match:
        return now - int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    try:
        return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidInput(f"The time {text!r} is not understood.", "Write 30m, 2h, 7d or 2026-11-23T09:00.") from None


# The trail's own health


def kernel() -> dict[str, int]:
    """What ``auditctl -s`` says: enabled, pid, backlog_limit, lost, backlog …"""
    done = subprocess.run(["auditctl", "-s"], text=True, capture_output=True, check=False)
    if done.returncode:
        raise Unhealthy(
            f"The kernel's audit cannot be asked: {done.stderr.strip()}.", "Run the role host_audit as root."
        )
    return {
        words[0]: int(words[1])
        for words in map(str.split, done.stdout.splitlines())
        if len(words) == 2 and words[1].isdigit()
    }


def problems(status: dict[str, int], rules: str, known_lost: int, log: str = LOG) -> list[str]:
    """What is wrong with the trail, as sentences."""
    found = []
    if not status.get("enabled"):
        found.append("Auditing is switched off in the kernel.")
    if not status.get("pid"):
        found.append("No audit daemon runs, so nothing is written.")
    lost = status.get("lost", 0)
    if lost > known_lost:
        found.append(f"{lost - known_lost} audit records were lost since the last check.")
    missing = [key for key in (*KEYS, IDS) if key not in rules]
    if missing:
        found.append(f"Rules are missing: {', '.join(missing)}.")
    usage = shutil.disk_usage(Path(log).parent)
    if usage.free < 0.05 * usage.total:
        found.append(f"{usage.free >> 20} MiB are free for the trail at {Path(log).parent}.")
    return found


def health(
    state: str = "/var/lib/spt-flow/audit", textfile: str = "", log: str = LOG, shares: str = audit_share.STATE
) -> list[str]:
    """Problems now; remembers how many records were lost, so that each loss is told once, and writes metrics."""
    status = kernel()
    rules = subprocess.run(["auditctl", "-l"], text=True, capture_output=True, check=False).stdout
    memory = Path(state, "lost")
    known = int(memory.read_text()) if memory.exists() else 0
    # The kernel counts from its start: a smaller number means that it was started again.
    found = problems(status, rules, known if known <= status.get("lost", 0) else 0, log)
    if status.get("enabled") and status.get("pid") and not written(log):
        found.append("The audit daemon does not write what it is given: make room, then pkill -USR2 -x auditd.")
    over = audit_share.current(shares)
    found += [audit_share.sentence(entry) for entry in over]
    if not audit_share.alive(shares):
        found.append("Nothing holds workspaces to their share of the trail: systemctl status spt-flow-audit-share.")
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(f"{status.get('lost', 0)}\n")
    if textfile:
        lines = [f"spt_flow_audit_{key} {status.get(key, 0)}" for key in ("lost", "backlog", "enabled")]
        lines.append(f"spt_flow_audit_over_share {len(over)}")
        fresh = Path(textfile, f".spt_flow_audit.{os.getpid()}")
        fresh.write_text("\n".join([*lines, f"spt_flow_audit_ok {int(not found)}"]) + "\n")
        fresh.replace(Path(textfile, "spt_flow_audit.prom"))
    return found


def written(log: str = LOG, wait: float = 3.0) -> bool:
    """Whether a record made now arrives in the log within ``wait`` seconds: a daemon whose disk was full runs on, takes
    records and drops them."""
    mark = f"spt-flow-probe-{os.getpid()}-{time.monotonic_ns()}"
    size = Path(log).stat().st_size if Path(log).exists() else 0
    if subprocess.run(["auditctl", "-m", mark], capture_output=True, check=False).returncode:
        return False
    deadline = time.monotonic() + wait
    while True:
        with contextlib.suppress(OSError), open(log, "rb") as file:
            # A log that was begun anew meanwhile is read from its start.
            file.seek(size if os.fstat(file.fileno()).st_size >= size else 0)
            if mark.encode() in file.read():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


# Rotation and retention


def archive(days: int, log: str = LOG, now: float | None = None) -> tuple[int, int]:
    """Pack rotated logs into ``archive/`` and drop packed ones older than ``days``. Returns (packed, dropped).

    A packed log carries the time of its last record, so that a search can skip it.
    """
    now = time.time() if now is None else now
    folder = Path(log).parent / "archive"
    folder.mkdir(mode=0o700, exist_ok=True)
    packed = dropped = 0
    for path in files(log)[:-1]:
        if path.suffix == ".gz":
            continue
        moment = path.stat().st_mtime
        target = folder / f"audit-{moment:.0f}-{path.stat().st_ino}.log.gz"
        fresh = target.with_suffix(".new")
        with path.open("rb") as source, gzip.open(fresh, "wb", compresslevel=6) as sink:
            numbers = audit_registry.numbers(_copied(source, sink))
        _numbers_of(target).write_text(" ".join(map(str, sorted(numbers))) + "\n", encoding="utf-8")
        fresh.chmod(0o600)
        os.utime(fresh, (moment, moment))
        fresh.replace(target)
        path.unlink()
        packed += 1
    for path in folder.glob("audit-*.log.gz"):
        if now - path.stat().st_mtime > days * 86400:
            _numbers_of(path).unlink(missing_ok=True)
            path.unlink()
            dropped += 1
    return packed, dropped


def _numbers_of(packed: Path) -> Path:
    """Where the numbers of workspaces in a packed log stand, so that nobody has to unpack it for them."""
    return packed.with_suffix(".numbers")


def _copied(source: Iterable[bytes], sink: gzip.GzipFile) -> Iterator[bytes]:
    for line in source:
        sink.write(line)
        yield line


MANY = 50_000
"""Numbers in use, of 100,000, above which they are freed without waiting for the day's archive."""


def free_when_many(log: str = LOG, registry_path: str = REGISTRY) -> None:
    with contextlib.suppress(FileNotFoundError):
        if len(os.listdir(Path(registry_path, "ids"))) > MANY:
            free_numbers(log, registry_path)


def free_numbers(log: str = LOG, registry_path: str = REGISTRY, now: float | None = None) -> int:
    """Free the numbers of workspaces that neither a container nor a log has."""
    found: set[int] = set()
    for path in files(log):
        known = _numbers_of(path)
        if path.suffix == ".gz" and known.exists():
            found |= {int(number) for number in known.read_text(encoding="utf-8").split()}
            continue
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            found |= audit_registry.numbers(file)
    return audit_registry.free(found, registry_path, now)


def rotate(log: str = LOG) -> None:
    """Ask the daemon to begin a new log and wait until it has."""
    pid = kernel().get("pid", 0)
    before = Path(log).stat().st_ino
    if not pid:
        raise Unhealthy("No audit daemon runs, so its log cannot be rotated.")
    os.kill(pid, 10)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if Path(log).exists() and Path(log).stat().st_ino != before:
            return
        time.sleep(0.05)
    raise FlowError("The audit daemon did not begin a new log within 10 s.", "See its journal.")
