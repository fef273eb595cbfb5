# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of a host, read at once for the roles. Read-only.

All paths are below a root, so that tests can read recorded trees. Programs are run only for the real root.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import process
from . import files as machine_files

PROFILE = "spt-flow-workspace"
INITIAL = {"pid": "pid:[4026531836]", "user": "user:[4026531837]"}
"""The kernel's initial namespaces (include/linux/proc_ns.h): a process in any other is in a container."""


def read(
    packages: Sequence[str] = (),
    units: Sequence[str] = (),
    room: Sequence[str] = (),
    paths: Sequence[str] = (),
    files: Sequence[str] = (),
    root: str = "/",
) -> dict[str, Any]:
    """Return the facts that every role needs; the keys are those of the module host_info."""
    base, real = Path(root), root == "/"
    return {
        **system(base),
        "packages": installed(packages) if real and packages else {},
        "units": {name: unit(name) for name in units} if real else {},
        "room": {path: free(base, path) for path in room},
        "paths": [path for path in paths if (base / path.lstrip("/")).exists()],
        "files": machine_files.digests(files) if real else {},
    }


def text(path: Path) -> str:
    """Return the content of a file, or nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def lines(path: Path) -> list[str]:
    return text(path).splitlines()


def system(base: Path) -> dict[str, Any]:
    """Return release, init system, container or not, AppArmor, cgroups and size of the machine."""
    release = dict(line.split("=", 1) for line in lines(base / "etc/os-release") if "=" in line)
    values = {name: value.strip("\"'") for name, value in release.items()}
    memory = next((line.split()[1] for line in lines(base / "proc/meminfo") if line.startswith("MemTotal:")), "0")
    profiles = lines(base / "sys/kernel/security/apparmor/profiles")
    return {
        "release": f"{values.get('ID', 'unknown').capitalize()}-{values.get('VERSION_ID', '')}",
        "codename": values.get("VERSION_CODENAME", ""),
        "systemd": (base / "run/systemd/system").is_dir(),
        "container": _contained(base),
        "apparmor": text(base / "sys/module/apparmor/parameters/enabled") == "Y",
        "profile": any(line.startswith(f"{PROFILE} ") for line in profiles),
        "unified": (base / "sys/fs/cgroup/cgroup.controllers").exists(),
        "memory": int(memory) * 1024,
        "cpus": sum(line.startswith("processor") for line in lines(base / "proc/cpuinfo")),
    }


def _contained(base: Path) -> bool:
    """Return whether this is a container.

    It shares the kernel with its host and cannot load audit rules, for example.
    """
    names = {name: base / "proc/self/ns" / name for name in INITIAL}
    return any(path.is_symlink() and os.readlink(path) != INITIAL[name] for name, path in names.items())


def mode(path: Path) -> str:
    """Return the permission bits as octal text, or nothing if the path does not exist."""
    try:
        return f"{os.stat(path).st_mode & 0o7777:04o}"
    except OSError:
        return ""


def free(base: Path, path: str) -> int:
    """Return the free bytes for a directory ``path``, which need not exist yet."""
    folder = base / path.lstrip("/")
    while not folder.exists():
        folder = folder.parent
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def installed(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    said = output("dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package} ${Version}\n", "--", *names)
    words = [line.split() for line in said.splitlines()]
    return {word[1]: word[2] for word in words if len(word) == 3 and word[0] == "installed"}


def unit(name: str) -> dict[str, bool]:
    """Return whether the systemd unit ``name`` is active and enabled, and whether its file changed since systemd read
    it.
    """
    asked = ("ActiveState", "UnitFileState", "NeedDaemonReload")
    said = output("systemctl", "show", f"--property={','.join(asked)}", "--", name)
    values = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return {
        "active": values.get("ActiveState") == "active",
        "enabled": values.get("UnitFileState") == "enabled",
        "reload": values.get("NeedDaemonReload") == "yes",
    }


def output(*argv: str) -> str:
    """Return a program's output, or nothing if it is missing or hangs."""
    return process.ask(*argv)[1]
