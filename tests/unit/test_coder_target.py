# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Target coder against the fake server: the same actions and messages as target docker, and what only a server does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Unhealthy,
)
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import builds as coder_builds
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import jobs as coder_jobs
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import reading as coder_reading
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import target as coder_target
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.parse import seconds
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.wait import Waiter
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.probe import Probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle, report
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import (
    Liveness,
    Result,
    Workspace,
    WorkspaceSpec,
)
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.target import ExecResult
from ansible_collections.spt.flow.tests.fake_coder.jobs import Behaviour, Script
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import coder_harness

REPO = Repository.parse("https://example.com/team/demo.git")
SPEC = WorkspaceSpec("me", Settings(wait_timeout=60), repository=REPO)
NAMED = replace(SPEC, name="demo", repository=None)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with coder_harness.server() as made:
        yield made


@pytest.fixture
def target(fake: Fake) -> CoderTarget:
    return CoderTarget(coder_harness.client(fake))


def ensure(target: CoderTarget, spec: WorkspaceSpec = SPEC, state: str = "started", **more: Any) -> Result:
    return lifecycle.ensure(target, spec, state, probe=lambda repository, ref: Probe("open"), **more)  # type: ignore[arg-type]


def builds(fake: Fake) -> list[str]:
    return [build.transition for workspace in fake.state.workspaces.values() for build in workspace.builds]


def test_up_creates_a_workspace_and_waits_for_its_ide(fake: Fake, target: CoderTarget) -> None:
    said: list[str] = []
    result = ensure(target, progress=Progress(said.append))
    assert result.changed
    workspace = result.workspace
    assert workspace is not None
    assert (workspace.name, workspace.owner, workspace.state) == ("demo", "ada", "running")
    assert workspace.repo == REPO.identity
    assert workspace.url == f"{fake.url}/@ada/demo.main/apps/ide/"
    assert {step.name: step.state for step in workspace.steps} == {"home": "ok", "clone": "ok", "ide": "ok"}
    assert any("build: Starting workspace" in line for line in said)


def test_up_says_when_the_server_stops_the_workspace(fake: Fake, target: CoderTarget) -> None:
    """The workspace agent does not know it: in there, nothing stops a workspace."""
    workspace = ensure(target).workspace
    assert workspace is not None and workspace.life.stops_at is not None
    assert abs(workspace.life.stops_at - fake.state.now - 7200) < 300


def test_second_up_changes_nothing_with_three_requests(fake: Fake, target: CoderTarget) -> None:
    ensure(target)
    fake.state.clock.advance(60)
    client = coder_harness.client(fake)
    fresh = CoderTarget(client)
    result = ensure(fresh, now=lambda: fake.state.now)
    assert result.workspace is not None
    session = fresh.session(result.workspace)
    assert not result.changed
    assert session.clone == "ok"
    assert client.http.requests <= 3
    assert builds(fake) == ["start"]


def test_stop_start_restart_and_delete_work(fake: Fake, target: CoderTarget) -> None:
    ensure(target)
    assert ensure(target, NAMED, "stopped").workspace.state == "stopped"  # type: ignore[union-attr]
    assert not ensure(target, NAMED, "stopped").changed
    assert ensure(target, NAMED).workspace.state == "running"  # type: ignore[union-attr]
    assert ensure(target, NAMED, "restarted").changed
    assert builds(fake) == ["start", "stop", "start", "stop", "start"]
    assert ensure(target, NAMED, "absent").changed
    assert not ensure(target, NAMED, "absent").changed
    assert target.list("me") == []


def test_new_template_version_waits_for_the_users_restart(fake: Fake, target: CoderTarget) -> None:
    ensure(target)
    template = fake.state.template_by_name("spt-flow")
    new = coder_harness.add_version(fake.state, "v2", template.id)
    fake.state.promote(template, new)
    result = ensure(target)
    assert not result.changed
    assert result.workspace is not None
    assert result.workspace.outdated == ("template",)
    assert any("outdated (template)" in note for note in result.notes)
    ensure(target, NAMED, "stopped")
    assert ensure(target, NAMED).workspace.outdated == ("template",)  # type: ignore[union-attr]
    assert ensure(target, NAMED, "restarted").workspace.outdated == ()  # type: ignore[union-attr]


