# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Workspaces on another machine, reached through a real sshd; lists of them (issue 03, part 1)."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils import _docker_body, _docker_http, _lifecycle
from ansible_collections.spt.flow.plugins.module_utils._docker_target import DockerTarget
from ansible_collections.spt.flow.plugins.module_utils._errors import FlowError, Unhealthy
from ansible_collections.spt.flow.tests.integration import doors_kit, node_kit
from ansible_collections.spt.flow.tests.integration.doors_kit import Doors
from ansible_collections.spt.flow.tests.integration.lab import Lab
from ansible_collections.spt.flow.tests.integration.node_kit import Node


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    (tmp_path / "node").mkdir()
    with node_kit.node(tmp_path / "node") as made:
        monkeypatch.setenv("PATH", made.path)
        yield made


@pytest.fixture
def house(tmp_path: Path, image: Any) -> Iterator[Doors]:
    with doors_kit.doors(tmp_path) as made:
        yield made


def values(house: Doors, node: Node, **more: str) -> dict[str, str]:
    return {"PATH": f"{node.path.partition(':')[0]}:{house.programs}:{node.path}", "SPT_FLOW_NODE": node.name, **more}


def test_every_verb_works_on_a_node(house: Doors, node: Node) -> None:
    where = ("-i", str(node.inventory))
    there = values(house, node)
    made = house.json("up", *where, SPT_FLOW_REPO=str(house.repository), **there)
    assert made["ok"] and made["changed"], made
    assert (made["workspace"]["node"], made["workspace"]["engine"]) == (node.name, node.address)
    again = house.json("up", *where, SPT_FLOW_REPO=str(house.repository), **there)
    assert again["ok"] and not again["changed"]
    (seen,) = house.json("status", *where, **there)["workspaces"]
    assert (seen["name"], seen["state"], seen["node"]) == (house.name, "running", node.name)
    assert house.json("logs", *where, **there)["lines"]
    entered = house.run("ssh", *where, **{**there, "SPT_FLOW_COMMAND": "cat hello.txt; hostname"})
    assert (entered.returncode, entered.stdout) == (0, f"hello\n{house.name}\n"), entered.stderr
    shown = subprocess.run(
        [*shlex.split(made["session"]["ssh"]), "cat ~/*/hello.txt"],
        env=house.environment(**there),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.stdout == "hello\n", shown.stderr
    for verb, state in (("keepalive", "running"), ("restart", "running"), ("stop", "stopped")):
        done = house.json(verb, *where, SPT_FLOW_CONNECT="false", **there)
        assert done["ok"] and done["changed"] and done["workspace"]["state"] == state, (verb, done)
    gone = house.json("delete", *where, SPT_FLOW_WORKSPACE=house.name, SPT_FLOW_CONFIRM="true", **there)
    assert gone["ok"] and gone["changed"]
    assert doors_kit.belongings(house.owner) == []


def test_a_node_that_is_not_known_is_refused_with_the_nearest(house: Doors, node: Node) -> None:
    more = values(house, node, SPT_FLOW_NODE="lop", SPT_FLOW_REPO=str(house.repository))
    refused = house.json("up", "-i", str(node.inventory), **more)
    assert refused["error"]["kind"] == "not_found" and "Did you mean loop?" in refused["error"]["hint"]
    assert doors_kit.belongings(house.owner) == []


def test_a_host_key_that_is_not_known_is_the_reason_that_is_told(node: Node) -> None:
    node.known_hosts.write_text("")
    with pytest.raises(Unhealthy) as refused:
        _docker_http.connect(node.address).get_json("/version")
    assert "Host key verification failed" in refused.value.message and node.address in refused.value.message


def test_an_image_that_a_node_lacks_is_told_at_once_and_nothing_is_left(lab: Lab, node: Node) -> None:
    lab.target = DockerTarget(node.address, node.name)
    spec = lab.spec(lab.repository())
    with pytest.raises(Unhealthy) as refused:
        lab.ensure(_lifecycle.replace(spec, image="spt-flow/workspace:none-0000000000"))
    assert "loop does not have the image spt-flow/workspace:none-0000000000" in refused.value.message
    assert lab.containers() == [] and lab.volumes() == []


def test_a_node_without_kvm_gets_the_workspace_and_a_note(
    lab: Lab, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_docker_body, "KVM", "/dev/spt-flow-no-kvm")
    lab.target = DockerTarget(node.address, node.name)
    source = lab.repository()
    result = lab.ensure(lab.spec(source))
    assert result.workspace and result.workspace.state == "running"
    assert any(note.startswith("Loop has no /dev/spt-flow-no-kvm") for note in result.notes), result.notes
    assert lab.inside(result.workspace, "ls ~/demo/file0")
    assert lab.inspect(result.workspace.id)["HostConfig"]["Devices"] == []
    assert lab.inspect(result.workspace.id)["HostConfig"]["Memory"] == 1 << 30
    again = lab.ensure(lab.spec(source), "restarted")
    assert again.workspace and any("has no" in note for note in again.notes)
    lab.is_exactly("demo")
    lab.ensure(lab.spec(source), "absent")
    with pytest.raises(FlowError, match="kvm=required: loop has no"):
        lab.ensure(lab.spec(source, kvm="required"))
