# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole life of a workspace on a real Coder server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.client import agents
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.probe import Probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Result, Workspace, WorkspaceSpec
from ansible_collections.spt.flow.tests.integration import sshd_harness
from ansible_collections.spt.flow.tests.live.conftest import LiveServer

SPEC = WorkspaceSpec("me", Settings(profile="slim", wait_timeout=600), "demo")


@pytest.fixture(scope="module")
def git_server(live_server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A private repository behind sshd, on the address that workspaces reach; ``key`` opens it."""
    folder = tmp_path_factory.mktemp("git-server")
    repository = folder / "demo.git"
    subprocess.run(["git", "init", "-q", "-b", "main", str(repository)], check=True)
    author = ["-c", "user.name=Grace", "-c", "user.email=grace@example.com"]
    subprocess.run(["git", *author, "-C", str(repository), "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    with sshd_harness.sshd(folder, live_server.gateway):
        known = (folder / "known_hosts").read_text()
        port = known.split("]:")[1].split()[0]
        yield {
            "url": f"ssh://root@{live_server.gateway}:{port}{repository}",
            "known_hosts": known,
            "key": str(folder / "user"),
        }


@pytest.fixture(scope="module")
def settings(git_server: dict[str, str]) -> Settings:
    return Settings(
        profile="slim",
        cpus=1.0,
        memory=1 << 30,
        kvm="disabled",
        known_hosts=git_server["known_hosts"],
        wait_timeout=600,
    )


@pytest.fixture(scope="module")
def workspace(live_server: LiveServer, git_server: dict[str, str], settings: Settings) -> Iterator[Workspace]:
    """A new workspace: template, then `up`."""
    assert live_server.admin is not None
    said: list[str] = []
    done = coder_template.roll_out(live_server.admin, live_server.wanted(settings), progress=Progress(said.append))
    # Tests of another file may have created the template on this server.
    assert done.actions in (["import", "create"], ["import", "activate"]), said
    spec = replace(SPEC, name="", repository=Repository.parse(git_server["url"]), settings=settings)
    result = ensure(live_server, spec, progress=Progress(said.append))
    print("\n".join(said))
    assert result.workspace is not None
    yield result.workspace
    ensure(live_server, SPEC, "absent")


def ensure(live_server: LiveServer, spec: WorkspaceSpec = SPEC, state: str = "started", **more: Any) -> Result:
    probe = lambda repository, ref: Probe("needs-auth")  # noqa: E731
    return lifecycle.ensure(live_server.target(), spec, state, probe=probe, **more)


@pytest.fixture(scope="module")
def agent(git_server: dict[str, str]) -> Iterator[dict[str, str]]:
    """An SSH agent with the key of the private repository."""
    said = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    found = dict(word.split("=", 1) for word in said.replace(";", " ").split() if "=" in word)
    subprocess.run(["ssh-add", "-q", git_server["key"]], env={**os.environ, **found}, check=True)
    yield found
    os.kill(int(found["SSH_AGENT_PID"]), 15)


def inside(
    live_server: LiveServer, workspace: Workspace, command: str, options: Sequence[str] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CODER_URL": live_server.url, "CODER_SESSION_TOKEN": live_server.token, **env}
    program, *words = workspace_ssh.argv(workspace, command)
    argv = [program, *options, *words]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=600, check=False)


def belongings(live_server: LiveServer, workspace: Workspace) -> tuple[list[str], list[str]]:
    label = f"label=spt.flow.coder={workspace.id}"
    words = {"ps": ["ps", "--all", "--quiet"], "volume": ["volume", "ls", "--quiet"]}
    found = {
        name: subprocess.run(
            ["docker", *argv, "--filter", label], capture_output=True, text=True, check=True
        ).stdout.split()
        for name, argv in words.items()
    }
    return found["ps"], sorted(found["volume"])


def test_up_creates_it_and_a_second_run_changes_nothing(live_server: LiveServer, workspace: Workspace) -> None:
    assert (workspace.name, workspace.owner, workspace.state) == ("demo", "ada", "running")
    assert workspace.step("ide").state == "ok"
    assert workspace.step("clone").state == "needs-auth"
    assert workspace.settings_hash
    begun = time.monotonic()
    again = ensure(live_server)
    print(f"up on a running workspace, engine alone: {time.monotonic() - begun:.2f} s")
    assert not again.changed
    containers, volumes = belongings(live_server, workspace)
    assert (len(containers), len(volumes)) == (1, 2)


def listed(live_server: LiveServer) -> str:
    """Return the state of the clone that `status` shows."""
    found = {one.name: one for one in live_server.target().list("me", details=True)}
    return found[SPEC.name].step("clone").state


def test_session_has_the_clients_agent_and_exit_status(
    live_server: LiveServer, workspace: Workspace, agent: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODER_URL", live_server.url)
    monkeypatch.setenv("CODER_SESSION_TOKEN", live_server.token)
    assert inside(live_server, workspace, "exit 37").returncode == 37
    assert listed(live_server) == "needs-auth"
    done = inside(live_server, workspace, "spt-workspace clone", **agent)
    assert done.returncode == 0, done.stderr
    assert listed(live_server) == "ok"
    done = inside(live_server, workspace, "git -C ~/demo log --format=%s; id -un; git config user.email")
    assert done.stdout.split() == ["first", "coder", "ada@example.com"], done.stderr
    searched = inside(live_server, workspace, "grep -rl 'PRIVATE KEY' /home/coder")
    assert (searched.returncode, searched.stdout) == (1, ""), searched.stderr


def test_dashboard_shows_clone_kvm_image_snapshot_and_pipeline(live_server: LiveServer, workspace: Workspace) -> None:
    inside(
        live_server,
        workspace,
        "mkdir -p ~/.config/spt-flow && printf '#!/bin/sh\\necho green\\n' > ~/.config/spt-flow/ci-status",
    )
    inside(live_server, workspace, "chmod +x ~/.config/spt-flow/ci-status")
    found = live_server.client(live_server.token).workspace_by_id(workspace.id)
    assert found is not None
    (agent,) = agents(found)
    headers = {"Coder-Session-Token": live_server.token}
    shown: dict[str, str] = {}
    end = time.monotonic() + 180
    while (shown.get("ci"), shown.get("clone")) != ("green", "ok") and time.monotonic() < end:
        request = urllib.request.Request(
            f"{live_server.url}/api/v2/workspaceagents/{agent['id']}/watch-metadata", headers=headers
        )
        with urllib.request.urlopen(request, timeout=30) as stream:
            told = next(line for line in stream if line.startswith(b"data: ["))
        shown = {one["description"]["key"]: one["result"]["value"].strip() for one in json.loads(told[6:])}
        time.sleep(1)
    assert shown["ci"] == "green", shown
    assert (shown["kvm"], shown["snapshot"]) == ("no", "none")
    assert re.fullmatch(r"\d+ days old", shown["image"])
    assert shown["clone"] == "ok"


def test_limits_docker_and_ide_match_other_targets(live_server: LiveServer, workspace: Workspace) -> None:
    (container,), _volumes = belongings(live_server, workspace)
    shown = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True).stdout
    host = json.loads(shown)[0]["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["Runtime"]) == (10**9, 1 << 30, "spt-flow")
    status = json.loads(inside(live_server, workspace, "spt-workspace status").stdout)
    assert status["steps"]["docker"]["state"] == "ok"
    assert inside(live_server, workspace, "curl -fsS http://127.0.0.1:8080/healthz").returncode == 0
    assert "denied" in inside(live_server, workspace, "sudo sh -c 'echo x > /proc/sys/kernel/core_pattern' 2>&1").stdout
    client = live_server.client(live_server.token)
    answer = client.http.request("GET", "/@ada/demo.main/apps/ide/healthz")
    assert answer.status == 200


def test_new_version_waits_for_the_restart_by_the_user(
    live_server: LiveServer, workspace: Workspace, settings: Settings
) -> None:
    assert live_server.admin is not None
    before = belongings(live_server, workspace)
    inside(live_server, workspace, "echo kept > ~/kept")
    changed = replace(settings, memory=1536 << 20)
    assert coder_template.roll_out(live_server.admin, live_server.wanted(changed)).actions == ["import", "activate"]
    assert belongings(live_server, workspace) == before
    found = ensure(live_server)
    assert found.workspace is not None
    assert not found.changed
    assert found.workspace.outdated == ("template",)
    stopped = ensure(live_server, state="stopped").workspace
    assert stopped is not None
    assert stopped.settings_hash == settings.hash()
    assert belongings(live_server, workspace) == ([], before[1])
    started = ensure(live_server).workspace
    assert started is not None
    assert started.outdated == ("template",)
    restarted = ensure(live_server, state="restarted").workspace
    assert restarted is not None
    assert restarted.outdated == ()
    assert inside(live_server, restarted, "cat ~/kept").stdout == "kept\n"
    assert restarted.settings_hash == changed.hash()


def test_keepalive_postpones_the_stop(live_server: LiveServer, workspace: Workspace) -> None:
    kept = ensure(live_server, state="kept", hours=20.0, by="ada").workspace
    assert kept is not None
    assert kept.life.stops_at is not None
    assert abs(kept.life.stops_at - time.time() - 20 * 3600) < 120


def test_restarting_server_is_waited_for(live_server: LiveServer, workspace: Workspace) -> None:
    live_server.stop()
    live_server.start()
    assert ensure(live_server).workspace is not None


def test_ctrl_c_leaves_the_build_to_the_server(live_server: LiveServer, workspace: Workspace) -> None:
    """Send a signal; the same command, or the one that it names, resumes the build."""
    ensure(live_server, state="stopped")
    checkout = Path(__file__).resolve().parents[2]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SPT_FLOW_", "CODER_"))}
    env |= {"CODER_URL": live_server.url, "CODER_SESSION_TOKEN": live_server.token, "SPT_FLOW_CONNECT": "false"}
    argv = ["ansible-playbook", "up.yml", "-e", "workspace=demo"]
    run = subprocess.Popen(argv, cwd=checkout, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    client = live_server.client(live_server.token)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = client.workspace("demo")
        assert found is not None
        if found["latest_build"]["status"] in ("pending", "starting"):
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=300)[0]
    assert run.returncode == 2, said
    assert "The run was interrupted" in said and "Traceback" not in said
    result = ensure(live_server)
    assert result.workspace is not None
    assert result.workspace.step("ide").state == "ok"
    found = client.workspace("demo")
    assert found is not None and found["latest_build"]["status"] == "running"


def test_delete_leaves_nothing(live_server: LiveServer, workspace: Workspace) -> None:
    assert ensure(live_server, state="absent").changed
    assert belongings(live_server, workspace) == ([], [])
    assert not ensure(live_server, state="absent").changed


def test_workspace_from_the_dashboard_is_ready(
    live_server: LiveServer, settings: Settings, workspace: Workspace
) -> None:
    """From the dashboard, with no value given."""
    client = live_server.client(live_server.token)
    template = client.template("spt-flow")
    assert template is not None
    client.create_workspace("click", template["id"])
    click = replace(SPEC, name="click")
    try:
        result = ensure(live_server, click)
        assert result.workspace is not None
        assert result.workspace.step("ide").state == "ok"
    finally:
        ensure(live_server, click, "absent")


def test_stopped_ci_workspace_leaves_no_resources(live_server: LiveServer, settings: Settings) -> None:
    assert live_server.admin is not None
    coder_template.roll_out(live_server.admin, live_server.wanted(settings, "ci", "spt-flow-ci"))
    client = live_server.client(live_server.token)
    template = client.template("spt-flow-ci")
    assert template is not None
    assert (template["activity_bump_ms"], template["default_ttl_ms"]) == (0, 1_800_000)
    client.create_workspace("job", template["id"])
    job = replace(SPEC, name="job")
    made = ensure(live_server, job).workspace
    assert made is not None
    assert made.kind == "ci"
    assert made.deadline
    assert [len(found) for found in belongings(live_server, made)] == [1, 1]
    live_server.target().stop(made, Progress())
    assert belongings(live_server, made) == ([], [])
    ensure(live_server, job, "absent")


def test_action_pushes_the_templates_and_a_second_run_changes_nothing(live_server: LiveServer, tmp_path: Path) -> None:
    assert live_server.admin is not None
    checkout = Path(__file__).resolve().parents[2]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SPT_FLOW_", "CODER_"))}
    env |= {
        "SPT_FLOW_TEMPLATE": "by-action",
        "SPT_FLOW_PROFILE": "slim",
        "CODER_URL": live_server.url,
        "CODER_SESSION_TOKEN": live_server.admin.http.config.token,
    }
    argv = ["ansible-playbook", "playbooks/template.yml", "-vvvv"]

    def run(*more: str) -> str:
        done = subprocess.run(
            [*argv, *more], cwd=checkout, env=env, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert live_server.admin and live_server.admin.http.config.token not in done.stdout + done.stderr
        return done.stdout

    assert "changed=1" in run("--check")
    assert "changed=1" in run()
    assert "changed=0" in run()


def test_server_log_contains_none_of_our_secrets(live_server: LiveServer, workspace: Workspace) -> None:
    assert live_server.token.split("-")[1] not in Path(live_server.folder / "server.log").read_text()