def test_failed_start_shows_its_last_lines_and_is_cleaned_up_before_a_retry(fake: Fake, target: CoderTarget) -> None:
    fake.state.next("start", error="no such image: spt-flow/workspace", lines=("Error: image is missing",))
    with pytest.raises(Unhealthy) as failed:
        ensure(target)
    assert "could not start workspace demo" in failed.value.message
    assert "image is missing" in failed.value.hint
    assert target.find(NAMED).state == "failed"  # type: ignore[union-attr]
    assert ensure(target).workspace.state == "running"  # type: ignore[union-attr]
    assert builds(fake) == ["start", "stop", "start"]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("insufficient quota", "delete a workspace"),
        ("write /var/lib/docker/x: no space left on device", "disk is full"),
        ("did not find docker image 'spt-flow/workspace:fat-1'", "--tags host_images"),
        ("Error pinging Docker server: Cannot connect to the Docker daemon", ""),
    ],
)
def test_refusal_of_node_or_quota_is_reported_and_existing_objects_stay(
    fake: Fake, target: CoderTarget, error: str, advice: str
) -> None:
    ensure(target)
    ensure(target, NAMED, "stopped")
    fake.state.next("start", error=error)
    with pytest.raises(Unhealthy) as failed:
        ensure(target)
    assert failed.value.message == f"Coder could not start workspace demo: {error}."
    assert advice in failed.value.hint
    assert len(fake.state.workspaces) == 1
    assert ensure(target).workspace.state == "running"  # type: ignore[union-attr]


def test_failed_start_script_shows_its_log(fake: Fake, target: CoderTarget) -> None:
    script = Script(output=("spt-workspace: The home cannot be written.",), exit_code=8)
    fake.state.next("start", scripts=(script,))
    with pytest.raises(Unhealthy, match="is not usable: its start script failed") as failed:
        ensure(target)
    assert "The home cannot be written" in failed.value.hint
    assert target.find(NAMED).notes[0].startswith("The start script of workspace demo failed")  # type: ignore[union-attr]
    assert ensure(target, NAMED, "restarted").workspace.notes == ()  # type: ignore[union-attr]


def test_unready_agent_is_waited_for_however_old_its_build_is(fake: Fake, target: CoderTarget) -> None:
    fake.state.next("start", connect=100, scripts=(Script(output=coder_harness.EVENTS, seconds=20),))
    coder_harness.client(fake).create_workspace("demo", fake.state.template_by_name("spt-flow").id)
    fake.state.clock.advance(90)
    workspace = ensure(target, NAMED, now=lambda: fake.state.now).workspace
    assert workspace is not None
    assert workspace.step("ide").state == "ok"


def test_disconnected_agent_is_waited_for_and_then_reported(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coder_reading, "RECONNECT", 0.5)
    said: list[str] = []
    client = coder_harness.client(fake)
    client.http.say = said.append
    target = CoderTarget(client)
    workspace = ensure(target).workspace
    assert workspace is not None
    agent = next(iter(fake.state.workspaces.values())).latest.agent
    assert agent is not None
    agent.gone = fake.state.now - 60
    found = target.find(NAMED)
    assert found is not None
    with pytest.raises(Unhealthy, match="its agent lost .* did not reconnect") as lost:
        target.session(found)
    assert "spt.flow.restart -e workspace=demo" in lost.value.hint
    assert "waiting up to" in said[0]
    agent.gone = float("inf")
    assert target.session(found).directory == "/home/coder/demo"


def test_missing_provisioner_is_reported(fake: Fake) -> None:
    fake.state.set_provisioners(0)
    said: list[str] = []
    with pytest.raises(DeadlineExceeded, match="Coder did not start workspace demo within") as late:
        ensure(CoderTarget(coder_harness.client(fake), patience=0.5), progress=Progress(said.append))
    assert "no provisioner of the server was available" in late.value.hint
    assert any("waiting for one" in line for line in said)


@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ("v2.34.7+abc1234", True),
        ("v1.99.9+abc1234", True),
        ("v2.34.8+abc1234", False),
        ("v2.35.1", False),
        ("v0.0.0-devel+abc1234", False),
        ("", False),
    ],
)
def test_server_without_security_fixes_is_refused(fake: Fake, target: CoderTarget, version: str, refused: bool) -> None:
    fake.state.build_version = version
    if not refused:
        assert ensure(target).changed
        return
    with pytest.raises(Unhealthy, match=r"needs at least 2\.34\.8"):
        ensure(target)
    assert fake.state.workspaces == {}


