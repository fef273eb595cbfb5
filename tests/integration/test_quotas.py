# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One workspace takes all it can of the kernel's quotas; a neighbour and the host still get theirs.

The greedy program runs as root inside to use many user ids, and keeps what it took while the others request theirs.
The results are in ``artifacts/quotas.md``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.tests.integration.harness import Harness

ROOT = Path(__file__).resolve().parents[2]
ARTIFACT = ROOT / "artifacts/quotas.md"
OWNERS = range(0x70000000, 0x80000000)
"""Ids, each of which creates one container's user namespace."""
NS_GET_OWNER_UID = 0xB704

TAKE = """
import array, ctypes, fcntl, json, os, resource, signal, socket, sys, time
libc, held = ctypes.CDLL(None, use_errno=True), []
def check(value):
    if value < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return value
def inotify():
    held.append(check(libc.inotify_init1(0)))
def aio():
    check(libc.syscall(206, 1024, ctypes.byref(ctypes.c_ulong())))
def pipe():
    held.extend(os.pipe())
    if fcntl.fcntl(held[-1], 1032) < 65536:
        raise OSError("only a small pipe")
def terminal():
    held.extend(os.openpty())
def queue():
    held.append(check(libc.syscall(240, b"q%d-%d" % (os.getpid(), len(held)), os.O_CREAT | os.O_RDWR, 0o600, None)))
    libc.syscall(241, b"q%d-%d" % (os.getpid(), len(held) - 1))
def timer():
    check(libc.syscall(222, 0, None, ctypes.byref(ctypes.c_int())))
def descriptor():
    held.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    rights = array.array("i", [held[-1][0].fileno()] * 250)
    held[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
def child(take, want, user, writer):
    os.setresuid(user, user, user)
    got, why = 0, ""
    try:
        while got < want:
            take()
            got += 1
    except OSError as error:
        why = str(error)
    os.write(writer, json.dumps([got, why]).encode())
    os.close(writer)
    time.sleep(120)
take, want, users = globals()[sys.argv[1]], int(sys.argv[2]), [int(user) for user in sys.argv[3:]]
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
answers, children = [], []
for user in users:
    reader, writer = os.pipe()
    children.append(os.fork())
    if not children[-1]:
        child(take, want, user, writer)
        os._exit(0)
    os.close(writer)
    answers.append(json.loads(os.read(reader, 1000)))
print(json.dumps({"got": sum(got for got, _why in answers), "why": answers[-1][1]}), flush=True)
sys.stdin.read()
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""
"""Takes a resource with an amount by each user, and releases it at the end of its input."""

MANY = tuple(range(1, 60))
# Resource, amount per greedy user, greedy users, amount of a neighbour, who requests on the host.
CASES: dict[str, tuple[int, tuple[int, ...], int, int]] = {
    "inotify": (10_000, (1000, 0, *MANY), 100, 0),
    "aio": (200, (1000,), 10, 0),
    "pipe": (2000, (1000,), 100, 65534),
    "terminal": (5000, (1000,), 100, 65534),
    "queue": (1000, (1000, 0, *MANY), 3, 0),
    "timer": (200_000, (1000, 0), 1000, 0),
    "descriptor": (120, (1000,), 0, 0),
}


@pytest.fixture(scope="module")
def pair(shared_harness: Harness) -> tuple[Workspace, Workspace]:
    """The greedy workspace and its neighbour."""
    greedy, modest = (
        shared_harness.spec(shared_harness.repository(name), docker="auto") for name in ("greedy", "modest")
    )
    return shared_harness.up(greedy), shared_harness.up(modest)


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows = ["| Resource | One workspace took | Its neighbour got | The host got |", "| --- | --- | --- | --- |"]
    yield rows
    ARTIFACT.parent.mkdir(exist_ok=True)
    ARTIFACT.write_text("\n".join(rows) + "\n")
    print("\n" + "\n".join(rows))


@contextlib.contextmanager
def taking(argv: list[str], what: str, want: int, *users: int) -> Iterator[dict[str, Any]]:
    """Yield what the program got while it holds it."""
    words = [*argv, "-c", TAKE, what, str(want), *map(str, users)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin and program.stdout
        try:
            line = program.stdout.readline()
            assert line, f"no answer of {words[:6]}"
            yield json.loads(line)
        finally:
            program.stdin.close()
            program.wait(60)


def inside(workspace: Workspace) -> list[str]:
    return ["docker", "exec", "-i", "-u", "0", workspace.id, "python3"]


@pytest.mark.parametrize("what", CASES)
def test_greedy_workspace_does_not_take_from_others(
    pair: tuple[Workspace, Workspace], table: list[str], what: str
) -> None:
    want, users, modest, user = CASES[what]
    with taking(inside(pair[0]), what, want, *users) as greedy:
        assert greedy["got"] > modest
        with taking(inside(pair[1]), what, modest, 1000) as neighbour:
            pass
        with taking([sys.executable], what, max(modest, 1), user) as host:
            pass
    table.append(f"| {what} | {greedy['got']} {greedy['why']} | {neighbour['got']} | {host['got']} |")
    assert neighbour == {"got": modest, "why": ""}
    assert host == {"got": max(modest, 1), "why": ""}


def test_terminals_and_open_files_of_a_workspace_are_limited(
    shared_harness: Harness, pair: tuple[Workspace, Workspace]
) -> None:
    settings = dict(line.split("=") for line in Path("/etc/spt-flow/runtime.env").read_text().split())
    with taking(inside(pair[0]), "terminal", 5000, 1000, 0) as greedy:
        assert greedy["got"] <= int(settings["TERMINALS_LIMIT"])
    files = shared_harness.inside(pair[0], "ulimit -Hn")
    assert int(files) <= int(settings["FILES_LIMIT"])
    with pytest.raises(AssertionError, match="Operation not permitted"):
        shared_harness.inside(pair[0], f"ulimit -Hn {int(files) + 1}", user="0")


def test_each_user_namespace_of_a_workspace_has_its_own_counters(
    shared_harness: Harness, pair: tuple[Workspace, Workspace]
) -> None:
    owners = []
    for workspace in pair:
        with open(f"/proc/{shared_harness.inspect(workspace.id)['State']['Pid']}/ns/user") as file:
            answer = bytearray(4)
            fcntl.ioctl(file, NS_GET_OWNER_UID, answer)
            owners.append(struct.unpack("I", answer)[0])
    assert owners[0] != owners[1]
    assert all(owner in OWNERS for owner in owners), owners


def test_node_has_the_limits_of_the_role() -> None:
    wanted = yaml.safe_load((ROOT / "roles/host_docker/vars/main/settings.yml").read_text())["__host_docker_limits"]
    found = {name: Path("/proc/sys", name.replace(".", "/")) for name in wanted}
    low = {
        name: path.read_text().strip()
        for name, path in found.items()
        if path.exists() and (int(path.read_text()) < wanted[name] or (not wanted[name] and int(path.read_text())))
    }
    assert low == {}
