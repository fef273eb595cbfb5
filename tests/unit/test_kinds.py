# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry of targets, and that a new target needs nothing but a line in it."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.options import OPTIONS
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.targets import TARGETS
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import kinds
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import target as workspace_target
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace

ENGINE = "ansible_collections.spt.flow.plugins.plugin_utils._engine"
VALUES = {"target": "auto", "node": "", "engine": "", "owner": "", "template": "spt-flow", "wait_timeout": 600}


@pytest.fixture
def coder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who is logged in to a Coder server."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CODER_URL", "https://coder.example.com")
    monkeypatch.setenv("CODER_SESSION_TOKEN", "abcdefghij-1234567890123456789012")


@pytest.fixture
def without_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without a server."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CODER_URL", "CODER_SESSION_TOKEN", "CODER_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", TARGETS)
def test_registered_kind_has_its_own_name_and_is_a_choice(name):
    assert kinds.kind(name).name == name
    assert name in OPTIONS["target"].choices


def test_auto_takes_the_server_that_the_user_is_logged_in_to(coder):
    assert kinds.chosen(VALUES).name == "coder"
    assert kinds.owner_of(VALUES) == "me"
    assert kinds.chosen({**VALUES, "node": "node1"}).name == "docker"


def test_auto_without_a_server_is_this_machine(without_server):
    assert kinds.chosen(VALUES).name == "docker"
    assert kinds.chosen(VALUES, server="https://coder.example.com").name == "coder"
    assert kinds.chosen({**VALUES, "target": "coder"}).name == "coder"


def test_given_owner_is_kept(coder):
    assert kinds.owner_of({**VALUES, "owner": "ada"}) == "ada"


def test_node_is_refused_where_a_server_places_workspaces(coder):
    with pytest.raises(InvalidInput, match="node"):
        kinds.kind("coder").open({**VALUES, "node": "node1"}, print)


@pytest.mark.parametrize("name", TARGETS)
def test_opened_target_has_every_verb_and_capability(name, coder):
    target = kinds.kind(name).open(VALUES, print)
    wanted = {*workspace_target.Target.__annotations__, *workspace_target.Readable.__annotations__}
    wanted |= {verb for verb in vars(workspace_target.Target) if not verb.startswith("_")}
    assert {part for part in wanted if not hasattr(target, part)} == set()


def test_each_target_does_only_what_it_can(coder):
    docker, coder = (kinds.kind(name).open(VALUES, print) for name in ("docker", "coder"))
    protocols = (workspace_target.Sweeper, workspace_target.Drainable, workspace_target.NeedsClient)
    assert [isinstance(docker, one) for one in protocols] == [True, True, False]
    assert [isinstance(coder, one) for one in protocols] == [False, False, True]


def test_new_target_needs_one_line_in_the_registry(monkeypatch, without_server, tmp_path):
    class Moon:
        name, has_server, default_owner, clones_directories = "moon", True, "neil", False

        def available(self, values, server=""):
            return True

        def ssh_host(self, workspace):
            return f"{workspace.name}.moon"

        def ssh_config(self, common, key, nodes):
            return workspace_ssh.match("originalhost *.moon", {**common, "Port": "1969"})

    module = types.ModuleType(f"{ENGINE}.moon")
    module.KIND = Moon()
    monkeypatch.setitem(sys.modules, f"{ENGINE}.moon", module)
    monkeypatch.setitem(TARGETS, "moon", "moon")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    workspace = Workspace("neil", "demo", "", target="moon")
    assert kinds.owner_of({**VALUES, "target": "moon"}) == "neil"
    assert workspace_ssh.argv(workspace, "id")[-2:] == ["demo.moon", "id"]
    assert "Match originalhost *.moon" in workspace_ssh.config_text()
