# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The identity of an image, the sources of its parts, and that it is built once."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import build as image_build
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import cache as image_cache
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import debootstrap as image_debootstrap
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import download as image_download
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import engine as image_engine
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options

CONTENT = b"a tool" * 1000
SUM = hashlib.sha256(CONTENT).hexdigest()
IMAGE = image_identity.Image("slim", "ab" * 32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/spt-flow"


# Identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of image/."""
    return Path(shutil.copytree(image_identity.FOLDER, tmp_path / "image", symlinks=True))


def test_equal_files_are_the_same_image_in_any_folder(folder: Path) -> None:
    assert image_identity.identity(folder=folder) == image_identity.identity()
    image = image_identity.identity()
    assert image.tag == f"spt-flow/workspace:slim-{image.hash[:12]}"
    assert len(image.hash) == 64


@pytest.mark.parametrize("name", ["Dockerfile", "apt-sources", "install.d/workspace", "rootfs/etc/motd", "ide/install"])
def test_changed_content_is_another_image(folder: Path, name: str) -> None:
    with open(folder / name, "a") as handle:
        handle.write("\n")
    assert image_identity.identity(folder=folder) != image_identity.identity()


def test_changed_mode_name_or_profile_is_another_image(folder: Path) -> None:
    seen = {image_identity.identity(folder=folder).hash, image_identity.identity("fat", folder=folder).hash}
    (folder / "rootfs/etc/motd").chmod(0o755)
    seen.add(image_identity.identity(folder=folder).hash)
    (folder / "rootfs/etc/motd").rename(folder / "rootfs/etc/issue")
    seen.add(image_identity.identity(folder=folder).hash)
    assert len(seen) == 4


def change(folder: Path, *path: str, value: Any) -> None:
    """Set one value of the copy's versions.yml."""
    known = image_identity.versions(folder)
    inner = known
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (folder / "versions.yml").write_text(yaml.safe_dump(known, sort_keys=False))


def tags(folder: Path) -> dict[str, str]:
    return {name: image_identity.identity(name, folder).tag for name in settings_options.PROFILES}


FAT = {name for name in settings_options.PROFILES if name != "slim"}
COMPILED = FAT - {"fat-packages"}


@pytest.mark.parametrize(
    ("path", "value", "profiles"),
    [
        (("tools", "gh", "version"), "9.9", FAT),
        (("tools", "golang.go", "absent"), "why", FAT),
        (("tools", "firecracker", "version"), "9.9", FAT - {"fat-packages"}),
        (("packages", "comfort"), ["htop"], FAT),
        (("bases", "debian-13", "snapshot"), "20270101T000000Z", {"fat-debian-13", "fat-packages"}),
        (("bases", "debian-12", "snapshot"), "20270101T000000Z", {"slim"}),
        (("bases", "debian-12", "registry"), "debian@sha256:00", {"slim"}),
        (("ide", "code-server", "sha256"), "00", {"slim", *FAT}),
        (("packages", "workspace"), ["git"], {"slim", *FAT}),
    ],
)
def test_only_profiles_that_use_a_changed_tool_change(
    folder: Path, path: tuple[str, ...], value: Any, profiles: set[str]
) -> None:
    before = tags(folder)
    change(folder, *path, value=value)
    after = tags(folder)
    assert {name for name in before if before[name] != after[name]} == profiles


def test_crate_compiler_is_part_of_images_with_crates(folder: Path) -> None:
    before = tags(folder)
    with open(folder / "crate/install", "a") as handle:
        handle.write("\n")
    after = tags(folder)
    assert {name for name in before if before[name] != after[name]} == COMPILED


def test_sources_and_comments_are_not_part_of_the_identity(folder: Path) -> None:
    before = tags(folder)
    text = (folder / "versions.yml").read_text()
    text = text.replace("https://files.pythonhosted.org/", "https://elsewhere.example/")
    (folder / "versions.yml").write_text(text + "# a remark\n")
    assert tags(folder) == before


def test_profiles_match_the_available_choices() -> None:
    assert tuple(image_identity.versions()["profiles"]) == settings_options.PROFILES
    with pytest.raises(FlowError, match="Unknown image profile 'huge'"):
        image_identity.identity("huge")


def test_files_outside_the_image_do_not_change_it(folder: Path) -> None:
    (folder / "seccomp.json").write_text("{}")
    (folder / "rootfs/__pycache__").mkdir()
    (folder / "rootfs/__pycache__/x.pyc").write_bytes(b"x")
    assert image_identity.identity(folder=folder) == image_identity.identity()


# Recipe


def test_every_download_is_pinned() -> None:
    known = image_identity.versions()
    tools = [tool for tool in known["tools"].values() if "absent" not in tool]
    files = [*known["ide"].values(), *(file for tool in tools for file in tool["files"])]
    files += [about["keyring"] for about in known["distributions"].values() if "keyring" in about]
    assert all(re.fullmatch("[0-9a-f]{64}", file["sha256"]) and file["url"].startswith("http") for file in files)
    assert all(re.fullmatch(r"[\d.]+", str(tool["version"])) for tool in tools)
    assert all(re.fullmatch(r"20\d{6}T000000Z", base["snapshot"]) for base in known["bases"].values())


def test_layers_are_ordered_from_rarely_to_often_changed(folder: Path) -> None:
    made = image_identity.recipe("fat-debian-13", folder)
    text = image_build.dockerfile(made, folder)
    order = [" git ", " build-essential ", " qemu-system-x86 ", " docker-buildx ", "ide.tar.gz"]
    found = [text.index(part) for part in [*order, *(f"/{name}.tar.gz" for name in made.tools), "rootfs/"]]
    assert found == sorted(found)
    assert "docker-compose-v2" not in text
    assert " docker-cli " in text
    assert "golang.go" not in text
    slim = image_build.dockerfile(image_identity.recipe(folder=folder), folder)
    assert len(re.findall("^RUN ", slim, re.MULTILINE)) == 2
    assert "ADD tools/" not in slim


def test_image_describes_what_it_contains_and_lacks() -> None:
    image = image_identity.identity("fat")
    said = image_build.inventory(image_identity.recipe("fat"), image)
    assert said["tools"]["go"]["state"] == "present"
    assert said["tools"]["golang.go"]["state"] == "unavailable"
    assert "Open VSX" in said["tools"]["golang.go"]["reason"]
    assert {"firecracker", "python"} <= {name for name, tool in said["tools"].items() if tool["state"] == "present"}
    assert (said["profile"], said["hash"], said["base"]) == ("fat", image.hash, "ubuntu-22.04")
    assert image_build.inventory(image_identity.recipe(), image)["tools"] == {}


@pytest.mark.parametrize(
    ("profile", "options", "expected"),
    [
        ("slim", {}, ("http://deb.debian.org/debian", "http://deb.debian.org/debian-security")),
        ("fat", {}, ("http://archive.ubuntu.com/ubuntu", "http://security.ubuntu.com/ubuntu")),
        ("fat", {"mirror_apt": "http://m/apt/"}, ("http://m/apt/ubuntu", "http://m/apt/ubuntu")),
        ("slim", {"mirror_apt": "http://m"}, ("http://m/debian", "http://m/debian-security")),
    ],
)
def test_packages_come_from_the_mirror_or_the_distribution(
    monkeypatch: pytest.MonkeyPatch, profile: str, options: dict[str, str], expected: tuple[str, str]
) -> None:
    monkeypatch.setattr(image_engine, "sdk", lambda: None)
    monkeypatch.setattr(image_download, "answers", lambda url: False)
    said: list[str] = []
    builder = image_build._Builder(image_identity.identity(profile), options, Progress(said.append))
    assert builder.archives == expected
    assert bool(said) != bool(options)


def test_packages_use_the_snapshot_of_the_day_where_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_engine, "sdk", lambda: None)
    monkeypatch.setattr(image_download, "answers", lambda url: url.endswith("Z/dists/noble/Release"))
    builder = image_build._Builder(image_identity.identity("fat-ubuntu-24.04"), {}, Progress())
    assert set(builder.archives) == {f"http://snapshot.ubuntu.com/ubuntu/{builder.recipe.base['snapshot']}"}


