# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep base images and downloads on this machine, keyed by content."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....module_utils._node.errors import FlowError
from ..common.progress import Progress
from . import engine as image_engine
from .identity import Image

BLOCK = 1 << 20
_KINDS = ("base", "downloads", "ide", "images", "tools")
"""Directories of the cache."""
_LEFT = 6 * 3600
"""Seconds after which an unfinished, unlocked directory counts as a leftover."""


def cache(*parts: str) -> Path:
    """Return a directory of the cache; create it if missing."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = base.joinpath("spt-flow", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def lock(name: str, progress: Progress) -> Iterator[None]:
    """Allow one build of an image at a time on this machine. Waiting builds then find it finished."""
    with open(cache("locks") / f"{name}.lock", "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            progress.note("image: another run is building it, waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Yield a temporary path in the directory of ``target``, and rename it to ``target`` if the block succeeds."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder, _held(folder):
        path = Path(folder) / target.name
        yield path
        os.replace(path, target)


@contextlib.contextmanager
def _held(folder: str) -> Iterator[None]:
    """Lock a directory while the block runs. Raise ``BlockingIOError`` if another process has the lock."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def sweep() -> None:
    """Delete the unfinished directories of killed builds. They are no longer locked."""
    for folder in (path for kind in _KINDS for path in cache(kind).glob(".*.*") if path.is_dir()):
        try:
            if folder.stat().st_mtime < time.time() - _LEFT:
                with _held(str(folder)):
                    _remove(folder)
        except OSError:
            continue


def _remove(folder: Path) -> None:
    """Delete a directory that may contain a base system: root's files, and file systems mounted by debootstrap."""
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    for mounted in folder.glob("*/system/proc"):
        subprocess.run([*root, "umount", "-q", str(mounted)], capture_output=True, check=False)
    subprocess.run([*root, "rm", "-rf", "--one-file-system", str(folder)], capture_output=True, check=False)


def archive_of(image: Image) -> Path:
    return cache("images") / f"{image.profile}-{image.hash}.tar"


def save(engine: Any, image: Image) -> None:
    """Keep the image in the cache, and delete older images of its profile."""
    archive = archive_of(image)
    with atomic(archive) as path, open(path, "wb") as out:
        for block in engine.images.get(image.tag).save(chunk_size=BLOCK, named=True):
            out.write(block)
    # The name of another profile may begin with this one's.
    for old in archive.parent.glob(f"{image.profile}-{'[0-9a-f]' * 64}.tar"):
        if old != archive:
            old.unlink(missing_ok=True)


def load(image: Image, progress: Progress) -> bool:
    """Load the image from the cache. Delete an archive that does not contain it."""
    archive = archive_of(image)
    if not archive.exists():
        return False
    progress.note(f"image: loading {archive} ({archive.stat().st_size >> 20} MiB)")
    engine = image_engine.sdk()
    from docker.errors import DockerException

    try:
        with open(archive, "rb") as handle:
            engine.images.load(handle)
    except (OSError, DockerException) as error:
        progress.note(f"image: the cached archive is not usable ({error})")
    if image_engine.present(image):
        return True
    archive.unlink(missing_ok=True)
    return False


_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def room(doing: str, where: Path) -> Iterator[None]:
    """Raise an error about the full disk if that is why the block failed."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise no_space(doing, where) from None


def no_space(doing: str, where: Path | str) -> FlowError:
    return FlowError(
        f"Cannot {doing} {where}: the disk is full.",
        f"Free space there (`df -h {where}`) and run it again. Nothing was tagged; finished parts are reused.",
    )
