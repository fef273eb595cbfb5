# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that use each tool of the image without a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..contract import Failure
from .place import Place, first, write

ANSWER = "the answer is 42"
SLOW = 600.0
"""The timeout of the one check that may have to compile many crates."""


@dataclass(frozen=True)
class Tool:
    """``needs``: names in image.json, one of which brings the tool; ``attempt`` returns a sentence or fails."""

    name: str
    needs: tuple[str, ...]
    attempt: Callable[[Place], str]


def _answers(*argv: str) -> Callable[[Place], str]:
    """Check the version only, for tools that need an account, a terminal or an engine."""
    return lambda place: first(place.run(argv))


def _c(place: Place) -> str:
    folder = place.folder("c")
    write(folder / "a.c", f'#include <stdio.h>\nint main(void) {{ return puts("{ANSWER}") < 0; }}\n')
    write(folder / "Makefile", "a: a.c\n\tcc -o $@ $<\n")
    place.run(["make", "a"], folder)
    place.run([str(folder / "a")], folder, ANSWER)
    return f"compiled and ran: {first(place.run(['cc', '--version']))}"


def _go(place: Place) -> str:
    folder = place.folder("go-program")
    write(folder / "go.mod", "module answer\n")
    write(folder / "main.go", f'package main\n\nimport "fmt"\n\nfunc main() {{ fmt.Println("{ANSWER}") }}\n')
    place.run(["go", "build", "-o", "a", "."], folder)
    place.run([str(folder / "a")], folder, ANSWER)
    return f"compiled and ran: {first(place.run(['go', 'version']))}"


def _crate(place: Place, name: str, source: str = "main", library: str = "") -> Path:
    folder = place.folder(name)
    (folder / "src").mkdir()
    write(folder / "Cargo.toml", f'[package]\nname = "answer"\nversion = "0.1.0"\nedition = "2021"\n{library}')
    program = f'fn main() {{ println!("{ANSWER}"); }}\n'
    answer = '#[no_mangle]\npub extern "C" fn answer() -> i32 { 42 }\n'
    write(folder / "src" / f"{source}.rs", program if source == "main" else answer)
    return folder


def _rust(place: Place) -> str:
    folder = _crate(place, "rust")
    place.run(["cargo", "run", "--quiet"], folder, ANSWER)
    return f"compiled and ran: {first(place.run(['rustc', '--version']))}"


def _rust_wasm(place: Place) -> str:
    """Compile a program for WASI and a library for browsers."""
    folder = _crate(place, "rust-wasm")
    place.run(["cargo", "build", "--quiet", "--target", "wasm32-wasip1"], folder)
    built = Path(place.environ["CARGO_TARGET_DIR"])
    program = built / "wasm32-wasip1/debug/answer.wasm"
    _magic(program)
    library = _crate(place, "rust-web", "lib", '[lib]\ncrate-type = ["cdylib"]\n')
    place.run(["cargo", "build", "--quiet", "--target", "wasm32-unknown-unknown"], library)
    _magic(built / "wasm32-unknown-unknown/debug/answer.wasm")
    if not place.has("wasmtime"):
        return "compiled for wasm32-wasip1 and wasm32-unknown-unknown"
    place.run(["wasmtime", "run", str(program)], folder, ANSWER)
    return "compiled for wasm32-wasip1 and wasm32-unknown-unknown, and ran in wasmtime"


def _magic(module: Path) -> None:
    try:
        right = module.read_bytes()[:4] == b"\0asm"
    except OSError:
        right = False
    if not right:
        raise Failure(f"The compiler left no WebAssembly in {module.name}.")


def _python(place: Place) -> str:
    folder = place.folder("python")
    write(folder / "a.py", f"import ssl, sqlite3, zlib\nprint('{ANSWER}')\n")
    place.run(["python3", "-m", "py_compile", "a.py"], folder)
    place.run(["python3", "a.py"], folder, ANSWER)
    version = first(place.run(["python3", "--version"]))
    if not place.has("python3-venv") and not place.has("python"):
        return f"compiled and ran: {version}"
    place.run(["python3", "-m", "venv", "v"], folder)
    place.run([str(folder / "v/bin/python"), "-m", "pip", "--version"], folder, str(folder / "v"))
    return f"compiled and ran, and made an environment with pip: {version}"


def _uv(place: Place) -> str:
    folder = place.folder("uv-program")
    write(folder / "a.py", f"print('{ANSWER}')\n")
    place.run(["uv", "venv", "--quiet", "--python", "python3", "v"], folder)
    place.run(["uv", "run", "--no-project", "--python", "v/bin/python", "a.py"], folder, ANSWER)
    return f"made an environment and ran in it: {first(place.run(['uv', '--version']))}"


def _node(place: Place) -> str:
    folder = place.folder("node")
    package, user = folder / "answer", folder / "user"
    package.mkdir()
    user.mkdir()
    write(package / "package.json", '{"name": "answer", "version": "1.0.0", "main": "a.js"}\n')
    write(package / "a.js", f'module.exports = "{ANSWER}";\n')
    write(user / "package.json", '{"name": "user", "version": "1.0.0", "private": true}\n')
    place.run(["npm", "pack", "--silent", "--pack-destination", str(user)], package)
    place.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "./answer-1.0.0.tgz"], user)
    place.run(["node", "-e", "console.log(require('answer'))"], user, ANSWER)
    return f"packed, installed and ran: node {first(place.run(['node', '--version']))}"