# Optional tools


def test_optional_tool_is_left_out_if_its_server_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_engine, "sdk", lambda: None)
    monkeypatch.setattr(image_download, "answers", lambda url: True)

    def tool(self: image_build._Builder, name: str, base: str) -> Path:
        if name in silent:
            raise image_download.Unreachable(f"Cannot download {name}.")
        return Path(name)

    monkeypatch.setattr(image_build._Builder, "_tool", tool)
    said: list[str] = []
    image = image_identity.identity("fat")
    builder = image_build._Builder(image, {}, Progress(said.append))
    silent = {"firecracker", "python"}
    assert set(builder._tools("base")) == set(image_identity.recipe("fat").tools) - silent
    assert any("without firecracker: Cannot download firecracker." in line for line in said)
    found = image_build.inventory(builder.recipe, image)["tools"]["firecracker"]
    assert found == {"version": "", "state": "unavailable", "reason": "Cannot download firecracker."}
    assert builder._label() == 'LABEL spt.flow.without="python firecracker"\n'
    silent = {"rust"}
    with pytest.raises(image_download.Unreachable):
        image_build._Builder(image, {}, Progress())._tools("base")


def test_missing_file_is_not_an_unreachable_server(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        port = server.server_address[1]
        with pytest.raises(FlowError) as missing:
            image_download._download("x", f"http://127.0.0.1:{port}/missing", tmp_path / "x", "")
        thread.join(10)
    assert not isinstance(missing.value, image_download.Unreachable)
    with pytest.raises(image_download.Unreachable):
        image_download._download("x", f"http://127.0.0.1:{port}/x", tmp_path / "x", "")


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
        ("https://proxy.golang.org/a/@v/b.zip", {"mirror_go": "https://m/go"}, "https://m/go/a/@v/b.zip"),
        ("https://static.crates.io/crates/a/a.crate", {"mirror_crates": "https://m"}, "https://m/crates/a/a.crate"),
        ("https://static.crates.io/a.crate", {"mirror_files": "https://m"}, "https://static.crates.io/a.crate"),
        ("http://archive.ubuntu.com/ubuntu/pool/k.deb", {"mirror_apt": "http://m"}, "http://m/ubuntu/pool/k.deb"),
        ("https://example.com/x/y.tar", {"mirror_files": None}, "https://example.com/x/y.tar"),
    ],
)
def test_mirrors_keep_the_path(url: str, options: dict[str, Any], expected: str) -> None:
    assert image_download.mirrored(url, options) == expected


