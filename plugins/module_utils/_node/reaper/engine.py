# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reaper of a node: what has outlived its time, or its workspace, is deleted.

Standard library only, since it runs on nodes. ``plan`` is pure: from what the engine lists, a clock that nobody sets
and what earlier passes remember, to what goes and why. Nothing without our labels is ever in it, nor the home of a
``dev`` workspace, nor a cache.
"""

from __future__ import annotations

import calendar
import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from ..docker.http import Engine, connect
from ..errors import Conflict, FlowError, NotFound

LABEL = "spt.flow."
PREFIX = "spt-flow-"
STATE = "/run/spt-flow/reaper.json"
"""Goes with the machine's start, as the clock does that its times are of."""
LONGEST = 86400.0
"""Seconds that a CI workspace may live at most, also one whose labels do not say."""
UNSTARTED = 600.0
"""Seconds after which a CI container that was created and never started is what a killed client left."""
GRACE = 3600.0
"""Seconds for which a volume or network without its workspace stays: somebody may just be making that."""
AT_ONCE = 8
METRICS = "spt_flow_reaper"
WARNING = "This CI workspace has reached the end of its time and is being deleted."
_WARN = 'for t in /dev/pts/[0-9]*; do test -w "$t" && printf "\\r\\n%s\\r\\n" "$1" >"$t"; done; true'


@dataclass(frozen=True)
class Expired:
    """One thing that goes. ``part``: container, volume or network; ``overdue`` is in seconds."""

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

    ``born`` is when each CI container was made, as far as it could be told when it was first seen; ``lost`` since when
    each volume or network has been seen without its workspace.
    """

    born: dict[str, float] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    reaped: int = 0
    failed: int = 0

    @classmethod
    def load(cls, path: str) -> Memory:
        """What cannot be read counts as nothing remembered: then everything is seen for the first time."""
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
        _write(path, json.dumps(asdict(self)))


@dataclass(frozen=True)
class Listed:
    """What the engine has: entries of its lists of containers, volumes and networks."""

    containers: Sequence[Mapping[str, Any]] = ()
    volumes: Sequence[Mapping[str, Any]] = ()
    networks: Sequence[Mapping[str, Any]] = ()


@dataclass
class Report:
    """One pass. ``overdue`` are the seconds by which the oldest thing that is still there has outlived its time.

    ``capped`` are people's workspaces whose stop was further away than it may be, and was brought nearer.
    """

    doomed: list[Expired] = field(default_factory=list)
    reaped: list[str] = field(default_factory=list)
    capped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    overdue: float = 0.0


# Deciding


def plan(listed: Listed, memory: Memory, boot: float, wall: float) -> list[Expired]:
    """What goes now; ``memory`` learns what is there and forgets what is not.

    How long a container may live is the difference of its labels, both of the clock of whoever made it; how long it has
    lived is taken from the engine's clock once, when it is first seen, and from ``boot`` after that. So neither clocks
    that differ between machines nor one that is set meanwhile count.
    """
    doomed = list(_containers(listed.containers, memory, boot, wall))
    alive = {_key(entry) for entry in listed.containers if _key(entry)}
    orphans = [*_volumes(listed.volumes, alive), *_networks(listed.networks, alive)]
    memory.lost = {entry.id: memory.lost.get(entry.id, boot) for entry in orphans}
    for entry in orphans:
        left = boot - memory.lost[entry.id] - GRACE
        if left >= 0:
            doomed.append(Expired(entry.part, entry.id, entry.name, entry.why, left, created=entry.created))
    return doomed


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
            yield Expired("container", identifier, name, "its TTL is over", lived - allowed, state == "running")
        elif state == "created" and lived >= UNSTARTED:
            yield Expired("container", identifier, name, "it was never started", lived - UNSTARTED)
        elif state in ("dead", "exited"):
            yield Expired("container", identifier, name, "it has ended", 0.0)
    memory.born = born


def lifetime(labels: Mapping[str, str]) -> float:
    """Seconds that the labels of a CI container allow it."""
    deadline = labels.get(f"{LABEL}deadline", "")
    try:
        ends = int(deadline) if deadline.isdigit() else _epoch(deadline)
        return min(max(float(ends - _epoch(labels.get(f"{LABEL}created", ""))), 0.0), LONGEST)
    except (ValueError, OverflowError):
        return LONGEST


def _epoch(text: str) -> int:
    """Of ``2026-01-31T12:00:00Z``. Raises ``ValueError``."""
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def _labelled(entry: Mapping[str, Any]) -> str:
    """What the labels say that names are made of: ``owner-workspace``, or the id that a Coder server gave."""
    labels = entry.get("Labels") or {}
    owner, workspace = labels.get(f"{LABEL}owner"), labels.get(f"{LABEL}workspace")
    return (labels.get(f"{LABEL}coder") or f"{owner}-{workspace}") if owner and workspace else ""


def _key(entry: Mapping[str, Any]) -> str:
    """``_labelled`` of a container that also carries our name for it, else nothing."""
    names, key = entry.get("Names") or [], _labelled(entry)
    return key if key and names and names[0].lstrip("/").removesuffix("-old") == PREFIX + key else ""


def _is_part(entry: Mapping[str, Any], part: str) -> bool:
    labels, key = entry.get("Labels") or {}, _labelled(entry)
    return bool(key) and labels.get(f"{LABEL}part") == part and entry.get("Name") == f"{PREFIX}{key}-{part}"


def _volumes(entries: Sequence[Mapping[str, Any]], alive: set[str]) -> Iterator[Expired]:
    """Volumes of CI workspaces that are gone, and inner Docker's data without the home that it belonged to."""
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
    """Networks that were made for one CI workspace; the one that all share carries no workspace."""
    for entry in entries:
        labels = entry.get("Labels") or {}
        key = _labelled(entry)
        named = key and str(entry.get("Name", "")).startswith(PREFIX + key)
        if named and labels.get(f"{LABEL}kind") == "ci" and key not in alive:
            yield Expired("network", str(entry["Id"]), str(entry["Name"]), "its workspace is gone", 0.0)


