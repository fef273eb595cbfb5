# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reaper of a Coder server against the fake one: who goes, who stays, and what a broken answer does to nobody."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils import _coder_reaper
from ansible_collections.spt.flow.plugins.module_utils._coder_reaper import Api
from ansible_collections.spt.flow.plugins.module_utils._errors import AuthError, FlowError, InvalidInput, Unhealthy
from ansible_collections.spt.flow.plugins.module_utils._reaper import Memory, Report
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import coder_house

ADMIN = "reaperreap-aaaaaaaaaaaaaaaaaaaaaa"


@pytest.fixture(params=[0.0, -3600.0, 3600.0], ids=["same clock", "server behind", "server ahead"])
def fake(request: pytest.FixtureRequest) -> Iterator[Fake]:
    with coder_house.server(speed=0.0, skew=request.param) as made:
        made.state.give_token(made.state.user("admin"), ADMIN)
        yield made


@pytest.fixture
def still() -> Iterator[Fake]:
    with coder_house.server(speed=0.0) as made:
        made.state.give_token(made.state.user("admin"), ADMIN)
        yield made


def stamp(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def make(fake: Fake, name: str, ttl: float | None = 60, template: str = "spt-flow-ci", settle: float = 10) -> None:
    values = {} if ttl is None or template != "spt-flow-ci" else {"deadline": stamp(fake.state.now + ttl)}
    of = fake.state.template_by_name(template)
    coder_house.client(fake).create_workspace(name, of.id, rich_parameter_values=values)
    fake.state.clock.advance(settle)


def sweep(fake: Fake, folder: Path, dry: bool = False) -> Report:
    report = _coder_reaper.sweep(
        Api(fake.url, ADMIN), path=str(folder / "state.json"), dry=dry, sleep=fake.state.clock.sleep
    )
    fake.state.clock.advance(5)
    return report


def alive(fake: Fake) -> set[str]:
    return {w.name for w in fake.state.workspaces.values() if not w.deleted(fake.state.now)}


def test_who_has_outlived_their_time_goes_and_nobody_else(fake: Fake, tmp_path: Path) -> None:
    for name, ttl in (("short", 60), ("long", 3600), ("click", None)):
        make(fake, name, ttl)
    make(fake, "ci-of-a-person", template="spt-flow")
    assert sweep(fake, tmp_path).doomed == []
    fake.state.clock.advance(60)
    assert [entry.name for entry in sweep(fake, tmp_path, dry=True).doomed] == ["ada/short"]
    assert alive(fake) == {"short", "long", "click", "ci-of-a-person"}
    assert sweep(fake, tmp_path).reaped == ["ada/short"]
    assert alive(fake) == {"long", "click", "ci-of-a-person"}
    fake.state.clock.advance(1800)
    assert sweep(fake, tmp_path).reaped == ["ada/click"]
    fake.state.clock.advance(86400)
    assert sweep(fake, tmp_path).reaped == ["ada/long"]
    assert alive(fake) == {"ci-of-a-person"}
    assert Memory.load(str(tmp_path / "state.json")).reaped == 3


def test_a_stopped_one_and_a_failed_start_go_before_their_time(still: Fake, tmp_path: Path) -> None:
    make(still, "stopped", 86000)
    found = coder_house.client(still).workspace("stopped", "ada")
    assert found
    coder_house.client(still).create_build(found, "stop")
    still.state.next("start", error="no space left on device")
    make(still, "failed", 86000)
    assert sweep(still, tmp_path).doomed == [], "whoever made them may be cleaning up"
    still.state.clock.advance(_coder_reaper.GRACE)
    assert sorted(sweep(still, tmp_path).reaped) == ["ada/failed", "ada/stopped"]
    assert alive(still) == set()


def test_a_build_that_is_under_way_at_the_end_is_cancelled(still: Fake, tmp_path: Path) -> None:
    still.state.next("start", start=3600)
    make(still, "building", 200, settle=190)
    assert sweep(still, tmp_path).doomed == [], "its deadline is read although nothing shows it yet"
    still.state.clock.advance(20)
    assert sweep(still, tmp_path).reaped == ["ada/building"]
    assert alive(still) == set()


def test_a_pass_that_comes_while_another_deletion_runs_does_not_repeat_it(still: Fake, tmp_path: Path) -> None:
    make(still, "slow", 60)
    still.state.clock.advance(100)
    still.state.next("delete", delete=300)
    sweep(still, tmp_path)
    sweep(still, tmp_path)
    (workspace,) = still.state.workspaces.values()
    assert [build.transition for build in workspace.builds] == ["start", "delete"]


def test_a_deletion_that_failed_is_tried_again(still: Fake, tmp_path: Path) -> None:
    make(still, "sticky", 60)
    still.state.clock.advance(100)
    still.state.next("delete", error="the node is away")
    sweep(still, tmp_path)
    assert alive(still) == {"sticky"}
    assert sweep(still, tmp_path).reaped == ["ada/sticky"]
    assert alive(still) == set()


@pytest.mark.parametrize("kind", ["500", "503", "429", "html", "truncated", "reset"])
def test_a_list_that_cannot_be_read_deletes_nothing(still: Fake, tmp_path: Path, kind: str) -> None:
    make(still, "over", 60)
    still.state.clock.advance(100)
    still.faults.add(kind, method="GET", path="/api/v2/workspaces")
    with pytest.raises(FlowError):
        sweep(still, tmp_path)
    assert [b.transition for w in still.state.workspaces.values() for b in w.builds] == ["start"]
    assert sweep(still, tmp_path).reaped == ["ada/over"]


def test_one_that_cannot_be_deleted_does_not_keep_the_others(still: Fake, tmp_path: Path) -> None:
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


def test_a_thousand_of_which_a_hundred_are_over_cost_pages_and_the_hundred(still: Fake, tmp_path: Path) -> None:
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
    report = _coder_reaper.sweep(api, path=str(tmp_path / "state.json"))
    assert len(report.reaped) == 100
    assert api.requests <= 1000 / _coder_reaper.PAGE + 1 + 100


def test_who_may_not_and_what_is_no_server_is_said(still: Fake, tmp_path: Path) -> None:
    with pytest.raises(AuthError, match="refused GET"):
        _coder_reaper.sweep(Api(still.url, "wrongwrong-token"), path=str(tmp_path / "s"))
    with pytest.raises(Unhealthy, match="did not answer"):
        _coder_reaper.sweep(Api("http://127.0.0.1:9", ADMIN), path=str(tmp_path / "s"))
    with pytest.raises(InvalidInput):
        Api("file:///etc/passwd", ADMIN)
    with pytest.raises(AuthError, match=r"spt\.flow\.bootstrap"):
        _coder_reaper.read_token(str(tmp_path / "none"))
