# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What host_docker leaves: an engine that maps ids, a runtime that insists on it, rules in front of the host."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LIBRARY = "/usr/local/lib/spt-flow"
SYSTEM = (
    "mkdir -p /tmp/system/bin && cp /bin/true /bin/cat /tmp/system/bin &&"
    " cp -L --parents $(ldd /bin/cat | grep -o '/[^ ]*') /tmp/system && tar -C /tmp/system -c . | docker import - {}"
)
"""Makes a tiny image: true, cat and the libraries they need."""


@pytest.fixture(scope="module", autouse=True)
def image(host) -> None:  # type: ignore[no-untyped-def]
    host.check_output(SYSTEM.format("spt-flow-test"))


def test_engine_has_remapping_and_the_runtime(host) -> None:  # type: ignore[no-untyped-def]
    info = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert "name=userns" in info["SecurityOptions"]
    assert info["Runtimes"]["spt-flow"]["path"] == f"{LIBRARY}/spt-flow-runc"
    assert info["LiveRestoreEnabled"]
    assert info["DockerRootDir"].endswith("/1000000.1000000")
    assert host.service("docker").is_enabled


def test_range_is_registered_for_users_and_groups(host) -> None:  # type: ignore[no-untyped-def]
    for path in ("/etc/subuid", "/etc/subgid"):
        lines = host.file(path).content_string.splitlines()
        assert lines.count("spt-flow-remap:1000000:1048576") == 1


def test_firewall_rules_survive_an_engine_restart(host) -> None:  # type: ignore[no-untyped-def]
    assert host.run(f"{LIBRARY}/spt-flow-firewall check").succeeded
    chains = host.check_output("nft list table inet spt-flow")
    assert chains.count("priority filter - 5; policy accept;") == 2
    host.check_output("systemctl restart docker")
    assert host.run(f"{LIBRARY}/spt-flow-firewall check").succeeded
    assert host.service("spt-flow-firewall").is_enabled


def test_container_is_unmasked_and_unprivileged_on_the_host(host) -> None:  # type: ignore[no-untyped-def]
    run = "docker run --rm --network none --runtime spt-flow spt-flow-test /bin/cat"
    assert host.check_output(f"{run} /proc/self/uid_map").split() == ["0", "1000000", "1048576"]
    assert " /proc/sys " not in host.check_output(f"{run} /proc/self/mounts")
    assert " /proc/sys " in host.check_output(f"{run.replace('spt-flow spt', 'runc spt')} /proc/self/mounts")


def test_runtime_refuses_a_container_with_host_ids(host) -> None:  # type: ignore[no-untyped-def]
    done = host.run("docker run --rm --network none --userns host --runtime spt-flow spt-flow-test /bin/true")
    assert done.failed
    assert "refused: this engine gives containers no user namespace of their own" in done.stderr
    assert host.run("docker run --rm --network none --userns host spt-flow-test /bin/true").succeeded


def test_processes_are_limited_by_default(host) -> None:  # type: ignore[no-untyped-def]
    run = "docker run --detach --interactive --rm --network none --runtime spt-flow"
    for words, limit in (("", "4096"), ("--pids-limit 99", "99")):
        identifier = host.check_output(f"{run} {words} spt-flow-test /bin/cat")
        found = host.check_output(f"cat {group(host, identifier, 'pids')}/pids.max")
        host.check_output(f"docker rm --force {identifier}")
        assert found == limit


def group(host, container: str, controller: str) -> str:  # type: ignore[no-untyped-def]
    """The container's folder in a hierarchy of cgroups, version 1."""
    pid = host.check_output(f"docker inspect --format '{{{{.State.Pid}}}}' {container}")
    found = host.check_output(f"sed -n 's/^[0-9]*:{controller}://p' /proc/{pid}/cgroup")
    return f"/sys/fs/cgroup/{controller}{found}"


@pytest.fixture
def sleeper(host) -> Iterator[str]:  # type: ignore[no-untyped-def]
    """A container that runs as a workspace does."""
    identifier = host.check_output(
        "docker run --detach --interactive --network none --runtime spt-flow spt-flow-test /bin/cat"
    )
    yield identifier
    host.check_output(f"docker rm --force {identifier}")


