# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Up, stop, restart and delete on the real engine.

See docs/decisions: identity-and-names.md, restart.md, ci-self-deletion.md.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import Conflict, FlowError, NotFound, Unhealthy
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common import progress as common_progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.tests.integration.harness import Harness, git

WATCHED = ("restart: replacing demo", "stop: stopping demo", "stop: done", "ide: ok", "restart: done")
"""Beginnings of a restart's lines, in this order."""


def test_second_up_changes_nothing(harness: Harness) -> None:
    source = harness.repository()
    first = harness.ensure(harness.spec(source))
    second = harness.ensure(harness.spec(source))
    assert first.changed and first.workspace and second.workspace
    assert (second.changed, second.actions) == (False, [])
    assert "unchanged" in second.msg
    assert second.workspace.id == first.workspace.id
    assert harness.inside(first.workspace, "git -C ~/demo rev-parse HEAD") == git(source, "rev-parse", "HEAD")
    harness.is_exactly("demo")


def test_delete_removes_only_its_own_of_two_repositories_with_one_name(harness: Harness) -> None:
    one, two = harness.repository(where="a"), harness.repository(where="b")
    first, second = harness.up(harness.spec(one)), harness.up(harness.spec(two))
    assert first.name == "demo"
    assert second.name.startswith("demo-") and len(second.name) == len("demo-") + 4
    assert harness.up(harness.spec(two)).id == second.id
    harness.is_exactly("demo", second.name)

    gone = harness.ensure(harness.spec(one), "absent")
    assert gone.changed and gone.workspace is None
    harness.is_exactly(second.name)
    assert harness.inside(second, "git -C ~/demo rev-parse HEAD") == git(two, "rev-parse", "HEAD")
    again = harness.ensure(harness.spec(one), "absent")
    assert not again.changed


def test_taken_name_is_refused(harness: Harness) -> None:
    one, two = harness.repository(where="a"), harness.repository(where="b")
    harness.up(harness.spec(one, name="mine"))
    with pytest.raises(Conflict) as caught:
        harness.ensure(harness.spec(two, name="mine"))
    assert "mine" in caught.value.message and caught.value.hint and caught.value.code == 7
    harness.is_exactly("mine")


def test_foreign_volume_is_unchanged(harness: Harness) -> None:
    volume = f"spt-flow-{harness.owner}-demo-home"
    harness.engine.request_json("POST", "/volumes/create", body={"Name": volume, "Labels": {"other": "1"}})
    try:
        with pytest.raises(Conflict) as caught:
            harness.ensure(harness.spec(harness.repository()))
        assert volume in caught.value.message
        assert harness.engine.get_json(f"/volumes/{volume}")["Labels"] == {"other": "1"}
        assert harness.containers() == [] and harness.volumes() == []
    finally:
        harness.engine.request_json("DELETE", f"/volumes/{volume}")


def test_labels_name_the_owner_and_no_path_of_a_secret(harness: Harness) -> None:
    source = harness.repository()
    workspace = harness.up(harness.spec(source))
    identity = workspace.repo
    for part in ("home", "docker"):
        labels = harness.engine.get_json(f"/volumes/{harness.name(workspace)}-{part}")["Labels"]
        assert labels["spt.flow.owner"] == harness.owner and labels["spt.flow.workspace"] == "demo"
        assert labels["spt.flow.repo"] == identity and labels["spt.flow.contract"] == "1"
        assert labels.get("spt.flow.snapshot") == ("no" if part == "docker" else None)
    container = harness.inspect(workspace.id)
    assert container["Config"]["Labels"]["spt.flow.image"] == harness.image.hash
    assert container["HostConfig"]["RestartPolicy"]["Name"] in ("", "no")
    assert container["HostConfig"]["NetworkMode"] == "spt-flow"
    assert container["HostConfig"]["PortBindings"]["8080/tcp"][0]["HostIp"] == "127.0.0.1"


def test_stop_keeps_the_home_and_up_starts_the_same_workspace(harness: Harness) -> None:
    spec = harness.spec(harness.repository())
    workspace = harness.up(spec)
    harness.inside(workspace, "echo precious > ~/note; git -C ~/demo checkout -q -b work")
    stopped = harness.ensure(spec, "stopped")
    assert stopped.changed and stopped.workspace and stopped.workspace.state == "stopped"
    assert not harness.ensure(spec, "stopped").changed
    harness.is_exactly("demo")
    started = harness.ensure(spec)
    assert started.changed and started.workspace and started.workspace.id == workspace.id
    assert harness.inside(started.workspace, "cat ~/note; git -C ~/demo branch --show-current") == "precious\nwork"


