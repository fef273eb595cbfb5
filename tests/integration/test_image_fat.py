# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fat image: each tool does its job, and a tool that moves takes few layers with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from ansible_collections.spt.flow.plugins.module_utils import _docker_http, _image, _image_identity
from ansible_collections.spt.flow.plugins.module_utils._progress import Progress
from ansible_collections.spt.flow.tests.integration import lab

pytestmark = pytest.mark.full
PROFILE = os.environ.get("SPT_FLOW_TEST_FAT", "fat-packages")
"""Without it, the one that asks package registries only: others also need Ubuntu's archive and Rust's own server."""
Inside = Callable[[str], str]
GO = """package main

import "fmt"

func main() { fmt.Println("go: it runs") }
"""
JOBS = {
    "go": f"""printf '%s' '{GO}' >m.go && go run m.go
        GOOS=wasip1 GOARCH=wasm go build -o m.wasm m.go && wasmtime m.wasm""",
    "rust": """printf 'fn main() { println!("rust: it runs"); }' >m.rs && rustc m.rs && ./m
        rustc --target wasm32-wasip1 -o m.wasm m.rs && wasmtime m.wasm
        cargo init -q c && cd c && cargo run -q && cargo clippy -q && cargo fmt --check""",
    "wasm": """printf '#[no_mangle] pub extern "C" fn f() -> i32 { 42 }' >m.rs
        rustc --target wasm32-unknown-unknown --crate-type cdylib -o m.wasm m.rs
        wasm-objdump -x m.wasm | grep -c '<f>'
        wat2wasm --version && wasmtime run --invoke f m.wasm""",
    "node": "node -e 'console.log(6 * 7)' && npm --version && npx --version && npm init -y >/dev/null",
    "python": "python3 -m venv v && v/bin/python -c 'print(42)' && uv venv -q --python python3 w && w/bin/python -V",
    "c": "printf 'int main(void){return 0;}' >m.c && gcc m.c -lssl -lcrypto && ./a.out && make --version",
    "docker": "docker --version && docker buildx version && docker compose version",
    "qemu": """qemu-system-x86_64 -M help | grep -c ^microvm && PATH=$PATH:/usr/sbin command -v kvm-ok
        none='-display none -nodefaults -S -monitor stdio'
        echo quit | timeout 20 qemu-system-x86_64 -M microvm,x-option-roms=off -accel tcg $none""",
    "shell": "tmux -V && htop --version && direnv version && rg --version && jq --version && git lfs version",
    "gh": "gh --version",
}


@pytest.fixture(scope="module")
def image() -> _image_identity.Image:
    found = _image_identity.identity(PROFILE)
    _image.ensure(found, {}, Progress(print))
    return found


