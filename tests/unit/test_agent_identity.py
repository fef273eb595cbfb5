# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's identity inside a workspace: credentials, the SSH agent and signing, by live sessions and in memory."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from ansible_collections.spt.flow.tests.unit import user_side
from spt_workspace import access, clone, contract
from spt_workspace.identity import github, registries, relay, sessions, signing

REQUEST = "capability[]=authtype\nprotocol=https\nhost=git.example.com\n\n"
KEYS = b"\x0c\x00\x00\x00\x01key"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl ada"


@pytest.fixture
def machine() -> Iterator[harness.Machine]:
    # Names of sockets are limited to 108 bytes.
    with tempfile.TemporaryDirectory(prefix="spt-") as folder:
        made = harness.Machine(Path(folder) / "m")
        made.paths.run.mkdir(parents=True, exist_ok=True)
        yield made
        made.kill_rest()


def helper(machine: harness.Machine, operation: str = "get", text: str = REQUEST) -> subprocess.CompletedProcess[str]:
    return machine.command("credential", operation, stdin=text)


# Credentials for git


def test_every_field_reaches_the_user_and_comes_back_unchanged(machine: harness.Machine) -> None:
    output = (
        "capability[]=authtype\nauthtype=Bearer\ncredential=canary\nephemeral=1\nstate[]=a\npassword_expiry_utc=9\n"
    )
    with user_side.session(machine.root, lambda request: {"ok": True, "output": output}) as user:
        done = helper(machine)
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")
    assert user.asked == [{"kind": "git", "operation": "get", "input": REQUEST}]
    assert not [path for path in machine.root.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]


@pytest.mark.parametrize("operation", ["store", "erase"])
def test_result_of_a_login_reaches_the_user(machine: harness.Machine, operation: str) -> None:
    with user_side.session(machine.root, lambda request: {"ok": True, "output": "not printed"}) as user:
        done = helper(machine, operation, REQUEST + "password=p\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert user.asked[0]["operation"] == operation


def test_the_newest_session_is_asked_and_another_when_it_has_ended(machine: harness.Machine) -> None:
    with user_side.session(machine.root, user_side.credentials("old"), "ssh-old", age=60) as old:
        with user_side.session(machine.root, user_side.credentials("new"), "ssh-new"):
            assert "username=new" in helper(machine).stdout
        assert "username=old" in helper(machine).stdout
        with user_side.session(machine.root, lambda request: None, "ssh-dies"):
            assert "username=old" in helper(machine).stdout
        dead = machine.root / "tmp/auth-agent1/listener.sock"
        dead.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as closed:
            closed.bind(str(dead))
        assert "username=old" in helper(machine).stdout
    assert len(old.asked) == 3


def test_an_agent_that_knows_nothing_of_us_is_skipped(machine: harness.Machine) -> None:
    with user_side.session(machine.root, user_side.credentials(), "ssh-ours", age=60):
        for failure in (user_side.OTHER, b"\x00\x00\x00\x01\x1c"):
            with user_side.session(machine.root, user_side.credentials("other"), "ssh-other", ping=failure):
                assert "username=u" in helper(machine).stdout


def test_without_a_session_git_learns_what_to_do(machine: harness.Machine) -> None:
    done = helper(machine)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"spt-workspace: {sessions.NO_SESSION}\n"


def test_a_refusal_is_repeated_in_the_users_words(machine: harness.Machine) -> None:
    refused = {"ok": False, "error": "evil.example may not be asked.", "hint": "See credential_hosts.\x1b[31m"}
    with user_side.session(machine.root, lambda request: refused):
        done = helper(machine)
    assert done.stdout == "" and done.stderr == (
        "spt-workspace: evil.example may not be asked. See credential_hosts.[31m\n"
    )


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack(">I", sessions.LARGEST + 1),
        struct.pack(">I", 0),
        b"\x00\x00\x00\x05\x06\xff\xff\xff\xff",
        b"\x00\x00\x00\x09\x06\x00\x00\x00\x04null",
        b"\x00\x00\x00\x07\x06\x00\x00\x00\x02[]",
        b"\x00\x00\x01",
    ],
)
def test_a_broken_answer_is_no_answer(machine: harness.Machine, answer: bytes) -> None:
    made: list[user_side.UserSide] = []

    def broken(request: dict[str, Any]) -> bytes:
        threading.Timer(0.5, made[0].end).start()
        return answer

    with user_side.session(machine.root, broken) as user:
        made.append(user)
        done = helper(machine)
    assert (done.returncode, done.stdout) == (0, "") and done.stderr.startswith("spt-workspace: ")
    assert "Traceback" not in done.stderr


