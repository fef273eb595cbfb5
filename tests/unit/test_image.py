# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image is, where its parts come from, and that it is built once."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils import _image, _image_identity
from ansible_collections.spt.flow.plugins.module_utils._errors import FlowError
from ansible_collections.spt.flow.plugins.module_utils._progress import Progress

CONTENT = b"a tool" * 1000
SUM = hashlib.sha256(CONTENT).hexdigest()
IMAGE = _image_identity.Image("slim", "ab" * 32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/spt-flow"


# Identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of image/."""
    return Path(shutil.copytree(_image_identity.FOLDER, tmp_path / "image", symlinks=True))


def test_equal_files_are_the_same_image_wherever_they_lie(folder: Path) -> None:
    assert _image_identity.identity(folder=folder) == _image_identity.identity()
    image = _image_identity.identity()
    assert image.tag == f"spt-flow/workspace:slim-{image.hash[:12]}"
    assert len(image.hash) == 64


@pytest.mark.parametrize(
    "name", ["Dockerfile", "apt-sources", "versions.yml", "install.d/workspace", "rootfs/etc/motd", "ide/install"]
)
def test_another_content_is_another_image(folder: Path, name: str) -> None:
    with open(folder / name, "a") as handle:
        handle.write("\n")
    assert _image_identity.identity(folder=folder) != _image_identity.identity()


def test_another_mode_name_or_profile_is_another_image(folder: Path) -> None:
    seen = {_image_identity.identity(folder=folder).hash, _image_identity.identity("fat", folder=folder).hash}
    (folder / "rootfs/etc/motd").chmod(0o755)
    seen.add(_image_identity.identity(folder=folder).hash)
    (folder / "rootfs/etc/motd").rename(folder / "rootfs/etc/issue")
    seen.add(_image_identity.identity(folder=folder).hash)
    assert len(seen) == 4


def test_what_does_not_go_into_the_image_does_not_change_it(folder: Path) -> None:
    (folder / "seccomp.json").write_text("{}")
    (folder / "rootfs/__pycache__").mkdir()
    (folder / "rootfs/__pycache__/x.pyc").write_bytes(b"x")
    assert _image_identity.identity(folder=folder) == _image_identity.identity()


# Mirrors


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("https://files.pythonhosted.org/a/b.whl", {}, "https://files.pythonhosted.org/a/b.whl"),
        ("https://files.pythonhosted.org/a/b.whl", {"mirror_pypi": "https://m/pypi/"}, "https://m/pypi/a/b.whl"),
        ("https://registry.npmjs.org/c/-/c.tgz", {"mirror_npm": "https://m/npm"}, "https://m/npm/c/-/c.tgz"),
        ("https://registry.npmjs.org/c/-/c.tgz", {"mirror_pypi": "https://m"}, "https://registry.npmjs.org/c/-/c.tgz"),
        ("https://registry.npmjs.org/c/-/c.tgz", {"mirror_files": "https://m"}, "https://registry.npmjs.org/c/-/c.tgz"),
        ("https://example.com/x/y.tar", {"mirror_files": "https://m/f"}, "https://m/f/example.com/x/y.tar"),
        ("https://example.com/x/y.tar", {"mirror_files": None}, "https://example.com/x/y.tar"),
    ],
)
def test_mirrors_keep_the_path(url: str, options: dict[str, Any], expected: str) -> None:
    assert _image.mirrored(url, options) == expected


# Downloads


class Source(ThreadingHTTPServer):
    """Answers ``body`` with ``status`` on loopback; ``length`` promises more or less than there is."""

    status = 200
    body = CONTENT
    length: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []

    def entry(self, name: str = "tool.tgz") -> dict[str, str]:
        url = f"http://127.0.0.1:{self.server_address[1]}/files/{name}"
        return {"url": url, "sha256": SUM, "version": "1.2"}


class Handler(BaseHTTPRequestHandler):
    server: Source

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.send_response(self.server.status)
        length = len(self.server.body) if self.server.length is None else self.server.length
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *words: Any) -> None:
        """Quiet."""


@pytest.fixture
def source() -> Iterator[Source]:
    with Source() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def fetch(entry: dict[str, str], **options: Any) -> Path:
    return _image.fetch("Tool", entry, options, Progress())


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "downloads").iterdir())


def test_a_download_is_made_once(source: Source, cache: Path) -> None:
    path = fetch(source.entry())
    assert path.read_bytes() == CONTENT
    assert fetch(source.entry()) == path
    assert source.requests == ["/files/tool.tgz"]
    assert kept(cache) == [path.name]


def test_a_wrong_download_is_named_with_both_sums_and_not_kept(source: Source, cache: Path) -> None:
    source.body = b"something else"
    with pytest.raises(FlowError) as caught:
        fetch(source.entry())
    for words in ("Tool", source.entry()["url"], SUM, hashlib.sha256(b"something else").hexdigest()):
        assert words in caught.value.message
    assert kept(cache) == []
    source.body = CONTENT
    assert fetch(source.entry()).read_bytes() == CONTENT


