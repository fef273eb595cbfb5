# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file system of limited size for a volume.

A sparse file next to the volume's directory ``_data`` holds the file system, so it is deleted with the volume. It is
mounted over ``_data`` while a container of the volume exists. The directory below the mount has one file, ``MARKER``.
It says that the image holds the data, and keeps the engine from copying the container image's home into the directory.
Its length is the number of bytes in use, so that the engine reports the right size of the volume.

A migration ends with one rename: before it, the directory is the data and the image an unfinished copy; after it, the
image is the data.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import Conflict, Unhealthy
from . import kernel

IMAGE = ".spt-flow-disk.ext4"
FRESH = ".spt-flow-disk.new"
ASIDE = ".spt-flow-disk.aside"
STAGING = ".spt-flow-disk.staging"
NEXT = ".spt-flow-disk.next"
MARKER = ".spt-flow-disk"
OPTIONS = "noinit_itable"
SLACK = 64 << 20
"""Bytes by which a file system is larger than the data it is created for."""


def step(name: str) -> None:
    """Called after each step of a migration, so that tests can kill the process there."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Allow one change of a volume at a time. The kernel releases the lock of a killed process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def marked(data: Path) -> bool:
    """Return whether the image holds the data. Only the node's root can create the mark."""
    try:
        found = os.lstat(data / MARKER)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == 0


def is_attached(data: Path) -> bool:
    """Return whether our file system is mounted over ``data``."""
    top = kernel.on_top(Path(os.path.realpath(data)))
    return top is not None and top.kind == "ext4" and top.source.startswith("/dev/loop") and top.root == "/"


# Attaching


def attach(data: Path, size: int) -> bool:
    """Mount the sized file system over ``data``; create it or migrate the data if needed. Return whether it is mounted.

    Raise ``FlowError`` if that is not possible; the data is unchanged then.
    """
    folder = data.parent
    if (folder / "opts.json").exists() or (size == 0 and not marked(data)):
        return is_attached(data)
    with locked(folder):
        if is_attached(data):
            return True
        try:
            _tidy(data)
            if not marked(data):
                _migrate(data, size)
            if not (folder / IMAGE).exists():
                raise Unhealthy(
                    f"The file system of {folder.name} is missing: {folder / IMAGE}.",
                    "Restore a snapshot with the playbook volume_restore.",
                )
            _mount(folder / IMAGE, data, size)
        except OSError as error:
            raise Unhealthy(
                f"Cannot limit the disk of {folder.name}: {error.strerror or error}. Its data is untouched.",
                "Check that the node has loop devices and free space, or disable the limit: disk=0, docker_disk=0.",
            ) from error
        return True


def _tidy(data: Path) -> None:
    """Remove the leftovers of a migration that was killed. ``data`` is complete at each of its steps."""
    import shutil

    folder = data.parent
    if (folder / NEXT).exists():
        if not marked(data):
            # An unfinished copy of the directory's data.
            with suppress(FileNotFoundError):
                (folder / IMAGE).unlink()
        shutil.rmtree(folder / NEXT)
    if (folder / STAGING).exists():
        shutil.rmtree(folder / STAGING)
    with suppress(FileNotFoundError):
        (folder / FRESH).unlink()


