# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks with target coder: whole `ansible-playbook` processes against the fake server."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import coder_harness
from ansible_collections.spt.flow.tests.unit.processes import Processes

CHECKOUT = Path(__file__).resolve().parents[2]
REPO = "https://git.invalid/team/demo.git"


@dataclass
class Harness:
    """A fake server, and a home directory from which playbooks run."""

    fake: Fake
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "XDG_RUNTIME_DIR") if name in os.environ}
        server = {"CODER_URL": self.fake.url, "CODER_SESSION_TOKEN": coder_harness.TOKEN, "NO_PROXY": "127.0.0.1"}
        return {**kept, **server, "HOME": str(self.home), "SPT_FLOW_CONNECT": "false", **more}

    def run(self, verb: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        place = "up.yml" if verb == "up" else f"playbooks/{verb}.yml"
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), place, *more],
            cwd=CHECKOUT,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
        secret = environment.get("CODER_SESSION_TOKEN", coder_harness.TOKEN).split("-")[1]
        assert secret not in done.stdout + done.stderr
        return done

    def json(self, verb: str, *more: str, **environment: str) -> dict[str, Any]:
        done = self.run(verb, *more, SPT_FLOW_OUTPUT="json", **environment)
        try:
            result: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise AssertionError(done.stdout + done.stderr) from None
        assert result["ok"] == (done.returncode == 0), result
        return {**result, "status": done.returncode}


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with coder_harness.server(10.0) as fake:
        yield Harness(fake, tmp_path)


def test_every_playbook_works_through_the_life_of_a_workspace(harness: Harness) -> None:
    planned = harness.json("up", "-e", f"repo={REPO}", "--check")
    assert planned["changed"]
    assert planned["msg"].startswith("Check mode:")
    assert harness.fake.state.workspaces == {}
    made = harness.json("up", "-e", f"repo={REPO}")
    assert made["changed"]
    assert (made["workspace"]["target"], made["workspace"]["owner"]) == ("coder", "ada")
    assert "ada--demo.spt-coder" in made["session"]["ssh"]
    before = len(harness.fake.seen)
    assert not harness.json("up", "-e", f"repo={REPO}")["changed"]
    assert len(harness.fake.seen) - before <= 3
    shown = harness.run("status").stdout
    assert "demo  running  git.invalid/team/demo" in shown
    assert "of me" not in shown
    assert harness.json("status")["workspaces"][0]["outdated"] == []
    assert harness.json("keepalive", "-e", "hours=3")["changed"]
    assert any('"step": "clone"' in line for line in harness.json("logs")["lines"])
    assert harness.json("ssh_config")["changed"]
    assert not harness.json("ssh")["changed"]
    assert harness.json("stop")["changed"]
    assert not harness.json("stop")["changed"]
    assert harness.json("restart")["changed"]
    assert harness.json("delete", "-e", "workspace=demo")["status"] == 2
    assert harness.json("delete", "-e", "workspace=demo", "-e", "confirm=true")["changed"]
    assert not harness.json("delete", "-e", "workspace=demo", "-e", "confirm=true")["changed"]


def test_ctrl_c_leaves_the_build_running_and_explains_how_to_resume(harness: Harness) -> None:
    harness.fake.state.next("start", start=3600)
    argv = [str(Path(sys.executable).parent / "ansible-playbook"), "up.yml", "-e", f"repo={REPO}"]
    run = subprocess.Popen(
        argv,
        cwd=CHECKOUT,
        env=harness.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    with run:
        end = time.monotonic() + 60
        while not any("/logs" in seen.path for seen in harness.fake.seen) and time.monotonic() < end:
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=60)[0]
    assert run.returncode == 2, said
    assert "Traceback" not in said
    assert "The run was interrupted while Coder was to start workspace demo." in said
    assert "Continue waiting: ansible-playbook spt.flow.up -e workspace=demo" in said
    (workspace,) = harness.fake.state.workspaces.values()
    assert workspace.latest.status(harness.fake.state.now) == "starting"


def test_workspace_of_another_user_requires_a_role(harness: Harness) -> None:
    body = {"email": "bob@example.com", "username": "bob", "login_type": "none", "user_status": "active"}
    harness.fake.state.create_user({**body, "organization_ids": [harness.fake.state.organization]})
    refused = harness.json("up", "-e", f"repo={REPO}", "-e", "owner=bob")
    assert (refused["status"], refused["error"]["kind"]) == (4, "auth"), refused
    assert "administrator" in refused["error"]["hint"]
    assert harness.fake.state.workspaces == {}


def test_status_shows_a_new_template_version(harness: Harness) -> None:
    harness.json("up", "-e", f"repo={REPO}")
    template = harness.fake.state.template_by_name("spt-flow")
    harness.fake.state.promote(template, coder_harness.add_version(harness.fake.state, "v2", template.id))
    assert harness.json("status")["workspaces"][0]["outdated"] == ["template"]
    assert "outdated template" in harness.run("status").stdout