def test_changed_settings_are_shown_and_applied_by_a_restart_only(harness: Harness) -> None:
    source = harness.repository()
    workspace = harness.up(harness.spec(source))
    harness.inside(workspace, "echo precious > ~/note")
    wanted = harness.spec(source, memory=768 << 20, pids=500)

    shown = harness.ensure(wanted)
    assert not shown.changed and shown.workspace and shown.workspace.id == workspace.id
    assert shown.workspace.outdated == ("settings",) and any("restart" in note for note in shown.notes)
    assert harness.inspect(workspace.id)["HostConfig"]["PidsLimit"] == 4096

    restarted = harness.ensure(wanted, "restarted").workspace
    assert restarted and restarted.id != workspace.id and restarted.outdated == ()
    assert harness.inspect(restarted.id)["HostConfig"]["PidsLimit"] == 500
    assert harness.inside(restarted, "cat ~/note; git -C ~/demo rev-parse HEAD").split() == [
        "precious",
        git(source, "rev-parse", "HEAD"),
    ]
    harness.is_exactly("demo")


def test_restart_shows_each_step_once_and_while_it_waits(harness: Harness) -> None:
    spec = harness.spec(harness.repository())
    harness.up(spec)
    lines: list[str] = []
    result = lifecycle.ensure(harness.target, spec, "restarted", progress=common_progress.Progress(lines.append))
    said = [line.partition("] ")[2] for line in lines]
    shown = [next(number for number, line in enumerate(said) if line.startswith(start)) for start in WATCHED]
    assert shown == sorted(shown), said
    assert sum(line.startswith("ide: ok") for line in said) == 1, said
    assert result.workspace and result.workspace.step("ide").state == "ok"


def test_restart_by_name_keeps_repository_reference_and_dotfiles(harness: Harness) -> None:
    spec = replace(harness.spec(harness.repository()), ref="main", git_name="Ada", git_email="ada@example.com")
    before = harness.inspect(harness.up(spec).id)["Config"]["Env"]
    restarted = harness.ensure(harness.spec(name="demo"), "restarted").workspace
    assert restarted
    after = harness.inspect(restarted.id)["Config"]["Env"]
    assert sorted(after) == sorted(before)


def test_restart_with_a_missing_image_is_rolled_back(harness: Harness) -> None:
    source = harness.repository()
    workspace = harness.up(harness.spec(source))
    broken = replace(harness.spec(source), image="spt-flow/workspace:none-0000000000", image_hash="0" * 64)
    with pytest.raises(NotFound) as caught:
        harness.ensure(broken, "restarted")
    assert "none-0000000000" in caught.value.message and "image" in caught.value.hint
    back = harness.up(harness.spec(source))
    assert back.id == workspace.id
    harness.is_exactly("demo")


def test_restart_that_never_gets_ready_is_rolled_back(harness: Harness) -> None:
    source = harness.repository()
    workspace = harness.up(harness.spec(source))
    harness.inside(workspace, "echo precious > ~/note")
    with pytest.raises(FlowError) as caught:
        harness.ensure(harness.spec(source, pids=100, wait_timeout=0), "restarted")
    assert "demo" in caught.value.message
    back = harness.ensure(harness.spec(source)).workspace
    assert back and back.id == workspace.id and back.state == "running"
    assert harness.inside(back, "cat ~/note") == "precious"
    harness.is_exactly("demo")


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_restart_killed_after_setting_aside_is_undone_by_up(harness: Harness, running: bool) -> None:
    source = harness.repository()
    workspace = harness.up(harness.spec(source))
    name = harness.name(workspace)
    if not running:
        harness.ensure(harness.spec(source), "stopped")
    harness.engine.request_json("POST", f"/containers/{name}/rename", {"name": f"{name}-old"})
    assert [found.name for found in harness.target.list(harness.owner)] == ["demo"]
    back = harness.up(harness.spec(source))
    assert back.id == workspace.id and back.state == "running"
    harness.is_exactly("demo")


def test_restart_killed_before_starting_the_new_one_is_undone_by_up(harness: Harness) -> None:
    source = harness.repository()
    workspace = harness.up(harness.spec(source))
    name = harness.name(workspace)
    harness.ensure(harness.spec(source), "stopped")
    harness.engine.request_json("POST", f"/containers/{name}/rename", {"name": f"{name}-old"})
    harness.target.create(harness.spec(source), common_progress.Progress())
    back = harness.up(harness.spec(source))
    assert back.id == workspace.id and back.state == "running"
    harness.is_exactly("demo")


