# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Project quotas of ext4 and XFS for directories.

A directory's project is a number. All entries below inherit it, and a process inside a user namespace cannot change it.
The file system enforces the limit, so the data does not move.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import kernel

GET, SET = 0x801C581F, 0x401C5820
INHERIT = 0x200
ATTRIBUTES = struct.Struct("IIIII8x")
QUOTACTL_FD = 443
PROJECT = 2
GET_QUOTA, SET_QUOTA = 0x800007, 0x800008
LIMITS = struct.Struct("8QI4x")
BLOCK_LIMITS = 1
FIRST = 0x40000000
"""Lower project numbers belong to others: Docker assigns its own from the lowest."""
LOCK = "/run/spt-flow/disk.lock"


def available(path: Path) -> bool:
    """Return whether the file system of ``path`` enforces project limits."""
    found = kernel.holding(Path(os.path.realpath(path)))
    return found.kind in ("ext4", "xfs") and not {"prjquota", "pquota"}.isdisjoint(found.options.split(","))


def attempt(folders: Sequence[Path], size: int, files: Sequence[str] = ()) -> bool:
    """Limit ``folders`` and ``files`` together if the file system supports project limits. Return whether it does."""
    if not available(folders[0]):
        return False
    try:
        apply(folders, size)
        join(folders[0], files)
    except OSError:
        # Mounted with quotas, but the kernel cannot set them.
        return False
    return True


def apply(folders: Sequence[Path], size: int) -> None:
    """Limit all of ``folders`` together to ``size`` bytes; 0 removes the limit. Idempotent.

    The first folder is marked last, so that the next call completes one that was killed.
    """
    first = folders[0]
    project = _project(first)
    if project < FIRST and size == 0:
        return
    with _locked():
        if project < FIRST:
            project = _unused(first)
            for folder in reversed(folders):
                _assign(folder, project)
        _limit(first, project, size)


def join(folder: Path, files: Sequence[str]) -> None:
    """Add ``files`` to the project of ``folder``, except those on another file system."""
    project = _project(folder)
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_dev == os.stat(folder).st_dev:
                _mark(descriptor, project, 0)
        finally:
            os.close(descriptor)


@contextmanager
def _locked() -> Iterator[None]:
    os.makedirs(os.path.dirname(LOCK), mode=0o755, exist_ok=True)
    with open(LOCK, "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _project(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return int(ATTRIBUTES.unpack(fcntl.ioctl(descriptor, GET, bytes(ATTRIBUTES.size)))[3])
    finally:
        os.close(descriptor)


def _unused(folder: Path) -> int:
    """Return an unused project: the folder's inode number, which no other folder has."""
    project = FIRST + os.stat(folder).st_ino % FIRST
    while _quota(folder, GET_QUOTA, project)[5]:
        project = FIRST + (project + 1) % FIRST
    return project


def _assign(folder: Path, project: int) -> None:
    for _path, folders, files, here in os.fwalk(folder, topdown=False, follow_symlinks=False):
        for name in files:
            if stat.S_ISREG(os.lstat(name, dir_fd=here).st_mode):
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
                try:
                    _mark(descriptor, project, 0)
                finally:
                    os.close(descriptor)
        del folders
        _mark(here, project, INHERIT)


def _mark(descriptor: int, project: int, flags: int) -> None:
    words = list(ATTRIBUTES.unpack(fcntl.ioctl(descriptor, GET, bytes(ATTRIBUTES.size))))
    words[0] |= flags
    words[3] = project
    fcntl.ioctl(descriptor, SET, ATTRIBUTES.pack(*words))


def _limit(folder: Path, project: int, size: int) -> None:
    _quota(folder, SET_QUOTA, project, (size + 1023) // 1024)


def _quota(folder: Path, command: int, project: int, kibibytes: int = 0) -> tuple[int, ...]:
    """Return the kernel's record: hard and soft limit in KiB, bytes, then the same for inodes."""
    record = ctypes.create_string_buffer(LIMITS.pack(kibibytes, kibibytes, 0, 0, 0, 0, 0, 0, BLOCK_LIMITS), LIMITS.size)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        done = kernel.libc.syscall(
            ctypes.c_long(QUOTACTL_FD),
            ctypes.c_uint(descriptor),
            ctypes.c_uint(command << 8 | PROJECT),
            ctypes.c_uint(project),
            record,
        )
        kernel.check(done, "quota", folder)
    finally:
        os.close(descriptor)
    return LIMITS.unpack(record.raw)
