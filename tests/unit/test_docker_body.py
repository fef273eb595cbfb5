# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What target docker requests from the engine: limits, devices, isolation, and notes about reductions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.options import GIBIBYTE
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.target import EngineFacts

FACTS = EngineFacts(
    version="26.1.5",
    remapped=True,
    remap_base=1000000,
    remap_size=1048576,
    runtime=True,
    seccomp=True,
    apparmor=False,
    cgroup_version="2",
    cpus=16,
    memory=64 * GIBIBYTE,
    storage_driver="overlay2",
    log_driver="json-file",
    local=True,
)
SPEC = WorkspaceSpec(
    "ada",
    Settings(),
    "demo",
    Repository.parse("https://example.com/o/demo.git"),
    image="spt-flow/workspace:slim-0",
    image_hash="0" * 64,
)


def body(spec: WorkspaceSpec = SPEC, facts: EngineFacts = FACTS, devices: bool = True) -> dict:
    return docker_container.container_body(
        spec, docker_container.Plan.of(spec, facts, facts.local, lambda path: devices)
    )


def with_settings(**values) -> WorkspaceSpec:
    return replace(SPEC, settings=replace(SPEC.settings, **values))


def test_isolation_matches_exactly():
    host = body()["HostConfig"]
    assert {key: value for key, value in host.items() if key not in ("SecurityOpt", "Tmpfs", "Mounts", "Devices")} == {
        "NanoCpus": 4_000_000_000,
        "Memory": 8 * GIBIBYTE,
        "MemorySwap": 8 * GIBIBYTE,
        "PidsLimit": 4096,
        "PortBindings": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "0"}]},
        "NetworkMode": "spt-flow",
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "5m", "max-file": "2"}},
        "CapDrop": ["MKNOD", "NET_RAW", "SETFCAP"],
        "Sysctls": {"net.ipv4.ping_group_range": "0 65535"},
        "Runtime": "spt-flow",
    }
    (option,) = host["SecurityOpt"]
    profile = json.loads(option.removeprefix("seccomp="))
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert [(mount["Type"], mount["Source"], mount["Target"]) for mount in host["Mounts"]] == [
        ("volume", "spt-flow-ada-demo-home", "/home/coder"),
        ("volume", "spt-flow-ada-demo-docker", "/var/lib/spt-flow-docker"),
    ]
    assert [device["PathOnHost"] for device in host["Devices"]] == ["/dev/kvm", "/dev/fuse", "/dev/net/tun"]
    assert all("nosuid,nodev" in options and "size=" in options for options in host["Tmpfs"].values())


@pytest.mark.parametrize("docker", ["auto", "required", "disabled", "unsafe"])
@pytest.mark.parametrize("remapped", [True, False])
@pytest.mark.parametrize("runtime", [True, False])
def test_workspace_is_never_privileged_and_uses_no_host_namespace(docker, remapped, runtime):
    facts = replace(FACTS, remapped=remapped, remap_size=1048576 if remapped else 0, runtime=runtime)
    if docker == "required" and not remapped:
        with pytest.raises(FlowError, match="docker=required"):
            body(with_settings(docker=docker), facts)
        return
    made = body(with_settings(docker=docker), facts)
    host, text = made["HostConfig"], json.dumps(made)
    assert made["User"] == "1000:1000"
    for key in ("Privileged", "CapAdd", "Binds", "PidMode", "IpcMode", "UsernsMode", "UTSMode", "CgroupnsMode"):
        assert key not in host
    assert "docker.sock" not in text and "unconfined" not in text
    unmasked = host.get("MaskedPaths") == []
    assert unmasked == ((docker == "unsafe" and not remapped) or (docker != "disabled" and remapped and not runtime))
    assert ("Runtime" in host) == (remapped and runtime)


