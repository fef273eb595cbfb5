# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every playbook for workspaces as a user types it, on the real engine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.integration import playbook_harness
from ansible_collections.spt.flow.tests.integration.playbook_harness import Playbooks


@pytest.fixture(scope="module")
def playbooks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playbooks]:
    """One workspace that the tests of this file share, in their order."""
    with playbook_harness.playbooks(tmp_path_factory.mktemp("playbooks")) as playbooks:
        yield playbooks


def test_up_creates_a_workspace_with_an_open_ide(playbooks: Playbooks) -> None:
    result = playbooks.up(SPT_FLOW_GIT_NAME="Ada", SPT_FLOW_GIT_EMAIL="ada@example.com")
    assert result["changed"] and result["actions"] == ["create", "start"]
    workspace = result["workspace"]
    assert (workspace["name"], workspace["state"]) == (playbooks.name, "running")
    assert {name for name, _seconds in result["stages"]} >= {"create", "home", "clone", "ide"}
    with urllib.request.urlopen(f"{result['session']['url']}healthz", timeout=10) as answer:
        assert answer.status == 200
    assert result["session"]["password"]
    assert "clone: " in result["stderr"]
    assert f"spt-flow-{playbooks.owner}-{playbooks.name}" in result["session"]["ssh"]


def test_second_up_changes_nothing_and_says_so(playbooks: Playbooks) -> None:
    done = playbooks.run("up", SPT_FLOW_REPO=str(playbooks.repository), SPT_FLOW_CONNECT="false")
    assert "changed=0" in done.stdout and "(unchanged)" in done.stdout
    block = done.stdout.split("PLAY RECAP")[1]
    for word in ("IDE", "http://127.0.0.1:", "password", "ssh -F ", "VS Code", "stops"):
        assert word in block
    assert "\x1b" not in done.stdout and "\r" not in done.stdout


def test_check_mode_reports_and_changes_nothing(playbooks: Playbooks, tmp_path: Path) -> None:
    before = playbook_harness.belongings(playbooks.owner)
    other = playbook_harness.make_repository(tmp_path / "other")
    done = playbooks.run("up", "--check", "--diff", SPT_FLOW_REPO=str(other))
    assert "changed=1" in done.stdout and "Check mode: Workspace other created" in done.stdout
    assert '"state": "running"' in done.stdout or "state: running" in done.stdout
    for verb in ("stop", "restart", "delete"):
        done = playbooks.run(verb, "--check", "-e", f"workspace={playbooks.name}")
        assert (done.returncode, "changed=1" in done.stdout or "changed=2" in done.stdout) == (0, True), done.stdout
    assert playbook_harness.belongings(playbooks.owner) == before
    assert playbooks.json("status")["workspaces"][0]["state"] == "running"


def test_status_shows_the_workspace(playbooks: Playbooks) -> None:
    done = playbooks.run("status")
    for word in (playbooks.name, "running", "snapshot", "stops"):
        assert word in done.stdout
    (workspace,) = playbooks.json("status", SPT_FLOW_SIZE="true")["workspaces"]
    assert (workspace["name"], workspace["outdated"]) == (playbooks.name, [])
    assert workspace["life"]["stops_at"] > time.time()
    assert workspace["size"]


def test_changed_settings_make_it_outdated_until_a_restart(playbooks: Playbooks) -> None:
    (workspace,) = playbooks.json("status", SPT_FLOW_PIDS="2048")["workspaces"]
    assert workspace["outdated"] == ["settings"]
    result = playbooks.json("restart", SPT_FLOW_PIDS="2048", SPT_FLOW_WORKSPACE=playbooks.name)
    assert result["changed"] and result["workspace"]["outdated"] == []
    name = f"spt-flow-{playbooks.owner}-{playbooks.name}"
    assert playbook_harness.docker("inspect", "--format", "{{.HostConfig.PidsLimit}}", name) == "2048"
    assert playbooks.json("ssh", SPT_FLOW_CONNECT="false", SPT_FLOW_PIDS="2048")["changed"] is False


