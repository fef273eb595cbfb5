# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reaper of a node: deletes expired workspaces, and leftovers without a workspace.

Standard library only, because it runs on nodes. ``plan`` is pure: it takes the engine's lists, a monotonic clock and
the memory of earlier passes, and returns what to delete and why. Objects without our labels, homes of ``dev``
workspaces and caches are never deleted.
"""

from __future__ import annotations

import calendar
import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import atomic
from ..docker.http import Engine, connect
from ..errors import Conflict, FlowError, NotFound
from ..labels import LABEL

PREFIX = "spt-flow-"
STATE = "/run/spt-flow/reaper.json"
"""Deleted at boot, because its times use a clock that starts at boot."""
LONGEST = 86400.0
"""Longest life of a CI workspace in seconds, also without a label."""
UNSTARTED = 600.0
"""Seconds after which a CI container that never started counts as a killed client's leftover."""
GRACE = 3600.0
"""Seconds that a volume or network without a workspace stays: the workspace may still be being created."""
AT_ONCE = 8
METRICS = "spt_flow_reaper"
WARNING = "This CI workspace has reached its deadline and is being deleted."
_WARN = 'for t in /dev/pts/[0-9]*; do test -w "$t" && printf "\\r\\n%s\\r\\n" "$1" >"$t"; done; true'


@dataclass(frozen=True)
class Expired:
    """One object to delete. ``part``: container, volume or network; ``overdue`` is in seconds.

    ``created``: a volume of this name with another time is a newer one, and stays.
    """

    part: str
    id: str
    name: str
    why: str
    overdue: float
    running: bool = False
    created: str = ""