# Downloads


class Source(ThreadingHTTPServer):
    """Answers ``body`` with ``status`` on loopback; ``length`` can announce a wrong size."""

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
        """Print nothing."""


@pytest.fixture
def source() -> Iterator[Source]:
    with Source() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def fetch(entry: dict[str, str], **options: Any) -> Path:
    return image_download.fetch("Tool", entry, options, Progress())


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "downloads").iterdir())


def test_file_is_downloaded_once(source: Source, cache: Path) -> None:
    path = fetch(source.entry())
    assert path.read_bytes() == CONTENT
    assert fetch(source.entry()) == path
    assert source.requests == ["/files/tool.tgz"]
    assert kept(cache) == [path.name]


def test_wrong_download_is_named_with_both_checksums_and_deleted(source: Source, cache: Path) -> None:
    source.body = b"something else"
    with pytest.raises(FlowError) as caught:
        fetch(source.entry())
    for words in ("Tool", source.entry()["url"], SUM, hashlib.sha256(b"something else").hexdigest()):
        assert words in caught.value.message
    assert kept(cache) == []
    source.body = CONTENT
    assert fetch(source.entry()).read_bytes() == CONTENT


def test_truncated_download_is_named_with_both_checksums_and_deleted(source: Source, cache: Path) -> None:
    source.body, source.length = CONTENT[:1000], len(CONTENT)
    with pytest.raises(FlowError) as caught:
        fetch(source.entry())
    cut = hashlib.sha256(CONTENT[:1000]).hexdigest()
    for words in ("Tool", source.entry()["url"], f"cut off (after 1000 of {len(CONTENT)} bytes)", SUM, cut):
        assert words in caught.value.message
    assert kept(cache) == []