def test_restart_killed_after_starting_the_new_one_is_completed(harness: Harness) -> None:
    source = harness.repository()
    workspace = harness.up(harness.spec(source))
    name = harness.name(workspace)
    harness.ensure(harness.spec(source), "stopped")
    harness.engine.request_json("POST", f"/containers/{name}/rename", {"name": f"{name}-old"})
    made = harness.target.create(harness.spec(source), common_progress.Progress())
    harness.engine.request_json("POST", f"/containers/{made.id}/start")
    new = harness.up(harness.spec(source))
    assert new.id == made.id and new.state == "running"
    harness.is_exactly("demo")


def test_leftovers_of_a_killed_restart_are_deleted_with_the_workspace(harness: Harness) -> None:
    spec = harness.spec(harness.repository())
    name = harness.name(harness.up(spec))
    harness.ensure(spec, "stopped")
    harness.engine.request_json("POST", f"/containers/{name}/rename", {"name": f"{name}-old"})
    harness.target.create(spec, common_progress.Progress())
    harness.ensure(spec, "absent")
    harness.is_exactly()


def test_home_without_container_is_a_stopped_workspace(harness: Harness) -> None:
    source = harness.repository()
    workspace = harness.up(harness.spec(source))
    harness.inside(workspace, "echo precious > ~/note")
    harness.engine.request_json("DELETE", f"/containers/{workspace.id}", {"force": True})
    assert [(found.name, found.state, found.id) for found in harness.target.list(harness.owner)] == [
        ("demo", "stopped", "")
    ]
    again = harness.ensure(harness.spec(source))
    assert again.changed and again.workspace and again.workspace.id != workspace.id
    assert harness.inside(again.workspace, "cat ~/note") == "precious"
    harness.is_exactly("demo")


def test_ci_workspace_has_no_volumes_and_is_removed_when_it_stops(harness: Harness) -> None:
    now = int(time.time())
    spec = replace(harness.spec(name="job"), kind="ci", deadline=now + 600)
    progress = common_progress.Progress()
    made = harness.target.start(harness.target.create(spec, progress), spec, progress)
    assert harness.inspect(made.id)["HostConfig"]["AutoRemove"] is True
    assert harness.volumes() == []
    assert made.kind == "ci" and made.deadline == now + 600
    harness.target.stop(made, progress)
    assert harness.containers() == []


def test_sweep_deletes_expired_ci_workspaces_only(harness: Harness) -> None:
    harness.up(harness.spec(harness.repository()))
    for name, ttl in (("over", 1), ("later", 600)):
        spec = replace(harness.spec(name=name), kind="ci", deadline=int(time.time()) + ttl)
        harness.target.create(spec, common_progress.Progress())
    foreign = {
        f"spt.flow.{name}": value for name, value in (("owner", harness.owner), ("workspace", "x"), ("kind", "ci"))
    }
    foreign |= {"spt.flow.created": "2020-01-01T00:00:00Z", "spt.flow.deadline": "1577836801"}
    image = harness.inspect(f"spt-flow-{harness.owner}-demo")["Image"]
    stranger = f"stranger-{harness.owner}"
    harness.engine.request_json("POST", "/containers/create", {"name": stranger}, {"Image": image, "Labels": foreign})
    try:
        time.sleep(2.5)
        # Every client of the engine sweeps, so another test's may have been first.
        harness.target.sweep()
        ours = [name for name in harness.containers() if name != stranger]
        assert ours == sorted(f"spt-flow-{harness.owner}-{name}" for name in ("demo", "later"))
        assert "later" not in list(harness.target.sweep())
        assert harness.inspect(stranger)["State"]["Status"] == "created", "our labels alone are not enough"
    finally:
        harness.engine.request_json("DELETE", f"/containers/{stranger}", {"force": True})


def test_failed_workspace_starts_again(harness: Harness) -> None:
    spec = harness.spec(harness.repository())
    workspace = harness.up(spec)
    harness.kill(workspace.id)
    again = harness.ensure(spec)
    assert again.changed and again.workspace and again.workspace.id == workspace.id


def test_failed_start_is_reported(harness: Harness) -> None:
    spec = harness.spec(harness.repository())
    workspace = harness.up(spec)
    harness.ensure(spec, "stopped")
    with pytest.raises(FlowError) as caught:
        harness.target.start(replace(workspace, id="0" * 64), spec, common_progress.Progress())
    assert isinstance(caught.value, (NotFound, Unhealthy)) and caught.value.message
