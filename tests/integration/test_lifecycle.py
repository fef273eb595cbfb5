# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Up, stop, restart, delete on the real engine.

See docs/decisions: identity-and-names.md, restart.md, ci-self-deletion.md.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import Conflict, FlowError, NotFound, Unhealthy
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common import progress as common_progress
from ansible_collections.spt.flow.tests.integration.lab import Lab, git


def test_up_twice_changes_once(lab: Lab) -> None:
    source = lab.repository()
    first = lab.ensure(lab.spec(source))
    second = lab.ensure(lab.spec(source))
    assert first.changed and first.workspace and second.workspace
    assert (second.changed, second.actions) == (False, [])
    assert "unchanged" in second.msg
    assert second.workspace.id == first.workspace.id
    assert lab.inside(first.workspace, "git -C ~/demo rev-parse HEAD") == git(source, "rev-parse", "HEAD")
    lab.is_exactly("demo")


def test_two_repositories_of_one_name_and_delete_takes_only_its_own(lab: Lab) -> None:
    one, two = lab.repository(where="a"), lab.repository(where="b")
    first, second = lab.up(lab.spec(one)), lab.up(lab.spec(two))
    assert first.name == "demo"
    assert second.name.startswith("demo-") and len(second.name) == len("demo-") + 4
    assert lab.up(lab.spec(two)).id == second.id
    lab.is_exactly("demo", second.name)

    gone = lab.ensure(lab.spec(one), "absent")
    assert gone.changed and gone.workspace is None
    lab.is_exactly(second.name)
    assert lab.inside(second, "git -C ~/demo rev-parse HEAD") == git(two, "rev-parse", "HEAD")
    again = lab.ensure(lab.spec(one), "absent")
    assert not again.changed


def test_a_taken_name_is_refused(lab: Lab) -> None:
    one, two = lab.repository(where="a"), lab.repository(where="b")
    lab.up(lab.spec(one, name="mine"))
    with pytest.raises(Conflict) as caught:
        lab.ensure(lab.spec(two, name="mine"))
    assert "mine" in caught.value.message and caught.value.hint and caught.value.code == 7
    lab.is_exactly("mine")


def test_a_volume_that_is_not_ours_is_left_alone(lab: Lab) -> None:
    volume = f"spt-flow-{lab.owner}-demo-home"
    lab.engine.request_json("POST", "/volumes/create", body={"Name": volume, "Labels": {"other": "1"}})
    try:
        with pytest.raises(Conflict) as caught:
            lab.ensure(lab.spec(lab.repository()))
        assert volume in caught.value.message
        assert lab.engine.get_json(f"/volumes/{volume}")["Labels"] == {"other": "1"}
        assert lab.containers() == [] and lab.volumes() == []
    finally:
        lab.engine.request_json("DELETE", f"/volumes/{volume}")


def test_labels_say_whose_it_is_and_hold_no_path_of_a_secret(lab: Lab) -> None:
    source = lab.repository()
    workspace = lab.up(lab.spec(source))
    identity = workspace.repo
    for part in ("home", "docker"):
        labels = lab.engine.get_json(f"/volumes/{lab.name(workspace)}-{part}")["Labels"]
        assert labels["spt.flow.owner"] == lab.owner and labels["spt.flow.workspace"] == "demo"
        assert labels["spt.flow.repo"] == identity and labels["spt.flow.contract"] == "1"
        assert labels.get("spt.flow.snapshot") == ("no" if part == "docker" else None)
    container = lab.inspect(workspace.id)
    assert container["Config"]["Labels"]["spt.flow.image"] == lab.image.hash
    assert container["HostConfig"]["RestartPolicy"]["Name"] in ("", "no")
    assert container["HostConfig"]["NetworkMode"] == "spt-flow"
    assert container["HostConfig"]["PortBindings"]["8080/tcp"][0]["HostIp"] == "127.0.0.1"


def test_stop_keeps_the_home_and_up_starts_the_same_one(lab: Lab) -> None:
    spec = lab.spec(lab.repository())
    workspace = lab.up(spec)
    lab.inside(workspace, "echo precious > ~/note; git -C ~/demo checkout -q -b work")
    stopped = lab.ensure(spec, "stopped")
    assert stopped.changed and stopped.workspace and stopped.workspace.state == "stopped"
    assert not lab.ensure(spec, "stopped").changed
    lab.is_exactly("demo")
    started = lab.ensure(spec)
    assert started.changed and started.workspace and started.workspace.id == workspace.id
    assert lab.inside(started.workspace, "cat ~/note; git -C ~/demo branch --show-current") == "precious\nwork"