def test_interrupted_build_continues_and_the_message_explains_how_to_resume(
    fake: Fake, target: CoderTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(coder_builds, "follow", interrupt)
    with pytest.raises(Cancelled, match="interrupted while Coder was to start workspace demo") as stopped:
        ensure(target)
    assert "spt.flow.up -e workspace=demo" in stopped.value.hint
    monkeypatch.undo()
    assert ensure(target, NAMED).workspace.state == "running"  # type: ignore[union-attr]
    assert builds(fake) == ["start"]


def test_missing_agent_is_reported(fake: Fake, target: CoderTarget) -> None:
    fake.state.next("start", connect=float("inf"), connection_timeout=20)
    with pytest.raises(Unhealthy, match="agent of workspace demo has not connected"):
        ensure(target)


def test_build_of_another_client_is_waited_for(fake: Fake, target: CoderTarget) -> None:
    ensure(target)
    workspace = next(iter(fake.state.workspaces.values()))
    ada = fake.state.user("ada")
    with fake.lock:
        fake.state.create_build(ada, workspace, {"transition": "stop"})
    assert ensure(target).workspace.state == "running"  # type: ignore[union-attr]
    assert builds(fake) == ["start", "stop", "start"]


def test_workspace_of_another_repository_is_unchanged(fake: Fake, target: CoderTarget) -> None:
    ensure(target)
    other = Repository.parse("https://example.com/other/demo.git")
    result = ensure(target, replace(SPEC, repository=other))
    assert result.workspace is not None
    assert result.workspace.name == other.slug_with_suffix()
    with pytest.raises(Conflict, match=r"belongs to example\.com/team/demo"):
        ensure(target, replace(SPEC, name="demo", repository=other))


def test_ten_parallel_runs_create_one_workspace(fake: Fake) -> None:
    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(lambda _n: ensure(CoderTarget(coder_harness.client(fake))), range(10)))
    assert {result.workspace.id for result in results if result.workspace} == set(fake.state.workspaces)
    assert len(fake.state.workspaces) == 1
    assert builds(fake) == ["start"]


def test_unsupported_parameter_is_refused_and_creates_nothing(fake: Fake, target: CoderTarget) -> None:
    template = fake.state.template_by_name("spt-flow")
    text = coder_harness.TEMPLATE.replace('"dotfiles"', '"colour"')
    fake.state.promote(template, coder_harness.add_version(fake.state, "v2", template.id, text))
    with pytest.raises(InvalidInput, match="does not accept dotfiles"):
        ensure(target, replace(SPEC, dotfiles="https://example.com/ada/dotfiles"))
    assert fake.state.workspaces == {}


def test_local_folder_is_refused(fake: Fake, target: CoderTarget) -> None:
    with pytest.raises(InvalidInput, match="the server cannot read this directory"):
        ensure(target, replace(SPEC, repository=Repository.parse("/srv/demo")))
    assert fake.state.workspaces == {}


def test_missing_template_is_reported(fake: Fake) -> None:
    with pytest.raises(NotFound, match="does not have the template gone"):
        ensure(CoderTarget(coder_harness.client(fake), "gone"))


def test_keepalive_postpones_the_stop_and_is_withdrawn(fake: Fake, target: CoderTarget) -> None:
    ensure(target)

    def stops_after(hours: float) -> float:
        """Return the seconds until the stop, by this machine's clock."""
        begun = time.time()
        kept = ensure(target, NAMED, "kept", hours=hours, by="ada").workspace
        assert kept is not None
        assert kept.life.stops_at is not None
        return kept.life.stops_at - begun

    assert stops_after(8.0) == pytest.approx(8 * 3600, abs=60)
    kept = target.list("me")[0].life
    assert kept.keepalive_until == kept.stops_at, "status reports that it was extended"
    assert stops_after(0.0) == pytest.approx(2 * 3600, abs=60)
    assert target.list("me")[0].life.keepalive_until is None
    with pytest.raises(InvalidInput, match="half an hour"):
        target.keepalive(target.list("me")[0], 0.1, "ada")