def test_a_session_that_ends_while_it_is_asked_is_reported_at_once(machine: harness.Machine) -> None:
    made: list[user_side.UserSide] = []

    def end(request: dict[str, Any]) -> None:
        made[0].end()
        time.sleep(60)

    with user_side.session(machine.root, end) as user:
        made.append(user)
        begun = time.monotonic()
        done = helper(machine)
    assert time.monotonic() - begun < sessions.PATIENCE / 2 and done.stderr == f"spt-workspace: {sessions.ENDED}\n"


def test_an_answer_is_waited_for_with_a_limit(machine: harness.Machine) -> None:
    with user_side.session(machine.root, lambda request: time.sleep(60)):
        begun = time.monotonic()
        with pytest.raises(contract.Failure, match="did not answer in time"):
            sessions.ask(machine.paths, {"kind": "git"}, patience=0.5)
    assert time.monotonic() - begun < 5


def test_a_sleeping_laptop_delays_the_answer_of_another_session_a_little(machine: harness.Machine) -> None:
    with (
        user_side.session(machine.root, user_side.credentials("awake"), "ssh-awake", age=60),
        user_side.session(machine.root, user_side.credentials("asleep"), "ssh-asleep", ping=None),
    ):
        begun = time.monotonic()
        assert "username=awake" in helper(machine).stdout
    assert time.monotonic() - begun < 2 * sessions.CONNECT + 1


def test_sockets_of_other_programs_do_not_delay_the_answer(machine: harness.Machine) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(100):
            stack.enter_context(user_side.session(machine.root, lambda request: None, f"ssh-{number}", ping=b""))
        assert len(sessions.sockets(machine.paths)) == sessions.MOST


def test_a_request_that_is_not_text_does_not_end_the_helper(machine: harness.Machine) -> None:
    program = harness.COMMAND.format(library=str(harness.LIBRARY), root=str(machine.root))
    argv = [sys.executable, "-c", program, "credential", "get"]
    with user_side.session(machine.root, user_side.credentials()) as user:
        request = b"protocol=https\nhost=h\npath=\xff\n\n"
        done = subprocess.run(argv, input=request, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"username=u\npassword=p\n", b"")
    assert user.asked[0]["input"].endswith("path=\ufffd\n\n")


# The SSH agent


def test_every_process_reaches_the_agent_of_the_newest_session(machine: harness.Machine) -> None:
    relay.agent(machine.paths, relay.Directory(machine.paths)).start()
    place = machine.paths.agent
    assert place.stat().st_mode & 0o777 == 0o600
    assert user_side.ask_agent(place) == b"\x0c\x00\x00\x00\x00"
    assert user_side.ask_agent(place, b"\x0d" + b"sign") == b"\x05"
    answer = lambda request: {"ok": True, "format": ""}  # noqa: E731
    with user_side.session(machine.root, answer, "ssh-old", age=60, keys=KEYS) as old:
        assert user_side.ask_agent(place) == KEYS
        with user_side.session(machine.root, answer, "ssh-new", keys=KEYS + b"2"):
            assert user_side.ask_agent(place) == KEYS + b"2"
        assert user_side.ask_agent(place) == KEYS
        with user_side.session(machine.root, answer, "ssh-other", keys=b"\x05", ping=user_side.OTHER):
            assert user_side.ask_agent(place) == KEYS, "another agent has no precedence over the user's side"
        with user_side.session(machine.root, answer, "ssh-hung", ping=None):
            begun = time.monotonic()
            assert user_side.ask_agent(place) == KEYS, "a session that does not answer has no precedence"
            assert time.monotonic() - begun < 2 * sessions.CONNECT
            begun = time.monotonic()
            assert user_side.ask_agent(place) == KEYS and time.monotonic() - begun < 1, "it is not asked each time"
        assert not old.asked
    assert user_side.ask_agent(place) == b"\x0c\x00\x00\x00\x00"


