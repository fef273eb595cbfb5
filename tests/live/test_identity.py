# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""On a real Coder server: credentials and signatures of the user's own machine, by the agent of a session."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace, WorkspaceSpec
from ansible_collections.spt.flow.tests.live.conftest import LiveServer
from ansible_collections.spt.flow.tests.live.git_host import GitHost, docker, git_host, trust

SETTINGS = Settings(profile="slim", cpus=1.0, memory=1 << 30, kvm="disabled", wait_timeout=600)
NAME = "identity"


@dataclass
class User:
    """The user's machine: a home with git's configuration, and an SSH agent with one key."""

    env: dict[str, str]
    workspace: Workspace
    container: str

    def __call__(self, command: str, **env: str) -> subprocess.CompletedProcess[str]:
        argv = workspace_ssh.argv(self.workspace, command)
        return subprocess.run(argv, env={**self.env, **env}, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def host(live_server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    with git_host(live_server.gateway, tmp_path_factory.mktemp("git-host")) as made:
        yield made


@pytest.fixture(scope="module")
def workspace(live_server: LiveServer, host: GitHost) -> Iterator[Workspace]:
    assert live_server.admin is not None
    coder_template.roll_out(live_server.admin, live_server.wanted(SETTINGS))
    spec = WorkspaceSpec("me", SETTINGS, NAME)
    client = live_server.client(live_server.token)
    template = client.template("spt-flow")
    assert template is not None
    client.create_workspace(NAME, template["id"])
    made = lifecycle.ensure(live_server.target(), spec).workspace
    assert made is not None
    yield made
    lifecycle.ensure(live_server.target(), spec, "absent")


@pytest.fixture(scope="module")
def user(
    live_server: LiveServer, host: GitHost, workspace: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[User]:
    home = tmp_path_factory.mktemp("home")
    key = home / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60)
    (home / ".gitconfig").write_text(
        f'[credential]\n\thelper = "!f() {{ echo username=ada; echo password={host.token}; }}; f"\n'
        f"[gpg]\n\tformat = ssh\n[user]\n\tsigningKey = {key}.pub\n\temail = ada@example.com\n\tname = Ada\n"
        "[commit]\n\tgpgSign = true\n"
    )
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(home / "agent")], stdout=subprocess.DEVNULL)
    while not (home / "agent").exists():
        time.sleep(0.05)
    env = {**os.environ, "HOME": str(home), "SSH_AUTH_SOCK": str(home / "agent")}
    env |= {"CODER_URL": live_server.url, "CODER_SESSION_TOKEN": live_server.token}
    subprocess.run(["ssh-add", "-q", str(key)], env=env, check=True, timeout=60)
    container = docker("ps", "--quiet", "--filter", f"label=spt.flow.coder={workspace.id}").strip()
    trust(container, host)
    yield User({**env, "SPT_FLOW_CREDENTIALS": "on"}, workspace, container)
    agent.terminate()
    agent.wait()


def test_https_repository_is_cloned_with_the_users_own_helper(user: User, host: GitHost) -> None:
    clone = f"rm -rf /tmp/by-helper && GIT_TERMINAL_PROMPT=0 git clone -q {host.url} /tmp/by-helper"
    refused = user(clone)
    assert refused.returncode and f"credential_hosts: {host.git}" in refused.stderr, refused
    done = user(f"{clone} && cat /tmp/by-helper/hello.txt", SPT_FLOW_CREDENTIAL_HOSTS=host.git)
    assert (done.returncode, done.stdout) == (0, "hello\n"), done
    fetched = user("git -C /tmp/by-helper fetch -q", SPT_FLOW_CREDENTIAL_HOSTS=host.git)
    assert fetched.returncode == 0, fetched
    search = f"grep -rl {host.token} /home /run/spt-flow /etc /var/tmp /tmp || true"
    assert docker("exec", "--user", "0", user.container, "sh", "-c", search) == ""
    assert host.token not in docker("inspect", user.container)
    record = Path(user.env["HOME"], ".local/state/spt-flow/credentials.log").read_text()
    assert host.git in record and host.token not in record


def test_commits_are_signed_with_the_users_key(user: User) -> None:
    signing = "for _ in $(seq 100); do test -e /run/spt-flow/gitconfig.signing && break; sleep 0.2; done"
    make = "rm -rf /tmp/signed && git init -q /tmp/signed && cd /tmp/signed && git config user.email ada@example.com"
    done = user(f"{signing}; {make} && git commit -q --allow-empty -m first && git verify-commit HEAD")
    assert done.returncode == 0 and "ada@example.com" in done.stdout + done.stderr, done
    assert "Good" in done.stdout + done.stderr
