# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host and its Docker engine are, read at once for the role host_docker (private to the collection).

Nothing is changed. Every path lies below a root, so that recorded trees can be read; programs are asked only about
the real one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._docker_http import Engine
from ._errors import FlowError, InvalidInput
from ._workspace import LABEL

LIBRARY = "usr/local/lib/spt-flow"
PROFILE = "spt-flow-workspace"
KEYS = ("maxkeys", "maxbytes")
PROGRAMS = ("usr/sbin/dockerd", "usr/bin/dockerd")
DATA_ROOT = "/var/lib/docker"
KEPT = ("containers", "image/*/imagedb/content/sha256", "volumes")
"""Below the data root; their entries are containers, images and volumes (moby 20.10 to 28)."""
BOOKKEEPING = {"metadata.db", "backingFsBlockDev"}


def read(
    remap_user: str,
    packages: Sequence[str] = (),
    units: Sequence[str] = (),
    devices: Sequence[str] = (),
    root: str = "/",
) -> dict[str, Any]:
    """Everything that the role decides by; keys as in the module engine_info. Raises FlowError for settings that are
    not JSON: merging into them would lose what somebody meant."""
    base, real = Path(root), root == "/"
    settings = _settings(base / "etc/docker/daemon.json")
    info = _info() if real else {}
    return {
        **_system(base),
        "settings": settings,
        "info": info,
        "content": _content(base, settings, info),
        "newer": _newer(base),
        "ours": (base / "run/spt-flow/dockerd.pid").exists(),
        "packages": _packages(packages) if real and packages else {},
        "units": {name: _unit(name) for name in units} if real else {},
        "devices": {f"/{name}": _mode(base / name) for name in devices if (base / name).exists()},
        "ids": {name: _ids(base / "etc" / name, remap_user) for name in ("subuid", "subgid")},
        "remap_user": any(line.startswith(f"{remap_user}:") for line in _lines(base / "etc/passwd")),
        "members": _members(base, "docker"),
        "firewall": real and _works(f"/{LIBRARY}/spt-flow-firewall", "check"),
        "key_limits": {name: int(_text(base / "proc/sys/kernel/keys" / name) or 0) for name in KEYS},
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _system(base: Path) -> dict[str, Any]:
    """Release, start system, AppArmor, cgroups and size of the machine."""
    release = dict(line.split("=", 1) for line in _lines(base / "etc/os-release") if "=" in line)
    values = {name: value.strip("\"'") for name, value in release.items()}
    memory = next((line.split()[1] for line in _lines(base / "proc/meminfo") if line.startswith("MemTotal:")), "0")
    profiles = _lines(base / "sys/kernel/security/apparmor/profiles")
    return {
        "release": f"{values.get('ID', 'unknown').capitalize()}-{values.get('VERSION_ID', '')}",
        "codename": values.get("VERSION_CODENAME", ""),
        "systemd": (base / "run/systemd/system").is_dir(),
        "apparmor": _text(base / "sys/module/apparmor/parameters/enabled") == "Y",
        "profile": any(line.startswith(f"{PROFILE} ") for line in profiles),
        "unified": (base / "sys/fs/cgroup/cgroup.controllers").exists(),
        "memory": int(memory) * 1024,
        "cpus": sum(line.startswith("processor") for line in _lines(base / "proc/cpuinfo")),
    }


def _settings(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        raise InvalidInput(
            f"Cannot merge settings into /{path.relative_to(path.parents[2])}: it holds no JSON object.",
            "Correct the file, or move it away to begin with our settings alone.",
        )
    return found


def _info() -> dict[str, Any]:
    """What the engine on this host says of itself; empty when none answers."""
    engine = Engine("unix:///var/run/docker.sock")
    try:
        info = engine.get_json("/info", timeout=20)
        volumes = engine.get_json("/volumes", timeout=20)
        ours = {"all": True, "filters": {"label": [f"{LABEL}owner"]}}
        workspaces = engine.get_json("/containers/json", ours, timeout=20)
    except FlowError:
        return {}
    options = [option.partition(",")[0] for option in info.get("SecurityOptions") or []]
    return {
        "version": info.get("ServerVersion", ""),
        "remapped": "name=userns" in options,
        "security": options,
        "runtimes": sorted(info.get("Runtimes") or {}),
        "cgroup_driver": info.get("CgroupDriver", ""),
        "live_restore": bool(info.get("LiveRestoreEnabled")),
        "running": info.get("ContainersRunning", 0),
        "workspaces": len(workspaces),
        "content": info.get("Containers", 0) + info.get("Images", 0) + len(volumes.get("Volumes") or []),
    }


def _content(base: Path, settings: dict[str, Any], info: dict[str, Any]) -> int:
    """Containers, images and volumes that an engine without remapping has; it is asked when it runs."""
    if info:
        return int(info["content"])
    data = base / str(settings.get("data-root") or DATA_ROOT).lstrip("/")
    folders = [folder for name in KEPT for folder in data.glob(name)]
    return sum(name not in BOOKKEEPING for folder in folders for name in os.listdir(folder))


def _newer(base: Path) -> bool:
    """Whether settings or the program changed after the engine started; dpkg keeps the build's mtime, so its ctime."""
    try:
        started = os.stat(base / "var/run/docker.pid").st_mtime
    except OSError:
        return False
    settings = base / "etc/docker/daemon.json"
    changed = [os.stat(settings).st_mtime] if settings.exists() else []
    changed += [os.stat(base / name).st_ctime for name in PROGRAMS if (base / name).exists()]
    return any(moment > started for moment in changed)


def _packages(names: Sequence[str]) -> dict[str, str]:
    """Version by name of those that are installed."""
    said = _run("dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package} ${Version}\n", "--", *names)
    words = [line.split() for line in said.splitlines()]
    return {word[1]: word[2] for word in words if len(word) == 3 and word[0] == "installed"}


def _unit(name: str) -> dict[str, bool]:
    asked = ("ActiveState", "UnitFileState", "NeedDaemonReload")
    said = _run("systemctl", "show", f"--property={','.join(asked)}", "--", name)
    values = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return {
        "active": values.get("ActiveState") == "active",
        "enabled": values.get("UnitFileState") == "enabled",
        "reload": values.get("NeedDaemonReload") == "yes",
    }


def _mode(path: Path) -> str:
    return f"{os.stat(path).st_mode & 0o7777:04o}"


def _ids(path: Path, user: str) -> list[str]:
    """Ranges of ``user`` as ``first:count``."""
    return [line.partition(":")[2] for line in _lines(path) if line.startswith(f"{user}:")]


def _members(base: Path, group: str) -> list[str]:
    found = [line.split(":") for line in _lines(base / "etc/group") if line.startswith(f"{group}:")]
    return [name for fields in found for name in fields[-1].split(",") if name]


def _run(*argv: str) -> str:
    """What a program prints; nothing when it is not there or hangs."""
    try:
        done = subprocess.run(
            argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _works(*argv: str) -> bool:
    if not shutil.which(argv[0]):
        return False
    try:
        return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
