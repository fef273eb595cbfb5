# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook `bootstrap` as a user runs it, on the fake server: what it creates, and that it shows no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.fake_coder.state import State
from ansible_collections.spt.flow.tests.unit import coder_harness

CHECKOUT = Path(__file__).resolve().parents[2]
CANARY = "Kanarienvogel-7-im-Bergwerk-der-Geheimnisse"


class Harness:
    """An empty server, and the inventory of its machine."""

    def __init__(self, fake: Fake, folder: Path) -> None:
        self.fake = fake
        self.folder = folder
        self.dest = folder / "etc/coder.token"
        self.reaper = folder / "etc/reaper.token"
        self.variables: dict[str, Any] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "ansible_become_exe": str(folder / "sudo"),
            "coder_url": fake.url,
            "coder_owner_email": "admin@example.com",
            "coder_owner_password": CANARY,
            "coder_token_file": str(self.dest),
            "coder_template_token_file": str(self.dest),
            "workspace_reaper_coder_token_file": str(self.reaper),
            "coder_users": [{"username": "ada", "email": "ada@example.com"}],
        }
        # Tests may run without root: the files then belong to the current user.
        (folder / "sudo").write_text('#!/bin/sh\nwhile [ "$1" != /bin/sh ]; do shift; done\nexec "$@"\n')
        (folder / "sudo").chmod(0o755)

    def run(self, *argv: str, playbook: str = "bootstrap", **more: Any) -> subprocess.CompletedProcess[str]:
        hosts = {"all": {"children": {"flow_servers": {"hosts": {"server1": {**self.variables, **more}}}}}}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(hosts))
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SPT_FLOW_", "ANSIBLE_", "CODER_"))}
        env |= {"ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / ".ansible/collections"), "HOME": str(self.folder)}
        env |= {"ANSIBLE_LOCAL_TEMP": str(self.folder / "tmp"), "ANSIBLE_KEEP_REMOTE_FILES": "1"}
        program = Path(sys.executable).parent / "ansible-playbook"
        command = [str(program), f"playbooks/{playbook}.yml", "-i", str(self.folder / "hosts.yml"), *argv]
        return subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with coder_harness.running(State()) as fake:
        fake.state.users.clear()
        yield Harness(fake, tmp_path)


def test_new_server_gets_users_and_a_token_without_showing_secrets(harness: Harness) -> None:
    checked = harness.run("--check", "--diff")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "Check mode" in checked.stdout and "flow-bot" in checked.stdout
    assert not harness.fake.state.users and not harness.dest.exists()

    first = harness.run("-vvvv", "--diff")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-1000:]
    assert {user.username for user in harness.fake.state.users.values()} == {
        "admin",
        "flow-bot",
        "flow-reaper",
        "ada",
    }
    bot = harness.fake.state.user("flow-bot")
    assert bot.organization_roles == {"organization-template-admin"} and not bot.roles
    reaper = harness.fake.state.user("flow-reaper")
    assert reaper.organization_roles == {"organization-admin"} and not reaper.roles
    assert harness.reaper.stat().st_mode & 0o777 == 0o600
    secret = harness.reaper.read_text().strip()
    assert harness.fake.state.authenticate(secret).username == "flow-reaper"
    token = harness.dest.read_text().strip()
    assert harness.dest.stat().st_mode & 0o777 == 0o600
    assert harness.fake.state.authenticate(token).username == "flow-bot"

    again = harness.run("-vvvv")
    assert again.returncode == 0 and "changed=0" in again.stdout, again.stdout[-3000:]
    assert harness.dest.read_text().strip() == token
    shown = checked.stdout + checked.stderr + first.stdout + first.stderr + again.stdout + again.stderr
    assert CANARY not in shown and token.partition("-")[2] not in shown
    for path in (one for one in harness.folder.rglob("*") if one.is_file()):
        if path not in (harness.dest, harness.reaper, harness.folder / "hosts.yml"):
            content = path.read_bytes()
            assert not any(one.encode() in content for one in (CANARY, token, secret)), path
    assert [key for key in harness.fake.state.keys.values() if key.login_type == "password"] == [], "sessions are ended"


