# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and maintain the audit trail of a node.

The kernel writes one event as several lines with the same serial number. Arguments with unusual characters are
hexadecimal, and long ones are split into pieces. ``auid`` holds the number of the workspace (``registry``); for
sessions on the host it is the login's uid.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from .. import atomic, process
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
"""System calls that change ids or capabilities, by the kernel's names of the processor and numbers."""

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
        """The command with each argument readable and on one line."""
        if self.keys & {IDS}:
            call = CALLS.get((self.fields.get("arch", ""), self.fields.get("syscall", "")), "ids changed")
            return f"[{call}] {_shown(self.title or self.text('comm'))}"
        if self.argv:
            return " ".join(_shown(word) for word in self.argv)
        return f"{_shown(self.text('exe') or self.text('comm'))} (arguments not kept)"

    @property
    def keys(self) -> set[str]:
        """The keys of the rules that recorded the event."""
        return set(self.text("key").split("\x01"))

    def text(self, name: str) -> str:
        return decode(self.fields.get(name, ""))


def decode(value: str) -> str:
    """Decode a field: quoted text is used verbatim, hexadecimal text is decoded, ``(null)`` is empty."""
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
    """Yield commands and changes of ids in the order in which they began.

    Lines of several events may be interleaved. Under load a record may follow the one that ends its event, so an event
    stays open for the next ``WINDOW`` events.
    """
    open_: OrderedDict[tuple[str, str], tuple[Event, dict[int, dict[int, str]]]] = OrderedDict()
    for line in lines:
        head = _HEAD.match(line.partition("\x1d")[0].rstrip())
        if not head:
            continue
        new: tuple[Event, dict[int, dict[int, str]]] = (Event(float(head["time"]), int(head["serial"])), {})
        _take(*open_.setdefault((head["time"], head["serial"]), new), head["type"], head["rest"])
        if len(open_) > WINDOW:
            yield from _complete(*open_.popitem(last=False)[1])
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
            # A long argument may be split within a character, so join the pieces before decoding.
            event.argv.append(decode("".join(ordered)) if len(ordered) > 1 else decode(ordered[0]))
        yield event


# Reading the trail


def files(log: str = LOG, since: float = 0) -> list[Path]:
    """Return the logs that may have records since ``since``, oldest first: archived, rotated, current."""
    current = Path(log)
    rotated = sorted(current.parent.glob(current.name + ".[0-9]*"), key=lambda p: -int(p.suffix[1:]))
    archived = sorted((current.parent / "archive").glob("audit-*.log.gz"))
    return [p for p in (*archived, *rotated, current) if p.exists() and p.stat().st_mtime >= since]