def test_changed_settings_are_shown_and_only_a_restart_applies_them(lab: Lab) -> None:
    source = lab.repository()
    workspace = lab.up(lab.spec(source))
    lab.inside(workspace, "echo precious > ~/note")
    wanted = lab.spec(source, memory=768 << 20, pids=500)

    shown = lab.ensure(wanted)
    assert not shown.changed and shown.workspace and shown.workspace.id == workspace.id
    assert shown.workspace.outdated == ("settings",) and any("restart" in note for note in shown.notes)
    assert lab.inspect(workspace.id)["HostConfig"]["PidsLimit"] == 4096

    restarted = lab.ensure(wanted, "restarted").workspace
    assert restarted and restarted.id != workspace.id and restarted.outdated == ()
    assert lab.inspect(restarted.id)["HostConfig"]["PidsLimit"] == 500
    assert lab.inside(restarted, "cat ~/note; git -C ~/demo rev-parse HEAD").split() == [
        "precious",
        git(source, "rev-parse", "HEAD"),
    ]
    lab.is_exactly("demo")


def test_restart_by_name_keeps_repository_reference_and_dotfiles(lab: Lab) -> None:
    spec = replace(lab.spec(lab.repository()), ref="main", git_name="Ada", git_email="ada@example.com")
    before = lab.inspect(lab.up(spec).id)["Config"]["Env"]
    restarted = lab.ensure(lab.spec(name="demo"), "restarted").workspace
    assert restarted
    after = lab.inspect(restarted.id)["Config"]["Env"]
    assert sorted(after) == sorted(before)


def test_restart_with_an_image_that_is_missing_puts_the_old_one_back(lab: Lab) -> None:
    source = lab.repository()
    workspace = lab.up(lab.spec(source))
    broken = replace(lab.spec(source), image="spt-flow/workspace:none-0000000000", image_hash="0" * 64)
    with pytest.raises(NotFound) as caught:
        lab.ensure(broken, "restarted")
    assert "none-0000000000" in caught.value.message and "image" in caught.value.hint
    back = lab.up(lab.spec(source))
    assert back.id == workspace.id
    lab.is_exactly("demo")


def test_restart_that_never_gets_ready_puts_the_old_one_back(lab: Lab) -> None:
    source = lab.repository()
    workspace = lab.up(lab.spec(source))
    lab.inside(workspace, "echo precious > ~/note")
    with pytest.raises(FlowError) as caught:
        lab.ensure(lab.spec(source, pids=100, wait_timeout=0), "restarted")
    assert "demo" in caught.value.message
    back = lab.ensure(lab.spec(source)).workspace
    assert back and back.id == workspace.id and back.state == "running"
    assert lab.inside(back, "cat ~/note") == "precious"
    lab.is_exactly("demo")


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_restart_killed_after_setting_aside_is_undone_by_up(lab: Lab, running: bool) -> None:
    source = lab.repository()
    workspace = lab.up(lab.spec(source))
    name = lab.name(workspace)
    if not running:
        lab.ensure(lab.spec(source), "stopped")
    lab.engine.request_json("POST", f"/containers/{name}/rename", {"name": f"{name}-old"})
    assert [found.name for found in lab.target.list(lab.owner)] == ["demo"]
    back = lab.up(lab.spec(source))
    assert back.id == workspace.id and back.state == "running"
    lab.is_exactly("demo")


def test_a_restart_killed_before_starting_the_new_one_is_undone_by_up(lab: Lab) -> None:
    source = lab.repository()
    workspace = lab.up(lab.spec(source))
    name = lab.name(workspace)
    lab.ensure(lab.spec(source), "stopped")
    lab.engine.request_json("POST", f"/containers/{name}/rename", {"name": f"{name}-old"})
    lab.target.create(lab.spec(source), common_progress.Progress())
    back = lab.up(lab.spec(source))
    assert back.id == workspace.id and back.state == "running"
    lab.is_exactly("demo")


