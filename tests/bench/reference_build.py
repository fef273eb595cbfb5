#!/usr/bin/env python3
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference build: a repository in Go, Rust, WebAssembly and JavaScript that contains its dependencies.

    python3 tests/bench/reference_build.py FOLDER     creates it; `sh build.sh` in it builds, runs and checks all

Everything is generated here, including dependencies, in the layout of `go mod vendor`, `cargo vendor` and `npm pack`.
Most of the time is spent in compilers: Go's standard library, two hundred Rust modules three times, unpacking packages.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

PACKAGES = 40
"""Dependencies of each language."""
FUNCTIONS = 30
"""Functions of each dependency."""
EXPECTED = sum(number % 7 for number in range(FUNCTIONS)) * PACKAGES
"""The result that every program computes by calling all of them."""

BUILD = f"""#!/bin/sh
# Build everything without a network, run it, and compare what it computes.
set -eu
cd "$(dirname "$0")"
check() {{ test "$2" = {EXPECTED} || {{ echo "$1 computed $2, not {EXPECTED}" >&2; exit 1; }}; }}

(cd go && GOFLAGS=-mod=vendor GOPROXY=off CGO_ENABLED=0 go build -o ../out/go .)
(cd go && GOFLAGS=-mod=vendor GOPROXY=off GOOS=wasip1 GOARCH=wasm go build -o ../out/go.wasm ./sum)
(cd rust && cargo build --quiet --release --frozen --target-dir ../out/rust)
for target in wasm32-unknown-unknown wasm32-wasip1; do
    (cd rust && cargo build --quiet --release --frozen --target-dir ../out/rust --target $target)
done
(cd web && npm ci --silent --offline --no-audit --no-fund --cache ../out/npm && npm run --silent build)

check go "$(out/go)"
check go.wasm "$(wasmtime out/go.wasm)"
check rust "$(out/rust/release/reference)"
check rust.wasm "$(wasmtime out/rust/wasm32-wasip1/release/reference.wasm)"
check web "$(node out/web.mjs)"
check web.wasm "$(node web/wasm.mjs out/rust/wasm32-unknown-unknown/release/reference_lib.wasm)"
echo built
"""


def make(folder: Path) -> None:
    """Write the repository into the new folder."""
    files = {"build.sh": BUILD, ".gitignore": "out/\nnode_modules/\n", **go(), **rust(), **web()}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def go() -> dict[str, str]:
    names = [f"part{number:02}" for number in range(PACKAGES)]
    require = "".join(f"\texample.com/{name} v1.0.0\n" for name in names)
    modules = "".join(f"# example.com/{name} v1.0.0\n## explicit; go 1.21\nexample.com/{name}\n" for name in names)
    imports = '\t"fmt"\n' + "".join(f'\t"example.com/{name}"\n' for name in names)
    main = f"func main() {{ fmt.Println({' + '.join(f'{name}.Total()' for name in names)}) }}\n"
    # The server is never started; its code is only compiled, as in real programs.
    server = '\t"crypto/tls"\n\t"database/sql"\n\t"encoding/json"\n\t"html/template"\n\t"net/http"\n'
    uses = "var _ = []any{http.ListenAndServe, tls.Dial, sql.Open, json.Marshal, template.New}\n"
    return {
        "go/go.mod": f"module example.com/reference\n\ngo 1.21\n\nrequire (\n{require})\n",
        "go/vendor/modules.txt": modules,
        "go/main.go": f"package main\n\nimport (\n{server}{imports})\n\n{uses}\n{main}",
        "go/sum/main.go": f"package main\n\nimport (\n{imports})\n\n{main}",
        **{f"go/vendor/example.com/{name}/{name}.go": go_package(name) for name in names},
    }


def go_package(name: str) -> str:
    functions = "".join(
        f"func f{number}[T ~int | ~int64](values map[string]T) T {{\n\tvar sum T\n"
        f"\tfor name, value := range values {{\n\t\tif strings.HasPrefix(name, {chr(34)}x{chr(34)}) {{\n"
        f"\t\t\tsum += value * {number % 7}\n\t\t}}\n\t}}\n\treturn sum\n}}\n\n"
        for number in range(FUNCTIONS)
    )
    total = " + ".join(f'f{number}(map[string]int{{"x": 1, "y": {number}}})' for number in range(FUNCTIONS))
    return f'package {name}\n\nimport "strings"\n\n{functions}func Total() int {{\n\treturn {total}\n}}\n'