def test_full_disk_is_reported_as_such(source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full acts as a full disk."""
    opened = open

    def full(file: Any, mode: str = "r", **words: Any) -> Any:
        return opened("/dev/full", "wb", buffering=0) if "w" in mode else opened(file, mode, **words)

    monkeypatch.setattr(image_download, "open", full, raising=False)
    with pytest.raises(FlowError) as caught:
        fetch(source.entry())
    assert caught.value.message == f"Cannot keep Tool in {cache / 'downloads'}: the disk is full."
    assert "network" not in caught.value.hint
    assert kept(cache) == []


def test_full_disk_of_the_engine_is_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"error": "failed to copy files: write /usr/bin/x: no space left on device"}
    api = SimpleNamespace(build=lambda **words: iter([{"stream": "Step 1/2 : FROM x"}, error]))
    monkeypatch.setattr(image_engine, "sdk", lambda: SimpleNamespace(api=api))
    monkeypatch.setattr(image_download, "answers", lambda url: True)
    builder = image_build._Builder(image_identity.identity(), {}, Progress())
    with pytest.raises(FlowError, match="the disk is full"):
        builder._run("workspace", {"Dockerfile": b""}, {})


def test_retry_downloads_only_missing_files(source: Source, cache: Path) -> None:
    fetch(source.entry("first.tgz"))
    source.body, source.length = CONTENT[:1000], len(CONTENT)
    with pytest.raises(FlowError):
        fetch(source.entry("second.tgz"))
    source.body, source.length = CONTENT, None
    for name in ("first.tgz", "second.tgz"):
        assert fetch(source.entry(name)).read_bytes() == CONTENT
    assert source.requests == ["/files/first.tgz", "/files/second.tgz", "/files/second.tgz"]


def test_refusing_source_is_named(source: Source, cache: Path) -> None:
    source.status = 404
    with pytest.raises(FlowError) as caught:
        fetch(source.entry())
    assert "404" in caught.value.message
    assert source.entry()["url"] in caught.value.message
    assert "mirror" in caught.value.hint
    assert kept(cache) == []


def test_unreachable_source_is_named(cache: Path) -> None:
    entry = {"url": "http://127.0.0.1:9/x.tgz", "sha256": SUM}
    with pytest.raises(FlowError, match="Cannot download Tool from http://127.0.0.1:9/x.tgz"):
        fetch(entry)
    assert kept(cache) == []


def test_mirror_serves_the_same_checksum(source: Source) -> None:
    base = source.entry()["url"].removesuffix("/files/tool.tgz")
    entry = {"url": "https://example.invalid/x/tool.tgz", "sha256": SUM}
    assert fetch(entry, mirror_files=f"{base}/m").read_bytes() == CONTENT
    assert source.requests == ["/m/example.invalid/x/tool.tgz"]


def test_missing_certificates_are_named(source: Source, cache: Path) -> None:
    with pytest.raises(FlowError) as caught:
        fetch(source.entry(), ca_bundle="/none/ca.pem")
    assert "Tool" in caught.value.message
    assert source.requests == []


# Leftovers


KILLED = """
import time
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import cache
with cache.atomic(cache.cache("base") / "b.tar") as path:
    path.mkdir()
    print("made", flush=True)
    time.sleep(60)
"""


def test_leftovers_of_killed_builds_are_removed_and_running_ones_kept(cache: Path) -> None:
    old = time.time() - 86400
    env = {**os.environ, "PYTHONPATH": str(image_identity.FOLDER.parent / ".ansible/collections")}
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, env=env) as running:
        assert running.stdout
        running.stdout.readline()
        (there,) = (cache / "base").iterdir()
        os.utime(there, (old, old))
        image_cache.sweep()
        assert there.exists()
        running.kill()
    young = cache / "base/.c.tar.young"
    (young / "spt-flow-base.x/system").mkdir(parents=True)
    other = cache / "venv/.somebody.else"
    other.mkdir(parents=True)
    os.utime(other, (old, old))
    image_cache.sweep()
    assert (there.exists(), young.exists(), other.exists()) == (False, True, True)


# Bootstrap

FAKE = """#!/bin/sh
echo "$@" >{log}
for word; do case $word in */system)
    mkdir -p "$word/debootstrap"; echo "$LOG" >"$word/debootstrap/debootstrap.log"
