# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every refused system call and socket family, tried inside a workspace on every ABI, as its user and as its root.

None may succeed. The results are in artifacts/system-calls.md.
"""

from __future__ import annotations

import importlib.util
import json
import platform
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.tests.integration.harness import Harness
from ansible_collections.spt.flow.tests.unit import seccomp_filter

CHECKOUT = Path(__file__).resolve().parents[2]
ARTIFACT = CHECKOUT / "artifacts/system-calls.md"
ABIS = {"64": "SCMP_ARCH_X86_64", "32": "SCMP_ARCH_X86", "x32": "SCMP_ARCH_X86_64"}
HELD = {"EPERM", "ENOSYS", "killed"}
FAMILIES = range(46)
ALLOWED = {1: 1, 2: 1, 10: 1, 16: 3}
"""Family and one of its types; the filter allows PACKET, which needs a capability that workspaces do not have."""
PROBE = r"""
import ctypes, errno, json, mmap, os, struct, sys
code = bytes.fromhex("53 89f8 89f3 4189c9 89d1 4489ca 31f6 31ff cd80 5b c3".replace(" ", ""))
low = mmap.mmap(-1, 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, 7)  # MAP_32BIT: 32-bit calls take its address
low[: len(code)] = code
base = ctypes.addressof(ctypes.c_char.from_buffer(low))
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
by_interrupt = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint32] * 4)(base)

def answer(abi, number, *arguments):
    arguments = (*arguments, 0, 0, 0)[:3]
    if abi == "32":
        return by_interrupt(number, *[value & 0xFFFFFFFF for value in arguments])
    number |= 0x40000000 if abi == "x32" else 0
    done = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(value) for value in arguments])
    return -ctypes.get_errno() if done == -1 else done

def tried(abi, number, arguments):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        if arguments and arguments[0] == "socketcall":
            low[4096:4108] = struct.pack("=3i", *arguments[2:])
            arguments = [arguments[1], base + 4096]
        os.write(writing, b"%d" % answer(abi, number, *arguments))
        os._exit(0)
    os.close(writing)
    status = os.waitpid(child, 0)[1]
    text = os.read(reading, 64)
    os.close(reading)
    if os.WIFSIGNALED(status) or not text:
        return "killed"
    value = int(text)
    return "succeeded" if value >= 0 else errno.errorcode.get(-value, str(value))

print(json.dumps([tried(*row) for row in json.load(sys.stdin)]))
"""

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the probes are machine code of x86-64"),
    pytest.mark.skipif(not seccomp_filter.available(), reason="libseccomp is not installed (package libseccomp2)"),
]


def refused_calls() -> list[str]:
    loader = SourceFileLoader("seccomp_tool", str(CHECKOUT / "tools/seccomp"))
    spec = importlib.util.spec_from_loader("seccomp_tool", loader)
    assert spec
    tool = importlib.util.module_from_spec(spec)
    loader.exec_module(tool)
    rules = json.loads(seccomp_filter.PROFILE.read_text(encoding="utf-8"))["syscalls"]
    by_arguments = {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    return sorted({name for group in tool.REFUSED.values() for name in group.split()} - by_arguments)


def probes() -> Iterator[tuple[str, str, int, list[Any]]]:
    """Return (ABI, name, call number, arguments); zeros are harmless where a call is allowed."""
    for abi, architecture in ABIS.items():
        for name in refused_calls():
            number = seccomp_filter.number(architecture, name)
            if number >= 0:
                yield abi, name, number, []
        for name, allowed in (("socket", set(ALLOWED)), ("socketpair", {1})):
            for family in FAMILIES:
                if family not in allowed or abi == "x32":
                    yield abi, f"{name} of family {family}", seccomp_filter.number(architecture, name), [family, 1]
    for family in FAMILIES:
        if family not in ALLOWED:
            yield "64", f"socket of family {family} with a higher bit", 41, [family | 1 << 32, 1]
        yield "32", f"socketcall for family {family}", 102, ["socketcall", 1, family, 1, 0]


@pytest.fixture(scope="module")
def workspace(shared_harness: Harness) -> Workspace:
    return shared_harness.up(shared_harness.spec(shared_harness.repository("calls"), docker="auto", wait_timeout=300))


def ask(harness: Harness, workspace: Workspace, rows: list[tuple[str, int, list[Any]]], user: str) -> list[str]:
    done = harness.target.exec(
        workspace, ["python3", "-c", PROBE], stdin=json.dumps(rows).encode(), timeout=120, user=user
    )
    assert done.status == 0, done
    found: list[str] = json.loads(done.stdout)
    assert len(found) == len(rows)
    return found


def test_allowed_calls_and_families_work(shared_harness: Harness, workspace: Workspace) -> None:
    """The control: both ABIs are reached, and allowed families have sockets on both."""
    rows: list[tuple[str, int, list[Any]]] = [("64", 39, []), ("32", 20, [])]
    for abi, number in (("64", 41), ("32", 359)):
        rows += [(abi, number, [family, kind]) for family, kind in ALLOWED.items()]
    assert {*ask(shared_harness, workspace, rows, "1000:1000")} == {"succeeded"}


def test_refused_calls_and_families_fail_on_every_abi(shared_harness: Harness, workspace: Workspace) -> None:
    tried = list(probes())
    rows, out = [], []
    for who, user in (("coder", "1000:1000"), ("root", "0:0")):
        answers = ask(shared_harness, workspace, [(abi, number, words) for abi, _name, number, words in tried], user)
        for (abi, name, _number, _words), said in zip(tried, answers, strict=True):
            rows.append(f"| {abi} | {who} | {name} | {said} |")
            out += [rows[-1]] if said not in HELD else []
    counted = Counter(tuple(row.split(" | ")[0:2]) + (row.split(" | ")[3],) for row in rows)
    text = "\n".join(
        [
            f"{len(rows)} probes, {len(out)} succeeded.",
            "",
            "| ABI | As | Answer | Probes |",
            "| --- | --- | --- | --- |",
            *(
                f"{abi} | {who} | {said.rstrip(' |')} | {count} |"
                for (abi, who, said), count in sorted(counted.items())
            ),
            "",
            "| ABI | As | Probe | Answer |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )
    ARTIFACT.parent.mkdir(exist_ok=True)
    ARTIFACT.write_text(f"{text}\n")
    print("\n".join(text.splitlines()[:20]))
    assert out == []
    assert len(tried) >= 300