@pytest.mark.parametrize("kind", ["dev", "ci"])
def test_workspace_without_docker_inside_is_equally_confined(kind):
    spec = replace(with_settings(docker="disabled"), kind=kind)
    found, other = (body(one, replace(FACTS, apparmor=True))["HostConfig"] for one in (spec, replace(SPEC, kind=kind)))
    for key in ("Runtime", "SecurityOpt", "CapDrop", "Sysctls"):
        assert found[key] == other[key], key
    assert [option.partition("=")[0] for option in found["SecurityOpt"]] == ["seccomp", "apparmor"]


def test_profile_is_not_requested_from_an_engine_without_it():
    facts = replace(FACTS, apparmor=True, runtime=False)
    (option,) = body(with_settings(docker="disabled"), facts)["HostConfig"]["SecurityOpt"]
    assert option.startswith("seccomp=")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (replace(FACTS, remapped=False, remap_size=0), "without user-namespace remapping"),
        (replace(FACTS, remap_size=65536), "65536 ids, but needs 262144"),
    ],
)
def test_docker_auto_is_disabled_with_a_note(facts, words):
    plan = docker_container.Plan.of(SPEC, facts, True, lambda path: True)
    assert not plan.docker and words in plan.docker_reason and any(words in note for note in plan.notes)
    assert plan.devices == ("/dev/kvm",)
    values = docker_container.environment(SPEC, plan)
    assert values["SPT_FLOW_DOCKER"] == "off" and words in values["SPT_FLOW_DOCKER_REASON"]
    with pytest.raises(FlowError) as caught:
        docker_container.Plan.of(with_settings(docker="required"), facts, True, lambda path: True)
    assert words in caught.value.message and caught.value.hint


def test_unsafe_explains_its_risk():
    plan = docker_container.Plan.of(with_settings(docker="unsafe"), replace(FACTS, remapped=False), True)
    assert plan.docker and any("become root on this machine" in note for note in plan.notes)


def test_unknown_id_range_is_trusted():
    assert docker_container.Plan.of(SPEC, replace(FACTS, remap_size=-1, local=False), False).docker


@pytest.mark.parametrize(
    ("kvm", "there", "local", "devices", "told"),
    [
        ("auto", True, True, True, False),
        ("auto", False, True, False, True),
        ("disabled", True, True, False, False),
        ("required", True, True, True, False),
        ("auto", False, False, True, False),
    ],
)
def test_kvm_is_passed_where_available(kvm, there, local, devices, told):
    plan = docker_container.Plan.of(with_settings(kvm=kvm), FACTS, local, lambda path: there)
    assert ("/dev/kvm" in plan.devices) is devices
    assert any("/dev/kvm" in note for note in plan.notes) is told


def test_required_but_missing_kvm_is_refused():
    with pytest.raises(FlowError) as caught:
        docker_container.Plan.of(with_settings(kvm="required"), FACTS, True, lambda path: False)
    assert "/dev/kvm" in caught.value.message and "kvm=auto" in caught.value.hint


def test_small_machine_is_reported_in_one_line():
    facts = replace(FACTS, cpus=2, memory=4 * GIBIBYTE)
    plan = docker_container.Plan.of(SPEC, facts, True, lambda path: True)
    assert (plan.settings.cpus, plan.settings.memory) == (2, 3 * GIBIBYTE) and len(plan.notes) == 1
    labels = [body(SPEC, found)["Labels"]["spt.flow.settings"] for found in (facts, FACTS)]
    assert labels[0] == labels[1], "a smaller machine must not make it outdated"


@pytest.mark.parametrize(("runtime", "remapped"), [(False, True), (True, False), (False, False)])
def test_unprepared_engine_is_not_asked_to_limit_disk(runtime, remapped):
    facts = replace(FACTS, runtime=runtime, remapped=remapped)
    assert docker_container.UNLIMITED in " ".join(docker_container.Plan.of(SPEC, facts, True, lambda path: True).notes)
    without = with_settings(disk=0, docker_disk=0)
    assert docker_container.UNLIMITED not in " ".join(
        docker_container.Plan.of(without, facts, True, lambda path: True).notes
    )


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"runtime": False}, ["no firewall", "the audit trail"]),
        ({"remapped": False, "remap_size": 0}, ["root inside is root outside"]),
        ({"seccomp": False}, ["system calls are not filtered"]),
        ({"runtime": False, "remapped": False, "remap_size": 0, "seccomp": False}, ["no firewall", "root inside"]),
    ],
)
def test_one_line_names_the_missing_protection_of_an_unprepared_engine(facts, words):
    plan = docker_container.Plan.of(with_settings(docker="disabled"), replace(FACTS, **facts), True, lambda path: True)
    (note,) = plan.notes
    assert "\n" not in note and "spt.flow.host_docker" in note and all(word in note for word in words)


