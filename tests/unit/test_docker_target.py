# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of target docker: converting the engine's answers to workspaces and facts."""

from __future__ import annotations

import time

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import NotFound, Unhealthy
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import parse as docker_parse
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import target as docker_target
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.container import volume_labels
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
from ansible_collections.spt.flow.tests.unit import fake_target

NOW = 1_800_000_000.0
LABELS = {
    "spt.flow.owner": "ada",
    "spt.flow.workspace": "demo",
    "spt.flow.repo": "example.com/o/demo",
    "spt.flow.kind": "dev",
    "spt.flow.created": "2026-01-01T00:00:00Z",
    "spt.flow.contract": "1",
    "spt.flow.settings": "a" * 64,
    "spt.flow.image": "b" * 64,
}


def entry(**values):
    """Return an entry of GET /containers/json."""
    base = {"Id": "c1", "Names": ["/spt-flow-ada-demo"], "Labels": LABELS, "State": "running", "Status": "Up 5 minutes"}
    ports = [
        {"PrivatePort": 22, "PublicPort": 5, "Type": "tcp"},
        {"IP": "127.0.0.1", "PrivatePort": 8080, "PublicPort": 32768, "Type": "tcp"},
    ]
    return {**base, "Ports": ports, **values}


@pytest.mark.parametrize(
    ("status", "seconds"),
    [
        ("Up Less than a second", 0),
        ("Up 1 second", 1),
        ("Up 5 seconds", 5),
        ("Up About a minute", 60),
        ("Up 5 minutes", 300),
        ("Up About an hour", 3600),
        ("Up 47 hours", 169200),
        ("Up 3 days (healthy)", 259200),
        ("Up 2 weeks", 1209600),
        ("Up 5 months", 12960000),
        ("Up 5 minutes (Paused)", 300),
        ("Exited (0) Less than a second ago", 0),
        ("Exited (137) 2 minutes ago", 120),
        ("Exited (143) About an hour ago", 3600),
        ("Created", 0),
        ("Removal In Progress", 0),
        ("Restarting (1) 5 seconds ago", 0),
        ("", 0),
        ("Up 5 fortnights", 0),
    ],
)
def test_age_is_parsed(status, seconds):
    assert docker_parse.age(status) == seconds


@pytest.mark.parametrize(
    ("state", "status", "found", "code"),
    [
        ("running", "Up 5 minutes", "running", None),
        ("paused", "Up 5 minutes (Paused)", "paused", None),
        ("created", "Created", "stopped", None),
        ("exited", "Exited (0) 5 minutes ago", "stopped", 0),
        ("exited", "Exited (137) 5 minutes ago", "stopped", 137),
        ("exited", "Exited (143) 5 minutes ago", "stopped", 143),
        ("exited", "Exited (1) 5 minutes ago", "failed", 1),
        ("exited", "Exited (255) 5 minutes ago", "failed", 255),
        ("dead", "Dead", "failed", None),
    ],
)
def test_states_are_mapped(state, status, found, code):
    workspace = docker_parse.from_container(entry(State=state, Status=status), NOW)
    assert workspace is not None
    assert (workspace.state, workspace.exit_code) == (found, code)
    assert bool(workspace.url) == (found == "running")
    assert workspace.started == (None if state == "created" else NOW - docker_parse.age(status))


def test_running_workspace_has_all_properties():
    workspace = docker_parse.from_container(entry(), NOW)
    assert workspace is not None
    assert (workspace.owner, workspace.name, workspace.repo) == ("ada", "demo", "example.com/o/demo")
    assert (workspace.id, workspace.url) == ("c1", "http://127.0.0.1:32768/")
    assert (workspace.settings_hash, workspace.image_hash, workspace.deadline) == ("a" * 64, "b" * 64, None)


@pytest.mark.parametrize(
    "other",
    [
        {"Names": ["/somebody-elses"]},
        {"Names": ["/spt-flow-ada-demo2"]},
        {"Labels": {}},
        {"Labels": None},
        {"Labels": {**LABELS, "spt.flow.workspace": "other"}},
    ],
)
def test_foreign_containers_are_ignored(other):
    assert docker_parse.from_container(entry(**other), NOW) is None


def test_container_set_aside_is_the_same_workspace():
    workspace = docker_parse.from_container(entry(Names=["/spt-flow-ada-demo-old"]), NOW)
    assert workspace is not None and workspace.name == "demo"


@pytest.mark.parametrize(("text", "deadline"), [("123", 123), ("", None), ("soon", None), ("-5", None)])
def test_deadline_is_parsed(text, deadline):
    workspace = docker_parse.from_container(entry(Labels={**LABELS, "spt.flow.deadline": text}), NOW)
    assert workspace is not None and workspace.deadline == deadline


