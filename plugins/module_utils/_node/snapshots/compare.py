# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare two trees, file by file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1 << 20


def entries(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield all entries below and including ``root`` as (relative path, lstat), without following links and without
    sockets.
    """
    yield ".", os.lstat(root)
    for folder, folders, files in os.walk(root, onerror=_raise):
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if not stat.S_ISSOCK(status.st_mode):
                yield os.path.relpath(path, root), status


def differences(original: str, copy: str, changed_since: float | None = None, limit: int = 20) -> tuple[int, list[str]]:
    """Compare names, types, owners, modes, times, sizes, link targets, extended attributes and every byte.

    Return (number of entries compared, sentences, at most ``limit``). With ``changed_since`` (epoch seconds), entries
    of ``original`` that changed later are skipped, because a volume in use keeps changing.
    """
    found, compared = [], 0
    left, right = dict(entries(original)), dict(entries(copy))
    for path in sorted(left.keys() | right.keys()):
        touched = path in left and changed_since is not None and left[path].st_ctime >= changed_since
        if touched or (changed_since is not None and path not in left):
            continue
        compared += 1
        if path not in right or path not in left:
            found.append(f"{path}: {'missing' if path in left else 'unexpected'}")
        else:
            found += [f"{path}: {what}" for what in _entry(original, copy, path, left[path], right[path])]
        if len(found) >= limit:
            break
    return compared, found[:limit]


def _entry(original: str, copy: str, path: str, a: os.stat_result, b: os.stat_result) -> Iterator[str]:
    one, other = os.path.join(original, path), os.path.join(copy, path)
    if a.st_mode != b.st_mode:
        yield f"mode {b.st_mode:o} instead of {a.st_mode:o}"
        return
    if (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid):
        yield f"owner {b.st_uid}:{b.st_gid} instead of {a.st_uid}:{a.st_gid}"
    if not stat.S_ISLNK(a.st_mode) and a.st_mtime_ns != b.st_mtime_ns:
        yield "time of change"
    if attributes(one) != attributes(other):
        yield "extended attributes"
    if stat.S_ISLNK(a.st_mode) and os.readlink(one) != os.readlink(other):
        yield "link target"
    if stat.S_ISREG(a.st_mode) and (a.st_size != b.st_size or not same_bytes(one, other)):
        yield "content"


def attributes(path: str) -> dict[str, bytes]:
    """Return the extended attributes (including ACLs) of the entry itself."""
    try:
        return {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
    except OSError:
        return {}


def same_bytes(one: str, other: str) -> bool:
    with Path(one).open("rb") as a, Path(other).open("rb") as b:
        while True:
            block = a.read(BLOCK)
            if block != b.read(BLOCK):
                return False
            if not block:
                return True


def _raise(error: OSError) -> None:
    raise error
