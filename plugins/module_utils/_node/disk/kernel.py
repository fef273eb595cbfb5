# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounts and loop devices: the few system calls that Python lacks.

A container waits for this code. So it uses the standard library only, imports little of it, and starts no other
program.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RDONLY, REC, PRIVATE = 1, 16384, 1 << 18
DETACH, NOFOLLOW = 2, 8
NEWNS = 0x00020000
EXCHANGE = 2
AT_FDCWD = -100
GET_FREE, CONFIGURE, SET_CAPACITY, GET_STATUS = 0x4C82, 0x4C0A, 0x4C07, 0x4C05
INFO = struct.Struct("5Q4I64s64s32s2Q")
"""``struct loop_info64``: first the device and the inode of the file."""
AUTOCLEAR, DIRECT_IO = 4, 16
LOOP_MAJOR = 7
TRIM = 0xC0185879
BLOCK = 4096
TRIES = 50

libc = ctypes.CDLL(None, use_errno=True)


def check(status: int, doing: str, path: object) -> None:
    """Raise ``OSError`` if a system call failed."""
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}", str(path))


class Mount:
    """One line of the mount table."""

    def __init__(self, point: str, root: str, kind: str, source: str, options: str) -> None:
        self.point, self.root, self.kind, self.source, self.options = point, root, kind, source, options


def mounts(process: str = "self") -> list[Mount]:
    """Return the mount table of a process, in mount order."""
    found = []
    for line in Path(f"/proc/{process}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _dash, right = line.partition(" - ")
        words, rest = [_plain(word) for word in left.split(" ")], right.split(" ", 2)
        found.append(Mount(words[4], words[3], rest[0], _plain(rest[1]), _plain(rest[2])))
    return found


def _plain(word: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        word = word.replace(code, letter)
    return word


def on_top(path: Path) -> Mount | None:
    """Return the uppermost mount at exactly ``path``."""
    return next((mount for mount in reversed(mounts()) if mount.point == str(path)), None)


def holding(path: Path) -> Mount:
    """Return the mount that contains ``path``."""
    inside = [mount for mount in mounts() if f"{path}/".startswith(mount.point.rstrip("/") + "/")]
    return max(reversed(inside), key=lambda mount: len(mount.point))


def mount(source: str, target: Path, kind: str, options: str = "", flags: int = 0) -> None:
    words = [os.fsencode(word) for word in (source, str(target), kind)]
    check(libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(options)), "mount", target)


def unmount(target: Path) -> None:
    """Detach the mount from the file tree at once. It ends when its last user has ended."""
    check(libc.umount2(os.fsencode(target), DETACH | NOFOLLOW), "unmount", target)


def exchange(one: Path, other: Path) -> None:
    """Exchange two directories in one step."""
    done = libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), ctypes.c_uint(EXCHANGE))
    check(done, "exchange", one)


def sync(path: Path) -> None:
    """Write all cached data of the file system of ``path`` to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        check(libc.syncfs(descriptor), "sync", path)
    finally:
        os.close(descriptor)


def keep(path: Path) -> None:
    """Write a file, or the names in a directory, to the disk, without waiting for other files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def trim(path: Path) -> None:
    """Return the unused blocks of the file system at ``path`` to the file below it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, TRIM, struct.pack("QQQ", 0, 2**64 - 1, 0))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def private_mounts() -> Iterator[None]:
    """Make mounts that are private to this process. The kernel removes them when it ends, even if it is killed."""
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    folder = os.getcwd()
    try:
        check(libc.unshare(NEWNS), "unshare", "mounts")
        try:
            check(libc.mount(b"none", b"/", None, ctypes.c_ulong(REC | PRIVATE), None), "make private", "/")
            yield
        finally:
            check(libc.setns(before, NEWNS), "return to the mounts of", "the host")
            os.chdir(folder)
    finally:
        os.close(before)


# Loop devices


@contextmanager
def loop(image: Path) -> Iterator[str]:
    """Return a loop device of ``image``: its current one, or a new one that is removed with its last user.

    Two mounted devices of one file would overwrite each other's data, so there is never more than one.
    """
    for _try in range(TRIES):
        descriptor, device = _existing(image) or _new(image)
        if descriptor >= 0:
            break
        time.sleep(0.02)
    else:
        raise OSError(errno.EBUSY, "no loop device is free", str(image))
    try:
        yield device
    finally:
        os.close(descriptor)


def _existing(image: Path) -> tuple[int, str] | None:
    for number in _attached(image):
        try:
            descriptor = os.open(_node(number), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            # The device is being removed: its last user has gone.
            if error.errno in (errno.ENXIO, errno.EBUSY):
                return -1, ""
            raise
        if number in _attached(image):
            return descriptor, _node(number)
        os.close(descriptor)
    return None


def _attached(image: Path) -> list[int]:
    """Return the numbers of the devices of ``image``.

    Compare inodes, because the kernel's file name depends on the mount.
    """
    wanted, found = os.stat(image), []
    for entry in Path("/sys/block").glob("loop*/loop"):
        number = int(entry.parent.name[4:])
        try:
            descriptor = os.open(_node(number), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            status = fcntl.ioctl(descriptor, GET_STATUS, bytes(INFO.size))
            if INFO.unpack(status)[:2] == (wanted.st_dev, wanted.st_ino):
                found.append(number)
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return found


def _node(number: int) -> str:
    """Return the device file; create it where udev does not."""
    path = f"/dev/loop{number}"
    with suppress(FileExistsError):
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(LOOP_MAJOR, number))
    return path


def _new(image: Path) -> tuple[int, str]:
    with open("/dev/loop-control", "rb") as control:
        number = fcntl.ioctl(control, GET_FREE)
    device = _node(number)
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        with open(image, "r+b") as file:
            info = struct.pack(
                "QQQQQIIII64s64s32sQQ", 0, 0, 0, 0, 0, 0, 0, 0, AUTOCLEAR | DIRECT_IO, b"", b"", b"", 0, 0
            )
            fcntl.ioctl(descriptor, CONFIGURE, struct.pack("II", file.fileno(), BLOCK) + info + bytes(64))
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EBUSY:
            return -1, ""
        raise
    return descriptor, device


def refresh(device: str) -> None:
    """Let a loop device notice that its file has grown."""
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, SET_CAPACITY)
    finally:
        os.close(descriptor)
