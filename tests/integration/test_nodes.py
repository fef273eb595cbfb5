# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Workspaces on another host, reached through a real sshd, and lists of them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.action import node as action_node
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError, Unhealthy
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import open as ansible_open
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import creation as docker_creation
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.target import DockerTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.tests.integration import node_harness, playbook_harness
from ansible_collections.spt.flow.tests.integration.harness import Harness
from ansible_collections.spt.flow.tests.integration.node_harness import Node
from ansible_collections.spt.flow.tests.integration.playbook_harness import Playbooks


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    (tmp_path / "node").mkdir()
    with node_harness.node(tmp_path / "node") as made:
        monkeypatch.setenv("PATH", made.path)
        yield made


@pytest.fixture
def playbooks(tmp_path: Path, image: Any) -> Iterator[Playbooks]:
    with playbook_harness.playbooks(tmp_path) as made:
        yield made


def values(playbooks: Playbooks, node: Node, **more: str) -> dict[str, str]:
    return {
        "PATH": f"{node.path.partition(':')[0]}:{playbooks.programs}:{node.path}",
        "SPT_FLOW_NODE": node.name,
        **more,
    }


def test_every_playbook_works_on_a_node(playbooks: Playbooks, node: Node) -> None:
    where = ("-i", str(node.inventory))
    there = values(playbooks, node)
    made = playbooks.json("up", *where, SPT_FLOW_REPO=str(playbooks.repository), **there)
    assert made["ok"] and made["changed"], made
    assert (made["workspace"]["node"], made["workspace"]["engine"]) == (node.name, node.address)
    again = playbooks.json("up", *where, SPT_FLOW_REPO=str(playbooks.repository), **there)
    assert again["ok"] and not again["changed"]
    (seen,) = playbooks.json("status", *where, **there)["workspaces"]
    assert (seen["name"], seen["state"], seen["node"]) == (playbooks.name, "running", node.name)
    assert playbooks.json("logs", *where, **there)["lines"]
    entered = playbooks.run("ssh", *where, **{**there, "SPT_FLOW_COMMAND": "cat hello.txt; hostname"})
    assert (entered.returncode, entered.stdout) == (0, f"hello\n{playbooks.name}\n"), entered.stderr
    shown = subprocess.run(
        [*shlex.split(made["session"]["ssh"]), "cat ~/*/hello.txt"],
        env=playbooks.environment(**there),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.stdout == "hello\n", shown.stderr
    for verb, state in (("keepalive", "running"), ("restart", "running"), ("stop", "stopped")):
        done = playbooks.json(verb, *where, SPT_FLOW_CONNECT="false", **there)
        assert done["ok"] and done["changed"] and done["workspace"]["state"] == state, (verb, done)
    gone = playbooks.json("delete", *where, SPT_FLOW_WORKSPACE=playbooks.name, SPT_FLOW_CONFIRM="true", **there)
    assert gone["ok"] and gone["changed"]
    assert playbook_harness.belongings(playbooks.owner) == []


def test_unknown_node_is_refused_with_the_nearest_name(playbooks: Playbooks, node: Node) -> None:
    more = values(playbooks, node, SPT_FLOW_NODE="lop", SPT_FLOW_REPO=str(playbooks.repository))
    refused = playbooks.json("up", "-i", str(node.inventory), **more)
    assert refused["error"]["kind"] == "not_found" and "Did you mean loop?" in refused["error"]["hint"]
    assert playbook_harness.belongings(playbooks.owner) == []


def test_unknown_host_key_is_reported_as_the_reason(node: Node) -> None:
    node.known_hosts.write_text("")
    with pytest.raises(Unhealthy) as refused:
        docker_http.connect(node.address).get_json("/version")
    assert "Host key verification failed" in refused.value.message and node.address in refused.value.message


def test_forty_parallel_requests_pass_sshd(node: Node) -> None:
    """sshd drops unauthenticated connections from the tenth on; later requests use existing connections."""
    engine = docker_http.connect(node.address)
    with ThreadPoolExecutor(40) as pool:
        assert all(pool.map(lambda _number: engine.get_json("/version"), range(40)))
    begun = time.monotonic()
    for _number in range(10):
        engine.get_json("/version")
    assert time.monotonic() - begun < 1


def test_missing_image_on_a_node_is_reported_at_once_and_leaves_nothing(harness: Harness, node: Node) -> None:
    harness.target = DockerTarget(node.address, node.name)
    spec = harness.spec(harness.repository())
    with pytest.raises(Unhealthy) as refused:
        harness.ensure(replace(spec, image="spt-flow/workspace:none-0000000000"))
    assert "loop does not have the image spt-flow/workspace:none-0000000000" in refused.value.message
    assert harness.containers() == [] and harness.volumes() == []


def test_up_on_a_node_without_the_image_is_refused_within_five_seconds(
    playbooks: Playbooks, node: Node, tmp_path: Path
) -> None:
    """A collection with another image that no engine has, which must not be built on the node either."""
    collection = tmp_path / "collections/ansible_collections/spt/flow"
    collection.mkdir(parents=True)
    for part in ("galaxy.yml", "image", "meta", "playbooks", "plugins"):
        source = playbook_harness.CHECKOUT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, collection / part)
    with (collection / "image/rootfs/etc/motd").open("a") as file:
        file.write("another image\n")
    image = image_identity.identity(folder=collection / "image").tag
    elsewhere = replace(playbooks, cwd=tmp_path, installed=tmp_path / "collections")
    there = values(playbooks, node, SPT_FLOW_NODE="", SPT_FLOW_REPO=str(playbooks.repository))
    took = []
    for _attempt in range(3):  # a busy machine must not decide
        begun = time.monotonic()
        refused = elsewhere.json("up", "-i", str(node.inventory), "-e", f"node={node.name}", **there)
        took.append(time.monotonic() - begun)
        if took[-1] <= 5:
            break
    assert refused["error"]["message"].endswith(f": loop does not have the image {image}."), refused
    assert refused["error"]["hint"] == "Install it: ansible-playbook site.yml --limit loop --tags host_images"
    assert playbook_harness.belongings(playbooks.owner) == []
    assert min(took) <= 5, took