def test_command_has_raw_streams_and_its_own_exit_status(playbooks: Playbooks) -> None:
    command = 'cat; printf "\\0\\377"; git log --format=%s; echo oops >&2; exit 37'
    argv = playbooks.argv("ssh", "-e", f"workspace={playbooks.name}")
    env = playbooks.environment(SPT_FLOW_COMMAND=command)
    done = subprocess.run(
        argv, cwd=playbooks.cwd, env=env, input=b"in\x00put", capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 37, done
    assert done.stdout == b"in\x00put\x00\xfffirst\n"
    assert b"oops" in done.stderr
    assert list((playbooks.home / ".ansible/tmp").glob("*")) == []


def test_commits_have_the_callers_name_even_after_a_restart(playbooks: Playbooks) -> None:
    done = playbooks.run("ssh", SPT_FLOW_COMMAND="git config user.name; git config user.email")
    assert done.stdout == "Ada\nada@example.com\n"


def test_command_in_extra_variables_is_quoted_or_refused(playbooks: Playbooks) -> None:
    done = playbooks.run("ssh", "-e", "command=ls -la /tmp")
    assert done.returncode == 2 and "SPT_FLOW_COMMAND='…'" in done.stderr + done.stdout
    done = playbooks.run("ssh", "-e", "command='echo a b'")
    assert (done.returncode, done.stdout) == (0, "a b\n")


def test_ssh_without_a_terminal_prints_the_command(playbooks: Playbooks) -> None:
    done = playbooks.run("ssh", "-e", f"workspace={playbooks.name}")
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if " shell " in line)
    command = [*line.split()[1:], "cat */hello.txt"]
    env = playbooks.environment()
    there = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert there.stdout == "hello\n", there


