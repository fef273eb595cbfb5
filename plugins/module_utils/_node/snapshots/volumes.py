# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Home volumes of a node, and a frozen view of each."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import process
from ..docker.http import Engine
from ..errors import DeadlineExceeded, Unhealthy
from ..labels import LABEL

OWNER = f"{LABEL}owner"
SKIP = f"{LABEL}snapshot"
FROZEN = ".spt-flow-frozen"
SUBVOLUME_INODE = 256
FICLONE = 0x40049409
VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


@dataclass(frozen=True)
class Volume:
    """A volume of the engine: its data directory ``path``, its labels and its creation time (epoch seconds)."""

    name: str
    path: str
    labels: dict[str, str] = field(default_factory=dict)
    created: float = 0.0

    @property
    def wanted(self) -> bool:
        """Whether it is one that is snapshotted daily."""
        return OWNER in self.labels and self.labels.get(SKIP) != "no"


class Volumes:
    """The volumes of the engine behind a Unix socket."""

    def __init__(self, socket: str = "/var/run/docker.sock") -> None:
        self._engine = Engine(f"unix://{socket}")

    def all(self) -> list[Volume]:
        """Return every volume with a label of spt.flow."""
        found = self._engine.get_json("/volumes", {"filters": {"label": [OWNER]}})
        return [_volume(item) for item in found.get("Volumes") or []]

    def get(self, name: str) -> Volume:
        return _volume(self._engine.get_json(f"/volumes/{quote(name)}"))

    def create(self, name: str, labels: dict[str, str]) -> Volume:
        return _volume(self._engine.request_json("POST", "/volumes/create", body={"Name": name, "Labels": labels}))

    def remove(self, name: str) -> None:
        self._engine.request_json("DELETE", f"/volumes/{quote(name)}")

    def users(self, name: str) -> list[str]:
        """Return the names of the running containers that use volume ``name``."""
        filters = {"volume": [name], "status": ["running", "paused", "restarting"]}
        found = self._engine.get_json("/containers/json", {"filters": filters})
        return [item["Names"][0].lstrip("/") for item in found]


def discover(engine: Volumes, data_root: str) -> tuple[list[Volume], str]:
    """Return the volumes to snapshot, and a note if the engine does not answer and names in its data root were used."""
    try:
        return [v for v in engine.all() if v.wanted], ""
    except (DeadlineExceeded, Unhealthy) as error:
        volumes = by_name(data_root)
        if not volumes:
            raise
        return volumes, f"{error.message} {len(volumes)} volumes were found below {data_root} by their names."


def by_name(data_root: str) -> list[Volume]:
    """Return home volumes from the disk; a remapped engine keeps them one directory deeper."""
    root = Path(data_root)
    found = [*root.glob("volumes/spt-flow-*-home/_data"), *root.glob("*.*/volumes/spt-flow-*-home/_data")]
    return [Volume(path.parent.name, str(path)) for path in sorted(found) if path.is_dir() and not path.is_symlink()]


def fingerprint(volume: Volume, exclude: Iterable[str] = ()) -> str:
    """Return a hash over the inode of every entry, which changes with ``volume``; empty if an inode cannot be read.

    The kernel sets the time of an inode's last change and it cannot be forged, so contents need not be read.
    ``exclude`` and the labels are included, because they determine a snapshot's content.
    """
    found = hashlib.sha256(json.dumps([sorted(volume.labels.items()), list(exclude)]).encode())
    todo = [os.fsencode(volume.path)]
    try:
        device = os.lstat(volume.path).st_dev
        while todo:
            folder = todo.pop()
            found.update(_inode(folder, os.lstat(folder), device))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                else:
                    found.update(_inode(entry.name, entry.stat(follow_symlinks=False), device))
    except OSError:
        return ""
    return found.hexdigest()


def _inode(name: bytes, facts: os.stat_result, device: int) -> bytes:
    # The number of a loop device changes with every mount.
    numbers = (facts.st_dev != device, facts.st_ino, facts.st_mode, facts.st_uid, facts.st_gid, facts.st_size)
    return b"%s\0%s\0" % (name, repr((*numbers, facts.st_mtime_ns, facts.st_ctime_ns)).encode())


@contextmanager
def frozen(volume: Volume, wanted: str = "auto") -> Iterator[tuple[str, str]]:
    """Yield an unchanging view of ``volume``: (directory, kind).

    Kind ``btrfs`` is a read-only snapshot of one instant; ``reflink`` is a copy that shares all data, each file of one
    instant and the tree of a few seconds; ``live`` is the volume itself. ``wanted`` is ``auto`` or ``live``.
    """
    scratch = Path(volume.path).parent / FROZEN
    discard(scratch)
    try:
        yield (volume.path, "live") if wanted == "live" else _freeze(volume, scratch)
    finally:
        discard(scratch)


def _freeze(volume: Volume, scratch: Path) -> tuple[str, str]:
    root = subvolume(volume.path)
    if root is not None and shutil.which("btrfs"):
        done = process.run("btrfs", "subvolume", "snapshot", "-r", "--", str(root), str(scratch))
        if done.returncode == 0:
            return str(scratch / Path(volume.path).relative_to(root)), "btrfs"
    if can_reflink(scratch.parent):
        scratch.mkdir(mode=0o700)
        copy = scratch / Path(volume.path).name
        done = process.run("cp", "-a", "--reflink=always", "--", volume.path, str(copy))
        if done.returncode == 0 or all("No such file" in line for line in done.stderr.splitlines()):
            return str(copy), "reflink"
        discard(scratch)
    return volume.path, "live"


def subvolume(path: str) -> Path | None:
    """Return the btrfs subvolume that contains ``path``, or ``None`` on another file system."""
    if filesystem(path) != "btrfs":
        return None
    here = Path(path)
    while here.lstat().st_ino != SUBVOLUME_INODE and here != here.parent:
        here = here.parent
    return here if here.lstat().st_ino == SUBVOLUME_INODE else None


def filesystem(path: str) -> str:
    """Return the type of the file system that contains ``path``, from the mount table."""
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _dash, right = line.partition(" - ")
        mount = left.split()[4].encode().decode("unicode_escape")
        if len(mount) >= len(best) and (path + "/").startswith(mount.rstrip("/") + "/"):
            best, kind = mount, right.split()[0]
    return kind


def can_reflink(directory: Path) -> bool:
    """Return whether files in ``directory`` can share their data."""
    with tempfile.TemporaryFile(dir=directory) as source, tempfile.TemporaryFile(dir=directory) as copy:
        source.write(b"x" * 4096)
        source.flush()
        try:
            fcntl.ioctl(copy.fileno(), FICLONE, source.fileno())
        except OSError:
            return False
    return True


def discard(scratch: Path) -> None:
    """Delete the leftovers of a run, or of a killed one, at ``scratch``."""
    if not scratch.is_symlink() and not scratch.exists():
        return
    if (
        scratch.lstat().st_ino == SUBVOLUME_INODE
        and process.run("btrfs", "subvolume", "delete", "--", str(scratch)).returncode == 0
    ):
        return
    shutil.rmtree(scratch)


def _volume(item: dict[str, Any]) -> Volume:
    created = (item.get("CreatedAt") or "").replace("Z", "+00:00")
    seconds = datetime.fromisoformat(created).timestamp() if created else 0.0
    return Volume(item["Name"], item.get("Mountpoint") or "", item.get("Labels") or {}, seconds)