@pytest.mark.parametrize("verb", ["stop", "ssh", "restart", "keepalive", "logs"])
def test_missing_object_is_named(harness: Harness, verb: str) -> None:
    result = harness.json(verb, "-e", "workspace=nope")
    assert (result["status"], result["error"]["kind"]) == (6, "not_found")
    assert "of me" not in result["msg"]
    assert harness.json(verb)["error"]["message"] == "There is no workspace."


def test_invalid_token_is_refused_with_the_way_to_a_new_one(harness: Harness) -> None:
    result = harness.json("status", CODER_SESSION_TOKEN="abcdefghij-1234567890123456789012")
    assert (result["status"], result["error"]["kind"]) == (4, "auth")
    assert "coder login" in result["error"]["hint"]


def test_conflict_deadline_and_unhealthy_server_have_exit_statuses(harness: Harness) -> None:
    harness.json("up", "-e", f"repo={REPO}")
    other = harness.json("up", "-e", "repo=https://git.invalid/team/other.git", "-e", "workspace=demo")
    assert (other["status"], other["error"]["kind"]) == (7, "conflict")
    harness.fake.state.next("start", error="no such image", lines=("Error: image is missing",))
    failed = harness.json("restart")
    assert (failed["status"], failed["error"]["kind"]) == (8, "unhealthy")
    assert "image is missing" in failed["msg"]
    page = harness.json("status", CODER_URL=harness.fake.url + "/wrong")
    assert page["status"] in (6, 8)


def test_list_may_mix_targets_and_defaults_to_the_caller_on_a_server(harness: Harness) -> None:
    entries = [{"repo": REPO}, {"repo": "https://git.invalid/team/two.git"}]
    result = harness.json("workspaces", "-e", json.dumps({"flow_workspaces": entries}))
    assert result["ok"], result
    assert [row["name"] for row in result["workspaces"]] == ["demo", "two"]
    assert {workspace.name for workspace in harness.fake.state.workspaces.values()} == {"demo", "two"}


def test_unreachable_server_is_reported_soon(harness: Harness) -> None:
    harness.fake.faults.add("500", times=100)
    result = harness.json("status")
    assert (result["status"], result["error"]["kind"]) == (8, "unhealthy")


def test_no_secret_is_in_any_output_process_or_artifact(harness: Harness, tmp_path: Path) -> None:
    """The token is stored where Coder's command line keeps it; the proxy's password is in the environment."""
    canary = f"canary{secrets.token_hex(8)}"
    secret = coder_harness.TOKEN.partition("-")[2]
    place = harness.home / ".config/coderv2"
    place.mkdir(parents=True, mode=0o700)
    (place / "url").write_text(harness.fake.url)
    (place / "session").write_text(coder_harness.TOKEN)
    env = {name: text for name, text in harness.environment().items() if not name.startswith("CODER_")}
    programs = Path(sys.executable).parent
    folder = tmp_path / "private"
    subprocess.run([str(CHECKOUT / "tools/runner-dir"), str(folder)], check=True, capture_output=True, timeout=60)
    calls: list[tuple[list[str], dict[str, str], int]] = [
        (["ansible-playbook", "up.yml", "-vvvv"], {"SPT_FLOW_REPO": REPO, "CODER_HEADER": f"X-Proxy={canary}"}, 0),
        (["ansible-playbook", "playbooks/restart.yml", "-vvvv"], {"CODER_HEADER": f"X-Proxy={canary}"}, 0),
        (["ansible-playbook", "playbooks/status.yml", "-vvvv"], {"CODER_HEADER": f"no header {canary}"}, 2),
        (["ansible-playbook", "playbooks/template.yml", "-vvvv"], {}, 2),
        (["ansible-runner", "run", str(folder), "-p", "spt.flow.up"], {"SPT_FLOW_REPO": REPO}, 0),
    ]
    watcher = Processes(secret, canary)
    watcher.start()
    said = ""
    try:
        for (program, *words), values, status in calls:
            done = subprocess.run(
                [str(programs / program), *words],
                cwd=CHECKOUT,
                env={**env, **values},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == status, done.stdout + done.stderr
            said += done.stdout + done.stderr
    finally:
        found = watcher.stop()
    # A fake server next to this test gets its token as an argument.
    assert {line for line in found if "tests.fake_coder" not in line} == set()
    assert secret not in said and canary not in said
    kept = subprocess.run(["grep", "-rl", secret, str(folder)], capture_output=True, text=True, check=False)
    assert (kept.returncode, kept.stdout) == (1, ""), "the runner does not keep it"