def test_agent_in_use_does_not_keep_the_workspace_running(machine: harness.Machine) -> None:
    """A program that signs in the background is not a user; an open session is counted by itself."""
    with user_side.session(machine.root, lambda request: {"ok": True, "format": ""}, keys=KEYS) as user:
        process = machine.start(SPT_FLOW_IDLE_STOP="120")
        harness.wait_for(machine.paths.agent.exists)
        until = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError, struct.error):
                user_side.ask_agent(machine.paths.agent)
            time.sleep(0.1)
    assert process.poll() == 0 and user.raw
    assert [event["reason"] for event in machine.events() if event["event"] == "life"][-1] == "idle for too long"


def test_broken_clients_of_the_relay_do_not_block_others(machine: harness.Machine) -> None:
    relay.agent(machine.paths, relay.Directory(machine.paths)).start()
    with contextlib.ExitStack() as stack:
        for _number in range(relay.MOST_CONNECTIONS - 1):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(machine.paths.agent))
            client.sendall(b"\x00\x00")
        assert user_side.ask_agent(machine.paths.agent) == b"\x0c\x00\x00\x00\x00"


def test_processes_of_ide_and_sessions_have_the_stable_path(machine: harness.Machine) -> None:
    env = access.user_environment({"SSH_AUTH_SOCK": "/tmp/other"}, contract.Contract(), machine.paths)
    assert env["SSH_AUTH_SOCK"] == str(machine.paths.agent)
    assert f'"SSH_AUTH_SOCK={machine.paths.agent}"' in access.sshd_config(env, machine.paths)
    assert clone.git_environment({}, machine.paths)["SSH_AUTH_SOCK"] == str(machine.paths.agent)


# Git


def test_no_other_helper_of_the_system_is_asked(machine: harness.Machine) -> None:
    text = access.gitconfig(contract.Contract(), machine.paths)
    assert text.index("helper =\n") < text.index('helper = "!spt-workspace credential"')


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("/tmp/coder.a1/coder gitssh --", True),
        ("sh -c evil", False),
        ("/tmp/coder gitssh -- ; evil", False),
    ],
)
def test_credentials_of_coders_agent_are_used_with_our_host_keys(
    machine: harness.Machine, command: str, kept: bool
) -> None:
    env = clone.git_environment({"GIT_SSH_COMMAND": command, "GIT_ASKPASS": "/tmp/coder"}, machine.paths)
    assert env["GIT_SSH_COMMAND"].startswith(f"{command} -o BatchMode=yes" if kept else "ssh -o BatchMode=yes")
    assert f"{machine.paths.run}/known_hosts" in env["GIT_SSH_COMMAND"]
    assert ("GIT_ASKPASS" in env) == kept
    # The IDE, and by it the dotfiles at start.
    user = access.user_environment(
        {"GIT_SSH_COMMAND": command, "GIT_ASKPASS": "/tmp/coder", "GIT_DIR": "/tmp"}, contract.Contract(), machine.paths
    )
    named = {"GIT_SSH_COMMAND", "GIT_ASKPASS"} if kept else set()
    assert {name for name in user if name.startswith("GIT_")} == named


# Signing