def test_hostile_branch_name_runs_nothing(playbooks: Playbooks, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    hostile = f"a{{{{lookup('pipe','touch {mark}')}}}}"
    done = playbooks.run("up", "-e", json.dumps({"ref": hostile, "repo": str(playbooks.repository)}))
    assert done.returncode == 2 and "SPT_FLOW_REF" in done.stdout
    playbooks.run("up", SPT_FLOW_REF=hostile, SPT_FLOW_REPO=str(playbooks.repository), SPT_FLOW_CONNECT="false")
    assert not mark.exists()


def test_keepalive_is_shown_in_status_and_withdrawn(playbooks: Playbooks) -> None:
    result = playbooks.json("keepalive", SPT_FLOW_HOURS="3", SPT_FLOW_WORKSPACE=playbooks.name)
    assert result["changed"]
    (workspace,) = playbooks.json("status")["workspaces"]
    assert workspace["life"]["keepalive_until"] == pytest.approx(time.time() + 3 * 3600, abs=120)
    assert "keep-alive until" in playbooks.run("status").stdout
    playbooks.json("keepalive", SPT_FLOW_HOURS="0")
    assert playbooks.json("keepalive", SPT_FLOW_HOURS="25")["error"]["code"] == 1


def test_logs_show_the_output_of_the_workspace(playbooks: Playbooks) -> None:
    result = playbooks.json("logs", SPT_FLOW_TAIL="5")
    assert result["ok"] and 0 < len(result["lines"]) <= 5
    assert '"spt_flow"' in playbooks.run("logs").stdout


def test_following_logs_ends_when_the_workspace_stops(playbooks: Playbooks) -> None:
    env = playbooks.environment(SPT_FLOW_FOLLOW="true")
    # A separate stderr: ssh makes a shared one non-blocking, which Ansible refuses.
    with subprocess.Popen(
        playbooks.argv("logs"), cwd=playbooks.cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as follower:
        time.sleep(3)
        assert follower.poll() is None
        result = playbooks.json("stop", SPT_FLOW_WORKSPACE=playbooks.name)
        assert result["changed"] and result["workspace"]["state"] == "stopped"
        assert follower.wait(timeout=60) == 0


def test_second_stop_changes_nothing_and_keepalive_is_refused(playbooks: Playbooks) -> None:
    assert playbooks.json("stop", SPT_FLOW_WORKSPACE=playbooks.name)["changed"] is False
    result = playbooks.json("keepalive", SPT_FLOW_WORKSPACE=playbooks.name)
    assert (result["status"], result["error"]["code"]) == (7, 7)


def test_ssh_starts_a_stopped_workspace_with_its_home(playbooks: Playbooks) -> None:
    done = playbooks.run("ssh", "-e", f"workspace={playbooks.name}", SPT_FLOW_COMMAND="cat hello.txt")
    assert (done.returncode, done.stdout) == (0, "hello\n")


def test_ssh_to_a_missing_workspace_is_reported_with_its_code(playbooks: Playbooks) -> None:
    result = playbooks.json("ssh", SPT_FLOW_WORKSPACE="nowhere")
    assert (result["status"], result["error"]["code"]) == (6, 6)
    assert "spt.flow.up" in result["error"]["hint"]


def test_ssh_config_serves_plain_ssh_and_is_removed(playbooks: Playbooks) -> None:
    (playbooks.home / ".ssh").mkdir(mode=0o700)
    config = playbooks.home / ".ssh/config"
    config.write_text("Host example\n  User somebody\n")
    assert playbooks.json("ssh_config", "--check")["changed"] and "Include" not in config.read_text()
    assert playbooks.json("ssh_config")["changed"]
    assert playbooks.json("ssh_config")["changed"] is False
    first, rest = config.read_text().split("\n", 1)
    assert first.startswith("Include ") and rest == "Host example\n  User somebody\n"
    argv = ["ssh", "-F", str(config), f"spt-flow-{playbooks.owner}-{playbooks.name}", "echo in"]
    there = subprocess.run(argv, env=playbooks.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert there.stdout == "in\n", there


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The caller's SSH agent with one key: its socket and the public key."""
    key, place = tmp_path / "mine", tmp_path / "agent"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=30)
    daemon = subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL)
    try:
        while not place.exists():
            assert daemon.poll() is None
            time.sleep(0.05)
        env = {**os.environ, "SSH_AUTH_SOCK": str(place)}
        subprocess.run(["ssh-add", "-q", str(key)], env=env, check=True, timeout=30)
        yield str(place), key.with_suffix(".pub").read_text()
    finally:
        daemon.terminate()
        daemon.wait(10)


@pytest.fixture
def git_server(tmp_path: Path, agent: tuple[str, str]) -> Iterator[dict[str, str]]:
    """A git server with a private repository, reachable from here and from workspaces: sshd in a network namespace."""
    if os.geteuid() or not shutil.which("ip") or not os.path.exists("/usr/sbin/sshd"):
        pytest.skip("needs root, ip and sshd")
    net = f"sptt{secrets.token_hex(3)}"
    here, there = "198.18.7.1", "198.18.7.2"
    (tmp_path / "authorized").write_text(agent[1])
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "host")], check=True, timeout=30
    )
    (tmp_path / "sshd_config").write_text(
        f"ListenAddress {there}:2222\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        "StrictModes no\nUsePAM no\nUseDNS no\nPidFile none\nPermitRootLogin yes\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    daemon = None

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, timeout=30, capture_output=True)

    try:
        ip("netns", "add", net)
        ip("link", "add", f"{net}a", "type", "veth", "peer", "name", f"{net}b", "netns", net)
        ip("addr", "add", f"{here}/30", "dev", f"{net}a")
        ip("link", "set", f"{net}a", "up")
        ip("-n", net, "addr", "add", f"{there}/30", "dev", f"{net}b")
        ip("-n", net, "link", "set", f"{net}b", "up")
        ip("-n", net, "route", "add", "default", "via", here)
        daemon = subprocess.Popen(
            ["ip", "netns", "exec", net, "/usr/sbin/sshd", "-D", "-e", "-f", str(tmp_path / "sshd_config")]
        )
        private = playbook_harness.make_repository(tmp_path / f"private-{secrets.token_hex(2)}")
        known = f"[{there}]:2222 {' '.join((tmp_path / 'host.pub').read_text().split()[:2])}"
        yield {
            "SPT_FLOW_REPO": f"ssh://root@{there}:2222{private}",
            "SPT_FLOW_KNOWN_HOSTS": known,
            "name": private.name,
        }
    finally:
        if daemon:
            daemon.terminate()
            daemon.wait(10)
        ip("link", "del", f"{net}a", check=False)
        ip("netns", "del", net, check=False)