def test_departed_users_and_invalid_tokens_are_handled_in_one_run(harness: Harness) -> None:
    assert harness.run().returncode == 0
    harness.dest.write_text("abcdefghij-0123456789012345678901\n")
    harness.dest.chmod(0o644)
    done = harness.run(coder_users=[{"username": "ada", "state": "offboarded"}])
    assert done.returncode == 0, done.stdout
    assert "User ada: suspended" in done.stdout and "the server does not know it" in done.stdout
    assert harness.fake.state.user("ada").status == "suspended"
    assert harness.fake.state.authenticate(harness.dest.read_text().strip()).username == "flow-bot"
    assert harness.dest.stat().st_mode & 0o777 == 0o600
    names = sorted(key.name for key in harness.fake.state.keys.values())
    assert names == ["spt-flow", "spt-flow-2"], "the lost token is revoked, the reaper's is unchanged"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"coder_owner_password": "Kanarie1"}, "password"),
        ({"coder_owner_password": "", "coder_owner_email": ""}, "does not have a user yet"),
        ({"coder_users": [{"username": "not_a_name"}]}, "not a user name"),
        ({"coder_bot_roles": ["no-such-role"]}, "roles"),
        ({"coder_token_file": "relative"}, "not an absolute path"),
    ],
)
def test_impossible_request_is_reported(harness: Harness, more: dict[str, Any], said: str) -> None:
    done = harness.run("-vvv", **more)
    assert done.returncode == 2
    assert said in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert "Kanarie1" not in done.stdout + done.stderr and CANARY not in done.stdout + done.stderr


def test_failed_write_leaves_no_token(harness: Harness) -> None:
    (harness.folder / "etc").write_text("a file where a folder should be")
    done = harness.run()
    assert done.returncode == 2 and "Cannot write" in done.stdout
    assert harness.fake.state.keys == {}


def test_result_is_one_json_object(harness: Harness) -> None:
    assert harness.run().returncode == 0
    done = harness.run("-e", "output=json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["token"]["name"] == "spt-flow"


def test_templates_are_pushed_with_the_token_of_the_server(harness: Harness) -> None:
    harness.fake.state.clock.speed = 40.0
    early = harness.run("--check", "--tags", "coder_template", playbook="servers")
    assert early.returncode == 0 and "would be uploaded once" in early.stdout, early.stdout
    early = harness.run("--tags", "coder_template", playbook="servers")
    assert early.returncode == 2 and "spt.flow.bootstrap" in early.stdout
    assert harness.run().returncode == 0
    checked = harness.run("--check", "--diff", "--tags", "coder_template", playbook="servers")
    assert checked.returncode == 0 and "created" in checked.stdout and not harness.fake.state.templates
    done = harness.run("-vvvv", "--tags", "coder_template", playbook="servers")
    assert done.returncode == 0, done.stdout[-3000:]
    assert {one.name for one in harness.fake.state.templates.values()} == {"spt-flow", "spt-flow-ci"}
    assert harness.dest.read_text().strip().partition("-")[2] not in done.stdout + done.stderr
    again = harness.run("--tags", "coder_template", playbook="servers")
    assert again.returncode == 0 and "changed=0" in again.stdout, again.stdout
    marked = harness.run(
        "--tags", "coder_template", playbook="servers", coder_template_deprecated="use the other server"
    )
    assert "settings changed" in marked.stdout, marked.stdout


def test_check_mode_works_before_the_server_exists(harness: Harness) -> None:
    checked = harness.run("--check", coder_url="http://127.0.0.1:9")
    assert checked.returncode == 0 and "does not answer; a run would wait for it" in checked.stdout, checked.stdout
