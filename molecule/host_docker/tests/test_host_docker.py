# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What host_docker leaves: an engine that maps ids, a runtime that insists on it, rules in front of the host."""

from __future__ import annotations

import json

import pytest

LIBRARY = "/usr/local/lib/spt-flow"
SYSTEM = (
    "mkdir -p /tmp/system/bin && cp /bin/true /bin/cat /tmp/system/bin &&"
    " cp -L --parents $(ldd /bin/cat | grep -o '/[^ ]*') /tmp/system && tar -C /tmp/system -c . | docker import - {}"
)
"""Makes a tiny image: true, cat and the libraries they need."""


@pytest.fixture(scope="module", autouse=True)
def image(host) -> None:  # type: ignore[no-untyped-def]
    host.check_output(SYSTEM.format("spt-flow-test"))


def test_the_engine_answers_with_remapping_and_the_runtime(host) -> None:  # type: ignore[no-untyped-def]
    info = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert "name=userns" in info["SecurityOptions"]
    assert info["Runtimes"]["spt-flow"]["path"] == f"{LIBRARY}/spt-flow-runc"
    assert info["LiveRestoreEnabled"]
    assert info["DockerRootDir"].endswith("/1000000.1000000")
    assert host.service("docker").is_enabled


def test_the_range_is_registered_for_both_kinds_of_ids(host) -> None:  # type: ignore[no-untyped-def]
    for path in ("/etc/subuid", "/etc/subgid"):
        lines = host.file(path).content_string.splitlines()
        assert lines.count("spt-flow-remap:1000000:1048576") == 1


def test_rules_are_in_front_and_come_back_with_the_engine(host) -> None:  # type: ignore[no-untyped-def]
    assert host.run(f"{LIBRARY}/spt-flow-firewall check").succeeded
    assert host.check_output("iptables -S INPUT 1") == "-A INPUT -i spt-flow0 -j SPT-FLOW-HOST"
    assert host.check_output("iptables -S DOCKER-USER 1") == "-A DOCKER-USER -i spt-flow0 -j SPT-FLOW-OUT"
    host.check_output("systemctl restart docker")
    assert host.run(f"{LIBRARY}/spt-flow-firewall check").succeeded
    assert host.service("spt-flow-firewall").is_enabled


def test_a_container_runs_unmasked_as_nobody_of_the_host(host) -> None:  # type: ignore[no-untyped-def]
    run = "docker run --rm --network none --runtime spt-flow spt-flow-test /bin/cat"
    assert host.check_output(f"{run} /proc/self/uid_map").split() == ["0", "1000000", "1048576"]
    assert " /proc/sys " not in host.check_output(f"{run} /proc/self/mounts")
    assert " /proc/sys " in host.check_output(f"{run.replace('spt-flow spt', 'runc spt')} /proc/self/mounts")


def test_the_runtime_refuses_a_container_with_the_hosts_ids(host) -> None:  # type: ignore[no-untyped-def]
    done = host.run("docker run --rm --network none --userns host --runtime spt-flow spt-flow-test /bin/true")
    assert done.failed
    assert "spt-flow-runc did not terminate successfully: exit status 1" in done.stderr
    assert host.run("docker run --rm --network none --userns host spt-flow-test /bin/true").succeeded


def test_processes_are_limited_where_nobody_named_a_number(host) -> None:  # type: ignore[no-untyped-def]
    run = "docker run --detach --interactive --rm --network none --runtime spt-flow"
    for words, limit in (("", "4096"), ("--pids-limit 99", "99")):
        identifier = host.check_output(f"{run} {words} spt-flow-test /bin/cat")
        pid = host.check_output(f"docker inspect --format '{{{{.State.Pid}}}}' {identifier}")
        group = host.check_output(f"sed -n 's/^[0-9]*:pids://p' /proc/{pid}/cgroup")
        found = host.check_output(f"cat /sys/fs/cgroup/pids{group}/pids.max")
        host.check_output(f"docker rm --force {identifier}")
        assert found == limit
