# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Killed clients, git processes and containers: the next ``up`` gives one complete workspace without leftovers."""

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
from ansible_collections.spt.flow.tests.integration.harness import WAIT, Harness, git

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


def whole(harness: Harness, source: Path, note: bool = False) -> None:
    """Expect that ``up`` gives one workspace with a complete clone, and that nothing else of the owner exists."""
    workspace = harness.up(harness.spec(source))
    assert workspace.state == "running" and workspace.step("clone").state in ("ok", "skipped", "pending"), workspace
    until = time.monotonic() + WAIT
    while harness.target.exec(workspace, ["git", "-C", "/home/coder/demo", "rev-parse", "HEAD"]).status:
        assert time.monotonic() < until, "\n".join(harness.target.logs(workspace))
        time.sleep(0.1)
    said = harness.inside(
        workspace, "cd ~/demo && git rev-parse HEAD && git status --porcelain && git fsck --full 2>&1"
    )
    assert said == git(source, "rev-parse", "HEAD"), "\n".join(harness.target.logs(workspace))
    if note:
        assert harness.inside(workspace, "cat ~/note") == "precious"
    harness.is_exactly("demo")


def killed(harness: Harness, source: Path, state: str, die: Die) -> None:
    process = harness.up_process(source, state, die)
    _out, err = process.communicate(timeout=WAIT)
    assert process.returncode == -signal.SIGKILL, (process.returncode, err)


@pytest.mark.parametrize("die", CREATE.values(), ids=CREATE.keys())
def test_client_killed_during_creation(harness: Harness, die: Die) -> None:
    source = harness.repository()
    killed(harness, source, "started", die)
    whole(harness, source)


@pytest.mark.parametrize("die", RESTART.values(), ids=RESTART.keys())
def test_client_killed_during_restart(harness: Harness, die: Die) -> None:
    source = harness.repository()
    harness.inside(harness.up(harness.spec(source)), "echo precious > ~/note")
    killed(harness, source, "restarted", die)
    whole(harness, source, note=True)


@pytest.mark.parametrize("die", DELETE.values(), ids=DELETE.keys())
def test_client_killed_during_deletion(harness: Harness, die: Die) -> None:
    source = harness.repository()
    harness.up(harness.spec(source))
    killed(harness, source, "absent", die)
    whole(harness, source)
    harness.ensure(harness.spec(source), "absent")
    harness.is_exactly()


def test_git_killed_during_the_clone(harness: Harness) -> None:
    source = harness.repository(files=40, size=1_000_000)
    process = harness.up_process(source)
    name = f"spt-flow-{harness.owner}-demo"
    hits = 0
    until = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < until:
        hits += _kill_git(harness, name)
        time.sleep(0.02)
    process.communicate(timeout=WAIT)
    print("git was killed", hits, "times")
    if hits:
        with contextlib.suppress(FlowError):
            harness.ensure(harness.spec(source), "restarted")
    whole(harness, source)


def _kill_git(harness: Harness, name: str) -> bool:
    """End git inside like the kernel's out-of-memory killer."""
    try:
        found = harness.engine.get_json(f"/containers/{name}/top", {"ps_args": "-eo pid,comm"})
    except FlowError:
        return False
    pids = [int(row[0]) for row in found["Processes"] or [] if row[1] in ("git", "git-index-pack", "git-remote-http")]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def _kill_client(harness: Harness, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _kill_container(harness: Harness, pid: int) -> None:
    with contextlib.suppress(FlowError):
        harness.kill(f"spt-flow-{harness.owner}-demo")


def test_stop_requested_by_a_killed_client_is_waited_for(harness: Harness) -> None:
    """The engine reports a stopping workspace as running for up to 30 seconds; the next ``up`` starts it again."""
    source = harness.repository()
    before = harness.up(harness.spec(source))
    harness.inside(before, "echo precious > ~/note")
    boot = harness.inside(before, "cat /run/spt-flow/steps.json")
    harness.engine.request_json("POST", f"/containers/{before.id}/kill", {"signal": "SIGTERM"})
    result = harness.ensure(harness.spec(source))
    assert result.actions == ["start"], result
    whole(harness, source, note=True)
    assert harness.inside(harness.up(harness.spec(source)), "cat /run/spt-flow/steps.json") != boot


VICTIMS: dict[str, Callable[[Harness, int], object]] = {
    "client": _kill_client,
    "container": _kill_container,
    "git": lambda harness, pid: _kill_git(harness, f"spt-flow-{harness.owner}-demo"),
}


@pytest.mark.parametrize("number", range(MOMENTS))
def test_client_killed_at_a_random_moment(harness: Harness, number: int) -> None:
    chance = random.Random(f"{SEED}-{number}")
    victim, delay = chance.choice(sorted(VICTIMS)), chance.uniform(0.05, 1.6)
    state = chance.choice(["started", "started", "restarted", "absent"])
    print(f"SPT_FLOW_TEST_SEED={SEED} number {number}: {victim} killed {delay:.3f} s after the begin of {state}")
    source = harness.repository(files=10, size=200_000)
    if state != "started":
        harness.up(harness.spec(source))
    process = harness.up_process(source, state)
    try:
        time.sleep(delay)
        VICTIMS[victim](harness, process.pid)
    finally:
        _out, err = process.communicate(timeout=WAIT)
    assert "Traceback" not in err, err
    whole(harness, source)