def test_workspaces_leave_the_host_its_reserve(host, sleeper: str) -> None:  # type: ignore[no-untyped-def]
    slice_ = str(Path(group(host, sleeper, "memory")).parent)
    assert slice_.endswith("/spt.slice/spt-flow.slice")
    total = int(host.check_output("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) * 1024
    ceiling = int(host.check_output(f"cat {slice_}/memory.limit_in_bytes"))
    assert 0 <= total - ceiling - (2 << 30) < 1 << 20
    beside = str(Path(group(host, sleeper, "cpu")).parents[1])
    # 512 of 1024, so half of what the host's own services get.
    assert host.check_output(f"cat {beside}/cpu.shares") == "512"


def test_kernel_key_limits_are_raised(host) -> None:  # type: ignore[no-untyped-def]
    assert int(host.check_output("cat /proc/sys/kernel/keys/maxkeys")) >= 20000
    assert int(host.check_output("cat /proc/sys/kernel/keys/maxbytes")) >= 2000000


# Settings that change under running workspaces

BUSY = {"flow_business_hours": "00:00-24:00"}


def role(host, *words: str, status: int = 0, **variables: object) -> str:  # type: ignore[no-untyped-def]
    """Run the role again with ``variables`` added to those of converge.yml. Return its output."""
    host.run("systemctl reset-failed docker")  # else systemd finds so many starts too many
    argv = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(HERE.parent / "converge.yml")]
    env = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(HERE.parents[3] / ".ansible/collections"),
        "ANSIBLE_NOCOLOR": "1",
    }
    done = subprocess.run(
        [*argv, *words, "-e", json.dumps(variables)], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def started(host) -> str:  # type: ignore[no-untyped-def]
    return str(host.check_output("systemctl show --property=ExecMainStartTimestampMonotonic docker"))


def settings(host) -> dict[str, object]:  # type: ignore[no-untyped-def]
    found: dict[str, object] = json.loads(host.file("/etc/docker/daemon.json").content_string)
    return found


def test_restart_waits_for_the_window_and_keeps_containers_running(host, sleeper: str) -> None:  # type: ignore[no-untyped-def]
    before = started(host)
    said = role(host, host_docker_log_max_file=3, **BUSY)
    assert "Pending: restart Docker on" in said and "(running containers: 1)" in said
    assert "flow_maintenance_now=true" in said and "failed=0" in said
    assert started(host) == before
    # Later runs have nothing to write and still know; this is also what a run that was killed leaves.
    said = role(host, host_docker_log_max_file=3, **BUSY)
    assert "Pending: restart Docker on" in said and "changed=0" in said
    assert started(host) == before
    said = role(host, host_docker_log_max_file=3, flow_maintenance_now=True, **BUSY)
    assert "Pending" not in said and "changed=1" in said
    assert started(host) != before
    assert host.check_output(f"docker inspect --format '{{{{.State.Running}}}}' {sleeper}") == "true"
    assert host.check_output(f"docker exec {sleeper} /bin/cat /proc/self/uid_map").split()[1] == "1000000"
    assert "changed=0" in role(host, host_docker_log_max_file=3, **BUSY)


def test_restart_without_containers_does_not_wait(host) -> None:  # type: ignore[no-untyped-def]
    before = started(host)
    assert "Pending" not in role(host, host_docker_log_max_file=2, **BUSY)
    assert started(host) != before


def test_foreign_settings_stay(host) -> None:  # type: ignore[no-untyped-def]
    theirs = {"registry-mirrors": ["https://mirror.example"], "runtimes": {"kata": {"path": "/bin/true"}}}
    edit = "import json, sys; p = '/etc/docker/daemon.json'; s = json.load(open(p)); t = json.loads(sys.argv[1]);"
    edit += "s['runtimes'].update(t.pop('runtimes')); s.update(t); json.dump(s, open(p, 'w'))"
    host.check_output("python3 -c %s %s", edit, json.dumps(theirs))
    role(host)
    found = settings(host)
    assert found["registry-mirrors"] == theirs["registry-mirrors"]
    assert sorted(found["runtimes"]) == ["kata", "spt-flow"]  # type: ignore[call-overload]
    assert found["cgroup-parent"] == "spt-flow.slice"
    assert "kata" in host.check_output("docker info --format '{{json .Runtimes}}'")


def test_engine_with_content_is_not_remapped_unasked(host, image: None) -> None:  # type: ignore[no-untyped-def]
    """An engine that another tool set up: no remapping, one image, one running container."""
    host.check_output("systemctl stop docker docker.socket && rm /etc/docker/daemon.json")
    host.check_output("systemctl reset-failed docker; systemctl start docker")
    host.check_output(SYSTEM.format("theirs"))
    theirs = host.check_output("docker run --detach --interactive --network none theirs /bin/cat")
    # Without remapping, the role refuses an engine whose runc has a hole that the remapping would contain.
    holes = host.ansible("spt.flow.engine_info", check=False)["engine"]["info"]["holes"]
    refused = any(hole["open"] for hole in holes)
    said = role(host, status=2 if refused else 0, flow_business_hours="none")
    assert "host_docker_userns_migrate" in said
    assert refused or "user-namespace remapping, so Docker inside workspaces stays off" in said
    assert refused or "userns-remap" not in settings(host)
    assert theirs.startswith(host.check_output("docker ps --all --quiet"))
    # Asked for, but something runs that the engine would lose.
    host.check_output(f"docker start {theirs}")
    said = role(host, flow_business_hours="none", host_docker_userns_migrate=True)
    assert "The restart switches the remapping" in said
    assert host.check_output("docker ps --quiet") in theirs
    host.check_output(f"docker stop --time 1 {theirs}")
    said = role(host, flow_business_hours="none", host_docker_userns_migrate=True)
    assert "Pending" not in said
    assert "name=userns" in host.check_output("docker info --format '{{json .SecurityOptions}}'")
    assert host.check_output("docker images --quiet theirs") == ""


def test_restart_without_systemd_keeps_containers_running(host) -> None:  # type: ignore[no-untyped-def]
    engine = f"{LIBRARY}/spt-flow-engine"
    host.check_output("systemctl stop docker.socket docker")
    refused = host.run(f"{engine} restart")
    assert refused.failed
    assert "this program did not start the engine" in refused.stderr
    host.check_output(f"{engine} start")
    before = host.check_output("cat /run/spt-flow/dockerd.pid")
    run = "docker run --detach --interactive --network none --runtime spt-flow spt-flow-test /bin/cat"
    identifier = host.check_output(run)
    pid = host.check_output(f"docker inspect --format '{{{{.State.Pid}}}}' {identifier}")
    host.check_output(f"{engine} restart")
    assert host.check_output("cat /run/spt-flow/dockerd.pid") != before
    assert host.check_output(f"docker inspect --format '{{{{.State.Pid}}}}' {identifier}") == pid
    assert host.check_output(f"docker exec {identifier} /bin/cat /proc/self/uid_map").split()[1] == "1000000"
    host.check_output(
        f"docker rm --force {identifier} && {engine} stop && systemctl reset-failed && systemctl start docker"
    )


def test_reset_removes_the_roles_files_and_a_run_restores_them(host) -> None:  # type: ignore[no-untyped-def]
    host.check_output("systemctl reset-failed docker")
    said = subprocess.run(
        ["ansible", "-i", os.environ["MOLECULE_INVENTORY_FILE"], "flow_nodes", "-m", "include_role"]
        + ["-a", "name=spt.flow.host_docker tasks_from=reset.yml"],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(HERE.parents[3] / ".ansible/collections")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert host.check_output("find /etc -name '*spt*flow*' -o -name 'spt.slice*'") == ""
    # Other roles share the node library; the playbook reset removes it.
    assert host.check_output("ls /usr/local/lib/spt-flow") == "spt_flow_node"
    found = settings(host)
    assert found["userns-remap"] == "spt-flow-remap"
    assert "cgroup-parent" not in found
    host.check_output("timeout 10 sh -c 'while docker info | grep Runtimes: | grep -q spt-flow; do sleep 0.2; done'")
    assert host.run("nft list table inet spt-flow").failed
    role(host)
    assert host.run(f"{LIBRARY}/spt-flow-firewall check").succeeded
    assert "spt-flow" in host.check_output("docker info --format '{{json .Runtimes}}'")


def test_docker_packages_need_a_pinned_key_and_replace_no_others(host) -> None:  # type: ignore[no-untyped-def]
    """From a mirror: the distribution's engine under Docker's names."""
    host.check_output("sh -c %s sh /srv/mirror", (HERE / "mirror").read_text())
    docker = {"host_docker_source": "docker", "host_docker_repository": "file:///srv/mirror"}
    said = role(host, status=2, **docker)
    assert "has docker.io, but host_docker_source is docker" in " ".join(said.split())
    assert not host.file("/etc/apt/sources.list.d/spt-flow-docker.sources").exists
    host.check_output("apt-get remove -qy docker.io")
    assert "checksum" in role(host, status=2, **docker)
    assert not host.file("/etc/apt/keyrings/spt-flow-docker.asc").exists
    found = host.check_output("sha256sum /srv/mirror/debian/gpg").split()[0]
    docker |= {"host_docker_key_sha256": found, "host_docker_version": "5:20.10.*"}
    assert "spt-flow-docker.sources" in role(host, "--check", "--diff", **docker)
    assert not host.package("docker-ce").is_installed
    role(host, **docker)
    assert host.package("docker-ce").version == "5:20.10.24-1"
    assert host.package("containerd.io").is_installed
    assert "name=userns" in host.check_output("docker info --format '{{json .SecurityOptions}}'")
    assert "changed=0" in role(host, **docker)
    assert "has docker-ce, but host_docker_source is distribution" in " ".join(role(host, status=2).split())
