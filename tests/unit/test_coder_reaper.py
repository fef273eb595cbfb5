# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reaper of a Coder server against the fake one: what is deleted, what is kept, and how failures are handled."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import AuthError, FlowError, InvalidInput, Unhealthy
from ansible_collections.spt.flow.plugins.module_utils._node.reaper import coder as reaper_coder
from ansible_collections.spt.flow.plugins.module_utils._node.reaper import engine as reaper_engine
from ansible_collections.spt.flow.plugins.module_utils._node.reaper.coder import Api
from ansible_collections.spt.flow.plugins.module_utils._node.reaper.engine import Memory, Report
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import builds as coder_builds
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.client import CoderClient
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.config import CoderConfig
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.http import Answer, CoderHttp
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.wait import Waiter
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import coder_harness

ADMIN = "reaperreap-aaaaaaaaaaaaaaaaaaaaaa"


@pytest.fixture(params=[0.0, -3600.0, 3600.0], ids=["same clock", "server behind", "server ahead"])
def fake(request: pytest.FixtureRequest) -> Iterator[Fake]:
    with coder_harness.server(speed=0.0, skew=request.param) as made:
        made.state.give_token(made.state.user("admin"), ADMIN)
        yield made


@pytest.fixture
def still() -> Iterator[Fake]:
    with coder_harness.server(speed=0.0) as made:
        made.state.give_token(made.state.user("admin"), ADMIN)
        yield made