@dataclass
class Memory:
    """What passes remember. Times are seconds of a clock that only runs forward (CLOCK_BOOTTIME).

    ``born``: when each CI container was created, as determined when it was first seen. ``lost``: since when each volume
    or network has been without its workspace.
    """

    born: dict[str, float] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    reaped: int = 0
    failed: int = 0

    @classmethod
    def load(cls, path: str) -> Memory:
        """Load the memory. An unreadable file counts as empty: then everything is seen for the first time."""
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            return cls(
                {str(key): float(value) for key, value in found["born"].items()},
                {str(key): float(value) for key, value in found["lost"].items()},
                int(found["reaped"]),
                int(found["failed"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def save(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        atomic.write(path, json.dumps(asdict(self)))


@dataclass(frozen=True)
class Listed:
    """The engine's lists of containers, volumes and networks."""

    containers: Sequence[Mapping[str, Any]] = ()
    volumes: Sequence[Mapping[str, Any]] = ()
    networks: Sequence[Mapping[str, Any]] = ()


@dataclass
class Report:
    """Result of one pass.

    ``overdue``: seconds since the oldest remaining object expired. ``capped``: workspaces of users whose stop was
    beyond the limit and was capped. ``stopped``: workspaces without an automatic stop that were not used for a day.
    ``homes``: homes of deleted workspaces, which only a person may delete.
    """

    expired: list[Expired] = field(default_factory=list)
    reaped: list[str] = field(default_factory=list)
    capped: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    homes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    overdue: float = 0.0


# Deciding


def plan(listed: Listed, memory: Memory, boot: float, wall: float) -> list[Expired]:
    """Return what to delete now, and update ``memory``.

    A container's allowed life is the difference of its labels, both from the client's clock. Its age is read from the
    engine's clock once, when it is first seen, and counted by ``boot`` from then on. So neither clock differences
    between machines nor clock changes matter.
    """
    entries = list(_containers(listed.containers, memory, boot, wall))
    alive = {_key(entry) for entry in listed.containers if _key(entry)}
    orphans = [*_volumes(listed.volumes, alive), *_networks(listed.networks, alive)]
    memory.lost = {entry.id: memory.lost.get(entry.id, boot) for entry in orphans}
    for entry in orphans:
        left = boot - memory.lost[entry.id] - GRACE
        if left >= 0:
            entries.append(Expired(entry.part, entry.id, entry.name, entry.why, left, created=entry.created))
    return entries


def _containers(entries: Sequence[Mapping[str, Any]], memory: Memory, boot: float, wall: float) -> Iterator[Expired]:
    born = {}
    for entry in entries:
        labels, state = entry.get("Labels") or {}, str(entry.get("State", ""))
        if labels.get(f"{LABEL}kind") != "ci" or not _key(entry) or state == "removing":
            continue
        identifier = str(entry["Id"])
        age = max(0.0, wall - float(entry.get("Created") or 0))
        born[identifier] = memory.born.get(identifier, boot - min(age, LONGEST))
        lived = boot - born[identifier]
        allowed = lifetime(labels)
        name = entry["Names"][0].lstrip("/")
        if lived >= allowed:
            yield Expired("container", identifier, name, "its TTL has expired", lived - allowed, state == "running")
        elif state == "created" and lived >= UNSTARTED:
            yield Expired("container", identifier, name, "it was never started", lived - UNSTARTED)
        elif state in ("dead", "exited"):
            yield Expired("container", identifier, name, "it has ended", 0.0)
    memory.born = born


def lifetime(labels: Mapping[str, str]) -> float:
    """Return the seconds that the labels allow a CI container to live."""
    deadline = labels.get(f"{LABEL}deadline", "")
    try:
        ends = int(deadline) if deadline.isdigit() else _epoch(deadline)
        return min(max(float(ends - _epoch(labels.get(f"{LABEL}created", ""))), 0.0), LONGEST)
    except (ValueError, OverflowError):
        return LONGEST


def _epoch(text: str) -> int:
    """Return epoch seconds of ``2026-01-31T12:00:00Z``. Raise ``ValueError``."""
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def _labelled(entry: Mapping[str, Any]) -> str:
    """Return the part of names that the labels contain: ``owner-workspace``, or the id that a Coder server assigned."""
    labels = entry.get("Labels") or {}
    owner, workspace = labels.get(f"{LABEL}owner"), labels.get(f"{LABEL}workspace")
    return (labels.get(f"{LABEL}coder") or f"{owner}-{workspace}") if owner and workspace else ""


def _key(entry: Mapping[str, Any]) -> str:
    """Return ``_labelled`` of a container with the matching name, otherwise nothing."""
    names, key = entry.get("Names") or [], _labelled(entry)
    return key if key and names and names[0].lstrip("/").removesuffix("-old") == PREFIX + key else ""


def _is_part(entry: Mapping[str, Any], part: str) -> bool:
    labels, key = entry.get("Labels") or {}, _labelled(entry)
    return bool(key) and labels.get(f"{LABEL}part") == part and entry.get("Name") == f"{PREFIX}{key}-{part}"


def _volumes(entries: Sequence[Mapping[str, Any]], alive: set[str]) -> Iterator[Expired]:
    """Return volumes of deleted CI workspaces, and inner Docker's data without its home."""
    homes = {_labelled(entry) for entry in entries if _is_part(entry, "home")}
    for entry in entries:
        labels = entry.get("Labels") or {}
        kind, key = labels.get(f"{LABEL}kind"), _labelled(entry)
        ours = any(_is_part(entry, part) for part in ("home", "docker"))
        if not ours or key in alive:
            continue
        if kind == "ci" or (kind == "dev" and _is_part(entry, "docker") and key not in homes):
            name, created = str(entry["Name"]), str(entry.get("CreatedAt", ""))
            yield Expired("volume", f"volume {name} {created}", name, "its workspace is gone", 0.0, created=created)


def _networks(entries: Sequence[Mapping[str, Any]], alive: set[str]) -> Iterator[Expired]:
    """Return networks of single CI workspaces. The shared network has no workspace label."""
    for entry in entries:
        labels = entry.get("Labels") or {}
        key = _labelled(entry)
        named = key and str(entry.get("Name", "")).startswith(PREFIX + key)
        if named and labels.get(f"{LABEL}kind") == "ci" and key not in alive:
            yield Expired("network", str(entry["Id"]), str(entry["Name"]), "its workspace is gone", 0.0)


# Doing


def read(engine: Engine) -> Listed:
    """Return all three lists or raise: a decision from incomplete lists may be wrong."""
    labelled = {"filters": {"label": [f"{LABEL}owner"]}}
    containers = engine.get_json("/containers/json", {"all": True, **labelled})
    volumes = engine.get_json("/volumes", labelled).get("Volumes") or []
    return Listed(containers, volumes, engine.get_json("/networks", labelled))


def sweep(
    path: str = STATE,
    dry: bool = False,
    engine: Engine | None = None,
    boot: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    wall: Callable[[], float] = time.time,
) -> Report:
    """Run one pass; with ``dry`` nothing is deleted, stored or announced. Raise ``FlowError`` if the engine does not
    answer.

    The memory is written before anything is deleted, and deletions are independent, so that the next pass continues one
    that was killed.
    """
    with locked(path, dry):
        engine = engine or connect()
        listed = read(engine)
        memory = Memory.load(path)
        report = Report(plan(listed, memory, boot(), wall()))
        report.overdue = max((entry.overdue for entry in report.expired), default=0.0)
        if dry:
            return report
        memory.save(path)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            ends = list(pool.map(lambda entry: (entry, _delete(engine, entry)), report.expired))
        for entry, problem in ends:
            if problem:
                report.failed[entry.name] = problem
            else:
                report.reaped.append(entry.name)
        memory.reaped += len(report.reaped)
        memory.failed += len(report.failed)
        memory.save(path)
        report.overdue = max((e.overdue for e in report.expired if e.name in report.failed), default=0.0)
        return report


@contextlib.contextmanager
def locked(path: str, dry: bool) -> Iterator[None]:
    """Allow one pass at a time. The kernel releases the lock of a killed one."""
    if dry:
        yield
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(f"{path}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _delete(engine: Engine, entry: Expired) -> str:
    """Delete one object if it is still the same one. Return the error, or nothing."""
    try:
        if entry.part == "container":
            if entry.running:
                _warn(engine, entry.id)
            engine.request_json("DELETE", f"/containers/{entry.id}", {"force": True, "v": True}, timeout=120)
        elif entry.part == "network":
            engine.request_json("DELETE", f"/networks/{entry.id}", timeout=60)
        else:
            found = engine.get_json(f"/volumes/{entry.name}")
            if entry.created and str(found.get("CreatedAt", "")) != entry.created:
                return ""
            engine.request_json("DELETE", f"/volumes/{entry.name}", timeout=600)
    except NotFound:
        return ""
    except Conflict as error:
        # Another process, or the engine itself, is removing it; objects in use stay.
        return "" if "removal" in str(error.details.get("said", error.message)) else error.message
    except FlowError as error:
        return error.message
    except OSError as error:
        return str(error)
    return ""


def _warn(engine: Engine, identifier: str) -> None:
    """Print one line to connected terminals. Bounded in time; failures are ignored."""
    with contextlib.suppress(FlowError, OSError, ValueError):
        engine.run(identifier, ["sh", "-c", _WARN, "sh", WARNING], timeout=2.0, user="1000:1000")


# Telling


def metrics(report: Report | None, memory: Memory, now: float, name: str = METRICS) -> str:
    """Return text for the Prometheus node exporter; ``report`` is ``None`` if engine or server did not answer."""
    rows: list[tuple[str, str, str, float]] = [
        ("up", "gauge", "Whether the last pass got an answer.", int(report is not None)),
        ("reaped_total", "counter", "Objects deleted since the machine started.", memory.reaped),
        ("failed_total", "counter", "Failed deletions since the machine started.", memory.failed),
        ("last_run_seconds", "gauge", "When the last pass ended.", now),
    ]
    if report is not None:
        rows.append(("overdue_seconds", "gauge", "Overdue time of the oldest remaining object.", report.overdue))
    texts = []
    for what, kind, words, value in rows:
        metric = f"{name}_{what}"
        texts.append(f"# HELP {metric} {words}\n# TYPE {metric} {kind}\n{metric} {value:.0f}\n")
    return "".join(texts)


def write_metrics(folder: str, text: str, name: str = METRICS) -> None:
    atomic.write(os.path.join(folder, f"{name}.prom"), text, 0o644)


def lines(report: Report, dry: bool) -> list[str]:
    """Return the report as lines."""
    said = [
        f"{'would delete' if dry else 'could not delete' if entry.name in report.failed else 'deleted'} "
        f"{entry.part} {entry.name}: {report.failed.get(entry.name, entry.why)}"
        for entry in report.expired
    ]
    verb = "would cap" if dry else "capped"
    said += [f"{verb} workspace {name}: it stops in {LONGEST / 3600:g} hours" for name in report.capped]
    verb = "would stop" if dry else "stopped"
    why = f"its automatic stop is off and it was not used for {LONGEST / 3600:g} hours"
    said += [f"{verb} workspace {name}: {why}" for name in report.stopped]
    said += [
        f"kept home {name}: its workspace was deleted; docker volume rm {name} deletes it" for name in report.homes
    ]
    gone = {entry.name for entry in report.expired}
    rest = {name: why for name, why in report.failed.items() if name not in gone}
    said += [f"could not cap or stop workspace {name}: {why}" for name, why in rest.items()]
    return said or ["Nothing to delete."]
