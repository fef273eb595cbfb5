# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks against a real Coder server, from a machine without the program coder: the server's own is fetched."""

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
from ansible_collections.spt.flow.tests.live.conftest import House

CHECKOUT = Path(__file__).resolve().parents[2]
REPO = "https://git.invalid/team/doors.git"


@dataclass
class Doors:
    house: House
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        """One with a home of its own, in which no program coder can be found."""
        programs = self.home / "programs"
        programs.mkdir(exist_ok=True)
        for name in ("ssh", "git", "ssh-keygen", "ssh-add", "sh", "env", "mkdir", "basename"):
            if not (programs / name).exists():
                (programs / name).symlink_to(f"/usr/bin/{name}")
        kept = {name: os.environ[name] for name in ("LANG", "XDG_RUNTIME_DIR") if name in os.environ}
        server = {"CODER_URL": self.house.url, "CODER_SESSION_TOKEN": self.house.token, "SPT_FLOW_TARGET": "coder"}
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
        assert self.house.token.split("-")[1] not in done.stdout + done.stderr
        return done

    def json(self, verb: str, *more: str, **environment: str) -> dict[str, Any]:
        done = self.run(verb, *more, SPT_FLOW_OUTPUT="json", SPT_FLOW_CONNECT="false", **environment)
        try:
            return {**json.loads(done.stdout), "status": done.returncode}
        except ValueError:
            raise AssertionError(done.stdout + done.stderr) from None


@pytest.fixture(scope="module")
def doors(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    assert house.admin is not None
    settings = Settings(cpus=1.0, memory=1 << 30, kvm="disabled", docker="disabled")
    coder_template.roll_out(house.admin, house.wanted(settings))
    made = Doors(house, tmp_path_factory.mktemp("home"))
    yield made
    made.json("delete", "-e", "workspace=doors", "-e", "confirm=true")


def test_up_makes_a_workspace_and_ends_in_the_command(doors: Doors) -> None:
    planned = doors.json("up", "-e", f"repo={REPO}", "--check")
    assert planned["changed"], planned
    assert not (doors.home / ".cache/spt-flow/coder").exists()
    made = doors.json("up", "-e", f"repo={REPO}")
    assert made["ok"], made
    assert (made["workspace"]["owner"], made["workspace"]["target"]) == ("ada", "coder")
    done = doors.run("up", "-e", f"repo={REPO}", SPT_FLOW_COMMAND="exit 37")
    assert done.returncode == 37, done.stdout + done.stderr
    program = (doors.home / ".cache/spt-flow/coder/coder").resolve()
    assert program.stat().st_mode & 0o777 == 0o755
    done = doors.run("ssh", SPT_FLOW_COMMAND="id -un; hostname >/dev/null; exit 0")
    assert (done.returncode, done.stdout) == (0, "coder\n"), done.stderr


def test_every_other_verb(doors: Doors) -> None:
    assert doors.json("status")["workspaces"][0]["state"] == "running"
    assert "doors  running  git.invalid/team/doors" in doors.run("status").stdout
    assert any('"event"' in line for line in doors.json("logs", "-e", "workspace=doors")["lines"])
    assert doors.json("ssh_config")["changed"]
    kept = doors.json("keepalive", "-e", "hours=20")
    assert kept["changed"], kept
    assert doors.json("stop")["changed"]
    assert not doors.json("stop")["changed"]
    started = doors.json("ssh")
    assert started["actions"] == ["start"], started
    assert doors.json("restart")["changed"]
    assert doors.json("doctor")["ok"]


def test_exit_statuses(doors: Doors) -> None:
    expired = doors.json("status", CODER_SESSION_TOKEN="abcdefghij-1234567890123456789012")
    assert (expired["status"], expired["error"]["kind"]) == (4, "auth")
    assert doors.json("stop", "-e", "workspace=nope")["status"] == 6
    other = doors.json("up", "-e", "repo=https://git.invalid/team/other.git", "-e", "workspace=doors")
    assert (other["status"], other["error"]["kind"]) == (7, "conflict")
    assert doors.json("status", CODER_URL="http://127.0.0.1:9", SPT_FLOW_WAIT_TIMEOUT="1s")["status"] == 8
    late = doors.json("restart", SPT_FLOW_WAIT_TIMEOUT="1s")
    assert (late["status"], late["error"]["kind"]) == (5, "timeout"), late


def test_delete_leaves_nothing(doors: Doors) -> None:
    assert doors.json("delete", "-e", "workspace=doors")["status"] == 2
    assert doors.json("delete", "-e", "workspace=doors", "-e", "confirm=true")["changed"]
    assert doors.json("status")["workspaces"] == []