@pytest.fixture(scope="module")
def inside(image: _image_identity.Image) -> Iterator[Inside]:
    """Runs a script in a login shell of one container, in a folder of its own and without a network."""
    command = ["docker", "run", "--detach", "--rm", "--network", "none", "--label", "spt.flow.test=image"]
    words = ["--entrypoint", "/usr/bin/sleep", image.tag, "900"]
    started = subprocess.run([*command, *words], check=True, capture_output=True, text=True, timeout=60)
    identifier = started.stdout.strip()

    def run(script: str) -> str:
        argv = ["docker", "exec", identifier, "bash", "-lec", f"cd $(mktemp -d)\n{script}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout

    yield run
    subprocess.run(["docker", "rm", "-f", identifier], capture_output=True, timeout=60)


def test_wasm_pack_is_there_where_the_profile_has_it(inside: Inside, image: _image_identity.Image) -> None:
    there = inside("command -v wasm-pack && wasm-pack --version || echo none").split()
    assert (there == ["none"]) is ("wasm-pack" not in _image_identity.recipe(image.profile).tools)


@pytest.mark.parametrize("name", JOBS)
def test_a_tool_does_its_job(inside: Inside, name: str) -> None:
    inside(JOBS[name])


def test_what_is_unavailable_is_not_there(inside: Inside, image: _image_identity.Image) -> None:
    assert "firecracker" in _image_identity.recipe(image.profile).absent
    assert inside("command -v firecracker jailer || echo none").split() == ["none"]


def test_a_workspace_of_it_starts_with_docker_inside(image: _image_identity.Image, tmp_path: Path) -> None:
    with lab.lab(tmp_path, image) as made:
        spec = made.spec(made.repository(), docker="required", profile=PROFILE, memory=4 << 30)
        workspace = made.up(spec)
        assert [workspace.step(name).state for name in ("home", "clone", "ide")] == ["ok"] * 3
        script = """for try in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 0.5; done
            cd /var/tmp/coder && printf '%s' 'package main; func main() { println("it runs inside") }' >m.go
            CGO_ENABLED=0 go build -o m m.go && tar -c m | docker import - m:1 && docker run --rm m:1 /m
            printf 'FROM scratch\\nCOPY m /m\\n' >Dockerfile && docker buildx build -q -t m:2 .
            docker run --rm m:2 /m"""
        argv = ["docker", "exec", made.name(workspace), "bash", "-lc", f"{{ {script}; }} 2>&1"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        assert done.stdout.count("it runs inside") == 2, done.stdout


class Mirror(ThreadingHTTPServer):
    """What the cache holds, by the last part of an address; notes which addresses were asked."""

    def __init__(self, files: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), MirrorHandler)
        self.files = files
        self.asked: set[str] = set()


class MirrorHandler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.asked.add(self.path)
        path = self.server.files[self.path.rsplit("/", 1)[-1]]
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        with path.open("rb") as file:
            shutil.copyfileobj(file, self.wfile)

    def log_message(self, *words: object) -> None:
        """Quiet."""


def test_behind_a_mirror_the_layers_are_the_same(
    image: _image_identity.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tool's files come from a mirror on loopback into an empty cache, and make equal layers."""
    made = _image_identity.recipe(image.profile)
    urls = [file["url"] for tool in made.tools.values() for file in tool["files"]]
    files = {
        file["url"].rsplit("/", 1)[-1]: _image.fetch(name, file, {}, Progress())
        for name, tool in made.tools.items()
        for file in tool["files"]
    }
    first = {path.name: path for path in _image.cache("tools").iterdir()}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Mirror(files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        kinds = ("crates", "files", "go", "pypi")
        options = {f"mirror_{kind}": f"{address}/{kind}" for kind in kinds} | {"mirror_apt": "http://deb.debian.org"}
        builder = _image._Builder(image, options, Progress())
        for name, tool in made.tools.items():
            if tool.get("crate"):
                _image.fetch(name, tool["files"][0], options, Progress())
                continue
            layer = builder._tool(name, "")
            assert layer.read_bytes() == first[layer.name].read_bytes(), name
            layer.unlink()
        server.shutdown()
        thread.join(10)
    assert len(server.asked) == len(urls)
    assert {path.split("/")[1] for path in server.asked} >= {"go", "pypi"}


def layers(tag: str) -> dict[str, int]:
    """Sizes of the image's layers by the identity of their files."""
    engine = _docker_http.connect()
    names = engine.get_json(f"/images/{tag}/json")["RootFS"]["Layers"]
    history = reversed(engine.get_json(f"/images/{tag}/history"))
    # Steps that only set something have no layer; a layer without files has no size that would count.
    made = [step["Size"] for step in history if "#(nop)" not in step["CreatedBy"] or "in /" in step["CreatedBy"]]
    assert len(names) == len(made), (names, made)
    return dict(zip(names, made, strict=True))


def test_a_tool_that_moves_leaves_four_fifths_as_they_are(image: _image_identity.Image, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(_image_identity.FOLDER, tmp_path / "image", symlinks=True))
    known = _image_identity.versions(folder)
    known["tools"]["gh"]["links"] = {"usr/local/bin/github": "/usr/local/bin/gh"}
    (folder / "versions.yml").write_text(yaml.safe_dump(known, sort_keys=False))
    other = _image_identity.identity(PROFILE, folder)
    said: list[str] = []
    try:
        _image._Builder(other, {}, Progress(said.append), folder)._build().tag(*other.tag.split(":"))
        before, after = layers(image.tag), layers(other.tag)
    finally:
        _image.remove(other)
    kept = sum(size for name, size in after.items() if name in before)
    assert kept >= 0.8 * sum(after.values()), (before, after)
    assert not [line for line in said if "downloading" in line or "compiling" in line], said