def test_prepared_engine_limits_disk_without_a_note():
    assert docker_container.Plan.of(SPEC, FACTS, True, lambda path: True).notes == ()
    made = body(with_settings(disk=GIBIBYTE, docker_disk=2 * GIBIBYTE))
    assert {f"SPT_FLOW_DISK={GIBIBYTE}", f"SPT_FLOW_DOCKER_DISK={2 * GIBIBYTE}"} <= set(made["Env"])


def test_storage_driver_with_quotas_limits_the_container():
    assert "StorageOpt" not in body()["HostConfig"]
    quota = body(with_settings(disk=GIBIBYTE), replace(FACTS, storage_driver="btrfs"))["HostConfig"]
    assert quota["StorageOpt"] == {"size": str(GIBIBYTE)}


def test_ci_workspace_has_no_volumes_and_is_removed_when_it_ends():
    made = body(replace(SPEC, kind="ci", deadline=1234))
    assert made["HostConfig"]["AutoRemove"] is True and made["HostConfig"]["Mounts"] == []
    assert made["Labels"]["spt.flow.deadline"] == "1234" and made["Labels"]["spt.flow.kind"] == "ci"
    assert "SPT_FLOW_DEADLINE=1234" in made["Env"]
    assert "spt.flow.deadline" not in body()["Labels"]


def test_labels_of_the_home_record_the_identity():
    labels = docker_container.volume_labels(SPEC, "home")
    assert labels["spt.flow.repo"] == "example.com/o/demo"
    assert {"spt.flow.owner", "spt.flow.workspace", "spt.flow.kind", "spt.flow.created"} <= labels.keys()
    assert all("@" not in value for value in labels.values())


def test_apparmor_profile_requires_apparmor():
    assert len(body(SPEC, replace(FACTS, apparmor=True))["HostConfig"]["SecurityOpt"]) == 2
    assert len(body(SPEC, FACTS)["HostConfig"]["SecurityOpt"]) == 1


def test_seed_bundle_is_declared_for_local_repositories_only(tmp_path):
    plan = docker_container.Plan.of(SPEC, FACTS, True, lambda path: True)
    assert docker_container.environment(SPEC, plan)["SPT_FLOW_SEED"] == ""
    local = replace(SPEC, repository=Repository.parse(str(tmp_path)))
    assert docker_container.environment(local, plan)["SPT_FLOW_SEED"].endswith("seed.bundle")


def test_container_recreated_without_kvm_is_otherwise_identical() -> None:
    made = body()
    found = {"Name": "/spt-flow-ada-demo", "Config": {**made, "HostConfig": None}, "HostConfig": made["HostConfig"]}
    again, note = docker_container.without_kvm(found, "node1")
    assert note == "/dev/kvm is missing on node1: virtual machines in the workspace run in software emulation."
    left = [device for device in made["HostConfig"]["Devices"] if device["PathOnHost"] != "/dev/kvm"]
    assert len(left) == len(made["HostConfig"]["Devices"]) - 1
    assert again == {**made, "HostConfig": {**made["HostConfig"], "Devices": left}}


def test_container_that_requires_kvm_is_not_created_without() -> None:
    made = body(replace(SPEC, settings=Settings(kvm="required")))
    with pytest.raises(FlowError, match="kvm=required: node1 does not have /dev/kvm"):
        docker_container.without_kvm({"Config": made, "HostConfig": made["HostConfig"]}, "node1")