def stamp(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def make(fake: Fake, name: str, ttl: float | None = 60, template: str = "spt-flow-ci", settle: float = 10) -> None:
    values = {} if ttl is None or template != "spt-flow-ci" else {"deadline": stamp(fake.state.now + ttl)}
    of = fake.state.template_by_name(template)
    coder_harness.client(fake).create_workspace(name, of.id, rich_parameter_values=values)
    fake.state.clock.advance(settle)


def sweep(fake: Fake, folder: Path, dry: bool = False) -> Report:
    report = reaper_coder.sweep(
        Api(fake.url, ADMIN), path=str(folder / "state.json"), dry=dry, sleep=fake.state.clock.sleep
    )
    fake.state.clock.advance(5)
    return report


def alive(fake: Fake) -> set[str]:
    return {w.name for w in fake.state.workspaces.values() if not w.deleted(fake.state.now)}


def test_only_expired_workspaces_are_deleted(fake: Fake, tmp_path: Path) -> None:
    for name, ttl in (("short", 60), ("long", 3600), ("click", None)):
        make(fake, name, ttl)
    make(fake, "ci-of-a-person", template="spt-flow")
    assert sweep(fake, tmp_path).expired == []
    fake.state.clock.advance(60)
    assert [entry.name for entry in sweep(fake, tmp_path, dry=True).expired] == ["ada/short"]
    assert alive(fake) == {"short", "long", "click", "ci-of-a-person"}
    assert sweep(fake, tmp_path).reaped == ["ada/short"]
    assert alive(fake) == {"long", "click", "ci-of-a-person"}
    fake.state.clock.advance(1800)
    assert sweep(fake, tmp_path).reaped == ["ada/click"]
    fake.state.clock.advance(86400)
    assert sweep(fake, tmp_path).reaped == ["ada/long"]
    assert alive(fake) == {"ci-of-a-person"}
    assert Memory.load(str(tmp_path / "state.json")).reaped == 3


def test_stopped_workspaces_and_failed_starts_are_deleted_before_their_deadline(still: Fake, tmp_path: Path) -> None:
    make(still, "stopped", 86000)
    found = coder_harness.client(still).workspace("stopped", "ada")
    assert found
    coder_harness.client(still).create_build(found, "stop")
    still.state.next("start", error="no space left on device")
    make(still, "failed", 86000)
    assert sweep(still, tmp_path).expired == [], "their clients may be cleaning up"
    still.state.clock.advance(reaper_coder.GRACE)
    assert sorted(sweep(still, tmp_path).reaped) == ["ada/failed", "ada/stopped"]
    assert alive(still) == set()


def test_running_build_is_cancelled_at_the_deadline(still: Fake, tmp_path: Path) -> None:
    still.state.next("start", start=3600)
    make(still, "building", 200, settle=190)
    assert sweep(still, tmp_path).expired == [], "its deadline is read before it is shown"
    still.state.clock.advance(20)
    assert sweep(still, tmp_path).reaped == ["ada/building"]
    assert alive(still) == set()


def test_running_deletion_is_not_repeated(still: Fake, tmp_path: Path) -> None:
    make(still, "slow", 60)
    still.state.clock.advance(100)
    still.state.next("delete", delete=300)
    sweep(still, tmp_path)
    sweep(still, tmp_path)
    (workspace,) = still.state.workspaces.values()
    assert [build.transition for build in workspace.builds] == ["start", "delete"]


def test_failed_deletion_is_retried(still: Fake, tmp_path: Path) -> None:
    make(still, "sticky", 60)
    still.state.clock.advance(100)
    still.state.next("delete", error="the node is away")
    sweep(still, tmp_path)
    assert alive(still) == {"sticky"}
    assert sweep(still, tmp_path).reaped == ["ada/sticky"]
    assert alive(still) == set()


@pytest.mark.parametrize("kind", ["500", "503", "429", "html", "truncated", "reset"])
def test_unreadable_list_deletes_nothing(still: Fake, tmp_path: Path, kind: str) -> None:
    make(still, "over", 60)
    still.state.clock.advance(100)
    still.faults.add(kind, times=reaper_coder.TRIES, method="GET", path="/api/v2/workspaces")
    with pytest.raises(FlowError):
        sweep(still, tmp_path)
    assert [b.transition for w in still.state.workspaces.values() for b in w.builds] == ["start"]
    assert sweep(still, tmp_path).reaped == ["ada/over"]


def test_undeletable_workspace_does_not_block_the_others(still: Fake, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make(still, name, 60)
    still.state.clock.advance(100)
    still.faults.add("500", method="POST", path="/builds")
    report = sweep(still, tmp_path)
    assert len(report.reaped) == 2 and len(report.failed) == 1
    assert report.overdue > 0
    assert Memory.load(str(tmp_path / "state.json")).failed == 1
    sweep(still, tmp_path)
    assert alive(still) == set()


def test_thousand_workspaces_cost_pages_and_expired_ones_only(still: Fake, tmp_path: Path) -> None:
    state, template = still.state, still.state.template_by_name("spt-flow-ci").id
    ada, state.slots = state.user("ada"), [0.0] * 1000
    for number in range(1000):
        ends = stamp(state.now + (60 if number % 10 == 0 else 86000))
        values = [{"name": "deadline", "value": ends}]
        state.create_workspace(
            ada, ada, {"name": f"w{number}", "template_id": template, "rich_parameter_values": values}
        )
    state.clock.advance(600)
    api = Api(still.url, ADMIN)
    report = reaper_coder.sweep(api, path=str(tmp_path / "state.json"))
    assert len(report.reaped) == 100
    # The two lists end with one more page each.
    assert api.requests <= 1000 / reaper_coder.PAGE + 2 + 100


def test_stop_is_postponed_by_at_most_a_day(fake: Fake, tmp_path: Path) -> None:
    """Users may extend in the dashboard. A workspace that cannot be changed does not block the others."""
    for name in ("batch", "day", "manual", "usual"):
        make(fake, name, template="spt-flow")
    made = {workspace.name: workspace for workspace in fake.state.workspaces.values()}
    client, day = coder_harness.client(fake), 86400
    for name, seconds in (("batch", 7 * day), ("day", day)):
        client.extend(made[name].id, datetime.fromtimestamp(fake.state.now + seconds, UTC))
    client.put_ttl(made["manual"].id, None)
    assert sweep(fake, tmp_path, dry=True).capped == ["ada/batch"]
    assert sweep(fake, tmp_path).capped == ["ada/batch"]
    deadline = reaper_coder.epoch(client.workspace_by_id(made["batch"].id)["latest_build"]["deadline"])
    assert deadline == pytest.approx(fake.state.now + day, abs=60)
    assert (report := sweep(fake, tmp_path)).capped == [] and report.failed == {}
    assert reaper_engine.lines(report, dry=False) == ["Nothing to delete."]


def test_workspace_whose_stop_was_switched_off_is_stopped_after_a_day_without_use(fake: Fake, tmp_path: Path) -> None:
    """Users may switch the automatic stop off in the dashboard; the server refuses a deadline then."""
    for name in ("idle", "busy", "usual"):
        make(fake, name, template="spt-flow")
    made = {workspace.name: workspace for workspace in fake.state.workspaces.values()}
    client, day = coder_harness.client(fake), 86400
    for name in ("idle", "busy"):
        client.put_ttl(made[name].id, None)
    fake.state.clock.advance(day - 600)
    assert sweep(fake, tmp_path).stopped == []
    made["busy"].used = fake.state.now
    fake.state.clock.advance(1200)
    assert sweep(fake, tmp_path, dry=True).stopped == ["ada/idle"]
    report = sweep(fake, tmp_path)
    assert report.stopped == ["ada/idle"] and "not used for 24 hours" in reaper_engine.lines(report, dry=False)[0]
    fake.state.clock.advance(60)
    latest = client.workspace_by_id(made["idle"].id)["latest_build"]
    assert (latest["transition"], latest["job"]["status"]) == ("stop", "succeeded")
    assert sweep(fake, tmp_path).stopped == []


def test_failing_user_list_does_not_block_deletions(still: Fake, tmp_path: Path) -> None:
    class Half(Api):
        def workspaces(self, template: str, status: str = "") -> Iterator[Any]:
            if status:
                raise Unhealthy("The list does not come.")
            return super().workspaces(template)

    make(still, "short")
    still.state.clock.advance(60)
    report = reaper_coder.sweep(Half(still.url, ADMIN), path=str(tmp_path / "state.json"))
    assert report.reaped == ["ada/short"]
    assert report.failed == {"workspaces of spt-flow": "The list does not come."}


def test_missing_permission_and_wrong_server_are_reported(still: Fake, tmp_path: Path) -> None:
    with pytest.raises(AuthError, match="refused GET"):
        reaper_coder.sweep(Api(still.url, "wrongwrong-token"), path=str(tmp_path / "s"))
    with pytest.raises(Unhealthy, match="did not answer"):
        reaper_coder.sweep(Api("http://127.0.0.1:9", ADMIN), path=str(tmp_path / "s"), sleep=lambda seconds: None)
    with pytest.raises(InvalidInput):
        Api("file:///etc/passwd", ADMIN)
    with pytest.raises(AuthError, match=r"spt\.flow\.bootstrap"):
        reaper_coder.read_token(str(tmp_path / "none"))


class Mortal(CoderHttp):
    """A client that is killed after a number of requests; later ones never reach the server."""

    lives = 0

    def request(self, *words: Any, **named: Any) -> Answer:
        self.lives -= 1
        if self.lives < 0:
            raise Killed
        return super().request(*words, **named)


class Killed(BaseException):
    """Like ``kill -9``: the client does nothing afterwards."""


class Minutes:
    """A virtual clock for clients, which runs the reaper every minute.

    ``late`` has the seconds between each workspace's deadline (``ends``) and its deletion.
    """

    def __init__(self, fake: Fake, folder: Path, chance: random.Random) -> None:
        self.fake, self.folder, self.chance = fake, folder, chance
        self.clock = fake.state.clock
        self.ends: dict[str, float] = {}
        self.late: dict[str, float] = {}
        self.then: Callable[[], object] = lambda: None
        self._next = self.clock() + 60

    def sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        if self.clock() < self._next:
            return
        self._next += 60
        self.then()
        if self.chance.random() < 0.05:
            self.fake.restart(self.chance.uniform(1, 9))
        with contextlib.suppress(FlowError):
            sweep(self.fake, self.folder)
        for workspace in self.fake.state.workspaces.values():
            if workspace.name in self.ends and workspace.deleted(self.clock()):
                over = workspace.latest.job.completed() - self.ends[workspace.name]
                self.late.setdefault(workspace.name, max(0.0, over))


@pytest.mark.parametrize("runs", [40, pytest.param(200, marks=pytest.mark.full)])
def test_workspaces_of_killed_clients_are_deleted_in_time(
    still: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    """The server is sometimes unreachable, and a workspace of a user must survive."""
    make(still, "mine", template="spt-flow")
    person = next(iter(still.state.workspaces))
    chance = random.Random(6)
    minutes = Minutes(still, tmp_path, chance)
    clock = minutes.clock
    keeper = coder_harness.connect(still)
    minutes.then = lambda: keeper.extend(person, datetime.fromtimestamp(clock() + 7200, UTC))
    monkeypatch.setattr(coder_builds, "Waiter", lambda timeout: Waiter(timeout, clock=clock, sleep=minutes.sleep))
    for number in range(runs):
        name, ttl = f"ci-{number}", chance.randrange(60, 1800)
        http = Mortal(CoderConfig(still.url, coder_harness.TOKEN, "the test"), clock=clock, sleep=minutes.sleep)
        http.lives = chance.randrange(3, 25)
        target = CoderTarget(CoderClient(http))
        spec = WorkspaceSpec("me", Settings(), name=name, kind="ci", deadline=int(time.time()) + ttl)
        with contextlib.suppress(Killed):
            target.delete(target.create(spec, Progress()), Progress())
        minutes.ends |= {w.name: w.created + ttl for w in still.state.workspaces.values() if w.name == name}
        minutes.sleep(chance.uniform(0, 30))
    while len(minutes.late) < len(minutes.ends):
        assert clock() < max(minutes.ends.values()) + 180, alive(still)
        minutes.sleep(10)
    late = sorted(minutes.late.values())
    print(f"{len(late)} made, deleted at most {late[-1]:.0f} s after their TTL, left: {alive(still) - {'mine'}}")
    assert len(late) > runs * 0.9 and late[-1] <= 120
    assert alive(still) == {"mine"}
    assert [build.transition for build in still.state.workspaces[person].builds] == ["start"]


def test_equal_names_of_two_owners_are_two_workspaces(still: Fake, tmp_path: Path) -> None:
    make(still, "same", 60)
    admin = coder_harness.client(still, ADMIN)
    of = still.state.template_by_name("spt-flow-ci")
    admin.create_workspace("same", of.id, rich_parameter_values={"deadline": stamp(still.state.now + 3600)})
    still.state.clock.advance(100)
    assert sweep(still, tmp_path).reaped == ["ada/same"]
    assert [w.owner for w in still.state.workspaces.values() if w.name in alive(still)] != []
    assert alive(still) == {"same"}


def test_killed_pass_is_resumed(still: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        make(still, name, 60)
    still.state.clock.advance(100)
    delete = reaper_coder._delete

    def once(api: Api, workspace: dict[str, Any], sleep: Any) -> None:
        delete(api, workspace, sleep)
        raise Killed

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(reaper_coder, "_delete", once)
        sweep(still, tmp_path)
    still.state.clock.advance(5)
    assert len(alive(still)) == 2
    assert len(sweep(still, tmp_path).reaped) == 2
    assert alive(still) == set()


def test_reap_with_check_only_reports(still: Fake, tmp_path: Path) -> None:
    make(still, "over", 60)
    make(still, "ci-of-a-person", template="spt-flow")
    still.state.clock.advance(100)
    token = tmp_path / "token"
    token.write_text(ADMIN)
    host = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "coder_url": still.url,
        "workspace_reaper_coder_token_file": str(token),
    }
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps({"all": {"children": {"flow_servers": {"hosts": {"server1": host}}}}}))
    program = str(Path(sys.executable).parent / "ansible-playbook")
    checkout = Path(__file__).resolve().parents[2]
    words = [program, "playbooks/reap.yml", "-i", str(inventory), "--check"]
    env = {**os.environ, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(words, cwd=checkout, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would delete workspace ada/over: its deadline has passed" in done.stdout
    assert "ci-of-a-person" not in done.stdout and alive(still) == {"over", "ci-of-a-person"}
    assert ADMIN not in done.stdout + done.stderr