def rust() -> dict[str, str]:
    names = [f"part{number:02}" for number in range(PACKAGES)]
    wanted = "".join(f'{name} = "1.0.0"\n' for name in names)
    total = " + ".join(f"{name}::total()" for name in names)
    lock = 'version = 3\n\n[[package]]\nname = "reference"\nversion = "1.0.0"\ndependencies = [\n'
    lock += "".join(f' "{name}",\n' for name in names) + "]\n"
    files = {}
    for name in names:
        files |= rust_crate(name)
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        source = "registry+https://github.com/rust-lang/crates.io-index"
        lock += f'\n[[package]]\nname = "{name}"\nversion = "1.0.0"\nsource = "{source}"\nchecksum = "{sha256}"\n'
    sources = '[source.crates-io]\nreplace-with = "vendored"\n\n[source.vendored]\ndirectory = "vendor"\n'
    library = f'#[no_mangle]\npub extern "C" fn total() -> i64 {{\n    {total}\n}}\n'
    return {
        "rust/.cargo/config.toml": sources,
        "rust/Cargo.lock": lock,
        "rust/Cargo.toml": '[package]\nname = "reference"\nversion = "1.0.0"\nedition = "2021"\n\n'
        '[lib]\nname = "reference_lib"\ncrate-type = ["cdylib", "rlib"]\n\n'
        f"[dependencies]\n{wanted}",
        "rust/src/lib.rs": library,
        "rust/src/main.rs": 'fn main() {\n    println!("{}", reference_lib::total());\n}\n',
        **files,
    }


def rust_crate(name: str) -> dict[str, str]:
    """A crate in the layout of `cargo vendor`, with the checksums of its files and its archive."""
    functions = "".join(
        f"fn f{number}<T: Copy + Into<i64>>(values: &HashMap<String, T>) -> i64 {{\n"
        f'    let wanted = values.iter().filter(|(name, _)| name.starts_with("x"));\n'
        f"    wanted.map(|(_, value)| (*value).into() * {number % 7}).sum()\n}}\n\n"
        for number in range(FUNCTIONS)
    )
    total = " + ".join(f"f{number}(&values)" for number in range(FUNCTIONS))
    values = '    let values: HashMap<String, i32> = [("x".to_string(), 1), ("y".to_string(), 2)].into();\n'
    main = f"pub fn total() -> i64 {{\n{values}    {total}\n}}\n"
    files = {
        "Cargo.toml": f'[package]\nname = "{name}"\nversion = "1.0.0"\nedition = "2021"\n',
        "src/lib.rs": f"use std::collections::HashMap;\n\n{functions}{main}",
    }
    sums = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in files.items()}
    checked = {"files": sums, "package": hashlib.sha256(name.encode()).hexdigest()}
    files[".cargo-checksum.json"] = json.dumps(checked)
    return {f"rust/vendor/{name}/{path}": text for path, text in files.items()}


def web() -> dict[str, str | bytes]:
    names = [f"part{number:02}" for number in range(PACKAGES)]
    functions = "".join(
        f"function f{n}(values) {{ return Object.entries(values).reduce((sum, [name, value]) => "
        f"name.startsWith('x') ? sum + value * {n % 7} : sum, 0); }}\n"
        for n in range(FUNCTIONS)
    )
    calls = " + ".join(f"f{number}({{ x: 1, y: {number} }})" for number in range(FUNCTIONS))
    index = f"{functions}export const total = () => {calls};\n"
    packed = {name: npm_package(name, index) for name in names}
    wanted = {name: f"file:vendor/{name}-1.0.0.tgz" for name in names}
    about = {"name": "reference", "version": "1.0.0", "private": True, "dependencies": wanted}
    locked = {
        f"node_modules/{name}": {
            "version": "1.0.0",
            "resolved": wanted[name],
            "integrity": "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode(),
        }
        for name, content in packed.items()
    }
    lock = {"name": "reference", "version": "1.0.0", "lockfileVersion": 3, "requires": True}
    lock |= {"packages": {"": {"name": "reference", "version": "1.0.0", "dependencies": wanted}, **locked}}
    return {
        "web/package.json": json.dumps({**about, "scripts": {"build": "node build.mjs"}}, indent=2),
        "web/package-lock.json": json.dumps(lock, indent=2),
        "web/build.mjs": BUNDLE,
        "web/wasm.mjs": WASM,
        **{f"web/vendor/{name}-1.0.0.tgz": content for name, content in packed.items()},
    }


BUNDLE = """import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';

const names = Object.keys(JSON.parse(readFileSync('package.json')).dependencies);
const parts = names.map((name) => {
  const text = readFileSync(`node_modules/${name}/index.mjs`, 'utf8').replace('export const', 'const');
  return `const ${name} = (() => {\\n${text}return { total };\\n})();\\n`;
});
mkdirSync('../out', { recursive: true });
const total = names.map((name) => `${name}.total()`).join(' + ');
writeFileSync('../out/web.mjs', `${parts.join('')}console.log(${total});\\n`);
"""
WASM = """import { readFileSync } from 'node:fs';

const { instance } = await WebAssembly.instantiate(readFileSync(process.argv[2]), {});
console.log(String(instance.exports.total()));
"""


def npm_package(name: str, index: str) -> bytes:
    """A package like `npm pack` creates it."""
    about = {"name": name, "version": "1.0.0", "type": "module", "main": "index.mjs"}
    return packed({"package/package.json": json.dumps(about), "package/index.mjs": index})


def packed(files: Mapping[str, str]) -> bytes:
    """An archive that depends only on its files."""
    archive = io.BytesIO()
    with gzip.GzipFile("", "wb", fileobj=archive, mtime=0) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return archive.getvalue()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
