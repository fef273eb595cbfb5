# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tool's layer: which released files it contains, with which modes, and that it is reproducible."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import tools as image_tools

TOOL = {"version": "1.2", "links": {"usr/local/bin/t": "/usr/local/t/bin/t"}, "leave": ["usr/local/t/doc/"]}
FILES = {
    "t-1.2/bin/t": b"\x7fELF program",
    "t-1.2/bin/s": b"#!/bin/sh\n",
    "t-1.2/_go.mod": b"module t\n",
    "t-1.2/doc/x": b"text",
    "other/x": b"",
}
ENTRY: dict[str, Any] = {
    "url": "https://x.example/t.zip",
    "take": {"t-{version}/": "usr/local/t/"},
    "rename": {"_go.mod": "go.mod"},
}


def zipped(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size, info.uid = len(content), 1234
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("t-1.2/bin/u")
        link.type, link.linkname = tarfile.SYMTYPE, "t"
        archive.addfile(link)
    return path


def laid(source: Path, target: Path, **more: Any) -> dict[str, tarfile.TarInfo]:
    image_tools.write("t", TOOL, [(source, ENTRY | more)], target)
    with tarfile.open(target) as tar:
        return {info.name: info for info in tar}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_parts_are_placed_with_executable_modes(tmp_path: Path, pack: Any) -> None:
    found = laid(pack(tmp_path / "t"), tmp_path / "layer.tar.gz")
    modes = {name: info.mode for name, info in found.items() if info.isfile()}
    assert modes == {"usr/local/t/bin/t": 0o755, "usr/local/t/bin/s": 0o755, "usr/local/t/go.mod": 0o644}
    assert found["usr/local/bin/t"].linkname == "/usr/local/t/bin/t"
    assert ("usr/local/t/bin/u" in found) == (pack is tarred)
    assert all(info.uid == info.gid == 0 for info in found.values())
    assert list(found)[:4] == ["usr", "usr/local", "usr/local/t", "usr/local/t/bin"]
    with tarfile.open(tmp_path / "layer.tar.gz") as tar:
        content = tar.extractfile("usr/local/t/bin/t")
        assert content is not None
        assert content.read() == FILES["t-1.2/bin/t"]


def test_layers_of_equal_files_are_equal(tmp_path: Path) -> None:
    source = zipped(tmp_path / "t")
    laid(source, tmp_path / "one.tar.gz")
    laid(source, tmp_path / "two.tar.gz")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()


def test_missing_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlowError, match="Cannot assemble t: https://x.example/t.zip does not contain t-1.2/lib/"):
        laid(zipped(tmp_path / "t"), tmp_path / "l", take={"t-{version}/bin/": "a/", "t-{version}/lib/": "b/"})


def test_no_file_leaves_its_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t", "w") as archive:
        archive.writestr("t-1.2/../../etc/passwd", b"x")
        archive.writestr("t-1.2/good", b"x")
    found = laid(tmp_path / "t", tmp_path / "layer.tar.gz")
    assert [name for name, info in found.items() if info.isfile()] == ["usr/local/t/good"]


def test_file_of_a_package_is_extracted(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        info = tarfile.TarInfo("./usr/share/keyrings/k.gpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"key"))
    package = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", data.getvalue())):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n".encode()
        package += header + content + b"\n" * (len(content) % 2)
    (tmp_path / "k.deb").write_bytes(package)
    assert image_tools.of_package(tmp_path / "k.deb", "usr/share/keyrings/k.gpg") == b"key"
