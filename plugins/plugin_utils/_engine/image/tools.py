# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tool's layer of the image, made of its released files: archives in, one archive out.

The result depends on the files alone: owners, times and modes are fixed, so that an engine finds an unchanged layer
again.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ....module_utils._node.errors import FlowError

LAYOUT = "1"
"""Moves when the same entry is laid out in another way than before."""
_TIME = 946684800
"""2000-01-01, in seconds; zip files know nothing before 1980."""
_EXECUTABLE = (b"\x7fELF", b"#!")
"""How programs begin. Wheels and Go's modules lose modes, so they are told by this everywhere."""
_BLOCK = 1 << 20


def write(name: str, tool: Mapping[str, Any], files: Sequence[tuple[Path, Mapping[str, Any]]], target: Path) -> None:
    """The layer of ``tool``: of each of ``files`` (an archive, and its entry of versions.yml) what is to be taken."""
    leave = tuple(tool.get("leave", ()))
    with (
        open(target, "wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT) as tar,
    ):
        layer = _Layer(tar)
        for path, entry in files:
            take = {part.format(version=tool["version"]): place for part, place in entry["take"].items()}
            taken = set()
            for member, size, content in _members(path):
                part, place = _place(member, take, entry.get("rename", {}))
                if not part or place.startswith(leave):
                    continue
                layer.add(place, size, content)
                taken.add(part)
            if missing := sorted(set(take) - taken):
                raise FlowError(
                    f"Cannot lay out {name}: {entry['url']} does not hold {missing[0]}.",
                    "Its entry in image/versions.yml says what is taken from it.",
                )
        for place, destination in tool.get("links", {}).items():
            layer.link(place, destination)


def _place(member: str, take: Mapping[str, str], rename: Mapping[str, str]) -> tuple[str, str]:
    """The key of ``take`` that ``member`` of an archive falls under, and its path in the image; else empty texts."""
    for part, place in take.items():
        if member == part:
            return part, place
        if part.endswith("/") and member.startswith(part):
            path = PurePosixPath(place + member[len(part) :])
            if ".." in path.parts:
                break
            return part, str(path.with_name(rename.get(path.name, path.name)))
    return "", ""


def _members(path: Path) -> Iterator[tuple[str, int, IO[bytes] | str]]:
    """Name, size and content of every file of an archive; of a symbolic link its destination."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    with archive.open(entry) as content:
                        yield entry.filename, entry.file_size, content
        return
    with tarfile.open(path) as tar:
        for info in tar:
            name = info.name.removeprefix("./")
            if info.issym():
                yield name, 0, info.linkname
            elif info.isreg():
                yield name, info.size, tar.extractfile(info) or io.BytesIO()
            elif info.islnk():
                linked = tar.getmember(info.linkname)
                yield name, linked.size, tar.extractfile(linked) or io.BytesIO()


class _Layer:
    """An archive that gets each folder before what lies in it."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._folders: set[str] = set()

    def add(self, place: str, size: int, content: IO[bytes] | str) -> None:
        if isinstance(content, str):
            self.link(place, content)
            return
        begin = content.read(4)
        info = self._entry(place, 0o755 if begin.startswith(_EXECUTABLE) else 0o644)
        info.size = size
        self._tar.addfile(info, _Joined(begin, content))  # type: ignore[arg-type]

    def link(self, place: str, destination: str) -> None:
        info = self._entry(place, 0o777)
        info.type, info.linkname = tarfile.SYMTYPE, destination
        self._tar.addfile(info)

    def _entry(self, place: str, mode: int) -> tarfile.TarInfo:
        for parent in reversed(PurePosixPath(place).parents[:-1]):
            if str(parent) not in self._folders:
                self._folders.add(str(parent))
                folder = self._plain(str(parent), 0o755)
                folder.type = tarfile.DIRTYPE
                self._tar.addfile(folder)
        return self._plain(place, mode)

    @staticmethod
    def _plain(place: str, mode: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(place)
        info.mode, info.mtime = mode, _TIME
        return info


class _Joined:
    """What was read of a file, and its rest."""

    def __init__(self, begin: bytes, rest: IO[bytes]) -> None:
        self._begin = begin
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        begin, self._begin = self._begin, b""
        return begin + self._rest.read(size - len(begin) if size >= 0 else -1)


def keep(blocks: Iterable[bytes], target: Path) -> None:
    """``blocks`` as the file ``target``."""
    with open(target, "wb") as out:
        for block in blocks:
            out.write(block)


def of_package(package: Path, name: str) -> bytes:
    """The file ``name`` of a Debian package: an `ar` archive with headers of 60 bytes (deb(5)), data by gzip or xz."""
    with open(package, "rb") as handle:
        handle.read(8)
        while len(header := handle.read(60)) == 60:
            part, size = header[:16].decode().strip(" /"), int(header[48:58])
            content = handle.read(size + size % 2)[:size]
            if part.startswith("data.tar"):
                with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                    found = tar.extractfile(f"./{name}")
                    if found is not None:
                        return found.read()
    raise FlowError(f"Cannot take {name} from {package}: it is not in there.", "See its entry in image/versions.yml.")