def test_a_restart_killed_after_starting_the_new_one_goes_on_with_it(lab: Lab) -> None:
    source = lab.repository()
    workspace = lab.up(lab.spec(source))
    name = lab.name(workspace)
    lab.ensure(lab.spec(source), "stopped")
    lab.engine.request_json("POST", f"/containers/{name}/rename", {"name": f"{name}-old"})
    made = lab.target.create(lab.spec(source), common_progress.Progress())
    lab.engine.request_json("POST", f"/containers/{made.id}/start")
    new = lab.up(lab.spec(source))
    assert new.id == made.id and new.state == "running"
    lab.is_exactly("demo")


def test_what_a_killed_restart_left_goes_with_the_workspace(lab: Lab) -> None:
    spec = lab.spec(lab.repository())
    name = lab.name(lab.up(spec))
    lab.ensure(spec, "stopped")
    lab.engine.request_json("POST", f"/containers/{name}/rename", {"name": f"{name}-old"})
    lab.target.create(spec, common_progress.Progress())
    lab.ensure(spec, "absent")
    lab.is_exactly()


def test_only_the_home_left_is_a_stopped_workspace(lab: Lab) -> None:
    source = lab.repository()
    workspace = lab.up(lab.spec(source))
    lab.inside(workspace, "echo precious > ~/note")
    lab.engine.request_json("DELETE", f"/containers/{workspace.id}", {"force": True})
    assert [(found.name, found.state, found.id) for found in lab.target.list(lab.owner)] == [("demo", "stopped", "")]
    again = lab.ensure(lab.spec(source))
    assert again.changed and again.workspace and again.workspace.id != workspace.id
    assert lab.inside(again.workspace, "cat ~/note") == "precious"
    lab.is_exactly("demo")


def test_a_ci_workspace_has_no_volumes_and_goes_when_it_stops(lab: Lab) -> None:
    now = int(time.time())
    spec = replace(lab.spec(name="job"), kind="ci", deadline=now + 600)
    made = lab.target.start(lab.target.create(spec, common_progress.Progress()))
    assert lab.inspect(made.id)["HostConfig"]["AutoRemove"] is True
    assert lab.volumes() == []
    assert made.kind == "ci" and made.deadline == now + 600
    lab.target.stop(made)
    assert lab.containers() == []


def test_sweep_takes_expired_ci_workspaces_only(lab: Lab) -> None:
    lab.up(lab.spec(lab.repository()))
    for name, ttl in (("over", 1), ("later", 600)):
        spec = replace(lab.spec(name=name), kind="ci", deadline=int(time.time()) + ttl)
        lab.target.create(spec, common_progress.Progress())
    foreign = {f"spt.flow.{name}": value for name, value in (("owner", lab.owner), ("workspace", "x"), ("kind", "ci"))}
    foreign |= {"spt.flow.created": "2020-01-01T00:00:00Z", "spt.flow.deadline": "1577836801"}
    image = lab.inspect(f"spt-flow-{lab.owner}-demo")["Image"]
    stranger = f"stranger-{lab.owner}"
    lab.engine.request_json("POST", "/containers/create", {"name": stranger}, {"Image": image, "Labels": foreign})
    try:
        time.sleep(2.5)
        # Every client of the engine sweeps, so another test's may have been first.
        lab.target.sweep()
        ours = [name for name in lab.containers() if name != stranger]
        assert ours == sorted(f"spt-flow-{lab.owner}-{name}" for name in ("demo", "later"))
        assert "later" not in list(lab.target.sweep())
        assert lab.inspect(stranger)["State"]["Status"] == "created", "our labels alone are not enough"
    finally:
        lab.engine.request_json("DELETE", f"/containers/{stranger}", {"force": True})


def test_a_failed_workspace_starts_again(lab: Lab) -> None:
    spec = lab.spec(lab.repository())
    workspace = lab.up(spec)
    lab.kill(workspace.id)
    again = lab.ensure(spec)
    assert again.changed and again.workspace and again.workspace.id == workspace.id


def test_a_start_that_fails_says_so(lab: Lab) -> None:
    spec = lab.spec(lab.repository())
    workspace = lab.up(spec)
    lab.ensure(spec, "stopped")
    with pytest.raises(FlowError) as caught:
        lab.target.start(replace(workspace, id="0" * 64))
    assert isinstance(caught.value, (NotFound, Unhealthy)) and caught.value.message
