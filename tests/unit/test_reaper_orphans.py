# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node still holds of workspaces that their Coder server has deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.reaper import orphans
from ansible_collections.spt.flow.plugins.module_utils._node.reaper.coder import Api
from ansible_collections.spt.flow.plugins.module_utils._node.reaper.engine import Listed, lines
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import coder_harness
from ansible_collections.spt.flow.tests.unit.test_coder_reaper import ADMIN

GONE = "11111111-2222-3333-4444-555555555555"
HERE = "66666666-2222-3333-4444-555555555555"


@pytest.fixture
def fake() -> Iterator[Fake]:
    with coder_harness.server(speed=0.0) as made:
        made.state.give_token(made.state.user("admin"), ADMIN)
        yield made


def marks(workspace: str, **more: str) -> dict[str, str]:
    found = {"owner": "ada", "workspace": "demo", "kind": "dev", "coder": workspace, **more}
    return {f"spt.flow.{name}": value for name, value in found.items()}


def container(workspace: str, name: str = "") -> dict[str, Any]:
    name = name or f"spt-flow-{workspace}"
    return {"Id": f"id-{name}", "Names": [f"/{name}"], "State": "running", "Labels": marks(workspace)}


def volume(workspace: str, part: str) -> dict[str, Any]:
    return {"Name": f"spt-flow-{workspace}-{part}", "CreatedAt": "x", "Labels": marks(workspace, part=part)}


LISTED = Listed(
    [container(GONE), container(HERE), container(GONE, "database")],
    [volume(one, part) for one in (GONE, HERE) for part in ("home", "docker")],
)


class Engine:
    """An engine that holds ``LISTED`` and notes what is deleted."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    def get_json(self, path: str, *_query: Any) -> Any:
        if path.startswith("/volumes/"):
            # The end of a container writes into its volumes, from which the engine reads this time.
            return {"CreatedAt": "later" if self.deleted else "x"}
        return {
            "/containers/json": LISTED.containers,
            "/volumes": {"Volumes": LISTED.volumes},
            "/networks": [],
        }[path]

    def request_json(self, method: str, path: str, *_more: Any, **_named: Any) -> None:
        assert method == "DELETE"
        self.deleted.append(path)

    def run(self, *_more: Any, **_named: Any) -> None:
        return None


def test_container_and_docker_data_of_a_deleted_workspace_go_and_its_home_is_listed() -> None:
    engine = Engine()
    report = orphans.sweep([GONE], engine=engine)  # type: ignore[arg-type]
    assert engine.deleted == [f"/containers/id-spt-flow-{GONE}", f"/volumes/spt-flow-{GONE}-docker"]
    assert report.homes == [f"spt-flow-{GONE}-home"]
    assert f"docker volume rm spt-flow-{GONE}-home" in "\n".join(lines(report, dry=False))


def test_check_mode_lists_the_same_and_deletes_nothing() -> None:
    engine = Engine()
    report = orphans.sweep([GONE], dry=True, engine=engine)  # type: ignore[arg-type]
    assert engine.deleted == [] and len(report.expired) == 2 and len(report.homes) == 1
    assert "would delete container" in lines(report, dry=True)[0]


def test_only_a_workspace_that_the_server_says_it_deleted_counts(fake: Fake) -> None:
    """A workspace that the server does not know, or may not show, belongs to another owner."""
    client = coder_harness.client(fake)
    made = [client.create_workspace(name, fake.state.template_by_name("spt-flow").id) for name in ("here", "gone")]
    fake.state.clock.advance(60)
    client.create_build(client.workspace_by_id(made[1]["id"]), "delete")
    fake.state.clock.advance(60)
    ids = [*(one["id"] for one in made), HERE]
    assert orphans.deleted(Api(fake.url, ADMIN), ids) == [made[1]["id"]]


def test_node_names_the_workspaces_of_its_objects_once() -> None:
    assert orphans.workspaces(LISTED) == [GONE, HERE]