def test_keepalive_never_shortens_and_says_when_nothing_would_stop_the_workspace(
    fake: Fake, target: CoderTarget
) -> None:
    ensure(target)
    before = target.list("me")[0].life.stops_at
    kept = ensure(target, NAMED, "kept", hours=1.0, by="ada", now=lambda: fake.state.now)
    assert not kept.changed and "already runs for 2.0 more hours" in kept.msg
    assert target.list("me")[0].life.stops_at == before
    (workspace,) = fake.state.workspaces.values()
    coder_harness.client(fake).put_ttl(workspace.id, None)
    for hours in (3.0, 0.0):
        manual = ensure(target, NAMED, "kept", hours=hours, by="ada")
        assert not manual.changed and "has no idle stop" in manual.msg


def test_status_shows_why_it_runs_when_it_stops_and_who_extended_it(fake: Fake, target: CoderTarget) -> None:
    ensure(target)

    def life() -> Liveness:
        return target.list()[0].life

    (workspace,) = fake.state.workspaces.values()
    fresh = life()
    assert fresh.reason == "just started" and fresh.keepalive_until is None and fresh.since and fresh.stops_at
    assert abs(fresh.stops_at - fresh.since - 7200) < 2
    # A user works there: the server records it and postpones the stop.
    fake.state.clock.advance(3600)
    workspace.used = fake.state.now
    workspace.latest.deadline = fake.state.now + 7200
    used = life()
    assert used.reason == "it was used" and used.since == pytest.approx(workspace.used, abs=1)
    assert used.keepalive_until is None
    ensure(target, NAMED, "kept", hours=20.0)
    kept = life()
    assert kept.keepalive_until == kept.stops_at and kept.keepalive_by == "ada or an administrator"
    ensure(target, NAMED, "kept", hours=0.0)
    assert life().keepalive_until is None
    with pytest.raises(InvalidInput, match="25 hours"):
        ensure(target, NAMED, "kept", hours=25.0)
    fake.state.put_ttl(workspace, None)
    assert life().reason == "it has no automatic stop" and life().stops_at is None


def test_restart_applies_given_values_and_refuses_unknown_ones(fake: Fake, target: CoderTarget) -> None:
    ensure(target)
    given = replace(NAMED, ref="develop", dotfiles="https://example.com/ada/dotfiles")
    ensure(target, given, "restarted")
    (workspace,) = fake.state.workspaces.values()
    assert workspace.latest.parameters["ref"] == "develop"
    assert workspace.latest.parameters["dotfiles"] == "https://example.com/ada/dotfiles"
    assert workspace.latest.parameters["repo"] == REPO.url
    ensure(target, NAMED, "restarted")
    assert workspace.latest.parameters["ref"] == "develop"
    template = fake.state.template_by_name("spt-flow")
    text = coder_harness.TEMPLATE.replace('"dotfiles"', '"colour"')
    fake.state.promote(template, coder_harness.add_version(fake.state, "v2", template.id, text))
    before = builds(fake)
    with pytest.raises(InvalidInput, match="does not accept dotfiles"):
        ensure(target, given, "restarted")
    assert builds(fake) == before


def test_status_reads_page_by_page(fake: Fake, target: CoderTarget) -> None:
    ensure(target)
    before = [seen.route for seen in fake.seen].count("/api/v2/workspaces")
    found = target.list("me", details=True)
    assert [workspace.name for workspace in found] == ["demo"]
    assert [seen.route for seen in fake.seen].count("/api/v2/workspaces") == before + 1


def test_build_beyond_the_timeout_continues(fake: Fake) -> None:
    fake.state.next("start", start=3600)
    with pytest.raises(DeadlineExceeded, match="The server continues it"):
        ensure(CoderTarget(coder_harness.client(fake), patience=0.5))
    assert next(iter(fake.state.workspaces.values())).latest.status(fake.state.now) == "starting"


def test_restarting_server_is_waited_for(fake: Fake, target: CoderTarget) -> None:
    ensure(target)
    fake.restart(60)
    assert ensure(target).workspace.state == "running"  # type: ignore[union-attr]