def config(machine: harness.Machine, name: str) -> str:
    argv = ["git", "config", "--file", str(machine.paths.signing), "--get", name]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False).stdout.strip()


def test_git_signs_with_the_users_ssh_key(machine: harness.Machine) -> None:
    signers = "ada@example.com ssh-ed25519 AAAA\n"
    answer = {"ok": True, "format": "ssh", "key": KEY, "commits": True, "tags": False, "allowed_signers": signers}
    signing.apply(answer, machine.paths)
    assert config(machine, "gpg.format") == "ssh"
    assert (config(machine, "commit.gpgSign"), config(machine, "tag.gpgSign")) == ("true", "false")
    assert Path(config(machine, "user.signingKey")).read_text() == f"{KEY}\n"
    assert Path(config(machine, "gpg.ssh.allowedSignersFile")).read_text() == signers


@pytest.mark.parametrize(
    "answer",
    [
        {"ok": False, "format": "ssh", "key": KEY},
        {"ok": True, "format": "ssh", "key": f"{KEY}\n[core]\nsshCommand = evil"},
        {"ok": True, "format": "openpgp", "key": 'ab"\n[core]'},
        {"ok": True, "format": "x509", "key": "a"},
        {"ok": True, "format": "ssh", "key": 7},
    ],
)
def test_unusable_answer_about_signing_changes_nothing(machine: harness.Machine, answer: dict[str, Any]) -> None:
    signing.apply(answer, machine.paths)
    assert not (machine.paths.signing).exists()


def signing_of(form: str) -> user_side.Answer:
    """Answer like a user whose git signs by ``form``, or not at all."""
    return lambda request: {"ok": True, "format": form, "key": KEY if form else "", "commits": True}


def test_git_signs_as_on_the_machine_of_the_newest_session(
    machine: harness.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "INTERVAL", 0.05)
    monkeypatch.setattr(relay, "RETRY", 0.2)
    stopping = threading.Event()
    relay.watch(relay.Directory(machine.paths), lambda answer: signing.apply(answer, machine.paths), stopping)
    signs = machine.paths.signing.exists
    try:
        with user_side.session(machine.root, signing_of("ssh"), "ssh-old", age=60) as old:
            harness.wait_for(signs)
            with user_side.session(machine.root, signing_of(""), "ssh-new"):
                harness.wait_for(lambda: not signs())
            harness.wait_for(signs)
            assert old.asked == [{"kind": "signing"}], "a session is asked once"
        time.sleep(0.3)
        assert signs(), "without a session, commits fail instead of being unsigned"
        with user_side.session(machine.root, signing_of(""), "ssh-late", ping=None) as late:
            harness.wait_for(lambda: late.pinged)
            late.ping = user_side.UNKNOWN
            harness.wait_for(lambda: not signs(), 2 * sessions.CONNECT + 5)
    finally:
        stopping.set()


# gh


