# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn the Docker engine's JSON into workspaces and engine facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ....module_utils._node.labels import LABEL
from ..common import untrusted
from ..common.progress import Progress
from ..workspace.models import Workspace
from .session import container_name

if TYPE_CHECKING:
    from ..workspace.target import EngineFacts


OLD = "-old"
_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800, "month": 2592000}


def age(status: str) -> float:
    """Return the seconds of the engine's texts:

    ``Up 5 minutes``, ``Up About an hour``, ``Exited (0) Less than a second ago``.
    """
    match = re.match(r"(?:Up|Exited \(\d+\)) (?:(About|Less than) )?(an?|\d+) (\w+?)s?\b", status)
    if not match or match[3] not in _UNITS:
        return 0.0
    if match[1] == "Less than":
        return 0.0
    return (1 if match[2] in ("a", "an") else int(match[2])) * float(_UNITS[match[3]])


def _labels(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of a container or volume, cleaned."""
    return {name: untrusted.line(text) for name, text in untrusted.record(entry.get("Labels")).items()}


def from_container(entry: Mapping[str, Any], now: float) -> Workspace | None:
    """Return a workspace from an entry of the engine's list of containers, or ``None`` for other containers."""
    labels = _labels(entry)
    owner, name = labels.get(f"{LABEL}owner", ""), labels.get(f"{LABEL}workspace", "")
    if entry["Names"][0].lstrip("/").removesuffix(OLD) != container_name(owner, name):
        return None
    code = re.match(r"Exited \((\d+)\)", entry.get("Status", ""))
    exit_code = int(code[1]) if code else None
    state = {"running": "running", "paused": "paused", "created": "stopped", "dead": "failed"}.get(entry["State"], "")
    if not state:
        state = "stopped" if exit_code in (0, 137, 143, None) else "failed"
    port = next(
        (p["PublicPort"] for p in entry.get("Ports") or [] if p.get("PrivatePort") == 8080 and p.get("PublicPort")), 0
    )
    return Workspace(
        owner=owner,
        name=name,
        repo=labels.get(f"{LABEL}repo", ""),
        kind=labels.get(f"{LABEL}kind", "dev"),
        state=state,
        id=entry["Id"],
        created=labels.get(f"{LABEL}created", ""),
        contract=labels.get(f"{LABEL}contract", ""),
        settings_hash=labels.get(f"{LABEL}settings", ""),
        image_hash=labels.get(f"{LABEL}image", ""),
        deadline=untrusted.digits(labels.get(f"{LABEL}deadline")),
        # Time of its last change of state; empty for a container that never started.
        started=now - age(entry.get("Status", "")) if entry["State"] != "created" else None,
        exit_code=exit_code,
        url=f"http://127.0.0.1:{port}/" if port and state == "running" else "",
    )


def from_home(entry: Mapping[str, Any]) -> Workspace:
    """Return a stopped workspace of which only the home exists."""
    labels = _labels(entry)
    return Workspace(
        owner=labels.get(f"{LABEL}owner", ""),
        name=labels.get(f"{LABEL}workspace", ""),
        repo=labels.get(f"{LABEL}repo", ""),
        kind=labels.get(f"{LABEL}kind", "dev"),
        state="stopped",
        created=labels.get(f"{LABEL}created", ""),
        contract=labels.get(f"{LABEL}contract", ""),
    )


def with_events(workspace: Workspace, lines: Iterable[str]) -> Workspace:
    """Add the steps and liveness printed by the last start (docs/decisions/status-from-logs.md)."""
    from ..workspace.readiness import Watch

    watch = Watch(Progress())
    for line in lines:
        watch.feed(line)
    return watch.apply(workspace)


def engine_facts(info: Mapping[str, Any], local: bool) -> EngineFacts:
    """Return the facts of ``GET /info``; the size of the remapped range comes from /etc/subuid if it is readable."""
    from ..workspace.target import EngineFacts

    options = [word for option in info.get("SecurityOptions") or [] for word in option.split(",")]
    remapped = "name=userns" in options
    base = re.search(r"/(\d+)\.\d+/?$", info.get("DockerRootDir", ""))
    start = int(base[1]) if remapped and base else 0
    return EngineFacts(
        version=info.get("ServerVersion", ""),
        remapped=remapped,
        remap_base=start,
        remap_size=(_range_size(start) if local else -1) if remapped else 0,
        runtime="spt-flow" in (info.get("Runtimes") or {}),
        seccomp=any(option.startswith("name=seccomp") for option in options),
        apparmor="name=apparmor" in options,
        cgroup_version=str(info.get("CgroupVersion", "")),
        cpus=int(info.get("NCPU", 0)),
        memory=int(info.get("MemTotal", 0)),
        storage_driver=info.get("Driver", ""),
        log_driver=info.get("LoggingDriver", ""),
        local=local,
        root=info.get("DockerRootDir", ""),
    )


def _range_size(start: int) -> int:
    try:
        with open("/etc/subuid", encoding="utf-8") as lines:
            parts = [line.strip().split(":") for line in lines]
    except OSError:
        return -1
    return next((int(p[2]) for p in parts if len(p) == 3 and p[1] == str(start)), -1)