def test_a_download_that_was_cut_off_is_not_kept(source: Source, cache: Path) -> None:
    source.body, source.length = CONTENT[:1000], len(CONTENT)
    with pytest.raises(FlowError) as caught:
        fetch(source.entry())
    assert "Tool" in caught.value.message
    assert source.entry()["url"] in caught.value.message
    assert kept(cache) == []


def test_a_source_that_refuses_is_named(source: Source, cache: Path) -> None:
    source.status = 404
    with pytest.raises(FlowError) as caught:
        fetch(source.entry())
    assert "404" in caught.value.message
    assert source.entry()["url"] in caught.value.message
    assert "mirror" in caught.value.hint
    assert kept(cache) == []


def test_a_source_that_is_not_there_is_named(cache: Path) -> None:
    entry = {"url": "http://127.0.0.1:9/x.tgz", "sha256": SUM}
    with pytest.raises(FlowError, match="Cannot download Tool from http://127.0.0.1:9/x.tgz"):
        fetch(entry)
    assert kept(cache) == []


def test_a_mirror_serves_the_same_sum(source: Source) -> None:
    base = source.entry()["url"].removesuffix("/files/tool.tgz")
    entry = {"url": "https://example.invalid/x/tool.tgz", "sha256": SUM}
    assert fetch(entry, mirror_files=f"{base}/m").read_bytes() == CONTENT
    assert source.requests == ["/m/example.invalid/x/tool.tgz"]


def test_certificates_that_are_not_there_are_named(source: Source, cache: Path) -> None:
    with pytest.raises(FlowError) as caught:
        fetch(source.entry(), ca_bundle="/none/ca.pem")
    assert "Tool" in caught.value.message
    assert source.requests == []


# Presence


class FakeEngine:
    """An engine that has images by tag; ``images.load`` takes an archive whose text is the tag."""

    def __init__(self) -> None:
        self.tags: set[str] = set()
        self.loads = 0
        self.images = self

    def load(self, handle: Any) -> None:
        self.loads += 1
        self.tags.add(handle.read().decode("utf-8", "replace"))


class FakeBuilder:
    """Takes a while; what it builds is there afterwards."""

    builds = 0
    fails = False

    def __init__(self, image: _image_identity.Image, options: Any, progress: Progress) -> None:
        self.image = image

    def build(self) -> None:
        type(self).builds += 1
        time.sleep(0.2)
        if self.fails:
            raise FlowError("Cannot build.", "Again.")
        _image._engine().tags.add(self.image.tag)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    made = FakeEngine()
    monkeypatch.setattr(FakeBuilder, "builds", 0)
    monkeypatch.setattr(_image, "_engine", lambda: made)
    monkeypatch.setattr(_image, "present", lambda image: image.tag in made.tags)
    monkeypatch.setattr(_image, "_Builder", FakeBuilder)
    return made


def test_an_image_that_is_there_stays(engine: FakeEngine) -> None:
    engine.tags.add(IMAGE.tag)
    said: list[str] = []
    assert _image.ensure(IMAGE, {}, Progress(said.append)) is False
    assert (FakeBuilder.builds, said) == (0, [])


def test_ten_at_a_time_build_once(engine: FakeEngine) -> None:
    said: list[str] = []
    changed: list[bool] = []

    def ensure() -> None:
        changed.append(_image.ensure(IMAGE, {}, Progress(said.append)))

    threads = [threading.Thread(target=ensure) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(changed) == [False] * 9 + [True]
    assert FakeBuilder.builds == 1
    assert any("another run builds it" in line for line in said)


def test_after_a_failed_build_the_next_one_tries_again(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeBuilder, "fails", True)
    with pytest.raises(FlowError, match="Cannot build"):
        _image.ensure(IMAGE, {}, Progress())
    monkeypatch.setattr(FakeBuilder, "fails", False)
    assert _image.ensure(IMAGE, {}, Progress()) is True
    assert FakeBuilder.builds == 2


def test_an_image_in_the_cache_is_loaded_and_not_built(engine: FakeEngine) -> None:
    _image._archive(IMAGE).write_text(IMAGE.tag)
    assert _image.ensure(IMAGE, {}, Progress()) is True
    assert (engine.loads, FakeBuilder.builds) == (1, 0)


def test_a_corrupt_archive_is_removed_and_the_image_built(engine: FakeEngine) -> None:
    _image._archive(IMAGE).write_bytes(b"\0\xff of no use")
    assert _image.ensure(IMAGE, {}, Progress()) is True
    assert (engine.loads, FakeBuilder.builds) == (1, 1)
    assert not _image._archive(IMAGE).exists()


def test_an_engine_that_refuses_the_archive_gets_a_build(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("docker.errors")

    def refuse(handle: Any) -> None:
        raise errors.APIError("unexpected EOF")

    monkeypatch.setattr(engine, "load", refuse)
    _image._archive(IMAGE).write_bytes(b"half")
    said: list[str] = []
    assert _image.ensure(IMAGE, {}, Progress(said.append)) is True
    assert FakeBuilder.builds == 1
    assert not _image._archive(IMAGE).exists()
    assert any("unexpected EOF" in line for line in said)