def _migrate(data: Path, size: int) -> None:
    """Create the file system, copy ``data`` into it, and replace the directory in one step."""
    import shutil

    folder = data.parent
    if in_use(data):
        raise Conflict(
            f"Cannot give {folder.name} a file system of its own: a container without a size limit uses it.",
            "Stop that container, then run the command again.",
        )
    used, count = usage(data)
    size = max(size, used + used // 8 + SLACK)
    need(folder, used + used // 8)
    if (folder / IMAGE).exists():
        # The mark was deleted manually: keep whatever the image holds.
        os.replace(folder / IMAGE, folder / ASIDE)
    step("begun")
    make(folder / FRESH, size, count)
    step("made")
    (folder / STAGING).mkdir(mode=0o700)
    _copied(data, folder / FRESH, folder / STAGING)
    step("copied")
    following = folder / NEXT
    following.mkdir(mode=0o700)
    _mark(following, used)
    found = os.stat(data)
    os.chown(following, found.st_uid, found.st_gid)
    shutil.copystat(data, following)
    step("prepared")
    os.rename(folder / FRESH, folder / IMAGE)
    kernel.keep(folder)
    step("named")
    kernel.exchange(following, data)
    kernel.keep(folder)
    step("exchanged")
    shutil.rmtree(following)
    (folder / STAGING).rmdir()


def in_use(data: Path) -> bool:
    """Return whether a container has the directory itself mounted: its later writes would be lost."""
    seen, end = set(), f"/{data.parent.name}/{data.name}"
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            namespace = os.readlink(process / "ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            if any(mount.root.endswith(end) for mount in kernel.mounts(process.name)):
                return True
    return False


def usage(data: Path) -> tuple[int, int]:
    """Return the bytes on disk and the number of entries below ``data``. Hard links count once."""
    total, seen = 0, set()
    for path, folders, files in os.walk(data):
        for name in ["."] + files + [f for f in folders if os.path.islink(os.path.join(path, f))]:
            found = os.lstat(os.path.join(path, name))
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_blocks * 512
    return total, len(seen)


def need(folder: Path, wanted: int) -> None:
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < wanted + SLACK:
        raise Unhealthy(
            f"Cannot give {folder.name} a file system of its own: {(wanted + SLACK) >> 20} MiB are needed at {folder}, "
            f"{free >> 20} MiB are free. Its data is untouched.",
            "Free space on the node, or disable the limit: disk=0, docker_disk=0.",
        )


def make(image: Path, size: int, count: int = 0) -> None:
    """Create an empty file system in a sparse file. Its tables are initialised lazily."""
    from .. import process

    size -= size % kernel.BLOCK
    with open(image, "wb", opener=_private) as file:
        file.truncate(size)
    ratio = max(1024, min(16384, size // (2 * count + 1)))
    # Allow growth by 16 times: the default reserve is most of the data written here.
    extended = f"lazy_itable_init=1,lazy_journal_init=1,nodiscard,resize={min(size // kernel.BLOCK * 16, 2**32 - 1)}"
    argv = [
        "mkfs.ext4",
        "-q",
        "-F",
        "-b",
        str(kernel.BLOCK),
        "-m",
        "0",
        "-i",
        str(ratio),
        "-E",
        extended,
        "--",
        str(image),
    ]
    try:
        done = process.run(*argv)
    except FileNotFoundError:
        raise Unhealthy(
            "Cannot limit the disk: the node has no mkfs.ext4.", "Run the role spt.flow.host_docker on it again."
        ) from None
    if done.returncode:
        raise Unhealthy(f"Cannot create a file system in {image}: {done.stderr.strip()}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _copied(data: Path, image: Path, staging: Path) -> None:
    """Copy all of ``data`` into ``image`` and sync it to the disk, in a private mount."""
    with kernel.loop(image) as device, kernel.private_mounts():
        kernel.mount(device, staging, "ext4", OPTIONS)
        (staging / "lost+found").rmdir()
        copy(f"{data}/.", staging)
        kernel.sync(staging)
        kernel.unmount(staging)
    kernel.keep(image)


def copy(source: str, target: Path, *options: str) -> None:
    """Copy with owners, modes, times, links, holes and attributes."""
    from .. import process

    argv = ["cp", "-a", "--sparse=auto", *options, "--", source, str(target)]
    done = process.run(*argv)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["cp failed"])[-1]
        number = errno.ENOSPC if "No space left" in done.stderr else errno.EIO
        raise OSError(number, last, source)


def _mark(folder: Path, used: int) -> None:
    with open(folder / MARKER, "wb", opener=_private) as file:
        file.truncate(used)


def _mount(image: Path, data: Path, size: int) -> None:
    """Mount ``image`` over ``data``, grow it to ``size`` if that is larger, and move new files of the directory into
    it.
    """
    grown = size > image.stat().st_size
    if grown:
        with open(image, "r+b") as file:
            file.truncate(size - size % kernel.BLOCK)
    below = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with kernel.loop(image) as device:
            kernel.refresh(device)
            kernel.mount(device, data, "ext4", OPTIONS)
            if _blocks(image) < image.stat().st_size // kernel.BLOCK:
                _grow(device)
        _import_files(below, data)
    finally:
        os.close(below)


def _grow(device: str) -> None:
    """Grow the mounted file system to the size of its device. If that fails, it keeps its size."""
    from .. import process

    process.run("resize2fs", device)


def _blocks(image: Path) -> int:
    """Return the number of blocks from the superblock."""
    with open(image, "rb") as file:
        file.seek(1024 + 4)
        return int.from_bytes(file.read(4), "little")


def _import_files(below: int, data: Path) -> None:
    """Move files that the engine wrote to a stopped home (a repository, docker cp) into the image.

    Files that do not fit stay below and are retried at the next start.
    """
    import shutil

    # Use a path that the copying program can open too.
    folder = Path(f"/proc/{os.getpid()}/fd/{below}")
    for name in os.listdir(below):
        path = folder / name
        if name == MARKER or usage(path)[0] + SLACK // 8 > shutil.disk_usage(data).free:
            continue
        with suppress(OSError):
            # Keep both files if the name is taken. Do not follow a link that the workspace has left there.
            copy(str(path), data, "--backup=numbered")
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


# Detaching


def detach(data: Path) -> None:
    """Unmount the file system if it is mounted, and record how much of it is in use."""
    if not data.parent.is_dir():
        return
    with locked(data.parent):
        if not is_attached(data):
            return
        with suppress(OSError):
            kernel.trim(data)
        found = os.statvfs(data)
        kernel.unmount(data)
        with suppress(OSError):
            os.truncate(data / MARKER, (found.f_blocks - found.f_bfree) * found.f_frsize)


# Reading


@contextmanager
def opened(data: Path) -> Iterator[None]:
    """Give this process access to the home at ``data``, whether or not a container has it mounted.

    The mounts are private and end with this process.
    """
    if is_attached(data) or not marked(data):
        yield
        return
    with kernel.private_mounts():
        with locked(data.parent), kernel.loop(data.parent / IMAGE) as device:
            kernel.mount(device, data, "ext4", OPTIONS)
        yield


def drop(data: Path) -> None:
    """Remove the image of a volume whose directory holds the data again."""
    for name in (IMAGE, FRESH, ASIDE):
        with suppress(FileNotFoundError):
            (data.parent / name).unlink()