@pytest.mark.parametrize("ports", [None, [], [{"PrivatePort": 8080}], [{"PrivatePort": 9}]])
def test_workspace_without_port_has_no_address(ports):
    workspace = docker_parse.from_container(entry(Ports=ports), NOW)
    assert workspace is not None and workspace.url == ""


def test_home_without_container_is_a_stopped_workspace():
    workspace = docker_parse.from_home({"Name": "spt-flow-ada-demo-home", "Labels": LABELS})
    assert (workspace.state, workspace.id, workspace.key) == ("stopped", "", "ada-demo")


def test_steps_are_taken_from_the_last_start():
    workspace = docker_parse.from_container(entry(), NOW)
    assert workspace is not None
    lines = [*fake_target.ready_lines("one", "failed"), "noise", *fake_target.ready_lines("two")]
    found = docker_parse.with_events(workspace, lines)
    assert found.step("clone").state == "ok" and found.life.stops_at == 7201.0


INFO = {
    "ServerVersion": "20.10.24",
    "SecurityOptions": ["name=seccomp,profile=default", "name=userns"],
    "DockerRootDir": "/var/lib/docker/1000000.1000000",
    "Runtimes": {"runc": {}, "spt-flow": {}},
    "CgroupVersion": "1",
    "NCPU": 2,
    "MemTotal": 25,
    "Driver": "overlay2",
    "LoggingDriver": "json-file",
}


def test_facts_of_a_prepared_engine_are_read(monkeypatch):
    monkeypatch.setattr(docker_parse, "_range_size", lambda start: 1048576 if start == 1000000 else -1)
    facts = docker_parse.engine_facts(INFO, True)
    assert (facts.remapped, facts.remap_base, facts.remap_size) == (True, 1000000, 1048576)
    assert facts.runtime and facts.seccomp and not facts.apparmor
    assert docker_parse.engine_facts(INFO, False).remap_size == -1


@pytest.mark.parametrize(
    "info", [{}, {"SecurityOptions": None, "Runtimes": None}, {"SecurityOptions": ["name=apparmor"]}]
)
def test_facts_of_a_plain_engine_are_read(info):
    facts = docker_parse.engine_facts(info, True)
    assert (facts.remapped, facts.remap_base, facts.remap_size, facts.runtime) == (False, 0, 0, False)
    assert facts.apparmor == bool(info.get("SecurityOptions"))


class HomeOnly:
    """An engine on which the container of a workspace was removed; ``body`` is what is created in its place."""

    local = False

    def __init__(self, labels):
        self.home = {"Name": "spt-flow-ada-demo-home", "Labels": labels}
        self.body = {}

    def get_json(self, path, query=None, timeout=0.0):
        if path == "/containers/json":
            made = {"Names": ["/spt-flow-ada-demo"], "State": "created", "Status": "Created"}
            return [entry(Labels=self.body["Labels"], **made)] if self.body else []
        return {"/info": INFO, "/volumes": {"Volumes": [self.home]}}.get(path, {})

    def request_json(self, method, path, query=None, body=None, timeout=0.0):
        if path == "/containers/create":
            self.body = body
            return {"Id": "c1"}
        return self.home if body["Name"] == self.home["Name"] else {"Labels": body["Labels"]}


@pytest.mark.parametrize("ref", ["", "other"])
def test_container_recreated_by_name_keeps_the_repository_of_its_home(ref):
    """Otherwise the next ``up`` of the repository would find only the home and never the container."""
    repository = Repository.parse("https://example.com/o/demo.git")
    spec = WorkspaceSpec("ada", Settings(docker="disabled"), "demo", repository, ref="main", image="i", image_hash="b")
    docker = docker_target.DockerTarget()
    docker._engine = HomeOnly(volume_labels(spec, "home"))
    by_name = WorkspaceSpec("ada", spec.settings, "demo", ref=ref, image="i", image_hash="b")
    made = docker.create(by_name, Progress())
    assert made.repo == repository.identity
    env = docker._engine.body["Env"]
    assert f"SPT_FLOW_REPO={repository.url}" in env and f"SPT_FLOW_REF={ref or 'main'}" in env
    assert f"SPT_FLOW_DIRECTORY={repository.directory}" in env
    found = docker.find(WorkspaceSpec("ada", spec.settings, "", repository, image="i", image_hash="b"))
    assert found and found.id == "c1"


class Images:
    """A remote engine, not drained, with one image: its tag and its label."""

    local = False
    host = "ssh://ops@node1"

    def __init__(self, tag, label):
        self.tag, self.label = tag, label

    def get_json(self, path, query=None, timeout=0.0):
        if path != f"/images/{self.tag}/json":
            raise NotFound("No such thing.")
        return {"Config": {"Labels": {"spt.flow.image": self.label}}}