def test_node_without_kvm_gets_the_workspace_and_a_note(
    harness: Harness, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_container, "KVM", "/dev/spt-flow-no-kvm")
    harness.target = DockerTarget(node.address, node.name)
    source = harness.repository()
    result = harness.ensure(harness.spec(source))
    assert result.workspace and result.workspace.state == "running"
    assert any(note.startswith("/dev/spt-flow-no-kvm is missing on loop") for note in result.notes), result.notes
    assert harness.inside(result.workspace, "ls ~/demo/file0")
    assert harness.inspect(result.workspace.id)["HostConfig"]["Devices"] == []
    assert harness.inspect(result.workspace.id)["HostConfig"]["Memory"] == 1 << 30
    again = harness.ensure(harness.spec(source), "restarted")
    assert again.workspace and any("is missing on loop" in note for note in again.notes)
    harness.is_exactly("demo")
    harness.ensure(harness.spec(source), "absent")
    with pytest.raises(FlowError, match="kvm=required: loop does not have"):
        harness.ensure(harness.spec(source, kvm="required"))


# Draining: the engine is shared, so the mark and the workspaces are those of the test.


@pytest.fixture
def target(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerTarget]:
    """A target that sees only the harness's workspaces, with its own mark."""
    monkeypatch.setattr(docker_creation, "DRAINED", f"spt-flow-drained-{harness.owner}")
    list_all = DockerTarget.list
    monkeypatch.setattr(
        DockerTarget, "list", lambda self, owner="", **more: list_all(self, owner or harness.owner, **more)
    )
    yield harness.target
    harness.target.undrain()


