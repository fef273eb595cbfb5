# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role host_docker without a host: what is read from recorded file trees, and the role's decisions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.spt.flow.plugins.module_utils._node.docker import host as docker_host
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError

CHECKOUT = Path(__file__).resolve().parents[2]
ROLE = CHECKOUT / "roles/host_docker"
UBUNTU = {
    "etc/os-release": 'NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nVERSION_CODENAME=noble\n',
    "etc/passwd": "root:x:0:0::/root:/bin/bash\nspt-flow-remap:x:990:990::/:/usr/sbin/nologin\n",
    "etc/group": "docker:x:991:ada,grace\nother:x:992:eve\n",
    "etc/subuid": "ada:100000:65536\nspt-flow-remap:1000000:1048576\n",
    "proc/meminfo": "MemTotal:       16266420 kB\nMemFree: 1 kB\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: x\n\nprocessor\t: 1\nmodel name\t: x\n",
    "proc/sys/kernel/keys/maxkeys": "200\n",
    "sys/module/apparmor/parameters/enabled": "Y\n",
    "sys/kernel/security/apparmor/profiles": "docker-default (enforce)\nspt-flow-workspace (enforce)\n",
    "sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n",
    "run/systemd/system/.keep": "",
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def read(root: Path) -> dict[str, Any]:
    limits = {"kernel.keys.maxkeys": 20000, "fs.pipe-user-pages-soft": 0, "kernel.pid_max": 1000, "kernel.unknown": 5}
    return docker_host.read("spt-flow-remap", devices=["dev/kvm", "dev/fuse"], limits=limits, root=str(root))


def test_recorded_ubuntu_is_read(tmp_path: Path) -> None:
    found = read(tree(tmp_path, UBUNTU))
    assert (found["release"], found["codename"], found["systemd"], found["unified"]) == (
        "Ubuntu-24.04",
        "noble",
        *[True] * 2,
    )
    assert (found["apparmor"], found["profile"], found["memory"], found["cpus"]) == (True, True, 16266420 * 1024, 2)
    assert found["ids"] == {"subuid": ["1000000:1048576"], "subgid": []}
    assert (found["remap_user"], found["members"]) == (True, ["ada", "grace"])
    assert (found["settings"], found["content"], found["newer"], found["devices"]) == ({}, 0, False, {})


def test_kernel_limits_are_raised_and_never_lowered(tmp_path: Path) -> None:
    numbers = {"kernel/keys/maxkeys": 200, "fs/pipe-user-pages-soft": 16384, "kernel/pid_max": 4194304}
    root = tree(tmp_path, UBUNTU)
    for name, number in numbers.items():
        (root / "proc/sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "proc/sys" / name).write_text(f"{number}\n")
    assert read(root)["limits"] == {
        "values": {"kernel.keys.maxkeys": 20000, "fs.pipe-user-pages-soft": 0, "kernel.pid_max": 4194304},
        "low": ["kernel.keys.maxkeys", "fs.pipe-user-pages-soft"],
    }


def test_container_is_distinguished_from_its_host(tmp_path: Path) -> None:
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    for name, number in (("user", 4026531837), ("pid", 4026531836)):
        (tmp_path / "proc/self/ns" / name).symlink_to(f"{name}:[{number}]")
    assert read(tmp_path)["container"] is False
    (tmp_path / "proc/self/ns/pid").unlink()
    (tmp_path / "proc/self/ns/pid").symlink_to("pid:[4026532199]")
    assert read(tmp_path)["container"] is True


def test_empty_host_is_read(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found["release"], found["systemd"], found["apparmor"], found["remap_user"]) == ("Unknown-", *[False] * 3)


@pytest.mark.parametrize("data", ["", "srv/docker"])
def test_containers_images_and_volumes_are_counted_in_the_configured_directory(data: str, tmp_path: Path) -> None:
    place = data or "var/lib/docker"
    if data:
        tree(tmp_path, {"etc/docker/daemon.json": json.dumps({"data-root": f"/{data}"})})
    tree(tmp_path, {f"{place}/volumes/metadata.db": "", f"{place}/volumes/backingFsBlockDev": ""})
    assert read(tmp_path)["content"] == 0
    tree(tmp_path, {f"{place}/volumes/home/x": "", f"{place}/containers/c1/x": ""})
    tree(tmp_path, {f"{place}/image/btrfs/imagedb/content/sha256/i1": ""})
    assert read(tmp_path)["content"] == 3


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_settings_that_cannot_be_merged_are_refused_and_not_overwritten(text: str, tmp_path: Path) -> None:
    tree(tmp_path, {"etc/docker/daemon.json": text})
    with pytest.raises(FlowError, match="Cannot merge settings into /etc/docker/daemon.json"):
        read(tmp_path)
    assert (tmp_path / "etc/docker/daemon.json").read_text() == text


def test_change_after_the_start_is_detected_for_settings_and_program(tmp_path: Path) -> None:
    tree(tmp_path, {"etc/docker/daemon.json": "{}", "var/run/docker.pid": "7", "usr/sbin/dockerd": ""})
    now = (tmp_path / "usr/sbin/dockerd").stat().st_ctime

    def times(pid: float, settings: float) -> bool:
        os.utime(tmp_path / "var/run/docker.pid", (pid, pid))
        os.utime(tmp_path / "etc/docker/daemon.json", (settings, settings))
        return bool(read(tmp_path)["newer"])

    assert not times(now + 10, now)
    assert times(now + 10, now + 11)
    # dpkg sets the time of a new program to its build time.
    os.utime(tmp_path / "usr/sbin/dockerd", (0, 0))
    assert times(now - 10, now - 20)


# Decisions of the role

ENGINE: dict[str, Any] = {
    "release": "Debian-12",
    "systemd": True,
    "unified": True,
    "apparmor": False,
    "memory": 8 << 30,
    "cpus": 4,
    "content": 0,
    "settings": {"userns-remap": "spt-flow-remap"},
    "newer": True,
    "ours": True,
    "info": {"running": 1, "remapped": True},
}
CLOSED = {"flow_business_hours": "00:00-24:00"}
OPEN = {"flow_business_hours": "none"}
WRITTEN = {"__host_docker_written": {"paths": ["/etc/docker/daemon.json"]}}
PLAIN = {"settings": {}, "content": 3, "info": {"running": 1, "remapped": False}}
RESTARTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("later", {}, CLOSED),
    ("now", {}, OPEN),
    ("now", {}, {**CLOSED, "flow_maintenance_now": True}),
    ("not needed", {"newer": False}, CLOSED),
    ("later", {"newer": False}, {**CLOSED, **WRITTEN}),
    ("now", PLAIN, OPEN),
    ("blocked", PLAIN, {**OPEN, "host_docker_userns_migrate": True}),
    ("manual", {"systemd": False, "ours": False}, OPEN),
]
"""The variables of the role reach the filter; test_engine_plan.py has all its decisions."""
SETTINGS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {}, {"userns-remap": "spt-flow-remap", "cgroup-parent": "spt-flow.slice", "live-restore": True}),
    ({}, {"host_docker_daemon_extra": {"exec-opts": ["native.cgroupdriver=cgroupfs"]}}, {"cgroup-parent": None}),
    ({"settings": {}, "content": 1}, {}, {"userns-remap": None}),
    (
        {"settings": {"debug": True, "log-opts": {"tag": "x"}}},
        {},
        {"debug": True, "log-opts": {"tag": "x", "max-size": "5m", "max-file": "2"}},
    ),
]
PLAY = """
- hosts: localhost
  gather_facts: false
  vars_files: [{role}/defaults/main.yml, {role}/vars/main/main.yml, {role}/vars/main/settings.yml, cases.yml]
  tasks:
    - ansible.builtin.debug:
        msg: {{restart: "{{{{ __host_docker_restart }}}}", settings: "{{{{ __host_docker_settings }}}}"}}
      loop: "{{{{ cases }}}}"
      register: found
      vars:
        __host_docker_found: {{engine: "{{{{ item.engine }}}}"}}
        __host_docker_written: "{{{{ item.variables.__host_docker_written | default({{'paths': []}}) }}}}"
        flow_business_hours: "{{{{ item.variables.flow_business_hours | default('none') }}}}"
        flow_maintenance_now: "{{{{ item.variables.flow_maintenance_now | default(false) }}}}"
        host_docker_userns_migrate: "{{{{ item.variables.host_docker_userns_migrate | default(false) }}}}"
        host_docker_daemon_extra: "{{{{ item.variables.host_docker_daemon_extra | default({{}}) }}}}"
    - ansible.builtin.debug:
        msg:
          release: "{{{{ item }}}}"
          packages: "{{{{ __host_docker_packages }}}}"
          url: "{{{{ __host_docker_url }}}}"
          slice: "{{{{ lookup('template', '{role}/templates/slice.j2') }}}}"
          apparmor: "{{{{ lookup('template', '{role}/templates/apparmor.j2') }}}}"
      loop: "{{{{ __host_docker_releases }}}}"
      register: rendered
      vars:
        __host_docker_found: {{engine: "{{{{ cases[0].engine | combine({{'release': item}}) }}}}"}}
        host_docker_reserve_memory: 2g
        host_docker_reserve_cpus: 0.5
    - ansible.builtin.copy:
        content: "{{{{ [found, rendered] | map(attribute='results') | map('map', attribute='msg') | to_json }}}}"
        dest: "{{{{ playbook_dir }}}}/said.json"
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """The output of one play for every case and every release."""
    folder = tmp_path_factory.mktemp("decided")
    pairs = [(engine, variables) for _, engine, variables in RESTARTS] + [(e, v) for e, v, _ in SETTINGS]
    cases = [{"engine": {**ENGINE, **engine}, "variables": variables} for engine, variables in pairs]
    (folder / "cases.yml").write_text(yaml.safe_dump({"cases": cases}))
    (folder / "play.yml").write_text(PLAY.format(role=ROLE))
    program = Path(sys.executable).parent / "ansible-playbook"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SPT_FLOW_", "ANSIBLE_"))}
    env["ANSIBLE_COLLECTIONS_PATH"] = str(CHECKOUT / ".ansible/collections")
    argv = [
        str(program),
        "-i",
        "localhost,",
        "-c",
        "local",
        "-e",
        f"ansible_python_interpreter={sys.executable}",
        "play.yml",
    ]
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[list[dict[str, Any]]] = json.loads((folder / "said.json").read_text())
    return found


@pytest.mark.parametrize("number", range(len(RESTARTS)))
def test_engine_is_restarted_only_when_needed(number: int, said: list[list[dict[str, Any]]]) -> None:
    wanted, *why = RESTARTS[number]
    assert said[0][number]["restart"] == wanted, why


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_engine_settings_are_merged(number: int, said: list[list[dict[str, Any]]]) -> None:
    *why, wanted = SETTINGS[number]
    found = said[0][len(RESTARTS) + number]["settings"]
    assert {key: found.get(key) for key in wanted} == wanted, why
    assert found["runtimes"]["spt-flow"]["path"] == "/usr/local/lib/spt-flow/spt-flow-runc"


def test_every_release_gets_its_packages(said: list[list[dict[str, Any]]]) -> None:
    found = {words["release"]: words for words in said[1]}
    assert sorted(found) == ["Debian-12", "Debian-13", "Ubuntu-22.04", "Ubuntu-24.04"]
    # From Debian 13 on the client is a separate package; older releases have no package of that name.
    assert [name for name, words in found.items() if "docker-cli" in words["packages"]] == ["Debian-13"]
    # AppArmor 3 does not know the rule.
    ours = [name for name, words in found.items() if "  userns," in words["apparmor"].splitlines()]
    assert ours == ["Debian-13", "Ubuntu-24.04"]
    assert found["Ubuntu-22.04"]["url"] == "https://download.docker.com/linux/ubuntu"
    for words in found.values():
        assert {"MemoryMax=6144M", "CPUQuota=350%"} <= set(words["slice"].splitlines())


def test_apparmor_profile_is_valid(said: list[list[dict[str, Any]]], tmp_path: Path) -> None:
    """As far as the local parser can tell: the profile for version 4 needs a parser of that version."""
    parser = shutil.which("apparmor_parser", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if not parser:
        pytest.skip("apparmor_parser is not installed (Debian package apparmor)")
    version = subprocess.run([parser, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    names = ("Debian-12", "Debian-13") if "version 4" in version else ("Debian-12",)
    for words in (words for words in said[1] if words["release"] in names):
        (tmp_path / "profile").write_text(words["apparmor"])
        argv = [parser, "--skip-kernel-load", "--skip-cache", str(tmp_path / "profile")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
