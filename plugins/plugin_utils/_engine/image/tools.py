# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Create a tool's layer of the image from its released files: archives in, one archive out.

The result depends on the files alone. Owners, times and modes are fixed, so that an engine recognises an unchanged
layer.
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
"""Increase it when the layout of an unchanged entry changes."""
_TIME = 946684800
"""2000-01-01, in seconds; zip files cannot store times before 1980."""
_EXECUTABLE = (b"\x7fELF", b"#!")
"""First bytes of programs. Wheels and Go modules lose modes, so programs are detected by content everywhere."""
_BLOCK = 1 << 20


def write(name: str, tool: Mapping[str, Any], files: Sequence[tuple[Path, Mapping[str, Any]]], target: Path) -> None:
    """Write the layer of ``tool`` from ``files``:

    pairs of an archive and its entry of versions.yml, which says what to take.
    """
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
                part, place = _target_path(member, take, entry.get("rename", {}))
                if not part or place.startswith(leave):
                    continue
                layer.add(place, size, content)
                taken.add(part)
            if missing := sorted(set(take) - taken):
                raise FlowError(
                    f"Cannot assemble {name}: {entry['url']} does not contain {missing[0]}.",
                    "Correct its entry in image/versions.yml.",
                )
        for place, destination in tool.get("links", {}).items():
            layer.link(place, destination)


def _target_path(member: str, take: Mapping[str, str], rename: Mapping[str, str]) -> tuple[str, str]:
    """Return the key of ``take`` that matches ``member`` of an archive, and its path in the image, or empty texts."""
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
    """Yield name, size and content of every file of an archive, or the destination of a symbolic link."""
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
    """An archive that gets each directory before its content."""

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
    """Bytes already read of a file, and its rest."""

    def __init__(self, begin: bytes, rest: IO[bytes]) -> None:
        self._begin = begin
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        begin, self._begin = self._begin, b""
        return begin + self._rest.read(size - len(begin) if size >= 0 else -1)


def keep(blocks: Iterable[bytes], target: Path) -> None:
    """Write ``blocks`` to the file ``target``."""
    with open(target, "wb") as out:
        for block in blocks:
            out.write(block)


def of_package(package: Path, name: str) -> bytes:
    """Return the file ``name`` of a Debian package:

    an `ar` archive with headers of 60 bytes (deb(5)), data in gzip or xz.
    """
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
    raise FlowError(
        f"Cannot take {name} from {package}: the package does not contain it.",
        "Correct its entry in image/versions.yml.",
    )