def read(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the lines of all logs; compressed logs are unpacked."""
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
    """Return commands as plain data, filtered and sorted by time.

    Keys: time, owner, workspace, command, exe, cwd, uid, euid, tty, pid, ok. With ``ids`` also changes of user ids and
    capabilities.
    """
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
    """Return epoch seconds.

    ``text`` is an age (``30m``, ``2h``, ``7d``), an ISO time in the node's time zone or epoch seconds.
    """
    match = re.fullmatch(r"(\d+)\s*([smhd])", text.strip())
    if match:
        return now - int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    try:
        return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidInput(f"The time {text!r} is not valid.", "Write 30m, 2h, 7d or 2026-11-23T09:00.") from None


# Health of the trail


def kernel() -> dict[str, int]:
    """Return the numbers of ``auditctl -s``: enabled, pid, backlog_limit, lost, backlog …"""
    done = process.run("auditctl", "-s")
    if done.returncode:
        raise Unhealthy(
            f"Cannot read the kernel's audit status: {done.stderr.strip()}.", "Run the role host_audit as root."
        )
    return {
        words[0]: int(words[1])
        for words in map(str.split, done.stdout.splitlines())
        if len(words) == 2 and words[1].isdigit()
    }


def problems(status: dict[str, int], rules: str, known_lost: int, log: str = LOG) -> list[str]:
    """Return the problems of the trail as sentences."""
    found = []
    if not status.get("enabled"):
        found.append("Auditing is disabled in the kernel.")
    if not status.get("pid"):
        found.append("The audit daemon does not run, so nothing is recorded.")
    lost = status.get("lost", 0)
    if lost > known_lost:
        found.append(f"{lost - known_lost} audit records were lost since the last check.")
    missing = [key for key in (*KEYS, IDS) if key not in rules]
    if missing:
        found.append(f"Rules are missing: {', '.join(missing)}.")
    usage = shutil.disk_usage(Path(log).parent)
    if usage.free < 0.05 * usage.total:
        found.append(f"Only {usage.free >> 20} MiB are free for the trail at {Path(log).parent}.")
    return found


def health(
    state: str = "/var/lib/spt-flow/audit", textfile: str = "", log: str = LOG, shares: str = audit_share.STATE
) -> list[str]:
    """Return the current problems and write metrics.

    Stores the number of lost records, so that each loss is reported once.
    """
    status = kernel()
    rules = process.run("auditctl", "-l").stdout
    memory = Path(state, "lost")
    known = int(memory.read_text()) if memory.exists() else 0
    # The kernel counts from boot: a smaller number means a reboot.
    found = problems(status, rules, known if known <= status.get("lost", 0) else 0, log)
    if status.get("enabled") and status.get("pid") and not written(log):
        found.append("The audit daemon does not write records: free space, then run pkill -USR2 -x auditd.")
    over = audit_share.current(shares)
    found += [audit_share.sentence(entry) for entry in over]
    if not audit_share.alive(shares):
        found.append("No program limits the workspaces' shares of the trail: systemctl status spt-flow-audit-share.")
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(f"{status.get('lost', 0)}\n")
    if textfile:
        lines = [f"spt_flow_audit_{key} {status.get(key, 0)}" for key in ("lost", "backlog", "enabled")]
        lines.append(f"spt_flow_audit_over_share {len(over)}")
        text = "\n".join([*lines, f"spt_flow_audit_ok {int(not found)}"]) + "\n"
        atomic.write(Path(textfile, "spt_flow_audit.prom"), text, 0o644)
    return found


def written(log: str = LOG, wait: float = 3.0) -> bool:
    """Return whether a test record arrives in the log within ``wait`` seconds.

    A daemon whose disk was full keeps running, but drops the records it receives.
    """
    mark = f"spt-flow-probe-{os.getpid()}-{time.monotonic_ns()}"
    size = Path(log).stat().st_size if Path(log).exists() else 0
    if process.run("auditctl", "-m", mark).returncode:
        return False
    deadline = time.monotonic() + wait
    while True:
        with contextlib.suppress(OSError), open(log, "rb") as file:
            # A log that was rotated in the meantime is read from its start.
            file.seek(size if os.fstat(file.fileno()).st_size >= size else 0)
            if mark.encode() in file.read():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


# Rotation and retention


def archive(days: int, log: str = LOG, now: float | None = None) -> tuple[int, int]:
    """Compress rotated logs into ``archive/`` and delete archived logs older than ``days``. Return (packed, dropped).

    An archived log has the time of its last record, so that a search can skip it.
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
    """Return the file with the numbers of the workspaces in an archived log, so that the log need not be unpacked for
    them.
    """
    return packed.with_suffix(".numbers")


def _copied(source: Iterable[bytes], sink: gzip.GzipFile) -> Iterator[bytes]:
    for line in source:
        sink.write(line)
        yield line


MANY = 50_000
"""Numbers in use, of 100,000, above which unused ones are freed without waiting for the daily archive."""


def free_when_many(log: str = LOG, registry_path: str = REGISTRY) -> None:
    with contextlib.suppress(FileNotFoundError):
        if len(os.listdir(Path(registry_path, "ids"))) > MANY:
            free_numbers(log, registry_path)


def free_numbers(log: str = LOG, registry_path: str = REGISTRY, now: float | None = None) -> int:
    """Free the numbers that neither a container nor a log uses."""
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
    """Make the daemon start a new log, and wait until it has."""
    pid = kernel().get("pid", 0)
    before = Path(log).stat().st_ino
    if not pid:
        raise Unhealthy("Cannot rotate the audit log: the audit daemon does not run.")
    os.kill(pid, 10)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if Path(log).exists() and Path(log).stat().st_ino != before:
            return
        time.sleep(0.05)
    raise FlowError("The audit daemon did not start a new log within 10 s.", "Check its journal: journalctl -u auditd.")
