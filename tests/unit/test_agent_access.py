# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys, sessions and git identity of a workspace."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from spt_workspace import access, contract

ED = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


@pytest.fixture
def short_path():
    """A folder with a short path, because socket names are limited to 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="spt-") as folder:
        yield Path(folder)


@pytest.fixture
def machine(short_path):
    machine = harness.Machine(short_path / "m")
    yield machine
    machine.kill_rest()


@pytest.mark.parametrize("text", [ED, f"{ED} me@host", f"  {ED} a comment with words \n"])
def test_public_key_is_normalised_to_one_line(text):
    assert access.check_key(text) == f"{ED}\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        f'command="id" {ED}',
        f"no-pty {ED}",
        f"{ED}\n{ED}",
        f"{ED}\r\nssh-rsa AAAA",
        f"{ED}\x00",
        "ssh-dss AAAAB3NzaC1kc3MAAACB",
        "ssh-ed25519 !!!!",
        "ssh-ed25519 AAAA",
        "ssh-rsa " + ED.split()[1],
        "cert-authority " + ED,
        "-oProxyCommand=x y",
        ED + "A" * 9000,
        ED.replace(" ", "\t"),
    ],
)
def test_invalid_public_key_grants_no_access(machine, text):
    with pytest.raises(contract.Failure) as caught:
        access.check_key(text)
    assert caught.value.status == 2 and caught.value.sentence.isprintable()


def test_known_hosts_line_names_only_the_requested_host(machine):
    machine.start()
    machine.wait("home", "ok")
    done = machine.command("hostkey", "spt-flow-me-demo")
    assert done.stdout.startswith("spt-flow-me-demo ssh-ed25519 AAAA") and done.stdout.count("\n") == 1
    assert done.stdout.split()[2] == machine.status()["host_key"].split()[1]
    for bad in ("a b", "a\nb", "*", "a,b", "!x", ""):
        assert machine.command("hostkey", bad).returncode == 2


def test_git_identity_is_set_and_user_settings_win(machine):
    nasty = 'Zoë "Z"\\ # ; $(id)'
    machine.start(SPT_FLOW_GIT_NAME=nasty, SPT_FLOW_GIT_EMAIL="z@example.org")
    machine.wait("home", "ok")
    env = {
        "HOME": str(machine.paths.home),
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_SYSTEM": str(machine.paths.run / "gitconfig"),
    }

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", *words], env=env, cwd=machine.paths.home, capture_output=True, text=True
        ).stdout.strip()

    assert ask("config", "user.name") == nasty and ask("config", "user.email") == "z@example.org"
    assert ask("config", "credential.helper") == "!spt-workspace credential"
    assert "known_hosts" in ask("config", "core.sshCommand")
    ask("init", "-q", "x")
    ask("-C", "x", "commit", "-q", "--allow-empty", "-m", "first")
    assert ask("-C", "x", "log", "-1", "--format=%an <%ae>") == f"{nasty} <z@example.org>"
    ask("config", "--global", "user.name", "Other")
    assert ask("config", "user.name") == "Other" and nasty not in (machine.paths.home / ".gitconfig").read_text()


def test_name_with_line_breaks_cannot_add_settings(machine):
    values = contract.Contract(git_name="x\n[core]\n\tsshCommand = touch /tmp/x", git_email="a\r\nb")
    text = access.gitconfig(values, machine.paths)
    assert text.count("\n[core]\n") == 1 and "\n\tsshCommand" not in text


def test_known_hosts_contains_pinned_and_extra_lines(machine):
    machine.start(SPT_FLOW_KNOWN_HOSTS=f"git.example.org {ED}\n")
    machine.wait("home", "ok")
    text = (machine.paths.run / "known_hosts").read_text()
    assert f"git.example.org {ED}\n" in text and "github.com ssh-ed25519" in text
    for line in access.KNOWN_HOSTS.read_text().splitlines():
        if not line.startswith("#"):
            access.check_key(line.split(" ", 1)[1])


def test_sshd_accepts_the_generated_configuration(machine):
    machine.start(SPT_FLOW_DOCKER="on", WEIRD='a"b\\c d', MULTI="a\nb")
    machine.wait("home", "ok")
    text = (machine.paths.run / "sshd_config").read_text()
    for line in (
        "UsePAM no",
        "StrictModes no",
        "StreamLocalBindUnlink yes",
        "PidFile none",
        "PermitUserEnvironment no",
    ):
        assert f"{line}\n" in text
    assert text.count("SetEnv") == 1 and "MULTI" not in text and "SPT_FLOW" not in text
    if not os.path.exists(access.SSHD):
        pytest.skip("this machine has no sshd to check the file with")
    # sshd's service creates it, and the service may never have run here.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    done = subprocess.run(
        [access.SSHD, "-T", "-f", str(machine.paths.run / "sshd_config")], capture_output=True, text=True
    )
    assert "allowagentforwarding yes" in done.stdout, done.stderr


def test_session_waits_for_a_start_with_a_timeout(machine, monkeypatch):
    # Do not stop the clock: servers of other tests may still read it.
    monkeypatch.setattr(access.time, "monotonic", itertools.count(0.0, 5.0).__next__)
    with pytest.raises(contract.Failure, match="has no host key yet"):
        access.session(ED, machine.paths)


def test_session_is_private_counts_as_activity_and_is_removed(machine, monkeypatch):
    stub = machine.bin / "sshd"
    stub.write_text(f'#!/bin/sh\necho "$@" > {machine.root}/sshd.argv\nread line\nexit 7\n')
    stub.chmod(0o755)
    machine.start()
    machine.wait("ide", "ok")
    program = harness.COMMAND.replace(
        "from spt_workspace.main",
        f"from spt_workspace import access\naccess.SSHD = {str(stub)!r}\nfrom spt_workspace.main",
    )
    argv = [
        sys.executable,
        "-c",
        program.format(library=str(harness.LIBRARY), root=str(machine.root)),
        "session",
        ED,
    ]
    client = subprocess.Popen(argv, stdin=subprocess.PIPE)
    harness.wait_for(lambda: machine.status()["life"]["reason"] == "an SSH session is open", 5)
    (place,) = machine.paths.sessions.iterdir()
    assert (place / "authorized_keys").read_text() == f"{ED}\n"
    assert (place / "authorized_keys").stat().st_mode & 0o777 == 0o600 and place.stat().st_mode & 0o777 == 0o700
    assert f"AuthorizedKeysFile={place}/authorized_keys" in (machine.root / "sshd.argv").read_text()
    client.communicate(b"\n")
    assert client.returncode == 7
    assert not list(machine.paths.sessions.iterdir())
    client = subprocess.Popen(argv, stdin=subprocess.PIPE)
    harness.wait_for(lambda: list(machine.paths.sessions.iterdir()))
    time.sleep(0.3)
    client.kill()
    client.wait()
    harness.wait_for(lambda: not list(machine.paths.sessions.iterdir()), 5)
