# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import itertools
import json
import tarfile
from dataclasses import replace

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import errors
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common import progress as common_progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common import wait as common_wait
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import address as repository_address
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import probe as repository_probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import seed as repository_seed
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import workspace as settings_workspace
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle, readiness
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import models as workspace_models
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import plan as workspace_plan
from ansible_collections.spt.flow.tests.unit import fake_target
from ansible_collections.spt.flow.tests.unit.fake_target import FakeTarget, ready_lines, start_event, step_event

REPO = repository_address.Repository.parse("https://host.example/o/demo.git")
OTHER = repository_address.Repository.parse("https://host.example/other/demo")
SPEC = workspace_models.WorkspaceSpec(owner="alice", settings=settings_workspace.Settings(), repository=REPO)
NAMED = replace(SPEC, repository=None, name="demo")
RUNNING = workspace_models.Workspace(owner="alice", name="demo", repo=REPO.identity, state="running", id="c1")


def says(state: str, detail: str = ""):
    return lambda repository, ref: repository_probe.Probe(state, detail)


def never(repository, ref):
    raise AssertionError("asked")


def ensure(target, spec=SPEC, state="started", probe=None, **more):
    more.setdefault("wait_timeout", 5)
    return lifecycle.ensure(target, spec, state, probe=probe or says("open"), **more)


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("state", ["started", "restarted"])
def test_image_build_does_not_use_up_the_time_to_wait_for_the_ide(state: str) -> None:
    clock, progress = Clock(), common_progress.Progress()
    waiter = common_wait.Waiter(600, clock=clock)
    target = FakeTarget()

    def build(
        spec: workspace_models.WorkspaceSpec, progress: common_progress.Progress
    ) -> workspace_models.WorkspaceSpec:
        clock.now += 1200
        progress.done("image", 1200)
        return spec

    if state == "restarted":
        target.add("demo", REPO.identity)
    result = ensure(target, state=state, progress=progress, waiter=waiter, prepare=build)
    assert result.workspace and result.workspace.state == "running"
    assert waiter.remaining == 600


# Planning


def verbs(actual, state, spec=SPEC, **more):
    return workspace_plan.plan(actual, spec, state, **more).verbs


@pytest.mark.parametrize(
    ("actual", "state", "expected"),
    [
        (None, "started", ["create", "start"]),
        (RUNNING, "started", []),
        (replace(RUNNING, outdated=("image", "settings")), "started", []),
        (replace(RUNNING, state="stopped"), "started", ["start"]),
        (replace(RUNNING, state="failed"), "started", ["start"]),
        (replace(RUNNING, state="building"), "started", ["start"]),
        (replace(RUNNING, state="stopped", id=""), "started", ["create", "start"]),
        (RUNNING, "stopped", ["stop"]),
        (replace(RUNNING, state="stopped"), "stopped", []),
        (replace(RUNNING, state="failed"), "stopped", []),
        (RUNNING, "restarted", ["restart"]),
        (replace(RUNNING, state="stopped"), "restarted", ["restart"]),
        (None, "absent", []),
        (RUNNING, "absent", ["delete"]),
        (replace(RUNNING, state="stopped", id=""), "absent", ["delete"]),
    ],
)
def test_plan_has_the_expected_steps(actual, state, expected):
    planned = workspace_plan.plan(actual, SPEC, state)
    assert planned.verbs == expected
    assert planned.changed is bool(expected)
    assert (planned.before != planned.after) or not expected or state == "restarted"
    assert all(action.reason for action in planned.actions)
    assert ("unchanged" in planned.msg) is not bool(expected)


@pytest.mark.parametrize("state", ["stopped", "restarted", "kept"])
def test_missing_workspace_is_an_error_where_one_is_required(state):
    with pytest.raises(errors.NotFound, match="Workspace demo of alice does not exist") as caught:
        workspace_plan.plan(None, NAMED, state, hours=1)
    assert "spt.flow.status" in caught.value.hint


def test_nothing_is_created_without_a_repository_or_when_not_wanted():
    with pytest.raises(errors.NotFound):
        workspace_plan.plan(None, NAMED, "started")
    with pytest.raises(errors.NotFound):
        workspace_plan.plan(None, SPEC, "started", create=False)