def test_drained_engine_stops_all_keeps_homes_and_starts_nothing(
    harness: Harness, target: DockerTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = harness.repository("one"), harness.repository("two")
    harness.inside(harness.up(harness.spec(one)), "echo precious > ~/note")
    harness.up(harness.spec(two))
    job = replace(harness.spec(name="job"), kind="ci", deadline=int(time.time()) + 600)
    target.start(target.create(job, Progress()), job, Progress())
    monkeypatch.setattr(ansible_open, "open_target", lambda values: target)
    monkeypatch.setenv("SPT_FLOW_OWNER", "operator")
    monkeypatch.setenv("SPT_FLOW_PROFILE", "slim")
    result = drained(confirm=True)
    assert result["changed"] and not result.get("failed"), result
    assert sorted((row["name"], row["kind"]) for row in result["workspaces"]) == [
        ("job", "ci"),
        ("one", "dev"),
        ("two", "dev"),
    ]
    assert {workspace.state for workspace in target.list()} == {"stopped"}
    harness.is_exactly("one", "two")
    assert drained(confirm=True)["changed"] is False
    for act in (
        lambda: harness.ensure(harness.spec(one)),
        lambda: harness.ensure(harness.spec(one), "restarted"),
        lambda: harness.ensure(harness.spec(harness.repository("three"))),
        lambda: target.start(target.list()[0], harness.spec(one), Progress()),
    ):
        with pytest.raises(Unhealthy) as refused:
            act()
        assert "by operator" in refused.value.message and "spt.flow.undrain" in refused.value.hint
    harness.is_exactly("one", "two")
    target.undrain()
    assert harness.inside(harness.up(harness.spec(one)), "cat ~/note") == "precious"


def drained(**args: Any) -> dict[str, Any]:
    """Run the action `node` in this process."""
    task = types.SimpleNamespace(args={"state": "drained", "node": "loop", **args}, check_mode=False, async_val=0)
    connection = types.SimpleNamespace(_shell=types.SimpleNamespace(tmpdir="/nowhere"))
    where = {"groups": {"flow_nodes": ["loop"]}, "hostvars": {"loop": {"ansible_connection": "local"}}}
    result: dict[str, Any] = action_node.ActionModule(task, connection, None, None, None, None).run(None, where)
    return result


def test_drain_asks_and_check_mode_reports(playbooks: Playbooks, node: Node) -> None:
    """Neither is confirmed, so that no workspace is touched."""
    where = ("-i", str(node.inventory))
    playbooks.up(SPT_FLOW_CONNECT="false")
    asked = playbooks.run("drain", *where, stdin=b"", **values(playbooks, node))
    assert asked.returncode == 2 and "not confirmed" in asked.stdout, asked.stdout
    told = playbooks.json("drain", *where, "--check", **values(playbooks, node))
    assert (
        told["changed"]
        and f"{playbooks.owner}-{playbooks.name}" in told["msg"]
        and told["msg"].startswith("Check mode: ")
    )
    (seen,) = playbooks.json("status", *where, **values(playbooks, node))["workspaces"]
    assert seen["state"] == "running"
    assert playbooks.json("undrain", *where, **values(playbooks, node))["changed"] is False


# Lists


def test_inventory_list_is_applied_twice(playbooks: Playbooks, node: Node, tmp_path: Path) -> None:
    other = playbook_harness.make_repository(tmp_path / "other")
    variables = tmp_path / "node/group_vars"
    variables.mkdir()
    (variables / "all.yml").write_text(
        "flow_workspaces:\n"
        f"  - repo: {playbooks.repository}\n    node: {node.name}\n"
        f"  - repo: {other}\n    memory: '{{{{ 2 * 512 }}}}m'\n"
        "  - repo: /nowhere/at/all\n"
    )
    where = ("-i", str(node.inventory))
    there = {**values(playbooks, node), "SPT_FLOW_NODE": ""}
    first = playbooks.json("workspaces", *where, **there)
    assert not first["ok"] and first["error"]["message"] == "1 of 3 workspaces failed: all."
    assert [(row["node"], row["changed"]) for row in first["workspaces"]] == [("loop", True), ("", True), ("", False)]
    text = variables / "all.yml"
    text.write_text(text.read_text().replace("  - repo: /nowhere/at/all\n", ""))
    second = playbooks.json("workspaces", *where, **there)
    assert second["ok"] and second["changed"] is False and second["msg"].startswith("2 workspaces: 2 ok")
    text.write_text(text.read_text().replace("memory", "memroy") + "  - {}\n")
    third = playbooks.json("workspaces", *where, **there)
    assert len(third["error"]["details"]["entries"]) == 2, third
