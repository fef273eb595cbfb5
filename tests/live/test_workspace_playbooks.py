# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks against a real Coder server; the program coder is missing and fetched from the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.tests.live.conftest import LiveServer

CHECKOUT = Path(__file__).resolve().parents[2]
REPO = "https://git.invalid/team/playbooks.git"


@dataclass
class Playbooks:
    live_server: LiveServer
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        """An environment with its own home, in which no program coder exists."""
        programs = self.home / "programs"
        programs.mkdir(exist_ok=True)
        for name in ("ssh", "git", "ssh-keygen", "ssh-add", "sh", "env", "mkdir", "basename"):
            if not (programs / name).exists():
                (programs / name).symlink_to(f"/usr/bin/{name}")
        kept = {name: os.environ[name] for name in ("LANG", "XDG_RUNTIME_DIR") if name in os.environ}
        server = {
            "CODER_URL": self.live_server.url,
            "CODER_SESSION_TOKEN": self.live_server.token,
            "SPT_FLOW_TARGET": "coder",
        }
        path = f"{Path(sys.executable).parent}:{programs}"
        return {**kept, **server, "PATH": path, "HOME": str(self.home), "SPT_FLOW_WAIT_TIMEOUT": "10m", **more}

    def run(self, verb: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        place = "up.yml" if verb == "up" else f"playbooks/{verb}.yml"
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), place, *more],
            cwd=CHECKOUT,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
        assert self.live_server.token.split("-")[1] not in done.stdout + done.stderr
        return done

    def json(self, verb: str, *more: str, **environment: str) -> dict[str, Any]:
        done = self.run(verb, *more, SPT_FLOW_OUTPUT="json", SPT_FLOW_CONNECT="false", **environment)
        try:
            return {**json.loads(done.stdout), "status": done.returncode}
        except ValueError:
            raise AssertionError(done.stdout + done.stderr) from None


@pytest.fixture(scope="module")
def playbooks(live_server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playbooks]:
    assert live_server.admin is not None
    settings = Settings(profile="slim", cpus=1.0, memory=1 << 30, kvm="disabled", docker="disabled")
    coder_template.roll_out(live_server.admin, live_server.wanted(settings))
    made = Playbooks(live_server, tmp_path_factory.mktemp("home"))
    yield made
    made.json("delete", "-e", "workspace=playbooks", "-e", "confirm=true")


def test_up_creates_a_workspace_and_ends_in_the_command(playbooks: Playbooks) -> None:
    planned = playbooks.json("up", "-e", f"repo={REPO}", "--check")
    assert planned["changed"], planned
    assert not (playbooks.home / ".cache/spt-flow/coder").exists()
    made = playbooks.json("up", "-e", f"repo={REPO}")
    assert (made["status"], made["error"]["kind"]) == (9, "clone"), made
    assert "Cannot clone" in made["msg"] and "The workspace is kept and runs." in made["msg"], made
    (kept,) = playbooks.json("status")["workspaces"]
    assert (kept["owner"], kept["target"], kept["state"]) == ("ada", "coder", "running")
    assert "note: playbooks: clone failed" in playbooks.run("status").stdout
    client = playbooks.live_server.client(playbooks.live_server.token)
    template = client.template("spt-flow")
    assert template is not None
    client.create_workspace("entered", template["id"])
    done = playbooks.run("up", "-e", "workspace=entered", SPT_FLOW_COMMAND="exit 37")
    assert done.returncode == 37, done.stdout + done.stderr
    assert playbooks.json("delete", "-e", "workspace=entered", "-e", "confirm=true")["changed"]
    program = (playbooks.home / ".cache/spt-flow/coder/coder").resolve()
    assert program.stat().st_mode & 0o777 == 0o755
    done = playbooks.run("ssh", SPT_FLOW_COMMAND="id -un; hostname >/dev/null; exit 0")
    assert (done.returncode, done.stdout) == (0, "coder\n"), done.stderr


def test_every_other_playbook_works(playbooks: Playbooks) -> None:
    assert playbooks.json("status")["workspaces"][0]["state"] == "running"
    assert "playbooks  running  git.invalid/team/playbooks" in playbooks.run("status").stdout
    assert any('"event"' in line for line in playbooks.json("logs", "-e", "workspace=playbooks")["lines"])
    assert playbooks.json("ssh_config")["changed"]
    kept = playbooks.json("keepalive", "-e", "hours=20")
    assert kept["changed"], kept
    assert playbooks.json("stop")["changed"]
    assert not playbooks.json("stop")["changed"]
    started = playbooks.json("ssh")
    assert started["actions"] == ["start"], started
    assert playbooks.json("restart")["changed"]
    assert playbooks.json("doctor")["ok"]


def test_exit_statuses_are_returned(playbooks: Playbooks) -> None:
    expired = playbooks.json("status", CODER_SESSION_TOKEN="abcdefghij-1234567890123456789012")
    assert (expired["status"], expired["error"]["kind"]) == (4, "auth")
    assert playbooks.json("stop", "-e", "workspace=nope")["status"] == 6
    other = playbooks.json("up", "-e", "repo=https://git.invalid/team/other.git", "-e", "workspace=playbooks")
    assert (other["status"], other["error"]["kind"]) == (7, "conflict")
    assert playbooks.json("status", CODER_URL="http://127.0.0.1:9", SPT_FLOW_WAIT_TIMEOUT="1s")["status"] == 8
    late = playbooks.json("restart", SPT_FLOW_WAIT_TIMEOUT="1s")
    assert (late["status"], late["error"]["kind"]) == (5, "timeout"), late


def test_delete_leaves_nothing(playbooks: Playbooks) -> None:
    assert playbooks.json("delete", "-e", "workspace=playbooks")["status"] == 2
    assert playbooks.json("delete", "-e", "workspace=playbooks", "-e", "confirm=true")["changed"]
    assert playbooks.json("status")["workspaces"] == []
