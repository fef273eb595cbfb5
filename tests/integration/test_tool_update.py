# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tool update: gh changes by one version while a workspace is in use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.tests.integration import playbook_harness, recipe_harness
from ansible_collections.spt.flow.tests.integration.playbook_harness import Playbooks
from ansible_collections.spt.flow.tests.integration.recipe_harness import Copy

pytestmark = pytest.mark.full


@pytest.fixture
def recipe(tmp_path: Path, image: image_identity.Image) -> Copy:
    """The slim profile, whose layers the engine has, and a script as gh."""
    made = recipe_harness.copy(tmp_path / "collections/ansible_collections/spt/flow")
    made.gh("1.0")
    recipe_harness.cache_of_its_own(tmp_path / "cache", "downloads", "ide")
    return made


@pytest.fixture
def playbooks(tmp_path: Path, recipe: Copy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Playbooks]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "release/image.json"
    made_here = set()
    with playbook_harness.playbooks(
        tmp_path / "playbooks", cwd=recipe.root, installed=tmp_path / "collections"
    ) as made:
        (tmp_path / "inventory.yml").write_text(
            yaml.safe_dump({"all": {"vars": {"flow_image_release": str(file), "image_build_keep": -1}}})
        )
        yield made
        made_here = {path.name.removesuffix(".verify.json") for path in file.parent.glob("*.verify.json")}
    for tag in made_here:
        playbook_harness.docker("rmi", "--force", f"spt-flow/workspace:{tag}")


def test_tool_update_leaves_a_running_workspace_unchanged_until_restart(
    playbooks: Playbooks, recipe: Copy, tmp_path: Path
) -> None:
    inventory = ("-i", str(tmp_path / "inventory.yml"))

    def released() -> str:
        done = playbooks.run("release", *inventory)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(json.loads((tmp_path / "release/image.json").read_text())["slim"]["hash"])

    def gh() -> str:
        done = playbooks.run("ssh", *inventory, SPT_FLOW_WORKSPACE=playbooks.name, SPT_FLOW_COMMAND="gh --version")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def outdated() -> list[str]:
        (workspace,) = playbooks.json("status", *inventory)["workspaces"]
        return list(workspace["outdated"])

    first = released()
    created = playbooks.json("up", *inventory, SPT_FLOW_REPO=str(playbooks.repository))
    assert created["ok"], created
    assert (gh(), outdated()) == ("gh version 1.0", [])
    name = f"spt-flow-{playbooks.owner}-{playbooks.name}"
    state = "{{.Id}} {{.State.StartedAt}} {{.State.Pid}}"
    before = playbook_harness.docker("inspect", "--format", state, name)
    playbook_harness.docker("exec", name, "sh", "-c", "echo mine >~/kept")

    recipe.gh("1.1")
    assert released() != first
    assert playbook_harness.docker("inspect", "--format", state, name) == before
    assert (gh(), outdated()) == ("gh version 1.0", ["image"])
    assert playbooks.json("up", *inventory, SPT_FLOW_REPO=str(playbooks.repository))["changed"] is False

    recipe.gh("1.2", works=False)
    failed = playbooks.run("release", *inventory)
    assert failed.returncode != 0
    assert "failed its verification: gh: " in failed.stdout + failed.stderr

    restarted = playbooks.json("restart", *inventory, SPT_FLOW_WORKSPACE=playbooks.name)
    assert restarted["ok"], restarted
    assert (gh(), outdated()) == ("gh version 1.1", [])
    assert playbook_harness.docker("exec", name, "cat", "/home/coder/kept") == "mine"
