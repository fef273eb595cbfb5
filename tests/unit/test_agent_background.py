# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The workspace agent below Coder's agent, which is the main process: the script ends, the workspace goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from spt_workspace import services
from spt_workspace.contract import Contract

START = """
import os, sys
sys.dont_write_bytecode = True
sys.path.insert(0, {library!r})
from pathlib import Path
from spt_workspace import background
from spt_workspace.contract import Paths

def run(environ):
    os.execve(sys.executable, [sys.executable, "-c", {run!r}], environ)

sys.exit(background.start(Paths(Path({root!r})), os.environ, run))
"""


@pytest.fixture
def machine(tmp_path):
    machine = harness.Machine(tmp_path / "m")
    yield machine
    machine.kill_rest()


def start(machine, **extra):
    run = harness.RUN.format(library=str(harness.LIBRARY), root=str(machine.root), docker=())
    program = START.format(library=str(harness.LIBRARY), root=str(machine.root), run=run)
    env = {**machine.environ, **extra}
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)


def answers(machine):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", machine.port)) == 0


def test_script_ends_when_the_ide_answers_and_the_workspace_continues(machine):
    done = start(machine)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"spt_flow"')]
    assert events[0]["event"] == "start"
    last = {event["step"]: event["state"] for event in events if event["event"] == "step"}
    assert (last["ide"], last["clone"]) == ("ok", "skipped")
    assert answers(machine)
    assert machine.status()["steps"]["ide"]["state"] == "ok"
    assert machine.command("stop").returncode == 0
    harness.wait_for(lambda: not answers(machine))
    assert machine.command("stop").returncode == 0


def test_failed_ide_fails_the_script_with_its_message(machine):
    done = start(machine, STUB_DIES="1")
    assert done.returncode == 8
    assert '"step": "ide", "state": "failed"' in done.stdout


def test_invalid_start_is_reported_in_one_sentence(machine):
    program = (
        f"import sys; sys.dont_write_bytecode = True; sys.path.insert(0, {str(harness.LIBRARY)!r})\n"
        "from pathlib import Path\nfrom spt_workspace import main\nfrom spt_workspace.contract import Failure, Paths\n"
        "def run(*_words): raise Failure('It cannot be begun.', 8)\n"
        f"main.run = run\nsys.exit(main.main(['start'], Paths(Path({str(machine.root)!r}))))"
    )
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, env=machine.environ, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (8, "spt-workspace: It cannot be begun.\n"), done.stderr


def agent(machine, **extra):
    """A stand-in for Coder's agent: it runs the script and stays alive."""
    run = harness.RUN.format(library=str(harness.LIBRARY), root=str(machine.root), docker=())
    program = START.format(library=str(harness.LIBRARY), root=str(machine.root), run=run)
    words = ["sh", "-c", '"$0" -c "$1"; echo started; while :; do sleep 0.1; done', sys.executable, program]
    return subprocess.Popen(words, env={**machine.environ, **extra}, stdout=subprocess.PIPE, text=True)


def test_workspace_at_its_deadline_ends_the_agent_and_notifies_terminals(machine):
    """The agent is the container's main process, so that ending it ends the container."""
    terminal = machine.root / "pts/0"
    terminal.touch()
    with agent(machine, SPT_FLOW_KIND="ci", SPT_FLOW_DEADLINE=str(int(time.time()) + 4)) as one:
        try:
            assert one.wait(60) == -signal.SIGTERM
        finally:
            one.kill()
    assert "The deadline has come. The workspace ends now." in terminal.read_text()


def test_stopping_a_workspace_does_not_end_the_agent(machine):
    with agent(machine, SPT_FLOW_KIND="ci", SPT_FLOW_DEADLINE=str(int(time.time()) + 3600)) as one:
        try:
            assert one.stdout is not None and any(line == "started\n" for line in one.stdout)
            assert machine.command("stop").returncode == 0
            time.sleep(0.5)
            assert one.poll() is None
        finally:
            one.kill()


def test_reused_process_id_is_not_killed(machine):
    assert start(machine).returncode == 0
    record = machine.paths.run / "run.json"
    kept = json.loads(record.read_text())
    other = subprocess.Popen(["sleep", "60"])
    try:
        record.write_text(json.dumps({"pid": other.pid, "started": kept["started"]}))
        assert machine.command("stop").returncode == 0
        time.sleep(0.2)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    record.write_text(json.dumps(kept))
    assert machine.command("stop").returncode == 0
    assert not os.path.exists(f"/proc/{kept['pid']}") or not answers(machine)


@pytest.mark.parametrize(
    ("bind", "wanted", "auth"),
    [
        ("127.0.0.1", "none", "none"),
        ("0.0.0.0", "none", "password"),
        ("127.0.0.1", "", "password"),
        ("127.0.0.1", "None", "password"),
    ],
)
def test_ide_without_password_is_reachable_only_inside_the_workspace(bind, wanted, auth):
    values = {"SPT_FLOW_IDE_BIND": bind, "SPT_FLOW_IDE_AUTH": wanted}
    assert f"\nauth: {auth}\n" in services.ide_config(Contract.from_environment(values), "secret")