def test_name_of_another_repository_is_a_conflict():
    for state in ("started", "stopped", "restarted", "absent", "kept"):
        with pytest.raises(errors.Conflict, match=r"belongs to host.example/o/demo, not to host.example/other/demo"):
            workspace_plan.plan(RUNNING, replace(SPEC, repository=OTHER, name="demo"), state, hours=1)


def test_unknown_state_is_refused():
    with pytest.raises(errors.InvalidInput, match="Unknown state 'up'"):
        workspace_plan.plan(None, SPEC, "up")


@pytest.mark.parametrize("hours", [-1, 24.5, float("nan"), float("inf")])
def test_keepalive_is_at_most_a_day(hours):
    with pytest.raises(errors.InvalidInput, match="Cannot keep a workspace alive for"):
        workspace_plan.plan(RUNNING, SPEC, "kept", hours=hours)


def test_only_running_workspaces_are_kept_alive():
    with pytest.raises(errors.Conflict, match="it is stopped"):
        workspace_plan.plan(replace(RUNNING, state="stopped"), SPEC, "kept", hours=2)


def test_deadline_of_a_ci_workspace_is_never_moved():
    for hours in (0, 2):
        with pytest.raises(errors.Conflict, match="the deadline of a CI workspace cannot be changed"):
            workspace_plan.plan(replace(RUNNING, kind="ci"), SPEC, "kept", hours=hours)


def test_outdated_workspace_is_reported_and_not_updated():
    planned = workspace_plan.plan(replace(RUNNING, outdated=("settings", "image")), SPEC, "started")
    assert not planned.changed
    assert planned.notes == (
        "Workspace demo is outdated (settings and image); restart it to update: "
        "ansible-playbook spt.flow.restart -e workspace=demo",
    )


# Acting


def test_new_workspace_is_created_started_and_waited_for():
    target, lines = FakeTarget(), []
    result = ensure(target, progress=common_progress.Progress(lines.append))
    assert result.changed and result.actions == ["create", "start"]
    assert result.msg == "Workspace demo created for host.example/o/demo and started."
    steps = [("home", "ok"), ("clone", "ok"), ("docker", "skipped"), ("ide", "ok")]
    assert [(s.name, s.state) for s in result.workspace.steps] == steps
    assert [name for name, _seconds in result.stages] == ["create", "start", "home", "ide", "docker", "clone"]
    assert dict(result.stages)["ide"] == pytest.approx(1.0)
    assert any("clone: running" in line for line in lines)
    assert result.diff["before"] == {"state": "absent"}
    assert result.diff["after"]["state"] == "running"


def test_second_run_changes_nothing_and_reads_once():
    target = FakeTarget()
    ensure(target)
    target.calls.clear()
    result = ensure(target, probe=never)
    assert not result.changed and result.actions == []
    assert result.msg == "Workspace demo is running (unchanged)."
    assert target.calls == ["sweep", "find"]


def test_liveness_is_read_from_the_log():
    target = FakeTarget(lambda w, boot: ready_lines(boot)[:1] + [ready_lines(boot)[-1]] + ready_lines(boot)[1:])
    assert ensure(target).workspace.life.stops_at == 7201.0


def test_taken_name_gets_digits():
    target = FakeTarget()
    target.add("demo", OTHER.identity)
    result = ensure(target)
    assert result.workspace.name == REPO.slug_with_suffix()
    assert result.diff["after"]["name"] == result.workspace.name
    assert result.workspace.name in result.msg


def test_stop_restart_keepalive_and_delete_work():
    target = FakeTarget()
    ensure(target)
    assert ensure(target, NAMED, "kept", hours=8, by="alice@host").actions == ["keepalive"]
    assert "keepalive 8 alice@host" in target.calls
    assert ensure(target, NAMED, "stopped").msg == "Workspace demo stopped."
    assert not ensure(target, NAMED, "stopped").changed
    assert ensure(target, NAMED, "restarted").workspace.state == "running"
    gone = ensure(target, NAMED, "absent")
    assert gone.changed and gone.workspace is None and gone.diff["after"] == {"state": "absent"}
    again = ensure(target, NAMED, "absent")
    assert not again.changed and again.msg == "Workspace demo does not exist (unchanged)."


