# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fat image: each tool works, and updating a tool changes few layers."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import build as image_build
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import download as image_download
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import engine as image_engine
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.tests.bench import reference_build
from ansible_collections.spt.flow.tests.integration import harness
from ansible_collections.spt.flow.tests.integration.image_layers import layers, moved, reused, tool_layers
from ansible_collections.spt.flow.tests.integration.mirror_harness import mirror

pytestmark = pytest.mark.full
CHECKOUT = Path(__file__).resolve().parents[2]
PROFILE = os.environ.get("SPT_FLOW_TEST_FAT", "fat-packages")
"""By default only the service that uses package registries: others also need Ubuntu's archive and Rust's server."""
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
    "qemu": """qemu-system-x86_64 -M help | grep -c ^microvm && command -v kvm-ok
        none='-display none -nodefaults -S -monitor stdio'
        echo quit | timeout 20 qemu-system-x86_64 -M microvm,x-option-roms=off -accel tcg $none""",
    "shell": "tmux -V && htop --version && direnv version && rg --version && jq --version && git lfs version",
    "gh": "gh --version",
}


@pytest.fixture(scope="module")
def image() -> image_identity.Image:
    found = image_identity.identity(PROFILE)
    image_build.ensure(found, {}, Progress(print))
    return found


@pytest.fixture(scope="module")
def inside(image: image_identity.Image) -> Iterator[Inside]:
    """Run a script in a login shell of a new container, in its own folder and without a network."""
    command = ["docker", "run", "--detach", "--rm", "--network", "none", "--label", "spt.flow.test=image"]
    words = ["--entrypoint", "/usr/bin/sleep", image.tag, "900"]
    started = subprocess.run([*command, *words], check=True, capture_output=True, text=True, timeout=60)
    identifier = started.stdout.strip()

    def run(script: str) -> str:
        argv = ["docker", "exec", identifier, "bash", "-lec", f"cd $(mktemp -d)\n{script}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout

    yield run
    subprocess.run(["docker", "rm", "-f", identifier], capture_output=True, timeout=60)


def test_wasm_pack_is_installed_where_the_profile_has_it(inside: Inside, image: image_identity.Image) -> None:
    there = inside("command -v wasm-pack && wasm-pack --version || echo none").split()
    assert (there == ["none"]) is ("wasm-pack" not in image_identity.recipe(image.profile).tools)


@pytest.mark.parametrize("name", JOBS)
def test_tool_works(inside: Inside, name: str) -> None:
    inside(JOBS[name])


def test_firecracker_is_there_where_the_profile_has_it(inside: Inside, image: image_identity.Image) -> None:
    there = inside("command -v firecracker && command -v jailer || echo none").split()
    assert (there == ["none"]) is ("firecracker" not in image_identity.recipe(image.profile).tools)


def test_unavailable_extensions_are_not_installed(inside: Inside, image: image_identity.Image) -> None:
    absent = image_identity.recipe(image.profile).absent
    installed = inside("ls /opt/code-server/lib/node_modules/code-server/lib/vscode/extensions").split()
    assert not set(absent) & set(installed)


STAND_IN = """#!/usr/bin/python3
import json, os, sys
vm = json.load(open(sys.argv[sys.argv.index("--config-file") + 1]))
boot = vm["boot-source"]
argv = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", str(vm["machine-config"]["mem_size_mib"])]
argv += ["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
argv += ["-kernel", boot["kernel_image_path"], "-initrd", boot["initrd_path"], "-append", boot["boot_args"]]
for card in vm["network-interfaces"]:
    argv += ["-netdev", f"tap,id=n,ifname={card['host_dev_name']},script=no,downscript=no"]
    argv += ["-device", f"virtio-net-pci,romfile=,netdev=n,mac={card['guest_mac']}"]
os.execvp(argv[0], argv)
"""
"""Boots Firecracker's configuration with QEMU in software emulation, where KVM boots no Linux."""
BOOT = """import sys
sys.path.insert(0, "/usr/local/lib/spt-workspace")
from spt_workspace import kvm, microvm
from spt_workspace.contract import Paths
kvm.verdict = lambda device: ("works", "")
print(microvm.run(Paths(), 420))
"""


def test_kernel_files_and_network_for_firecracker_boot(inside: Inside) -> None:
    script = f"mkdir bin\ncat >bin/firecracker <<'E'\n{STAND_IN}E\ncat >boot.py <<'E'\n{BOOT}E\n"
    said = inside(f"{script}chmod +x bin/firecracker\nPATH=$PWD/bin:$PATH /usr/bin/python3 boot.py")
    assert "ran a command on its console after" in said, said


def test_workspace_starts_with_docker_inside(image: image_identity.Image, tmp_path: Path) -> None:
    with harness.harness(tmp_path, image) as made:
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


DAY = "20010101T000000Z"
CUT = "gh"
"""The tool whose first download is cut off."""
LIST = r"find / -xdev \( -path /proc -o -path /sys -o -path /dev \) -prune -o -printf '%y %m %u:%g %p %l\n' | sort"
PACKAGES = "dpkg-query -W -f '${Package} ${Version}\\n'"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout with another day of packages, and therefore another base and image of the same tools."""
    copy = tmp_path / "checkout"
    left_out = shutil.ignore_patterns(".git", ".venv", "artifacts", ".*_cache", "__pycache__")
    shutil.copytree(CHECKOUT, copy, symlinks=True, ignore=left_out)
    file = copy / "image/versions.yml"
    day = image_identity.recipe(PROFILE).base["snapshot"]
    file.write_text(file.read_text().replace(day, DAY))
    return copy


def of_image(tag: str, script: str) -> list[str]:
    argv = ["docker", "run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "sh", tag, "-c", script]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()


def test_interrupted_build_with_a_mirror_resumes_to_the_same_image(
    image: image_identity.Image, checkout: Path, tmp_path: Path
) -> None:
    """Base, packages, IDE and tools come from a mirror into an empty cache."""
    made = image_identity.recipe(PROFILE)
    entries = {
        file["url"].rsplit("/", 1)[-1]: (name, file) for name, tool in made.tools.items() for file in tool["files"]
    }
    known = {file: image_download.fetch(name, entry, {}, Progress()) for file, (name, entry) in entries.items()}
    other = image_identity.identity(PROFILE, checkout / "image")

    def build() -> subprocess.CompletedProcess[str]:
        values = {"profile": PROFILE, "image_base": "bootstrap", **site.options}
        env = {**os.environ, **{f"SPT_FLOW_{name.upper()}": value for name, value in values.items()}}
        argv = ["ansible-playbook", "playbooks/image.yml"]
        env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
        return subprocess.run(argv, cwd=checkout, env=env, capture_output=True, text=True, timeout=7200)

    with mirror(tmp_path / "mirror", known) as site:
        try:
            (cut,) = (file for file, (name, _) in entries.items() if name == CUT)
            site.cut = {cut}
            done = build()
            assert done.returncode != 0
            assert f"Cannot use {CUT} {made.tools[CUT]['version']} from {site.address}/" in done.stdout + done.stderr
            assert "the download was cut off" in done.stdout + done.stderr
            assert entries[cut][1]["sha256"] in done.stdout + done.stderr
            assert not image_engine.present(other)
            before, site.asked, site.cut = set(site.asked), [], set()
            done = build()
            assert done.returncode == 0, done.stdout + done.stderr
            # Only packages of the image, and tools from the one that was cut off.
            assert not {path for path in site.asked if path.startswith("/npm/")}
            assert {path.split("/")[1] for path in before} >= {"apt", "npm", "go", "pypi"}
            names = [path.rsplit("/", 1)[-1] for path in site.asked]
            again = [entries[name][0] for name in names if name in entries]
            assert again == list(made.tools)[list(made.tools).index(CUT) :]
            assert tool_layers(other.tag) == tool_layers(image.tag)
            if of_image(image.tag, PACKAGES) != of_image(other.tag, PACKAGES):
                pytest.skip("the archive of packages has changed since the first of the two images was built")
            assert of_image(image.tag, LIST) == of_image(other.tag, LIST)
        finally:
            base = hashlib.sha256(f"{made.base['suite']}\0{DAY}".encode()).hexdigest()[:12]
            for tag in (other.tag, f"spt-flow/base:{made.base['suite']}-{base}"):
                subprocess.run(["docker", "image", "rm", tag], capture_output=True, timeout=120)


def test_updating_a_tool_reuses_four_fifths_of_the_image(image: image_identity.Image, tmp_path: Path) -> None:
    said: list[str] = []
    with moved(PROFILE, tmp_path, Progress(said.append)) as tag:
        before, after = layers(image.tag), layers(tag)
    assert reused(before, after) >= 0.8, (before, after)
    assert not [line for line in said if "downloading" in line or "compiling" in line], said


def test_reference_build_succeeds(image: image_identity.Image, inside: Inside, tmp_path: Path) -> None:
    """Go, Rust, WebAssembly and npm with files of the repository and without a network."""
    reference_build.make(tmp_path / "reference")
    container = inside("hostname").strip()
    subprocess.run(["docker", "cp", str(tmp_path / "reference"), f"{container}:/tmp/"], check=True, timeout=60)
    assert inside("cp -r --no-preserve=ownership /tmp/reference . && sh reference/build.sh").split()[-1] == "built"