esac; done
echo "$ANSWER"
test -z "$ANSWER"
"""


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the bootstrap with a debootstrap that records its arguments and knows only the suite bookworm."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "scripts/bookworm").mkdir(parents=True)
    program = tmp_path / "bin/debootstrap"
    program.write_text(FAKE.format(log=tmp_path / "log"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("ANSWER", "")
    monkeypatch.setenv("LOG", "")
    monkeypatch.setattr(image_debootstrap, "_SCRIPTS", tmp_path / "scripts")
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def run(suite: str, keyring: Path | None = None) -> list[str]:
        image_debootstrap.debootstrap(suite, "sid", "http://m/debian", tmp_path / "base.tar", Progress(), keyring)
        assert tarfile.is_tarfile(tmp_path / "base.tar")
        return (tmp_path / "log").read_text().split()

    return run


def test_newer_suite_is_created_with_an_older_script(bootstrap: Any) -> None:
    assert bootstrap("bookworm")[-1] == "http://m/debian"
    assert bootstrap("forky")[-2:] == ["http://m/debian", "sid"]


def test_other_distribution_is_verified_with_its_own_keys(bootstrap: Any) -> None:
    assert "--keyring=/k.gpg" in bootstrap("noble", Path("/k.gpg"))
    assert not [word for word in bootstrap("bookworm") if "keyring" in word]


def test_base_system_requires_signed_packages(bootstrap: Any) -> None:
    assert "--force-check-gpg" in bootstrap("bookworm")


# Package archives


def apt_sources(root: Path, archive: str, security: str) -> tuple[list[str], str]:
    """Return the stanzas that image/apt-sources writes, and the rest of apt's configuration."""
    (root / "etc/apt").mkdir(parents=True, exist_ok=True)
    (root / "etc/os-release").write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
    environment = {**os.environ, "SPT_FLOW_ROOT": str(root)}
    subprocess.run(["sh", image_identity.FOLDER / "apt-sources", archive, security], env=environment, check=True)
    written = (root / "etc/apt/sources.list.d/debian.sources").read_text()
    return written.strip().split("\n\n"), (root / "etc/apt/apt.conf.d/90spt-flow").read_text()


def test_only_snapshots_may_have_an_expired_release_file(tmp_path: Path) -> None:
    debian = image_identity.recipe("slim").distribution
    snapshots = [address.format(day="20261120T000000Z") for address in debian["snapshots"]]
    stanzas, _ = apt_sources(tmp_path, *snapshots)
    assert ["Check-Valid-Until: no" in stanza for stanza in stanzas] == [True, True]
    stanzas, configuration = apt_sources(tmp_path, *debian["archives"])
    assert "Valid-Until" not in "".join(stanzas) + configuration


