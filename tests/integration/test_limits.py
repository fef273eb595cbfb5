# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The limits of a workspace: processors, memory, processes, devices, memory file systems."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import errors
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.tests.integration.harness import Harness

MIB = 1 << 20
SMALL = {"cpus": 0.5, "memory": 512 * MIB, "pids": 150}


@pytest.fixture(scope="module")
def small(shared_harness: Harness) -> Workspace:
    return shared_harness.up(shared_harness.spec(shared_harness.repository("small"), **SMALL))


def shell(harness: Harness, workspace: Workspace, script: str) -> tuple[int, str]:
    done = harness.target.exec(workspace, ["bash", "-c", script], timeout=120)
    return done.status, (done.stdout + done.stderr).strip()


def test_processes_are_limited(shared_harness: Harness, small: Workspace) -> None:
    status, said = shell(
        shared_harness,
        small,
        "python3 -c 'import os,time\nn=0\ntry:\n while n<400:\n  n+=1\n  os.fork() or (time.sleep(2), os._exit(0))\n"
        'except OSError: print("limited", n)\'; true',
    )
    assert said.startswith("limited"), said
    assert int(said.split()[1]) < SMALL["pids"]
    time.sleep(2)
    assert shell(shared_harness, small, "true")[0] == 0


def test_memory_is_limited(shared_harness: Harness, small: Workspace) -> None:
    assert shell(shared_harness, small, f"python3 -c 'b = bytearray({256 * MIB})'")[0] == 0
    status, _said = shell(shared_harness, small, f"python3 -c 'b = bytearray({700 * MIB})'")
    assert status != 0
    assert [found.state for found in shared_harness.target.list(small.owner) if found.name == small.name] == ["running"]


def test_processor_time_is_limited(shared_harness: Harness, small: Workspace) -> None:
    burn = "python3 -c 'import time; e=time.monotonic()+2\nwhile time.monotonic()<e: pass\nprint(time.process_time())'"
    status, said = shell(shared_harness, small, burn)
    assert status == 0
    assert float(said) < 1.6, "two seconds at half a processor use about one second"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/tmp", {"rw", "nosuid", "nodev"}),
        ("/run", {"rw", "nosuid", "nodev", "noexec"}),
        ("/run/spt-flow", {"rw", "nosuid", "nodev"}),
        ("/run/user/1000", {"rw", "nosuid", "nodev"}),
    ],
)
def test_memory_file_systems_are_limited(shared_harness: Harness, small: Workspace, path: str, words: set[str]) -> None:
    _status, said = shell(shared_harness, small, f"findmnt -n -o FSTYPE,OPTIONS {path}")
    kind, options = said.split()
    assert kind == "tmpfs"
    assert words <= set(options.split(","))


def test_programs_run_from_tmp_and_its_size_is_limited(shared_harness: Harness, small: Workspace) -> None:
    assert shell(shared_harness, small, "cp /bin/true /tmp/t && /tmp/t")[0] == 0
    assert shell(shared_harness, small, "head -c 200m /dev/zero > /tmp/big; s=$?; rm -f /tmp/big; exit $s")[0] != 0
    assert shell(shared_harness, small, "cp /bin/true /run/spt-flow/t && rm /run/spt-flow/t")[0] == 0


def test_user_runs_guest_code(shared_harness: Harness, small: Workspace) -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("this machine has no /dev/kvm")
    ask = "import fcntl; print(fcntl.ioctl(open('/dev/kvm','rb+',buffering=0), 0xAE00))"
    assert shell(shared_harness, small, f'python3 -c "{ask}"') == (0, "12")


def test_limits_above_the_machine_are_explained(shared_harness: Harness) -> None:
    result = shared_harness.ensure(
        shared_harness.spec(shared_harness.repository("greedy"), cpus=1024.0, memory=1 << 40)
    )
    note = next(note for note in result.notes if "instead of 1024 CPUs" in note)
    assert "GiB of memory" in note
    assert result.workspace is not None
    host = shared_harness.inspect(result.workspace.id)["HostConfig"]
    facts = shared_harness.target.probe_engine()
    assert host["NanoCpus"] == facts.cpus * 10**9
    assert host["Memory"] < facts.memory


def test_required_but_missing_device_is_refused(shared_harness: Harness) -> None:
    spec = shared_harness.spec(name="any", kvm="required")
    facts = shared_harness.target.probe_engine()
    with pytest.raises(errors.FlowError, match="does not have /dev/kvm"):
        docker_container.Plan.of(spec, facts, True, lambda path: False)
    plan = docker_container.Plan.of(shared_harness.spec(name="any", kvm="auto"), facts, True, lambda path: False)
    assert any("software emulation" in note for note in plan.notes)


@pytest.mark.parametrize("prefix", ["", "sudo -n "])
def test_ping_works_and_raw_sockets_do_not(shared_harness: Harness, small: Workspace, prefix: str) -> None:
    status, said = shell(shared_harness, small, f"{prefix}ping -c 1 -W 2 127.0.0.1")
    assert (status, "1 received" in said) == (0, True), said
    raw = "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 768)"
    for words in raw:
        status, said = shell(shared_harness, small, f"{prefix}python3 -c 'import socket; {words}'")
        assert (status, "PermissionError" in said) == (1, True), said


def test_workspace_without_docker_inside_has_our_filter_and_runtime(shared_harness: Harness, small: Workspace) -> None:
    host = shared_harness.inspect(small.id)["HostConfig"]
    assert host["Runtime"] == "spt-flow" and any(option.startswith("seccomp={") for option in host["SecurityOpt"])
    _status, said = shell(shared_harness, small, "python3 -c 'import socket; socket.socket(40, 1)'; findmnt /proc/sys")
    assert "PermissionError" in said and "ro," in said, "vsock is refused, and /proc stays masked"


def test_busy_workspace_does_not_starve_others(shared_harness: Harness, small: Workspace) -> None:
    """Next to a fork bomb and a memory hog, another workspace answers and nothing outside is killed."""
    other = shared_harness.up(shared_harness.spec(shared_harness.repository("other"), **SMALL))
    bomb = "timeout 6 bash -c 'b() { b | b & }; b; tail /dev/zero' >/dev/null 2>&1; true"
    with subprocess.Popen(
        ["docker", "exec", "-u", "1000:1000", small.id, "bash", "-c", bomb],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        time.sleep(1)
        assert shell(shared_harness, other, "true")[0] == 0
        child.wait(60)
    assert shell(shared_harness, other, "true")[0] == 0