# Doing


def read(engine: Engine) -> Listed:
    """All three lists or none: what is decided from half of them may be wrong."""
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
    """One pass; with ``dry`` nothing is deleted, remembered or told. Raises ``FlowError`` when the engine is silent.

    What is remembered is written before anything is deleted, and each deletion stands for itself, so that a pass that
    was killed is gone on with by the next.
    """
    with alone(path, dry):
        engine = engine or connect()
        listed = read(engine)
        memory = Memory.load(path)
        report = Report(plan(listed, memory, boot(), wall()))
        report.overdue = max((entry.overdue for entry in report.doomed), default=0.0)
        if dry:
            return report
        memory.save(path)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            ends = list(pool.map(lambda entry: (entry, _delete(engine, entry)), report.doomed))
        for entry, problem in ends:
            if problem:
                report.failed[entry.name] = problem
            else:
                report.reaped.append(entry.name)
        memory.reaped += len(report.reaped)
        memory.failed += len(report.failed)
        memory.save(path)
        report.overdue = max((e.overdue for e in report.doomed if e.name in report.failed), default=0.0)
        return report


@contextlib.contextmanager
def alone(path: str, dry: bool) -> Iterator[None]:
    """One pass at a time; the kernel lets go of the lock of one that was killed."""
    if dry:
        yield
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(f"{path}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _delete(engine: Engine, entry: Expired) -> str:
    """Delete one thing if it is still the one that was meant; what went wrong, or nothing."""
    try:
        if entry.part == "container":
            if entry.running:
                _warn(engine, entry.id)
            engine.request_json("DELETE", f"/containers/{entry.id}", {"force": True, "v": True}, timeout=120)
        elif entry.part == "network":
            engine.request_json("DELETE", f"/networks/{entry.id}", timeout=60)
        else:
            found = engine.get_json(f"/volumes/{entry.name}")
            if str(found.get("CreatedAt", "")) != entry.created:
                return ""
            engine.request_json("DELETE", f"/volumes/{entry.name}", timeout=600)
    except NotFound:
        return ""
    except Conflict as error:
        # Somebody else, or the engine itself, is removing it; what is in use after all stays.
        return "" if "removal" in str(error.details.get("said", error.message)) else error.message
    except FlowError as error:
        return error.message
    except OSError as error:
        return str(error)
    return ""


def _warn(engine: Engine, identifier: str) -> None:
    """One line for whoever is connected; it is bounded, and that it fails is no reason to wait."""
    with contextlib.suppress(FlowError, OSError, ValueError):
        engine.run(identifier, ["sh", "-c", _WARN, "sh", WARNING], timeout=2.0, user="1000:1000")


# Telling


def metrics(report: Report | None, memory: Memory, now: float, name: str = METRICS) -> str:
    """Text for the Prometheus node exporter; ``report`` is ``None`` when the engine, or the server, was silent."""
    rows: list[tuple[str, str, str, float]] = [
        ("up", "gauge", "Whether the last pass got an answer.", int(report is not None)),
        ("reaped_total", "counter", "What was deleted since the machine started.", memory.reaped),
        ("failed_total", "counter", "What could not be deleted since the machine started.", memory.failed),
        ("last_run_seconds", "gauge", "When the last pass ended.", now),
    ]
    if report is not None:
        rows.append(("overdue_seconds", "gauge", "Overdue time of the oldest that is still there.", report.overdue))
    texts = []
    for what, kind, words, value in rows:
        metric = f"{name}_{what}"
        texts.append(f"# HELP {metric} {words}\n# TYPE {metric} {kind}\n{metric} {value:.0f}\n")
    return "".join(texts)


def write_metrics(folder: str, text: str, name: str = METRICS) -> None:
    _write(os.path.join(folder, f"{name}.prom"), text)


def _write(path: str, text: str) -> None:
    """Whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".spt-flow.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def lines(report: Report, dry: bool) -> list[str]:
    """What a person reads."""
    said = [
        f"{'would delete' if dry else 'could not delete' if entry.name in report.failed else 'deleted'} "
        f"{entry.part} {entry.name}: {report.failed.get(entry.name, entry.why)}"
        for entry in report.doomed
    ]
    verb = "would bring" if dry else "brought"
    said += [f"{verb} the stop of workspace {name} nearer: {LONGEST / 3600:g} hours from now" for name in report.capped]
    gone = {entry.name for entry in report.doomed}
    rest = {name: why for name, why in report.failed.items() if name not in gone}
    said += [f"could not bring nearer the stop of {name}: {why}" for name, why in rest.items()]
    return said or ["Nothing to delete."]