def test_private_repository_is_cloned_with_the_callers_agent(
    playbooks: Playbooks, git_server: dict[str, str], agent: tuple[str, str]
) -> None:
    name = git_server.pop("name")
    result = playbooks.json("up", SPT_FLOW_CONNECT="false", **git_server)
    assert not result["ok"] and result["error"]["code"] == 4, result
    assert "spt.flow.ssh" in result["error"]["hint"] + " ".join(result["notes"]), result
    result = playbooks.json("up", SPT_FLOW_CONNECT="false", SSH_AUTH_SOCK=agent[0], **git_server)
    assert result["ok"] and result["changed"] and "error" not in result, result
    done = playbooks.run("ssh", SPT_FLOW_WORKSPACE=name, SPT_FLOW_COMMAND="cat hello.txt", **git_server)
    assert done.stdout == "hello\n"
    assert playbooks.json("delete", SPT_FLOW_WORKSPACE=name, SPT_FLOW_CONFIRM="true")["changed"]


def test_delete_asks_for_confirmation_and_removes_all_parts(playbooks: Playbooks) -> None:
    before = playbook_harness.belongings(playbooks.owner)
    assert len(before) >= 2
    done = playbooks.run("delete", "-e", f"workspace={playbooks.name}")
    assert done.returncode == 2 and "confirm=true" in done.stdout
    result = playbooks.json("delete", SPT_FLOW_WORKSPACE=playbooks.name)
    assert (result["status"], result["error"]["kind"]) == (2, "cancelled")
    assert playbook_harness.belongings(playbooks.owner) == before
    assert playbooks.json("delete", SPT_FLOW_WORKSPACE=playbooks.name, SPT_FLOW_CONFIRM="true")["changed"]
    assert playbook_harness.belongings(playbooks.owner) == []
    assert playbooks.json("delete", SPT_FLOW_WORKSPACE=playbooks.name, SPT_FLOW_CONFIRM="true")["changed"] is False
    assert os.path.isdir(playbooks.repository)


def test_failed_clone_fails_the_run_and_keeps_the_workspace(playbooks: Playbooks) -> None:
    made = playbooks.up()
    container = f"spt-flow-{playbooks.owner}-{made['workspace']['name']}"
    place = made["session"]["directory"]
    playbook_harness.docker("exec", "-u", "1000:1000", container, "sh", "-c", f"rm -rf {place} && echo mine >{place}")
    restarted = playbooks.json("restart")
    assert (restarted["ok"], restarted["status"], restarted["error"]["kind"]) == (False, 9, "clone")
    assert "exists and is not a clone of" in restarted["msg"] and "spt.flow.restart" in restarted["error"]["hint"]
    assert restarted["workspace"]["state"] == "running"
    again = playbooks.json("up", SPT_FLOW_REPO=str(playbooks.repository))
    assert (again["ok"], again["status"], again["changed"]) == (False, 9, False)
    assert playbooks.json("ssh")["ok"]
    playbook_harness.docker("exec", "-u", "1000:1000", container, "rm", place)
    assert f"-e repo={playbooks.repository}" in restarted["error"]["hint"]
    assert playbooks.json("restart", SPT_FLOW_REPO=str(playbooks.repository))["ok"]