def test_server_times_are_parsed() -> None:
    assert seconds("0001-01-01T00:00:00Z") is None
    assert seconds(None) is None
    assert seconds("1970-01-01T00:01:00.123456789Z") == 60.123456


def test_actions_need_few_requests(fake: Fake, target: CoderTarget) -> None:
    ensure(target)
    asked = Counter(seen.route for seen in fake.seen)
    assert asked["/api/v2/organizations/{organization}/templates/{templatename}"] == 1, asked


@pytest.mark.parametrize(
    ("version", "ours", "note", "refused"),
    [
        ("1.2.3-abcdefabcdef", "1.2.9", "", ""),
        ("1.2.3-abcdefabcdef.2", "1.2.3", "", ""),
        ("1.3.0-abcdefabcdef", "1.2.3", "newer spt.flow (1.3.0, this is 1.2.3)", ""),
        ("1.1.0-abcdefabcdef", "1.2.3", "older spt.flow (1.1.0, this is 1.2.3)", ""),
        ("2.0.0-abcdefabcdef", "1.2.3", "newer spt.flow", "collection install --upgrade spt.flow"),
        ("1.9.0-abcdefabcdef", "2.0.0", "older spt.flow", "collection install spt.flow:==1.9.0"),
        ("vivid_turing4", "1.2.3", "", ""),
        ("v1", "1.2.3", "", ""),
    ],
)
def test_workspace_of_another_release_is_noted_or_refused_without_a_request(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, version: str, ours: str, note: str, refused: str
) -> None:
    ensure(CoderTarget(coder_harness.client(fake)))
    for made in fake.state.versions.values():
        made.name = version
    for module in (coder_reading, coder_target):
        monkeypatch.setattr(module, "release", lambda: ours)
    client = coder_harness.client(fake)
    target = CoderTarget(client)
    found = target.find(NAMED)
    assert found is not None
    assert client.http.requests == 1
    assert len(found.notes) == bool(note)
    assert all(note in word for word in (*found.notes, *target.list()[0].notes))
    if refused:
        with pytest.raises(Unhealthy) as error:
            target.session(found)
        assert refused in error.value.hint
        with pytest.raises(Unhealthy):
            ensure(target, NAMED, "restarted")
        ensure(target, NAMED, "stopped")
        with pytest.raises(Unhealthy):
            ensure(target, NAMED)
        assert builds(fake) == ["start", "stop"]
        assert ensure(target, NAMED, "absent").changed


@pytest.mark.parametrize(
    ("version", "ours", "hint"),
    [
        ("9.0.0-abcdefabcdef", "0.1.0", "collection install --upgrade spt.flow"),
        ("0.1.0-abcdefabcdef", "9.0.0", "ansible-playbook site.yml"),
    ],
)
def test_template_of_another_major_release_creates_nothing(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, version: str, ours: str, hint: str
) -> None:
    for made in fake.state.versions.values():
        made.name = version
    monkeypatch.setattr(coder_target, "release", lambda: ours)
    with pytest.raises(Unhealthy, match="Cannot create a workspace: template spt-flow comes from") as error:
        ensure(CoderTarget(coder_harness.client(fake)))
    assert hint in error.value.hint
    assert fake.state.workspaces == {}


def test_workspace_of_the_same_repository_is_found_by_any_name(fake: Fake, target: CoderTarget) -> None:
    ensure(target, replace(SPEC, name="mine"))
    result = ensure(target)
    assert not result.changed
    assert result.workspace is not None
    assert result.workspace.name == "mine"
    second = ensure(target, replace(SPEC, name="second"))
    assert second.changed
    assert f"{REPO.identity} already has workspace mine." in second.notes


def test_values_that_the_template_decides_are_named(target: CoderTarget) -> None:
    said = target.ignored(["cpus", "repo", "memory", "git_name", "template"])
    assert said == "cpus, git_name, memory have no effect on target coder: the server and its template decide."
    assert target.ignored(["repo", "template", "dotfiles"]) == ""


def test_name_with_capitals_is_found(fake: Fake, target: CoderTarget) -> None:
    target._client.create_workspace("MyWork", fake.state.template_by_name("spt-flow").id)
    fake.state.clock.advance(60)
    result = ensure(target, replace(NAMED, name="mywork"), "stopped")
    assert result.workspace is not None
    assert (result.changed, result.workspace.name) == (True, "MyWork")