def test_every_archive_is_verified_with_the_key_of_its_distribution(tmp_path: Path) -> None:
    stanzas, configuration = apt_sources(tmp_path, "http://a/debian", "http://a/debian-security")
    assert len(stanzas) == 2
    assert all("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in stanza for stanza in stanzas)
    assert not re.search("(?i)trusted|allow-|unauth", "".join(stanzas) + configuration)


def test_failed_bootstrap_reports_whether_the_disk_is_full(bootstrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWER", "E: invalid Release signature")
    with pytest.raises(FlowError, match="Cannot bootstrap forky from http://m/debian:\nE: invalid Release"):
        bootstrap("forky")
    monkeypatch.setenv("ANSWER", "tar: write error: No space left on device")
    with pytest.raises(FlowError, match="the disk is full"):
        bootstrap("forky")
    monkeypatch.setenv("ANSWER", "E: Couldn't download Packages")
    monkeypatch.setenv("LOG", "unxz: Packages: Write error: No space left on device")
    with pytest.raises(FlowError, match="the disk is full"):
        bootstrap("forky")


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
    """Takes some time; the engine has the image afterwards."""

    builds = 0
    fails = False

    def __init__(self, image: image_identity.Image, options: Any, progress: Progress) -> None:
        self.image = image

    def build(self) -> None:
        type(self).builds += 1
        time.sleep(0.2)
        if self.fails:
            raise FlowError("Cannot build.", "Again.")
        image_engine.sdk().tags.add(self.image.tag)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    made = FakeEngine()
    monkeypatch.setattr(FakeBuilder, "builds", 0)
    monkeypatch.setattr(image_engine, "sdk", lambda: made)
    monkeypatch.setattr(image_engine, "present", lambda image: image.tag in made.tags)
    monkeypatch.setattr(image_build, "_Builder", FakeBuilder)
    return made


def test_existing_image_is_kept(engine: FakeEngine) -> None:
    engine.tags.add(IMAGE.tag)
    said: list[str] = []
    assert image_build.ensure(IMAGE, {}, Progress(said.append)) is False
    assert (FakeBuilder.builds, said) == (0, [])


def test_ten_parallel_runs_build_once(engine: FakeEngine) -> None:
    said: list[str] = []
    changed: list[bool] = []

    def ensure() -> None:
        changed.append(image_build.ensure(IMAGE, {}, Progress(said.append)))

    threads = [threading.Thread(target=ensure) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(changed) == [False] * 9 + [True]
    assert FakeBuilder.builds == 1
    assert any("another run is building it" in line for line in said)


def test_build_is_retried_after_a_failure(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeBuilder, "fails", True)
    with pytest.raises(FlowError, match="Cannot build"):
        image_build.ensure(IMAGE, {}, Progress())
    monkeypatch.setattr(FakeBuilder, "fails", False)
    assert image_build.ensure(IMAGE, {}, Progress()) is True
    assert FakeBuilder.builds == 2


def test_cached_image_is_loaded_and_not_built(engine: FakeEngine) -> None:
    image_cache.archive_of(IMAGE).write_text(IMAGE.tag)
    assert image_build.ensure(IMAGE, {}, Progress()) is True
    assert (engine.loads, FakeBuilder.builds) == (1, 0)


def test_corrupt_archive_is_removed_and_the_image_built(engine: FakeEngine) -> None:
    image_cache.archive_of(IMAGE).write_bytes(b"\0\xff of no use")
    assert image_build.ensure(IMAGE, {}, Progress()) is True
    assert (engine.loads, FakeBuilder.builds) == (1, 1)
    assert not image_cache.archive_of(IMAGE).exists()


def test_cache_keeps_one_image_per_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [image_identity.Image(profile, 64 * "0") for profile in ("fat", "fat-debian-13", "slim")]
    for other in others:
        image_cache.archive_of(other).write_bytes(b"x")
    made = SimpleNamespace(save=lambda **words: [b"image"])
    image_cache.save(
        SimpleNamespace(images={"spt-flow/workspace:fat-111111111111": made}), image_identity.Image("fat", 64 * "1")
    )
    left = sorted(path.name[:20] for path in image_cache.cache("images").iterdir())
    assert left == ["fat-1111111111111111", "fat-debian-13-000000", "slim-000000000000000"]


def test_image_is_built_if_the_engine_refuses_the_archive(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("docker.errors")

    def refuse(handle: Any) -> None:
        raise errors.APIError("unexpected EOF")

    monkeypatch.setattr(engine, "load", refuse)
    image_cache.archive_of(IMAGE).write_bytes(b"half")
    said: list[str] = []
    assert image_build.ensure(IMAGE, {}, Progress(said.append)) is True
    assert FakeBuilder.builds == 1
    assert not image_cache.archive_of(IMAGE).exists()
    assert any("unexpected EOF" in line for line in said)
