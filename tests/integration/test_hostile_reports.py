# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real workspace whose user writes hostile events into its log and hostile session files."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pexpect
import pytest
from ansible_collections.spt.flow.tests.integration import playbook_harness
from ansible_collections.spt.flow.tests.integration.agent_harness import unavailable
from ansible_collections.spt.flow.tests.integration.playbook_harness import Playbooks

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "runs")

ESCAPES = "\x1b]0;pwned\x07\x1b[2J\x1b]52;c;cm0gLXJm\x07\x9b31m\u202efdp.exe\u2066"
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
PORTS = [5432, 6379, 2375, 6443, 80, *range(20_000, 20_100)]
EVENTS = [
    {"event": "step", "step": "docker", "state": "failed", "detail": f"no {ESCAPES}"},
    {"event": "step", "step": ESCAPES, "state": "failed", "detail": "x"},
    {"event": "step", "step": "ide", "state": ESCAPES},
    {"event": "life", "reason": f"busy {ESCAPES}", "stops_at": 1e308, "keepalive_by": ESCAPES, "since": "soon"},
]


@pytest.fixture(scope="module")
def playbooks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playbooks]:
    """One owner with two workspaces, one of which becomes hostile."""
    with playbook_harness.playbooks(tmp_path_factory.mktemp("hostile")) as playbooks:
        playbooks.up()
        good = playbook_harness.make_repository(playbooks.repository.parent / "good")
        assert playbooks.json("up", SPT_FLOW_REPO=str(good))["ok"]
        yield playbooks


def inside(playbooks: Playbooks, script: str, data: str = "") -> None:
    """Run as the user of the hostile workspace."""
    name = f"spt-flow-{playbooks.owner}-{playbooks.name}"
    argv = ["docker", "exec", "-i", "-u", "1000:1000", name, "bash", "-c", script]
    subprocess.run(argv, input=data.encode("utf-8", "surrogatepass"), check=True, timeout=60)


def say(playbooks: Playbooks, *events: dict) -> None:
    lines = [json.dumps({"spt_flow": 1, **event}) for event in events]
    raw = ['{"spt_flow": 1, "event": "life", "reason": "busy", "stops_at": 1e400}', ESCAPES, "[" * 9000, "\udcff"]
    inside(playbooks, "cat >/proc/1/fd/1", "\n".join([*raw, *lines]) + "\n")


def clean(done: subprocess.CompletedProcess[str]) -> str:
    text = done.stdout + done.stderr
    found = FORBIDDEN.search(text)
    assert found is None, repr(text[max(0, found.start() - 80) : found.end() + 40])
    return text


def test_hostile_log_shows_a_question_mark_and_harms_no_neighbour(playbooks: Playbooks) -> None:
    say(playbooks, *EVENTS)
    done = playbooks.run("status")
    text = clean(done)
    assert done.returncode == 0, text
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(("good ", f"{playbooks.name} "))}
    assert set(rows) == {"good", playbooks.name}
    lines = text.splitlines()
    shown = lines[lines.index(rows[playbooks.name]) :][:2]
    assert "?" in " ".join(shown), text
    assert "good" in rows["good"] and "running" in rows["good"]
    found = playbooks.json("status")
    assert FORBIDDEN.search(json.dumps(found, ensure_ascii=False)) is None
    assert {w["name"]: w["state"] for w in found["workspaces"]} == {"good": "running", playbooks.name: "running"}


def test_log_is_printed_without_escape_sequences(playbooks: Playbooks) -> None:
    say(playbooks, *EVENTS)
    done = playbooks.run("logs", "-e", f"workspace={playbooks.name}")
    assert done.returncode == 0 and "fdp.exe" in clean(done)


def test_hostile_session_file_reaches_no_terminal(playbooks: Playbooks) -> None:
    session = {"ide": {"password": ESCAPES}, "host_key": [1], "directory": f"/home/coder/{ESCAPES}"}
    steps = {"steps": {"clone": {"state": ESCAPES}, "dotfiles": 7}, "ports": PORTS, "notes": ESCAPES}
    inside(playbooks, "cat >/run/spt-flow/session.json", json.dumps(session))
    inside(playbooks, "cat >/run/spt-flow/steps.json", json.dumps(steps))
    done = playbooks.run("up", SPT_FLOW_REPO=str(playbooks.repository), SPT_FLOW_CONNECT="false")
    text = clean(done)
    assert done.returncode == 0 and "password" not in text.split("PLAY RECAP")[1], text
    done = playbooks.run("ssh", "-e", f"workspace={playbooks.name}", SPT_FLOW_COMMAND="exit 5")
    clean(done)
    assert done.returncode == 5


def test_shell_names_the_ports_that_it_forwards(playbooks: Playbooks) -> None:
    argv = playbooks.argv("ssh", "-e", f"workspace={playbooks.name}")
    env = playbooks.environment(TERM="xterm", ANSIBLE_NOCOLOR="1")
    child = pexpect.spawn(argv[0], argv[1:], cwd=str(playbooks.cwd), env=env, encoding="utf-8", timeout=240)
    try:
        child.expect("PLAY RECAP")
        child.expect(r"ports +([0-9, ]+) of 127\.0\.0\.1, while the shell is open")
        assert FORBIDDEN.sub("", child.before.replace("\r", "")) == child.before.replace("\r", "")
        ports = [int(word) for word in child.match[1].split(",")]
        assert ports == list(range(20_000, 20_032))
        child.expect("Ports that are not forwarded: 5432 .the port of PostgreSQL., 6379 .the port of Redis.")
        child.expect(r"\$ ")
        child.sendline("exit 7")
        child.expect(pexpect.EOF)
    finally:
        child.close()
    assert child.exitstatus == 7


def test_local_repository_gets_only_the_ports_of_its_own_file(playbooks: Playbooks) -> None:
    done = playbooks.run("up", SPT_FLOW_REPO=str(playbooks.repository))
    text = clean(done)
    assert done.returncode == 0 and "ports  " not in text, text
    assert "20000 (devcontainer.json does not request it)" in text


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"a": ' * 100_000, "[]", "\0", "x" * (17 << 20)])
def test_damaged_session_file_is_reported_with_its_code(playbooks: Playbooks, content: str) -> None:
    inside(playbooks, "cat >/run/spt-flow/session.json; echo {} >/run/spt-flow/steps.json", content)
    found = playbooks.json("up", SPT_FLOW_REPO=str(playbooks.repository))
    assert found["status"] == 8 and FORBIDDEN.search(found["error"]["message"]) is None, found
    assert "bug of spt.flow" not in found["error"]["hint"]
    assert playbooks.run("status").returncode == 0
