# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients, git and containers that are killed: the next ``up`` gives one whole workspace and leaves no rest."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.tests.integration.lab import WAIT, Lab, git

Die = tuple[str, str, int]
SEED = int(os.environ.get("SPT_FLOW_TEST_SEED") or random.SystemRandom().randrange(2**32))
MOMENTS = int(os.environ.get("SPT_FLOW_TEST_MOMENTS") or 20)

CREATE: dict[str, Die] = {
    "before the home volume": ("before", "POST /volumes/create", 1),
    "after the home volume": ("after", "POST /volumes/create", 1),
    "after Docker's volume": ("after", "POST /volumes/create", 2),
    "before the container": ("before", "POST /containers/create", 1),
    "after the container": ("after", "POST /containers/create", 1),
    "after the bundle": ("after", "PUT /containers/.*/archive", 1),
    "before the start": ("before", "POST /containers/.*/start", 1),
    "after the start": ("after", "POST /containers/.*/start", 1),
    "while waiting": ("after", "GET /containers/.*/logs", 1),
}
RESTART: dict[str, Die] = {
    "before the stop": ("before", "POST /containers/.*/stop", 1),
    "after the stop": ("after", "POST /containers/.*/stop", 1),
    "after setting aside": ("after", "POST /containers/.*/rename", 1),
    "after the new container": ("after", "POST /containers/create", 1),
    "after the new start": ("after", "POST /containers/.*/start", 1),
    "while waiting": ("after", "GET /containers/.*/logs", 1),
    "before removing the old": ("before", "DELETE /containers/", 1),
    "after removing the old": ("after", "DELETE /containers/", 1),
}
DELETE: dict[str, Die] = {
    "before the container": ("before", "DELETE /containers/", 1),
    "after the container": ("after", "DELETE /containers/", 1),
    "after Docker's volume": ("after", "DELETE /volumes/", 1),
    "after the home": ("after", "DELETE /volumes/", 2),
}


def whole(lab: Lab, source: Path, note: bool = False) -> None:
    """``up`` gives one workspace with a complete clone, and the owner has nothing else on the engine."""
    workspace = lab.up(lab.spec(source))
    assert workspace.state == "running" and workspace.step("clone").state in ("ok", "skipped", "pending"), workspace
    until = time.monotonic() + WAIT
    while lab.target.exec(workspace, ["git", "-C", "/home/coder/demo", "rev-parse", "HEAD"]).status:
        assert time.monotonic() < until, "\n".join(lab.target.logs(workspace))
        time.sleep(0.1)
    said = lab.inside(workspace, "cd ~/demo && git rev-parse HEAD && git status --porcelain && git fsck --full 2>&1")
    assert said == git(source, "rev-parse", "HEAD"), "\n".join(lab.target.logs(workspace))
    if note:
        assert lab.inside(workspace, "cat ~/note") == "precious"
    lab.is_exactly("demo")


def killed(lab: Lab, source: Path, state: str, die: Die) -> None:
    process = lab.up_process(source, state, die)
    _out, err = process.communicate(timeout=WAIT)
    assert process.returncode == -signal.SIGKILL, (process.returncode, err)


@pytest.mark.parametrize("die", CREATE.values(), ids=CREATE.keys())
def test_client_killed_in_creation(lab: Lab, die: Die) -> None:
    source = lab.repository()
    killed(lab, source, "started", die)
    whole(lab, source)


@pytest.mark.parametrize("die", RESTART.values(), ids=RESTART.keys())
def test_client_killed_in_restart(lab: Lab, die: Die) -> None:
    source = lab.repository()
    lab.inside(lab.up(lab.spec(source)), "echo precious > ~/note")
    killed(lab, source, "restarted", die)
    whole(lab, source, note=True)


@pytest.mark.parametrize("die", DELETE.values(), ids=DELETE.keys())
def test_client_killed_in_deletion(lab: Lab, die: Die) -> None:
    source = lab.repository()
    lab.up(lab.spec(source))
    killed(lab, source, "absent", die)
    whole(lab, source)
    lab.ensure(lab.spec(source), "absent")
    lab.is_exactly()


def test_git_killed_in_the_clone(lab: Lab) -> None:
    source = lab.repository(files=40, size=1_000_000)
    process = lab.up_process(source)
    name = f"spt-flow-{lab.owner}-demo"
    hits = 0
    until = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < until:
        hits += _kill_git(lab, name)
        time.sleep(0.02)
    process.communicate(timeout=WAIT)
    print("git was killed", hits, "times")
    if hits:
        with contextlib.suppress(FlowError):
            lab.ensure(lab.spec(source), "restarted")
    whole(lab, source)


def _kill_git(lab: Lab, name: str) -> bool:
    """End git inside as the machine's memory killer would."""
    try:
        found = lab.engine.get_json(f"/containers/{name}/top", {"ps_args": "-eo pid,comm"})
    except FlowError:
        return False
    pids = [int(row[0]) for row in found["Processes"] or [] if row[1] in ("git", "git-index-pack", "git-remote-http")]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def _kill_client(lab: Lab, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _kill_container(lab: Lab, pid: int) -> None:
    with contextlib.suppress(FlowError):
        lab.kill(f"spt-flow-{lab.owner}-demo")


def test_a_client_that_was_killed_after_it_asked_for_a_stop(lab: Lab) -> None:
    """For up to 30 seconds the engine calls a workspace running that is stopping; the next ``up`` starts it again."""
    source = lab.repository()
    before = lab.up(lab.spec(source))
    lab.inside(before, "echo precious > ~/note")
    boot = lab.inside(before, "cat /run/spt-flow/steps.json")
    lab.engine.request_json("POST", f"/containers/{before.id}/kill", {"signal": "SIGTERM"})
    result = lab.ensure(lab.spec(source))
    assert result.actions == ["start"], result
    whole(lab, source, note=True)
    assert lab.inside(lab.up(lab.spec(source)), "cat /run/spt-flow/steps.json") != boot


VICTIMS: dict[str, Callable[[Lab, int], object]] = {
    "client": _kill_client,
    "container": _kill_container,
    "git": lambda lab, pid: _kill_git(lab, f"spt-flow-{lab.owner}-demo"),
}


@pytest.mark.parametrize("number", range(MOMENTS))
def test_killed_at_a_random_moment(lab: Lab, number: int) -> None:
    chance = random.Random(f"{SEED}-{number}")
    victim, delay = chance.choice(sorted(VICTIMS)), chance.uniform(0.05, 1.6)
    state = chance.choice(["started", "started", "restarted", "absent"])
    print(f"SPT_FLOW_TEST_SEED={SEED} number {number}: {victim} killed {delay:.3f} s after the begin of {state}")
    source = lab.repository(files=10, size=200_000)
    if state != "started":
        lab.up(lab.spec(source))
    process = lab.up_process(source, state)
    try:
        time.sleep(delay)
        VICTIMS[victim](lab, process.pid)
    finally:
        _out, err = process.communicate(timeout=WAIT)
    assert "Traceback" not in err, err
    whole(lab, source)