_WAT = """(module
  (func (export "answer") (param i32 i32) (result i32) (i32.mul (local.get 0) (local.get 1))))
"""


def _wabt(place: Place) -> str:
    folder = place.folder("wabt")
    write(folder / "a.wat", _WAT)
    place.run(["wat2wasm", "a.wat", "-o", "a.wasm"], folder)
    place.run(["wasm-validate", "a.wasm"], folder)
    place.run(["wasm2wat", "a.wasm"], folder, "i32.mul")
    place.run(["wasm-interp", "a.wasm", "--run-export=answer", "--argument=i32:6", "--argument=i32:7"], folder, "42")
    return f"assembled, validated, took apart and ran: {first(place.run(['wat2wasm', '--version']))}"


def _wasmtime(place: Place) -> str:
    folder = place.folder("wasmtime")
    write(folder / "a.wat", _WAT)
    place.run(["wasmtime", "run", "--invoke", "answer", "a.wat", "6", "7"], folder, "42")
    return f"ran: {first(place.run(['wasmtime', '--version']))}"


def _wasm_pack(place: Place) -> str:
    """Build a package. It needs wasm-bindgen, so this is the only check that uses the crates registry."""
    version = first(place.run(["wasm-pack", "--version"]))
    library = '[lib]\ncrate-type = ["cdylib"]\n[dependencies]\nwasm-bindgen = "0.2"\n'
    folder = _crate(place, "wasm-pack", "lib", library)
    write(folder / "src/lib.rs", "#[wasm_bindgen::prelude::wasm_bindgen]\npub fn answer() -> i32 { 42 }\n")
    online = {"CARGO_NET_OFFLINE": "false", "CARGO_NET_RETRY": "1", "CARGO_HTTP_TIMEOUT": "20"}
    try:
        place.run(["cargo", "fetch", "--quiet"], folder, timeout=90, env=online)
    except Failure as failure:
        raise Failure(f"{version} is there; wasm-bindgen, which it packs with, cannot be fetched here: "
                      f"{failure.sentence}", state="skipped") from None  # fmt: skip
    try:
        # Optimising needs another download, from a server that fewer sites reach.
        place.run(["wasm-pack", "build", "--no-opt", "--target", "nodejs"], folder, timeout=SLOW, env=online)
    except Failure as failure:
        if "did not end within" not in failure.sentence:
            raise
        raise Failure(f"{version} is there; wasm-bindgen, which it compiles where GitHub cannot be reached, was not "
                      f"ready within {SLOW:.0f} s.", state="skipped") from None  # fmt: skip
    _magic(folder / "pkg/answer_bg.wasm")
    if place.has("node"):
        program = "console.log('the answer is ' + require('./pkg/answer.js').answer())"
        place.run(["node", "-e", program], folder, ANSWER)
    return f"built a package and ran it: {version}"


def _git(place: Place) -> str:
    folder = place.folder("git")
    _repository(place, folder / "one")
    place.run(["git", "clone", "--quiet", "--", str(folder / "one"), str(folder / "two")], folder)
    place.run(["git", "-C", str(folder / "two"), "log", "--format=%an %s"], folder, "Verify first")
    place.run(["git", "-C", str(folder / "two"), "fsck", "--no-progress"], folder)
    return f"committed and cloned: {first(place.run(['git', '--version']))}"


AUTHOR = ("-c", "user.name=Verify", "-c", "user.email=verify@localhost", "-c", "commit.gpgSign=false")


def _repository(place: Place, folder: Path) -> Path:
    place.run(["git", "init", "--quiet", "-b", "main", str(folder)])
    write(folder / "README", f"{ANSWER}\n")
    place.run(["git", "add", "README"], folder)
    # The operator's hooks have their own check.
    place.run(["git", *AUTHOR, "-c", "core.hooksPath=/dev/null", "commit", "--quiet", "-m", "first"], folder)
    return folder


def _git_lfs(place: Place) -> str:
    folder = _repository(place, place.folder("git-lfs") / "one")
    place.run(["git", "lfs", "track", "*.bin"], folder)
    write(folder / "a.bin", ANSWER)
    place.run(["git", "add", "a.bin"], folder)
    place.run(["git", "cat-file", "-p", ":a.bin"], folder, "https://git-lfs.github.com/spec/")
    return f"tracked and stored: {first(place.run(['git', 'lfs', 'version']))}"