def test_home_without_container_is_recreated_without_probing_the_server():
    target = FakeTarget()
    target.add("demo", REPO.identity, "stopped", id="")
    result = ensure(target, probe=never)
    assert result.actions == ["create", "start"] and result.msg == "Workspace demo started."


def test_restart_applies_new_settings():
    target = FakeTarget()
    target.add("demo", REPO.identity, outdated=("image",))
    result = ensure(target, state="restarted")
    assert result.workspace.outdated == () and not any("outdated" in note for note in result.notes)


# Probing the git server first


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ("not-found", errors.NotFound, "it was not found (gone)"),
        ("host-key-unknown", errors.AuthError, "SSH host key of host.example is not known or has changed (gone)"),
        ("unreachable", errors.Unhealthy, "host.example does not answer (gone)"),
    ],
)
def test_refused_probe_creates_nothing(state, error, words):
    target = FakeTarget()
    for check in (True, False):
        with pytest.raises(error) as caught:
            ensure(target, probe=says(state, "gone"), check=check)
        assert words in caught.value.message and caught.value.hint
    assert target.writes == [] and target.workspaces == {}


def test_needs_auth_continues_with_a_note():
    target = FakeTarget(lambda w, boot: ready_lines(boot, "needs-auth"))
    result = ensure(target, probe=says("needs-auth"))
    assert result.workspace.step("clone").state == "needs-auth"
    assert any("asks for credentials" in note for note in result.notes)
    assert any("spt-workspace clone" in note for note in result.notes)


def test_unreachable_repository_is_a_note_for_remote_workspaces():
    target = FakeTarget()
    target.same_network = False
    assert any("will try it" in note for note in ensure(target, probe=says("unreachable")).notes)


def test_only_new_workspaces_are_probed():
    target = FakeTarget()
    target.add("demo", REPO.identity, "stopped")
    assert ensure(target, probe=never).actions == ["start"]


# Check mode


@pytest.mark.parametrize("state", workspace_plan.STATES)
@pytest.mark.parametrize("present", ["none", "running", "stopped", "home only", "outdated"])
def test_check_mode_writes_nothing_and_matches_a_real_run(state, present):
    def make(read_only: bool) -> FakeTarget:
        target = FakeTarget(read_only=read_only)
        if present != "none":
            more = {"home only": {"id": "", "state": "stopped"}, "outdated": {"outdated": ("image",)}}
            target.add("demo", REPO.identity, **more.get(present, {"state": present}))
        return target

    def outcome(target: FakeTarget, check: bool):
        try:
            result = ensure(target, state=state, hours=2, check=check)
        except errors.FlowError as error:
            return error.to_dict()
        return result.changed, result.msg, result.diff, result.actions

    assert outcome(make(True), True) == outcome(make(False), False)


# Waiting


def test_lines_of_an_earlier_start_are_ignored():
    target = FakeTarget(
        lambda w, boot: [start_event(boot), step_event("clone", "ok"), step_event("ide", "failed", detail="no")]
    )
    target.add("demo", REPO.identity, "stopped")
    target.log["alice", "demo"] = ready_lines("yesterday")
    with pytest.raises(errors.Unhealthy, match="The IDE of workspace demo did not start: no"):
        ensure(target)


def test_missing_ide_is_an_error_with_the_last_lines():
    target = FakeTarget(lambda w, boot: [start_event(boot), *(f"line {n}" for n in range(9))])
    target.hang.clear()
    with pytest.raises(errors.DeadlineExceeded, match=r"did not answer within 0.2 s") as caught:
        ensure(target, wait_timeout=0.2)
    target.hang.set()
    assert caught.value.details["log"] == ["line 4", "line 5", "line 6", "line 7", "line 8"]
    assert "line 8" in caught.value.hint and "spt.flow.logs -e workspace=demo" in caught.value.hint


def test_slow_clone_is_not_an_error():
    target = FakeTarget(
        lambda w, boot: [start_event(boot), step_event("clone", "running"), step_event("ide", "ok", 1, 2)]
    )
    target.hang.clear()
    result = ensure(target, wait_timeout=0.2)
    target.hang.set()
    assert result.changed and any("not finished yet" in note for note in result.notes)


