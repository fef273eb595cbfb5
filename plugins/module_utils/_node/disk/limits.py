# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk limits of a workspace, for the node's runtime.

Before runc creates a container, ``attach`` gives its volumes and its writable layer the sizes set in its environment.
After runc has deleted it, ``detach`` unmounts them. A file in ``RECORDS`` lists them. It is written first, so that
mounts of a deleted container are always found.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .. import atomic
from ..errors import FlowError
from . import image, layer, quota

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RECORDS = "/run/spt-flow/disk"
SIZES = {"/home/coder": "SPT_FLOW_DISK", "/var/lib/spt-flow-docker": "SPT_FLOW_DOCKER_DISK"}
FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
"""Files that the engine mounts from its own directory, writable."""
VOLUME = re.compile(r"/.*/volumes/spt-flow-[a-zA-Z0-9_.-]+/_data")
STATE = "/run/runc"


class Disk:
    """A volume's directory, or a container's root file system, and its size in bytes (0: unlimited)."""

    def __init__(self, path: str, size: int, volume: bool) -> None:
        self.path, self.size, self.volume = path, size, volume


def wanted(config: dict[str, Any]) -> list[Disk]:
    """Return the limits that the bundle's ``config`` requests: our volumes by mount point, and the container itself."""
    env = dict(word.partition("=")[::2] for word in (config.get("process") or {}).get("env") or [])
    found = []
    for mount in config.get("mounts") or []:
        name = SIZES.get(mount.get("destination", ""))
        if name and VOLUME.fullmatch(mount.get("source", "")):
            found.append(Disk(mount["source"], _bytes(env.get(name, "")), True))
    size = _bytes(env.get(SIZES["/home/coder"], ""))
    root = (config.get("root") or {}).get("path", "")
    if size and os.path.isabs(root):
        found.append(Disk(root, size, False))
    return found


def _bytes(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def state(argv: Sequence[str], container: str) -> str:
    """Return the directory in which runc, called with ``argv``, stores the state of ``container``."""
    words = list(argv)
    root = next((words[i + 1] for i, word in enumerate(words[:-1]) if word == "--root"), "")
    root = root or next((word.partition("=")[2] for word in words if word.startswith("--root=")), STATE)
    return os.path.join(root, container)


def attach(process: int, bundle: str, container: str, argv: Sequence[str]) -> None:
    """Apply the limits to ``container``, which ``process`` is about to create.

    Raise ``FlowError``; all mounts are undone then.
    """
    file = Path(bundle) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    disks = wanted(config)
    _forget()
    paths = [[disk.path, disk.volume] for disk in disks]
    _write(container, {"state": state(argv, container), "process": process, "paths": paths})
    try:
        mounted = [_attach(disk, config) for disk in disks]
        file.write_text(json.dumps(config, separators=(",", ":")), encoding="utf-8")
    except BaseException:
        detach(container)
        raise
    if not any(mounted):
        _record(container).unlink()


def _attach(disk: Disk, config: dict[str, Any]) -> bool:
    """Return whether anything was mounted. Replaces the files in ``config`` that now have copies."""
    path = Path(os.path.realpath(disk.path))
    if disk.volume:
        if not image.marked(path) and not image.is_attached(path) and quota.attempt([path], disk.size):
            return False
        return image.attach(path, disk.size)
    mounts = [mount for mount in config.get("mounts") or [] if mount.get("destination") in FILES]
    copies = layer.attach(path, disk.size, [mount["source"] for mount in mounts])
    if copies is None:
        return False
    for mount in mounts:
        if mount["source"] in copies:
            mount["source"] = copies[mount["source"]]
        else:
            mount["options"] = [*(word for word in mount.get("options") or [] if word != "rw"), "ro"]
    return True


def detach(container: str) -> None:
    """Unmount the file systems of ``container``, unless runc still has it or another container uses them."""
    record = _read(_record(container))
    if record is None or os.path.exists(record["state"]):
        return
    others = [
        found for path in Path(RECORDS).glob("[!.]*") if path.name != container for found in [_read(path)] if found
    ]
    needed = {path for other in others if os.path.exists(other["state"]) for path, _volume in other["paths"]}
    for path, volume in record["paths"]:
        if path not in needed:
            (image if volume else layer).detach(Path(os.path.realpath(path)))
    _record(container).unlink()


def _forget() -> None:
    """Detach the leftovers of a container whose end the runtime did not see."""
    with suppress(OSError):
        for path in Path(RECORDS).glob("[!.]*"):
            record = _read(path)
            if record and not os.path.exists(record["state"]) and not _in_creation(record):
                with suppress(FlowError, OSError):
                    detach(path.name)


def _in_creation(record: dict[str, Any]) -> bool:
    return os.path.exists(f"/proc/{record['process']}")


def _record(container: str) -> Path:
    return Path(RECORDS) / os.path.basename(container)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return None


def _write(container: str, record: dict[str, Any]) -> None:
    path = _record(container)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic.write(path, json.dumps(record))
