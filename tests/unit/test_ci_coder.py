# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""CI runs on the fake Coder server; commands run here instead of in a workspace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import request as ci_request
from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import run as ci_run
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import target as coder_target
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import ci_faults, coder_harness
from ansible_collections.spt.flow.tests.unit.ci_faults import COMMIT, PLANS, REPO, SPEC, Bench


@pytest.fixture
def fake() -> Iterator[Fake]:
    with coder_harness.server() as made:
        yield made


@pytest.fixture(autouse=True)
def open_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import probe as repository_probe

    monkeypatch.setattr(repository_probe, "probe", lambda *_a, **_n: repository_probe.Probe("open"))


def run(
    fake: Fake, folder: Path, command: str = "true", wrap: Any = None, outage: float = 30.0, **job: Any
) -> ci_run.Outcome:
    clone = folder / "clone"
    clone.mkdir(parents=True, exist_ok=True)

    def enter(_workspace: Workspace, words: str) -> list[str]:
        return (wrap or (lambda text: ["sh", "-c", text]))(words.replace(REPO.directory, str(clone)))

    target = Bench(coder_harness.client(fake, outage=outage))
    return ci_run.run(target, SPEC, ci_request.Job(command, folder=folder / "runs", **job), enter=enter)


def absent(fake: Fake) -> bool:
    return all(workspace.deleted(fake.state.now) for workspace in fake.state.workspaces.values())


def test_run_passes_and_leaves_nothing(fake: Fake, tmp_path: Path) -> None:
    outcome = run(fake, tmp_path, "pwd; exit 3", commit=COMMIT)
    assert (outcome.kind, outcome.status, outcome.ran, outcome.left) == ("job", 3, True, "")
    assert [b.transition for w in fake.state.workspaces.values() for b in w.builds] == ["start", "delete"]
    assert absent(fake)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [({"error": "no space left on device"}, "unhealthy"), ({"connect": float("inf")}, "unhealthy")],
    ids=["build", "agent"],
)
def test_failures_of_server_and_node_are_environment_failures(
    fake: Fake, tmp_path: Path, behaviour: dict[str, Any], reason: str
) -> None:
    fake.state.next("start", **behaviour)
    outcome = run(fake, tmp_path)
    assert (outcome.kind, outcome.reason, outcome.status, outcome.ran) == ("environment", reason, ci_run.NOT_RUN, False)
    assert absent(fake) and not outcome.left


def test_lost_server_leaves_deletion_to_the_deadline(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ci_run, "DESTROY", 1.0)
    monkeypatch.setattr(coder_target, "DELETE_TIMEOUT", 1.0)
    away = tmp_path / "away"

    def wrap(text: str) -> list[str]:
        fake.restart(1e9)
        away.touch()
        return ["sh", "-c", text]

    outcome = run(fake, tmp_path, wrap=wrap, outage=1.0)
    assert away.exists()
    assert (outcome.kind, outcome.status) == ("job", 0)
    assert outcome.left.startswith("ci-") and "its TTL ends at" in outcome.notes[-1]


@pytest.mark.parametrize("runs", [len(PLANS), pytest.param(500, marks=pytest.mark.full)])
def test_faulted_runs_are_classified_correctly(tmp_path: Path, runs: int) -> None:
    """A tenth of all answers fails, in addition to the fault of each run, whose correct classification is known."""
    shares = [range(first, runs, 2) for first in range(2)]
    with ProcessPoolExecutor(len(shares), get_context("spawn")) as pool:
        ended = [one for share in pool.map(ci_faults.several, shares, [tmp_path] * 2) for one in share]
    wrong = [one for one in ended if (one.kind, one.status) != (PLANS[one.plan].kind, PLANS[one.plan].status)]
    assert len(ended) == runs and not wrong
    assert [one for one in ended if one.there] == []
    expected = Counter(PLANS[ci_faults.plan_of(number)].kind for number in range(runs))
    assert ci_run.count(tmp_path / "runs") == expected, "every run is counted in its class"
