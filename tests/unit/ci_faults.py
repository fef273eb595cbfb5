# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""CI runs with injected faults, each in the main thread of its own process, because signals need it.

``PLANS`` describes each fault and the expected end of the run. ``several`` executes some of them against a fake
Coder server that also answers some requests wrongly.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from ansible_collections.spt.flow.plugins.module_utils._node.errors import Unhealthy
from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import request as ci_request
from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import run as ci_run
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import probe as repository_probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace, WorkspaceSpec
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.target import ExecResult
from ansible_collections.spt.flow.tests.fake_coder.jobs import Script
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import coder_harness

REPO = Repository.parse("https://example.com/team/demo.git")
SPEC = WorkspaceSpec("me", Settings(wait_timeout=600), repository=REPO)
COMMIT = "c" * 40
SHARE = 0.1
LONG = "sleep 60"


class Bench(CoderTarget):
    """The Coder target without SSH: the fake decides whether the agent answers."""

    touched: Callable[[], None] = staticmethod(lambda: None)
    answer = ExecResult(0, COMMIT, "")

    def find(self, spec: WorkspaceSpec) -> Workspace | None:
        self.touched()
        return super().find(spec)

    def ensure_client(self, progress: Any, needed: bool) -> list[str]:
        return []

    def exec(self, workspace: Workspace, argv: Any, *more: Any, **named: Any) -> ExecResult:
        if self.answer.status < 0:
            raise Unhealthy("The node is gone.")
        return self.answer


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def lost(_text: str) -> list[str]:
    return shell("echo 'Connection to demo closed by remote host.' >&2; exit 255")


def slow_to_pack(text: str) -> list[str]:
    return shell(f"{LONG}; {text}" if "tarfile" in text else text)


def clone(state: str, detail: str = "") -> dict[str, Any]:
    """Return what the next start prints for a clone that ends in ``state``."""
    event = f'{{"spt_flow": 1, "event": "step", "step": "clone", "state": "{state}", "detail": "{detail}"}}'
    events = tuple(event if '"clone"' in one else one for one in coder_harness.EVENTS)
    return {"scripts": (Script(output=events),)}


@dataclass(frozen=True)
class Plan:
    """A fault and the expected end. ``signum`` is sent at a random moment of the run, with ``late`` while packing."""

    kind: str
    status: int
    command: str = "true"
    wrap: Callable[[str], list[str]] = shell
    start: dict[str, Any] = field(default_factory=dict)
    answer: ExecResult = Bench.answer
    job: dict[str, Any] = field(default_factory=dict)
    signum: int = 0
    late: bool = False


UNREACHABLE = "The server of example.com cannot be reached from the workspace"
PLANS = {
    "it passes": Plan("job", 0),
    "it fails": Plan("job", 4, "exit 4"),
    "it says 255, as SSH does": Plan("job", 255, "exit 255"),
    "it says 125, as we do": Plan("job", 125, "exit 125"),
    "it is killed": Plan("job", 137, "sh -c 'kill -9 $$'"),
    "its disk is full": Plan("job", 1, "echo 'write: No space left on device' >&2; exit 1"),
    "its TTL is over": Plan("job", 124, LONG, job={"ttl": 200}),
    "no such commit": Plan("job", 125, start=clone("failed", "team/demo has no branch, tag or commit")),
    "no access": Plan("job", 125, start=clone("needs-auth")),
    "the connection is lost": Plan("environment", 125, wrap=lost),
    "the node's disk is full": Plan("environment", 125, start={"error": "no space left on device"}),
    "the node is gone": Plan("environment", 125, answer=ExecResult(-1, "", "")),
    "the agent never comes": Plan("environment", 125, start={"connect": float("inf")}),
    "the repository's server is away": Plan("environment", 125, start=clone("failed", UNREACHABLE)),
    "another commit": Plan("environment", 125, answer=ExecResult(0, "d" * 40, "")),
    "git does not answer": Plan("environment", 125, answer=ExecResult(128, "", "fatal: no repository")),
    "SIGTERM": Plan("cancelled", 143, LONG, signum=signal.SIGTERM),
    "SIGINT": Plan("cancelled", 130, LONG, signum=signal.SIGINT),
    "SIGHUP": Plan("cancelled", 129, LONG, signum=signal.SIGHUP),
    "SIGTERM while it collects": Plan(
        "cancelled", 143, wrap=slow_to_pack, signum=signal.SIGTERM, late=True, job={"artifacts": ("*",)}
    ),
}


@dataclass(frozen=True)
class Ended:
    """How a run ended. ``there``: whether the server still has its workspace."""

    plan: str
    kind: str
    status: int
    msg: str
    there: bool


def plan_of(number: int) -> str:
    """Return plans in equal shares, in a scattered order."""
    names = list(PLANS)
    random.Random(number // len(names)).shuffle(names)
    return names[number % len(names)]


def several(numbers: Sequence[int], folder: Path) -> list[Ended]:
    """Execute runs one after another on their own server."""
    with coder_harness.server(speed=20.0) as fake, _open_repository():
        fake.faults.share = SHARE
        return [_one(fake, number, folder) for number in numbers]


@contextmanager
def _open_repository() -> Iterator[None]:
    with mock.patch.object(repository_probe, "probe", lambda *_a, **_n: repository_probe.Probe("open")):
        yield


def _one(fake: Fake, number: int, folder: Path) -> Ended:
    name, chance = plan_of(number), random.Random(number)
    plan = PLANS[name]
    place = folder / f"clone{number}"
    place.mkdir(parents=True)
    timers: list[threading.Timer] = []

    def send() -> None:
        if plan.signum and not timers:
            # The first second covers the creation, the build and the start of the job.
            timers.append(threading.Timer(chance.uniform(0.0, 1.2), os.kill, (os.getpid(), plan.signum)))
            timers[0].start()

    def enter(_workspace: Workspace, words: str) -> list[str]:
        if plan.late and "tarfile" in words:
            send()
        return plan.wrap(words.replace(shlex.quote(REPO.directory), shlex.quote(str(place))))

    target = Bench(coder_harness.client(fake))
    target.answer = plan.answer
    target.touched = (lambda: None) if plan.late else send
    if plan.start:
        fake.state.next("start", **plan.start)
    job = ci_request.Job(plan.command, folder=folder / "runs", commit=COMMIT, **plan.job)
    outcome = ci_run.run(target, SPEC, job, enter=enter, now=fake.state.clock)
    for timer in timers:
        timer.join()
    fake.state.upcoming.clear()
    there = [w for w in fake.state.workspaces.values() if w.name == outcome.workspace]
    return Ended(name, outcome.kind, outcome.status, outcome.msg, any(not w.deleted(fake.state.now) for w in there))
