# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small root file system of this image's programs and their libraries, for a guest or a container."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Mapping

from .contract import Failure, reason

DIRECTORY, FILE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755

Tree = Mapping[str, "tuple[int, bytes]"]
"""Mode and content by path below the root; folders come before their files."""


def of(programs: Iterable[str], files: Mapping[str, bytes] | None = None, folders: Iterable[str] = ()) -> Tree:
    """Return a tree with ``programs`` in ``/bin``, their libraries, and ``files`` by path."""
    found: dict[str, tuple[int, bytes]] = {}

    def add(path: str, mode: int, content: bytes) -> None:
        parent = os.path.dirname(path)
        if parent and parent not in found:
            add(parent, DIRECTORY, b"")
        found[path] = (mode, content)

    for folder in folders:
        add(folder, DIRECTORY, b"")
    for name in programs:
        place = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin")
        if not place:
            raise Failure(f"{name} is not installed.")
        add(f"bin/{name}", FILE, _read(place))
        for library in _libraries(place):
            if library.lstrip("/") not in found:
                add(library.lstrip("/"), FILE, _read(library))
    for path, content in (files or {}).items():
        add(path, FILE, content)
    return found


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Failure(f"{path} cannot be read: {reason(error)}.") from None


def _libraries(program: str) -> list[str]:
    """Return the paths of the libraries and the loader of a program; none for a static program."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=30, check=False).stdout
    return re.findall(r"(?:=> |^\s+)(/\S+)", said, re.MULTILINE)


def cpio(tree: Tree) -> bytes:
    """Return the tree as an initrd (cpio newc, gzip)."""
    out = io.BytesIO()
    for number, (path, (mode, content)) in enumerate([*tree.items(), ("TRAILER!!!", (0, b""))], 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out.write(head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4))
    return gzip.compress(out.getvalue(), 1)


def tar(tree: Tree) -> bytes:
    """Return the tree as an archive for ``docker import``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, (mode, content) in tree.items():
            member = tarfile.TarInfo(path)
            member.mode = stat.S_IMODE(mode)
            member.type = tarfile.DIRTYPE if stat.S_ISDIR(mode) else tarfile.REGTYPE
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()