@pytest.mark.parametrize(
    ("arguments", "environ", "wanted"),
    [
        (["pr", "list"], {}, "git.example.com"),
        (["pr", "list", "-R", "owner/name"], {}, "git.example.com"),
        (["pr", "list", "-R", "github.com/owner/name"], {}, "github.com"),
        (["api", "--hostname=Work.example", "user"], {}, "work.example"),
        (["pr", "list"], {"GH_HOST": "named.example"}, "named.example"),
        (["pr", "list"], {"GH_HOST": "a\nhost=b"}, "git.example.com"),
    ],
)
def test_gh_gets_the_token_of_the_host_that_it_talks_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], environ: dict[str, str], wanted: str
) -> None:
    for words in (["init", "-q"], ["remote", "add", "origin", "git@git.example.com:team/demo.git"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, timeout=30)
    monkeypatch.chdir(tmp_path)
    assert github.host(arguments, environ) == wanted


def gh(machine: harness.Machine, host: str = "github.com", command: str = "api", **more: str) -> str:
    """Return the tokens that a stand-in for gh has in its environment."""
    program = machine.bin / "gh-itself"
    machine.stub("gh-itself", "#!/bin/sh\nenv | grep -E '^(GH|GITHUB)_' | sort; echo \"$@\"\n")
    code = (
        f"import sys; sys.dont_write_bytecode = True; sys.path.insert(0, {str(harness.LIBRARY)!r})\n"
        "from pathlib import Path\nfrom spt_workspace.contract import Paths\n"
        "from spt_workspace.identity import github\nimport os\n"
        f"paths = Paths(Path({str(machine.root)!r}))\n"
        f"github.run([*{command.split()!r}, '--hostname', {host!r}], paths, os.environ, {str(program)!r})"
    )
    env = {"PATH": "/usr/bin:/bin", **more}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout + done.stderr


def test_gh_has_a_token_for_one_command(machine: harness.Machine) -> None:
    machine.bin.mkdir(parents=True, exist_ok=True)
    assert gh(machine) == "api --hostname github.com\n"
    with user_side.session(machine.root, lambda request: {"ok": True, "token": "canary"}) as user:
        assert gh(machine) == "GH_TOKEN=canary\napi --hostname github.com\n"
        assert "GH_ENTERPRISE_TOKEN=canary\nGH_HOST=git.example.com\n" in gh(machine, "git.example.com")
        assert gh(machine, GH_TOKEN="own").startswith("GH_TOKEN=own\n")
        assert gh(machine, command="auth login") == "auth login --hostname github.com\n"
        assert [request["host"] for request in user.asked] == ["github.com", "git.example.com"]
        hosts = machine.paths.home / ".config/gh/hosts.yml"
        hosts.parent.mkdir(parents=True)
        hosts.write_text("github.com:\n    user: ada\n")
        assert "canary" not in gh(machine)
    with user_side.session(machine.root, lambda request: {"ok": False, "error": "Not this host."}):
        assert "spt-workspace: Not this host.\n" in gh(machine, "other.example")


# Docker


def test_docker_gets_the_logins_of_the_user(machine: harness.Machine) -> None:
    server = "registry.example.com:5000"
    assert registries.run("get", server, machine.paths) == (1, registries.NOT_FOUND)
    answer = {"ok": True, "username": "ada", "secret": "canary"}
    with user_side.session(machine.root, lambda request: answer) as user:
        status, output = registries.run("get", f"{server}\n", machine.paths)
    assert (status, json.loads(output)) == (0, {"ServerURL": server, "Username": "ada", "Secret": "canary"})
    assert user.asked == [{"kind": "docker", "operation": "get", "server": server}]
    assert not list(machine.paths.run.rglob("registries.json"))


def test_a_login_inside_is_kept_in_memory_and_comes_first(machine: harness.Machine) -> None:
    login = {"ServerURL": "https://r.example", "Username": "own", "Secret": "canary"}
    assert registries.run("store", json.dumps(login), machine.paths) == (0, "")
    with user_side.session(machine.root, lambda request: {"ok": True, "username": "other", "secret": "x"}):
        assert json.loads(registries.run("get", "https://r.example", machine.paths)[1]) == login
    assert registries.run("list", "", machine.paths) == (0, '{"https://r.example": "own"}')
    (place,) = machine.paths.run.glob("registries.json")
    assert place.stat().st_mode & 0o777 == 0o600
    assert registries.run("erase", "https://r.example", machine.paths) == (0, "")
    assert registries.run("get", "https://r.example", machine.paths)[0] == 1


def test_own_configuration_of_docker_is_left_alone(machine: harness.Machine) -> None:
    machine.paths.home.mkdir(parents=True, exist_ok=True)
    registries.configure(machine.paths)
    place = machine.paths.home / ".docker/config.json"
    assert json.loads(place.read_text()) == {"credsStore": "spt-flow"}
    place.write_text("{}")
    registries.configure(machine.paths)
    assert place.read_text() == "{}"
