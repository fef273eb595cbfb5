# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The generated seccomp profile: it allows what Docker inside needs and nothing that reaches the host."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TOOL = CHECKOUT / "tools/seccomp"
PROFILE: dict[str, Any] = json.loads((CHECKOUT / "image/seccomp.json").read_text())
NESTED = [
    "unshare",
    "clone",
    "mount",
    "umount",
    "umount2",
    "pivot_root",
    "setns",
    "sethostname",
    "setdomainname",
]
"""The names of docs/decisions/seccomp.md."""
DANGEROUS = [
    "bpf",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "reboot",
    "open_by_handle_at",
    "perf_event_open",
    "userfaultfd",
    "swapon",
    "iopl",
    "ioperm",
    "settimeofday",
    "clock_settime",
    "syslog",
    "quotactl",
    "io_uring_setup",
    "fsopen",
    "open_tree",
    "move_mount",
    "mount_setattr",
    "fanotify_init",
]


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for rule in PROFILE["syscalls"] if name in rule["names"]]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    loader = SourceFileLoader("seccomp_tool", str(TOOL))
    spec = importlib.util.spec_from_loader("seccomp_tool", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = written
    return module


def test_file_is_what_the_tool_generates(tool: ModuleType) -> None:
    if tool.headers_of() != tool.HEADERS_OF:
        pytest.skip(f"the kernel headers here are of {tool.headers_of() or 'no kernel'}, not of {tool.HEADERS_OF}")
    done = subprocess.run([sys.executable, str(TOOL), "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_unlisted_call_is_refused() -> None:
    assert (PROFILE["defaultAction"], PROFILE["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)


@pytest.mark.parametrize("name", [*NESTED, "read", "execve", "clone", "chroot", "ptrace", "futex_waitv"])
def test_call_is_allowed_with_any_arguments(name: str) -> None:
    assert [(rule["action"], rule.get("args")) for rule in rules(name)] == [("SCMP_ACT_ALLOW", None)]


@pytest.mark.parametrize("name", DANGEROUS)
def test_call_is_not_allowed(name: str) -> None:
    assert rules(name) == []


@pytest.mark.parametrize("name", ["clone3", "socketcall", "add_key", "keyctl", "request_key"])
def test_call_is_answered_as_if_it_did_not_exist(name: str) -> None:
    """clone3 and socketcall hide their arguments; keys would be shared by all workspaces, like the host's ids."""
    assert [(rule["action"], rule["errnoRet"]) for rule in rules(name)] == [("SCMP_ACT_ERRNO", 38)]


def test_sockets_are_limited_to_listed_families_by_equality(tool: ModuleType) -> None:
    for name, families in (("socket", [1, 2, 10, 16, 17]), ("socketpair", [1])):
        arguments = [arg for rule in rules(name) for arg in rule["args"]]
        assert {(arg["index"], arg["op"]) for arg in arguments} == {(0, "SCMP_CMP_EQ")}
        assert [arg["value"] for arg in arguments] == families
    assert [*tool.FAMILIES.values()] == [1, 2, 10, 16, 17]
