# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The platform engineer's day: gh moves by one version beside a workspace that somebody works in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.tests.integration import doors_kit, recipe_kit
from ansible_collections.spt.flow.tests.integration.doors_kit import Doors
from ansible_collections.spt.flow.tests.integration.recipe_kit import Copy

pytestmark = pytest.mark.full


@pytest.fixture
def recipe(tmp_path: Path, image: image_identity.Image) -> Copy:
    """The slim profile, whose layers the engine has, and a script that is called gh."""
    made = recipe_kit.copy(tmp_path / "collections/ansible_collections/spt/flow")
    made.gh("1.0")
    recipe_kit.cache_of_its_own(tmp_path / "cache", "downloads", "ide")
    return made


@pytest.fixture
def house(tmp_path: Path, recipe: Copy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doors]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "release/image.json"
    made_here = set()
    with doors_kit.doors(tmp_path / "doors", cwd=recipe.root, installed=tmp_path / "collections") as made:
        (tmp_path / "inventory.yml").write_text(
            yaml.safe_dump({"all": {"vars": {"flow_image_release": str(file), "image_build_keep": -1}}})
        )
        yield made
        made_here = {path.name.removesuffix(".verify.json") for path in file.parent.glob("*.verify.json")}
    for tag in made_here:
        doors_kit.docker("rmi", "--force", f"spt-flow/workspace:{tag}")


def test_gh_moves_beside_a_running_workspace(house: Doors, recipe: Copy, tmp_path: Path) -> None:
    inventory = ("-i", str(tmp_path / "inventory.yml"))

    def released() -> str:
        done = house.run("release", *inventory)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(json.loads((tmp_path / "release/image.json").read_text())["slim"]["hash"])

    def gh() -> str:
        done = house.run("ssh", *inventory, SPT_FLOW_WORKSPACE=house.name, SPT_FLOW_COMMAND="gh --version")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def outdated() -> list[str]:
        (workspace,) = house.json("status", *inventory)["workspaces"]
        return list(workspace["outdated"])

    first = released()
    created = house.json("up", *inventory, SPT_FLOW_REPO=str(house.repository))
    assert created["ok"], created
    assert (gh(), outdated()) == ("gh version 1.0", [])
    name = f"spt-flow-{house.owner}-{house.name}"
    state = "{{.Id}} {{.State.StartedAt}} {{.State.Pid}}"
    before = doors_kit.docker("inspect", "--format", state, name)
    doors_kit.docker("exec", name, "sh", "-c", "echo mine >~/kept")

    recipe.gh("1.1")
    assert released() != first
    assert doors_kit.docker("inspect", "--format", state, name) == before
    assert (gh(), outdated()) == ("gh version 1.0", ["image"])
    assert house.json("up", *inventory, SPT_FLOW_REPO=str(house.repository))["changed"] is False

    recipe.gh("1.2", works=False)
    failed = house.run("release", *inventory)
    assert failed.returncode != 0
    assert "failed its verification: gh: " in failed.stdout + failed.stderr

    restarted = house.json("restart", *inventory, SPT_FLOW_WORKSPACE=house.name)
    assert restarted["ok"], restarted
    assert (gh(), outdated()) == ("gh version 1.1", [])
    assert doors_kit.docker("exec", name, "cat", "/home/coder/kept") == "mine"
