# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of a host and its Docker engine, read at once for the role host_docker. Read-only.

All paths are below a root, so that tests can read recorded trees. Programs are run only for the real root.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import process
from ..errors import FlowError, InvalidInput
from ..labels import LABEL
from ..machine import facts as machine_facts
from ..machine import files as machine_files
from . import holes as docker_holes
from .http import Engine

LIBRARY = "usr/local/lib/spt-flow"
NETWORK = "spt-flow"
"""Bridge network of workspaces (docs/decisions/ide-network.md)."""
PROGRAMS = ("usr/sbin/dockerd", "usr/bin/dockerd")
DATA_ROOT = "/var/lib/docker"
KEPT = ("containers", "image/*/imagedb/content/sha256", "volumes")
"""Below the data root; the entries are containers, images and volumes (moby 20.10 to 28)."""
BOOKKEEPING = {"metadata.db", "backingFsBlockDev"}


def read(
    remap_user: str,
    packages: Sequence[str] = (),
    units: Sequence[str] = (),
    devices: Sequence[str] = (),
    files: Sequence[str] = (),
    limits: Mapping[str, int] | None = None,
    root: str = "/",
) -> dict[str, Any]:
    """Return all facts for the role; the keys are those of the module engine_info.

    Raise ``FlowError`` for settings that are not JSON, because merging would lose them.
    """
    base, real = Path(root), root == "/"
    settings = _settings(base / "etc/docker/daemon.json")
    info = _info() if real else {}
    return {
        **machine_facts.system(base),
        "settings": settings,
        "info": info,
        "content": _content(base, settings, info),
        "newer": _newer(base),
        "ours": (base / "run/spt-flow/dockerd.pid").exists(),
        "packages": machine_facts.installed(packages) if real and packages else {},
        "units": {name: machine_facts.unit(name) for name in units} if real else {},
        "devices": {f"/{name}": machine_facts.mode(base / name) for name in devices if (base / name).exists()},
        "ids": {name: _ids(base / "etc" / name, remap_user) for name in ("subuid", "subgid")},
        "remap_user": any(line.startswith(f"{remap_user}:") for line in machine_facts.lines(base / "etc/passwd")),
        "members": _members(base, "docker"),
        "firewall": real and process.succeeds(f"/{LIBRARY}/spt-flow-firewall", "check"),
        "limits": _limits(base, limits or {}),
        "files": machine_files.digests(files) if real else {},
    }


def _limits(base: Path, least: Mapping[str, int]) -> dict[str, Any]:
    """Return the wanted value of each kernel limit, never below the current one. A minimum of 0 means unlimited."""
    values, low = {}, []
    for name, wanted in ((name, int(value)) for name, value in least.items()):
        text = machine_facts.text(base / "proc/sys" / name.replace(".", "/")).strip()
        if not text:
            continue
        values[name] = max(int(text), wanted) if wanted else 0
        if values[name] != int(text):
            low.append(name)
    return {"values": values, "low": low}


def _settings(path: Path) -> dict[str, Any]:
    text = machine_facts.text(path)
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        raise InvalidInput(
            f"Cannot merge settings into /{path.relative_to(path.parents[2])}: it is not a JSON object.",
            "Correct the file, or move it away to start with our settings alone.",
        )
    return found


def _info() -> dict[str, Any]:
    """Return the engine's own facts, or nothing if it does not answer."""
    engine = Engine("unix:///var/run/docker.sock")
    try:
        info = engine.get_json("/info", timeout=20)
        versions = engine.get_json("/version", timeout=20)
        volumes = engine.get_json("/volumes", timeout=20)
        ours = {"all": True, "filters": {"label": [f"{LABEL}owner"]}}
        workspaces = engine.get_json("/containers/json", ours, timeout=20)
        networks = engine.get_json("/networks", {"filters": {"name": [NETWORK]}}, timeout=20)
    except FlowError:
        return {}
    options = [option.partition(",")[0] for option in info.get("SecurityOptions") or []]
    return {
        "version": info.get("ServerVersion", ""),
        "holes": docker_holes.found(versions, "name=userns" in options),
        "remapped": "name=userns" in options,
        "security": options,
        "runtimes": sorted(info.get("Runtimes") or {}),
        "cgroup_driver": info.get("CgroupDriver", ""),
        "live_restore": bool(info.get("LiveRestoreEnabled")),
        "running": info.get("ContainersRunning", 0),
        "workspaces": len(workspaces),
        "network": any(network["Name"] == NETWORK for network in networks),
        "content": info.get("Containers", 0) + info.get("Images", 0) + len(volumes.get("Volumes") or []),
    }


def _content(base: Path, settings: dict[str, Any], info: dict[str, Any]) -> int:
    """Return the number of containers, images and volumes of an engine without remapping; ask the engine if it runs."""
    if info:
        return int(info["content"])
    data = base / str(settings.get("data-root") or DATA_ROOT).lstrip("/")
    folders = [folder for name in KEPT for folder in data.glob(name)]
    return sum(name not in BOOKKEEPING for folder in folders for name in os.listdir(folder))


def _newer(base: Path) -> bool:
    """Return whether settings or program changed after the engine started.

    Uses ctime, because dpkg sets mtime to the build's.
    """
    try:
        started = os.stat(base / "var/run/docker.pid").st_mtime
    except OSError:
        return False
    settings = base / "etc/docker/daemon.json"
    changed = [os.stat(settings).st_mtime] if settings.exists() else []
    changed += [os.stat(base / name).st_ctime for name in PROGRAMS if (base / name).exists()]
    return any(moment > started for moment in changed)


def _ids(path: Path, user: str) -> list[str]:
    """Return the ranges of ``user`` as ``first:count``."""
    return [line.partition(":")[2] for line in machine_facts.lines(path) if line.startswith(f"{user}:")]


def _members(base: Path, group: str) -> list[str]:
    found = [line.split(":") for line in machine_facts.lines(base / "etc/group") if line.startswith(f"{group}:")]
    return [name for fields in found for name in fields[-1].split(",") if name]