def test_workspace_that_ends_while_starting_is_an_error_with_the_last_lines():
    target = FakeTarget(lambda w, boot: [start_event(boot), "cannot write: https://u:CANARY@host/o/r"])
    with pytest.raises(errors.Unhealthy, match="ended while it was starting") as caught:
        ensure(target)
    assert "cannot write" in caught.value.hint
    assert "CANARY" not in repr(caught.value.to_dict())


def test_workspace_that_ends_while_starting_names_the_failed_step():
    failed = step_event("home", "failed", 1, 2, "The home cannot be prepared.")
    target = FakeTarget(lambda w, boot: [start_event(boot), failed])
    with pytest.raises(errors.Unhealthy, match=r"starting\. Step home failed: The home cannot be prepared\."):
        ensure(target)


def test_failed_clone_is_a_note():
    target = FakeTarget(lambda w, boot: ready_lines(boot, "failed"))
    assert "Step clone failed." in ensure(target).notes


def test_lines_that_resemble_events_are_log():
    odd = ['{"spt_flow": 1', '{"spt_flow": 2, "event": "step"}', "[1]", '{"spt_flow": 1, "event": 5}', "", "{}"]
    assert [readiness.event(line) for line in odd] == [None] * len(odd)
    target = FakeTarget(lambda w, boot: [*odd, *ready_lines(boot)])
    assert ensure(target).changed


def test_unreadable_log_is_an_error():
    target = FakeTarget()

    def broken(workspace, follow=False, tail=0):
        yield start_event("b")
        raise errors.Unhealthy("The engine went away.")

    target.logs = broken
    with pytest.raises(errors.Unhealthy, match="engine went away"):
        ensure(target)


def test_joined_start_uses_only_the_last_start():
    target = FakeTarget()
    workspace = target.add("demo", REPO.identity)
    target.log["alice", "demo"] = [*ready_lines("old", "failed"), *ready_lines("new")]
    waiter = common_wait.Waiter(5)
    ready = readiness.wait_ready(target, workspace, common_progress.Progress(), waiter, None)
    assert ready.step("clone").state == "ok"


# Other clients at the same time


def test_loser_of_a_race_continues_unchanged():
    target = FakeTarget()

    def other():
        if not target.workspaces:
            target._boot(target.add("demo", REPO.identity))

    target.before["create"] = other
    result = ensure(target)
    assert not result.changed and result.msg == "Workspace demo is running (unchanged)."
    assert result.workspace.step("ide").state == "ok"


def test_workspace_started_by_another_client_is_waited_for():
    target = FakeTarget()
    target.add("demo", REPO.identity, started=1000.0)
    target.log["alice", "demo"] = ready_lines("theirs")
    assert ensure(target, now=lambda: 1005.0).workspace.step("ide").state == "ok"
    target.calls.clear()
    ensure(target, now=lambda: 1100.0)
    assert target.calls == ["sweep", "find"]


@pytest.mark.parametrize("reason", ["was told to stop", "idle for too long", "the deadline has come"])
def test_workspace_being_stopped_by_another_client_is_waited_for_and_started(reason):
    target = FakeTarget()
    theirs = target.add("demo", REPO.identity, started=1000.0)
    target.log["alice", "demo"] = [
        *ready_lines("theirs"),
        json.dumps({"spt_flow": 1, "event": "life", "reason": reason}),
    ]
    read = []

    def ends():
        read.append(1)
        if len(read) == 2:
            target._save(replace(theirs, state="stopped"))

    target.before["logs"] = ends
    result = ensure(target, now=lambda: 1005.0)
    assert result.actions == ["start"] and result.workspace.step("ide").state == "ok"
    assert target.writes == ["start"]


def test_workspace_that_does_not_stop_in_time_is_reported():
    target = FakeTarget()
    target.add("demo", REPO.identity, started=1000.0)
    target.log["alice", "demo"] = [
        *ready_lines("theirs"),
        json.dumps({"spt_flow": 1, "event": "life", "reason": "was told to stop"}),
    ]
    target.hang.clear()
    with pytest.raises(errors.DeadlineExceeded, match="did not stop within 0.3 s"):
        ensure(target, now=lambda: 1005.0, wait_timeout=0.3)