@pytest.mark.parametrize(("tag", "label"), [("none", "b"), ("i", "another")], ids=["gone", "another content"])
def test_node_without_the_image_is_refused_with_the_command_to_run(tag, label):
    spec = WorkspaceSpec("ada", Settings(), "demo", image="i", image_hash="b")
    docker = docker_target.DockerTarget("ssh://ops@node1", "node1")
    docker._engine = Images(tag, label)
    with pytest.raises(Unhealthy) as refused:
        docker.admit(spec, True)
    assert refused.value.message == "Cannot create workspace demo: node1 does not have the image i."
    assert refused.value.hint == "Install it: ansible-playbook site.yml --limit node1 --tags host_images"
    docker.admit(spec, False)


def test_node_with_the_image_is_accepted():
    docker = docker_target.DockerTarget("ssh://ops@node1", "node1")
    docker._engine = Images("i", "b")
    docker.admit(WorkspaceSpec("ada", Settings(), "demo", image="i", image_hash="b"), True)


def test_remote_engine_that_is_not_a_node_is_named_by_its_address():
    docker = docker_target.DockerTarget("ssh://ops@node1")
    docker._engine = Images("none", "b")
    with pytest.raises(Unhealthy, match="the engine at ssh://ops@node1 does not have the image i"):
        docker.admit(WorkspaceSpec("ada", Settings(), "demo", image="i", image_hash="b"), True)


class Clockwork:
    """An engine with CI containers, each with its age in seconds by the engine's clock."""

    def __init__(self, skew, *entries):
        self.clock = NOON + skew
        self.entries = [{**one, "Created": self.clock - one["Created"]} for one in entries]
        self.removed = []

    def get_json(self, path, query=None, timeout=0.0):
        assert path == "/containers/json"
        return self.entries

    def request_json(self, method, path, query=None, body=None, timeout=0.0):
        assert method == "DELETE"
        self.removed.append(path)


NOON = 1_800_000_000


def ci_entry(name, ago, ttl, client=0, container=""):
    """Labels by the clock of a client that is off by ``client`` seconds; ``ttl`` ``None`` sets no deadline."""
    labels = {"owner": "ada", "workspace": name, "kind": "ci"}
    born = NOON + client
    labels["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(born))
    if ttl is not None:
        labels["deadline"] = str(born + ttl)
    names = [container or f"/spt-flow-ada-{name}"]
    labels = {f"spt.flow.{key}": value for key, value in labels.items()}
    return {**entry(Names=names, Labels=labels), "Id": name, "Created": ago}


@pytest.mark.parametrize("skew", [-3600, 0, 3600])
@pytest.mark.parametrize("client", [-3600, 0, 3600])
def test_sweep_uses_only_the_clock_of_the_engine(skew, client):
    docker = docker_target.DockerTarget()
    docker._engine = Clockwork(
        skew,
        ci_entry("over", 61, 60, client),
        ci_entry("young", 59, 60, client),
        ci_entry("silent", 80_000, None, client),
        ci_entry("foreign", 99_999, 60, client, "/ci-of-somebody"),
        ci_entry("on-coder", 99_999, 60, client, "/spt-flow-0a1b"),
    )
    assert list(docker.sweep()) == ["over"]
    assert docker._engine.removed == ["/containers/over"]


class PutBack:
    """An engine with one container that a restart has set aside."""

    def __init__(self, runtime):
        self.runtime, self.did = runtime, []

    def get_json(self, path, query=None, timeout=0.0):
        if path == "/info":
            return {"SecurityOptions": ["name=userns"], "Runtimes": {"spt-flow": {}}, "DockerRootDir": "/d/1000.1000"}
        return {"Name": "/spt-flow-ada-demo-old", "Config": {"Image": "i"}, "HostConfig": {"Runtime": self.runtime}}

    local = False

    def request_json(self, method, path, query=None, body=None, timeout=0.0):
        self.did.append((method, path, (body or {}).get("HostConfig")))
        return {"Id": "fresh"}


@pytest.mark.parametrize(("runtime", "started"), [("spt-flow", "old"), ("runc", "fresh"), ("", "fresh")])
def test_container_put_back_finds_a_home_that_was_moved(runtime, started):
    """Only the current runtime mounts such a home; under another runtime it would look empty."""
    target = docker_target.DockerTarget()
    target._engine = engine = PutBack(runtime)
    target._restore_previous("old", "spt-flow-ada-demo", "")
    assert engine.did[-1][:2] == ("POST", f"/containers/{started}/start")
    if started == "fresh":
        assert ("POST", "/containers/create", {"Runtime": "spt-flow"}) in engine.did