def test_stop_time_is_that_of_the_server(fake: Fake, target: CoderTarget) -> None:
    made = ensure(target).workspace
    assert made is not None
    found = target.find(NAMED)
    assert found is not None
    assert made.life.stops_at == found.life.stops_at is not None
    assert abs(made.life.stops_at - fake.state.now - 7200) < 600


def test_stopped_workspace_without_a_repository_gets_one(fake: Fake, target: CoderTarget) -> None:
    target._client.create_workspace("click", fake.state.template_by_name("spt-flow").id)
    fake.state.clock.advance(60)
    click = replace(SPEC, name="click", ref="topic")
    ensure(target, replace(click, repository=None), "stopped")
    result = ensure(target, click)
    assert result.msg == f"Workspace click started with a new clone of {REPO.identity}."
    assert result.workspace is not None
    assert result.workspace.repo == REPO.identity
    latest = next(iter(fake.state.workspaces.values())).builds[-1]
    assert (latest.parameters["repo"], latest.parameters["ref"]) == (REPO.url, "topic")
    assert not ensure(target, replace(click, ref="")).changed


def test_running_workspace_without_a_repository_clones_one(
    fake: Fake, target: CoderTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    target._client.create_workspace("click", fake.state.template_by_name("spt-flow").id)
    fake.state.clock.advance(120)
    there: set[str] = set()
    ran: list[list[str]] = []

    def run(workspace: Any, argv: list[str], stdin: bytes = b"", timeout: float = 60.0, user: str = "") -> ExecResult:
        ran.append(argv)
        if argv[0] == "test":
            return ExecResult(int(argv[2] not in there), "", "")
        if argv[0] == "cat":
            return ExecResult(0, '{"steps": {"clone": {"state": "ok"}}}', "")
        there.add("/home/coder/click/.git")
        return ExecResult(0, "", "cloned\n")

    monkeypatch.setattr(target, "exec", run)
    click = replace(SPEC, name="click")
    result = ensure(target, click)
    assert (result.changed, result.actions) == (True, ["clone"])
    assert ["spt-workspace", "clone", REPO.url] in ran
    assert result.workspace is not None
    session = target.session(result.workspace)
    assert (session.directory, session.clone) == ("/home/coder/click", "ok")
    assert not ensure(target, click).changed
    assert builds(fake) == ["start"]


def test_state_of_a_clone_is_reread_from_the_workspace(
    fake: Fake, target: CoderTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = coder_harness.EVENTS[2].replace('"ok"', '"needs-auth"')
    output = (*coder_harness.EVENTS[:2], waiting, coder_harness.EVENTS[3])
    fake.state.behaviour = Behaviour(scripts=(Script(output=output),))
    made = ensure(target).workspace
    assert made is not None
    assert made.step("clone").state == "needs-auth"
    done = ExecResult(0, '{"steps": {"clone": {"state": "ok", "detail": "cloned"}}}', "")
    monkeypatch.setattr(target, "exec", lambda *words, **more: done)
    assert target.session(made).clone == "ok"
    monkeypatch.setattr(target, "exec", lambda *words, **more: ExecResult(255, "", "away"))
    assert target.session(made).clone == "needs-auth"


def test_status_lists_state_of_clones(fake: Fake, target: CoderTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the log; a clone that a session has finished from the workspace; without either the workspace is listed."""
    failed = coder_harness.EVENTS[2].replace('"ok"', '"failed", "detail": "host unknown"')
    output = (*coder_harness.EVENTS[:2], failed, coder_harness.EVENTS[3])
    fake.state.behaviour = Behaviour(scripts=(Script(output=output),))
    ensure(target)
    monkeypatch.setattr(target, "exec", lambda *words, **more: ExecResult(255, "", "away"))

    def listed() -> Workspace:
        (one,) = target.list("me", details=True)
        return one

    assert (listed().step("clone").state, listed().step("clone").detail) == ("failed", "host unknown")
    assert any("clone failed: host unknown" in line for line in report.status([listed()], 80, time.time()))
    done = ExecResult(0, '{"steps": {"clone": {"state": "ok", "detail": "cloned"}}}', "")
    monkeypatch.setattr(target, "exec", lambda *words, **more: done)
    assert listed().step("clone").state == "ok"

    def away(*_words: object) -> list[Any]:
        raise Unhealthy("away")

    monkeypatch.setattr(target._client, "agent_logs", away)
    assert listed().state == "running"


def test_wait_for_another_clients_build_shows_progress_and_names_it_when_it_hangs(
    fake: Fake, target: CoderTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coder_jobs, "QUIET", 0.2)
    ensure(target)
    found = target.find(NAMED)
    assert found is not None
    fake.state.next("stop", stop=80)
    raw = target._client.workspace("demo")
    assert raw is not None
    target._client.create_build(raw, "stop")
    said: list[str] = []
    ensure(target, progress=Progress(said.append))
    assert any("build: waiting for the stop that ada began" in line for line in said)
    hung = [line for line in said if "no news for" in line]
    assert hung
    assert f"{fake.url}/@ada/demo/builds/2" in hung[0]
    assert "run the command again" in hung[0]


def test_outdated_workspace_with_an_available_update_may_be_restarted(
    fake: Fake, target: CoderTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure(target)
    template = fake.state.template_by_name("spt-flow")
    for made in fake.state.versions.values():
        made.name = "1.9.0-abcdefabcdef"
    fake.state.promote(template, coder_harness.add_version(fake.state, "2.0.0-abcdefabcdef", template.id))
    for module in (coder_reading, coder_target):
        monkeypatch.setattr(module, "release", lambda: "2.0.0")
    assert "older" in target.find(NAMED).notes[0]  # type: ignore[union-attr]
    assert ensure(target, NAMED, "restarted").workspace.notes == ()  # type: ignore[union-attr]


def test_deprecated_template_creates_nothing_and_keeps_workspaces(fake: Fake, target: CoderTarget) -> None:
    ensure(target)
    fake.state.template_by_name("spt-flow").settings["description"] = "Deprecated: use another one."
    other = replace(SPEC, repository=Repository.parse("https://example.com/team/other.git"))
    with pytest.raises(Conflict, match="use another one"):
        ensure(target, other)
    assert ensure(target, NAMED, "restarted").workspace.state == "running"  # type: ignore[union-attr]


def test_hundred_parallel_ups_succeed_with_a_fifth_of_the_answers_failing(fake: Fake) -> None:
    """Half of the repositories are brought up twice at the same time."""
    clients = 100
    names = [f"demo{number // 2 if number < clients * 2 // 3 else number}" for number in range(clients)]
    fake.faults.share = 0.2

    def up(name: str) -> str:
        repository = Repository.parse(f"https://example.com/team/{name}.git")
        made = coder_harness.client(fake)
        workspace = ensure(CoderTarget(made), replace(SPEC, repository=repository)).workspace
        assert workspace is not None
        assert workspace.state == "running"
        return workspace.id

    begun = fake.state.now
    with ThreadPoolExecutor(clients) as pool:
        made = list(pool.map(up, names))
    minutes = max(1.0, (fake.state.now - begun) / 60)
    fake.faults.share = 0.0
    assert len(fake.faults.met) > clients
    assert {workspace.name for workspace in fake.state.workspaces.values()} == set(names)
    assert set(made) == set(fake.state.workspaces)
    assert len(fake.state.workspaces) == len(set(names))
    assert builds(fake).count("start") == len(set(names))
    busiest = Counter(request.path for request in fake.seen).most_common(1)[0][1]
    assert busiest / minutes <= 512


def test_up_with_a_deprecated_template_is_refused_and_workspaces_stay(fake: Fake, target: CoderTarget) -> None:
    ensure(target, replace(SPEC, name="old"))
    template = fake.state.template_by_name("spt-flow")
    fake.state.patch_template(template, {"description": "Deprecated: use spt-flow-2 instead."})
    with pytest.raises(Conflict, match="use spt-flow-2 instead"):
        ensure(target, replace(SPEC, repository=Repository.parse("https://example.com/team/other.git")))
    assert len(fake.state.workspaces) == 1
    for state in ("stopped", "started"):
        assert ensure(target, replace(NAMED, name="old"), state).changed


CI = replace(NAMED, name="ci-1", kind="ci")


@pytest.mark.parametrize("skew", [-3600, 0, 3600])
def test_ci_deadline_uses_the_server_clock(skew: float) -> None:
    with coder_harness.server(skew=skew) as fake:
        target = CoderTarget(coder_harness.client(fake))
        assert target.find(CI) is None
        made = target.create(replace(CI, deadline=int(time.time()) + 90), Progress())
        workspace = fake.state.workspaces[made.id]
        assert made.kind == "ci" and made.deadline
        assert 80 <= made.deadline - workspace.created <= 95
        assert workspace.ttl_ms == 120_000, "whole minutes, never fewer than asked for"
        assert made.life.stops_at == made.deadline
        with pytest.raises(Conflict, match="cannot be changed"):
            ensure(target, CI, "kept", hours=2.0)


def test_workspace_from_the_dashboard_has_the_ttl_of_the_template(fake: Fake, target: CoderTarget) -> None:
    template = fake.state.template_by_name("spt-flow-ci")
    coder_harness.client(fake).create_workspace("ci-1", template.id)
    made = ensure(target, CI).workspace
    assert made and made.deadline
    assert 1795 <= made.deadline - next(iter(fake.state.workspaces.values())).created <= 1805


def test_delete_first_stops_so_that_nothing_is_left(fake: Fake, target: CoderTarget) -> None:
    """A build whose state was lost in an outage leaves volumes that only another build can find."""
    ensure(target)
    assert ensure(target, NAMED, "absent").changed
    assert builds(fake) == ["start", "stop", "delete"]


def test_delete_goes_on_after_a_failed_stop(fake: Fake, target: CoderTarget) -> None:
    hung = "Coder: Build has been detected as hung for 5 minutes and has been terminated by the reaper."
    fake.state.next("start", error=hung)
    with pytest.raises(Unhealthy) as failed:
        ensure(target)
    assert "run the command again" in failed.value.hint
    fake.state.next("stop", error="the volume is in use")
    assert ensure(target, NAMED, "absent").changed
    assert builds(fake) == ["start", "stop", "delete"]


def test_cancelled_build_is_called_cancelled(fake: Fake, target: CoderTarget) -> None:
    """The server's own words are an exit status of Terraform."""
    ensure(target)
    ensure(target, NAMED, "stopped")
    fake.state.next("start", start=300)
    client = coder_harness.client(fake)
    found = client.workspace("demo")
    assert found is not None
    build = client.create_build(found, "start")
    fake.state.clock.advance(5)
    fake.state.cancel(fake.state.workspaces[found["id"]].latest.job, True)
    with pytest.raises(Unhealthy, match="could not start workspace demo: the build was cancelled"):
        target._built(found, build, Progress())


def test_build_that_hangs_is_named_within_a_minute() -> None:
    now, said = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def read() -> dict[str, Any]:
        return {"job": {"status": "running" if now < 150 else "succeeded"}}

    waiter = Waiter(600, clock=lambda: now, sleep=sleep)
    coder_jobs.follow("build", waiter, read, lambda after: [], Progress(said.append))
    assert [line for line in said if "no news for 45 s" in line] == said and len(said) == 3


@pytest.mark.parametrize(("kind", "cancelled"), [("ci", True), ("dev", False)])
def test_deletion_cancels_a_running_build_if_permitted(
    fake: Fake, target: CoderTarget, kind: str, cancelled: bool
) -> None:
    fake.state.next("start", start=300)
    name = "spt-flow-ci" if kind == "ci" else "spt-flow"
    coder_harness.client(fake).create_workspace("ci-1", fake.state.template_by_name(name).id)
    fake.state.clock.advance(5)
    begun = fake.state.now
    found = target.find(CI)
    assert found and found.state == "building"
    target.delete(found, Progress())
    assert target.find(CI) is None
    assert builds(fake) == (["start", "delete"] if kind == "ci" else ["start", "stop", "delete"])
    assert (fake.state.now - begun < 120) is cancelled


def test_deletion_by_another_client_is_joined(fake: Fake, target: CoderTarget) -> None:
    made = ensure(target).workspace
    assert made
    fake.state.create_build(fake.state.user("ada"), fake.state.workspaces[made.id], {"transition": "delete"})
    with pytest.raises(NotFound):
        target.delete(made, Progress())
    assert builds(fake) == ["start", "delete"]