def _gnupg(place: Place) -> str:
    """Sign with a new key and check the signature, in a key ring of its own."""
    folder = place.folder("gnupg")
    folder.chmod(0o700)
    write(folder / "a.txt", f"{ANSWER}\n")
    env = {"GNUPGHOME": str(folder)}
    gpg = ["gpg", "--batch", "--quiet", "--no-tty", "--passphrase", ""]
    try:
        place.run([*gpg, "--quick-generate-key", "verify@localhost", "ed25519", "sign", "1d"], folder, env=env)
        place.run([*gpg, "--detach-sign", "a.txt"], folder, env=env)
        place.run([*gpg, "--verify", "a.txt.sig", "a.txt"], folder, "Good signature", env=env)
    finally:
        place.run(["gpgconf", "--kill", "all"], folder, good=lambda status: True, env=env)
    return f"signed and verified: {first(place.run(['gpg', '--version']))}"


def _jq(place: Place) -> str:
    place.run(["jq", "--null-input", "--raw-output", '"the answer is \\(6 * 7)"'], expect=ANSWER)
    return first(place.run(["jq", "--version"]))


def _ripgrep(place: Place) -> str:
    folder = place.folder("ripgrep")
    write(folder / "a.txt", f"no\n{ANSWER}\n")
    place.run(["rg", "--no-config", "--line-number", "answer", "."], folder, f"2:{ANSWER}")
    return first(place.run(["rg", "--version"]))


def _direnv(place: Place) -> str:
    folder = place.folder("direnv")
    write(folder / ".envrc", "export ANSWER=42\n")
    place.run(["direnv", "allow", "."], folder)
    place.run(["direnv", "exec", ".", "sh", "-c", 'echo "the answer is $ANSWER"'], folder, ANSWER)
    return f"loaded a folder's environment: {first(place.run(['direnv', 'version']))}"


def _tmux(place: Place) -> str:
    folder = place.folder("tmux")
    server = ["tmux", "-S", str(folder / "s"), "-f", "/dev/null"]
    place.run([*server, "new-session", "-d", f"echo {ANSWER} >said; sleep 60"], folder)
    try:
        _until((folder / "said").exists, "tmux started no shell within 10 s.")
    finally:
        place.run([*server, "kill-server"], folder, good=lambda status: True)
    return f"ran a session: {first(place.run(['tmux', '-V']))}"


def _until(done: Callable[[], bool], sentence: str, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise Failure(sentence)
        time.sleep(0.05)


def _rsync(place: Place) -> str:
    folder = place.folder("rsync")
    (folder / "a").mkdir()
    write(folder / "a/b", ANSWER)
    place.run(["rsync", "--archive", "a/", "c/"], folder)
    if (folder / "c/b").read_text() != ANSWER:
        raise Failure("rsync ended well and copied nothing.")
    return first(place.run(["rsync", "--version"]))


def _compose(place: Place) -> str:
    folder = place.folder("compose")
    write(folder / "compose.yaml", "services:\n  a:\n    image: answer:42\n")
    place.run(["docker", "compose", "config"], folder, "answer:42")
    return f"read a project: {first(place.run(['docker', 'compose', 'version']))}"


def _installed(place: Place) -> str:
    """Check that every listed package is installed."""
    names = place.packages
    argv = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\\n", *names]
    said = place.run(argv, good=lambda status: True).splitlines()
    there = {text.split()[0] for text in said if text.endswith(" installed")}
    missing = sorted(set(names) - there)
    if missing:
        raise Failure(f"The image names packages that are not installed: {', '.join(missing)}.")
    return f"{len(names)} named, all installed"


TOOLS = (
    Tool("git", ("git",), _git),
    Tool("git-lfs", ("git-lfs",), _git_lfs),
    Tool("jq", ("jq",), _jq),
    Tool("rsync", ("rsync",), _rsync),
    Tool("tmux", ("tmux",), _tmux),
    Tool("python", ("python3", "python"), _python),
    Tool("uv", ("uv",), _uv),
    Tool("gnupg", ("gnupg",), _gnupg),
    Tool("c", ("gcc",), _c),
    Tool("go", ("go",), _go),
    Tool("rust", ("rust", "rustc"), _rust),
    Tool("rust-wasm", ("rust", "libstd-rust-dev-wasm32"), _rust_wasm),
    Tool("node", ("node",), _node),
    Tool("wabt", ("wabt",), _wabt),
    Tool("wasmtime", ("wasmtime",), _wasmtime),
    Tool("wasm-pack", ("wasm-pack",), _wasm_pack),
    Tool("gh", ("gh",), _answers("gh", "--version")),
    Tool("ripgrep", ("ripgrep",), _ripgrep),
    Tool("direnv", ("direnv",), _direnv),
    Tool("htop", ("htop",), _answers("htop", "--version")),
    Tool("buildx", ("docker-buildx",), _answers("docker", "buildx", "version")),
    Tool("compose", ("docker-compose-v2", "docker-compose"), _compose),
)
PACKAGES = Tool("packages", (), _installed)


def of(place: Place) -> list[Tool]:
    """Return the checks of the image's tools; a tool without its own check must print its version."""
    known = {*(name for tool in TOOLS for name in tool.needs), "firecracker"}
    others = [
        Tool(name, (name,), _answers(name, "--version"))
        for name, tool in place.tools.items()
        if tool.get("state") == "present" and name not in known
    ]
    return [PACKAGES, *(tool for tool in TOOLS if any(map(place.has, tool.needs))), *others]