def test_permanent_conflict_is_raised():
    target = FakeTarget()
    target.add("demo", REPO.identity, "stopped")

    def taken():
        raise errors.Conflict("Port 8443 is taken.")

    target.before["start"] = taken
    with pytest.raises(errors.Conflict, match="Port 8443"):
        ensure(target, waiter=common_wait.Waiter(5, sleep=lambda seconds: None))
    assert target.calls.count("start") == lifecycle.TRIES


def test_workspace_deleted_by_another_client_is_gone():
    target = FakeTarget()
    target.add("demo", REPO.identity)

    def other():
        target.workspaces.clear()
        raise errors.NotFound("No such container.")

    target.before["delete"] = other
    assert ensure(target, state="absent").workspace is None


def test_expired_ci_workspaces_are_swept_first_and_a_failure_is_a_note():
    target = FakeTarget()
    target.expired = ["ci-2", "ci-1"]
    assert "Deleted expired CI workspaces: ci-1, ci-2." in ensure(target).notes
    assert target.calls[0] == "sweep"

    def broken():
        raise errors.Unhealthy("The engine is slow.")

    target.before["sweep"] = broken
    assert any("Cannot delete expired CI workspaces: The engine is slow." in note for note in ensure(target).notes)


def test_next_run_completes_what_any_single_fault_left():
    for verb, count in itertools.product(("create", "start", "logs"), (1, 2)):
        target = FakeTarget()
        left = itertools.count(1)

        def fault(left=left, count=count):
            if next(left) == count:
                raise errors.Unhealthy("The engine went away.")

        target.before[verb] = fault
        for _attempt in range(3):
            try:
                result = ensure(target)
            except errors.Unhealthy:
                continue
        assert result.workspace.state == "running"
        assert len(target.workspaces) == 1


# Repositories on this machine


@pytest.fixture
def bundled(monkeypatch):
    monkeypatch.setattr(repository_probe, "make_bundle", lambda repository, ref="": b"BUNDLE")
    return replace(SPEC, repository=repository_address.Repository.parse("/srv/demo"))


def test_seed_bundle_is_uploaded_between_create_and_start(bundled):
    target = FakeTarget()
    ensure(target, bundled)
    assert [call for call in target.calls if call in ("create", "put", "start")] == ["create", "put", "start"]
    [(directory, archive)] = target.puts
    assert directory == "/home/coder"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert [(m.name, m.uid, m.gid) for m in tar] == [
            (".cache", 1000, 1000),
            (".cache/spt-flow", 1000, 1000),
            (".cache/spt-flow/seed.bundle", 1000, 1000),
        ]
        assert tar.extractfile(repository_seed.SEED).read() == b"BUNDLE"


def test_run_killed_before_the_upload_is_completed_by_the_next(bundled):
    target = FakeTarget()
    target.add("demo", bundled.repository.identity, "stopped", started=None)
    assert ensure(target, bundled, probe=never).actions == ["start"]
    assert len(target.puts) == 1


def test_seed_bundle_is_not_uploaded_to_a_workspace_that_started_before(bundled):
    target = FakeTarget()
    target.add("demo", bundled.repository.identity, "stopped")
    ensure(target, bundled)
    assert target.puts == []


def test_read_only_fake_refuses_writes():
    with pytest.raises(AssertionError, match="create is a write"):
        FakeTarget(read_only=True).create(SPEC, None)
    assert set(fake_target.WRITES) >= {"create", "start", "stop", "restart", "delete", "keepalive", "put", "sweep"}


def test_silent_log_is_reported_with_the_place_to_look(monkeypatch):
    monkeypatch.setattr(readiness, "SILENCE", 0.05)
    target, lines = FakeTarget(lambda workspace, boot: [start_event(boot)]), []
    target.hang.clear()
    with pytest.raises(errors.DeadlineExceeded):
        ensure(target, wait_timeout=0.4, progress=common_progress.Progress(lines.append))
    target.hang.set()
    assert any("demo: no output for " in line and "spt.flow.logs -e workspace=demo" in line for line in lines)


def test_ref_for_an_existing_clone_is_noted():
    planned = workspace_plan.plan(RUNNING, replace(SPEC, ref="topic"), "started")
    assert not planned.changed
    assert planned.notes == (
        "ref=topic only applies to a new clone, but workspace demo already exists. Run inside: git switch topic",
    )
