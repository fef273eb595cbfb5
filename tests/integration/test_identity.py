# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's identity in sessions of the real OpenSSH: client and server, with a session owner between them."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh
from ansible_collections.spt.flow.tests.unit import identity_harness as harness

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
HOST = "identity-ada-demo"

pytestmark = pytest.mark.skipif(not SSHD or os.geteuid() != 0, reason="needs openssh-server and root")


@dataclass
class Client:
    """An OpenSSH client whose `ProxyCommand` is an owner that starts `sshd -i`."""

    folder: Path
    config: Path
    environment: dict[str, str]

    def argv(self, *words: str) -> list[str]:
        return ["ssh", "-F", str(self.config), *words]

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **more}
        return subprocess.run(
            self.argv(*words), env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )

    @property
    def socket(self) -> Path:
        return self.folder / "spt-flow/s" / HOST


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    # A short path, because a socket is below it.
    with tempfile.TemporaryDirectory(prefix="id-") as name:
        folder = Path(name)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin yes\nPidFile none\nPasswordAuthentication no\n"
        )
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        proxy = f"{SSHD} -i -f {folder}/sshd_config"
        settings = {
            "User": "root",
            "ProxyCommand": proxy,
            "IdentityFile": f"{folder}/user",
            "IdentitiesOnly": "yes",
            "ForwardAgent": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
        }
        text = workspace_ssh.owned("identity-*", proxy) + workspace_ssh.match("originalhost identity-*", settings)
        (folder / "config").write_text(text)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSH_", "GIT_"))}
        yield Client(folder, folder / "config", kept)


def test_session_behaves_as_without_owner(client: Client) -> None:
    done = client.run(HOST, "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert client.run(HOST, "kill -TERM $$").returncode == 255
    assert not client.socket.exists(), "the socket ends with the session"


def test_agent_is_forwarded_through_the_owner(client: Client, tmp_path: Path) -> None:
    with harness.agent(tmp_path) as (place, public):
        assert client.run(HOST, "ssh-add -L", SSH_AUTH_SOCK=str(place)).stdout.strip() == public


def test_user_without_an_agent_gets_a_channel(client: Client) -> None:
    done = client.run(HOST, 'test -S "$SSH_AUTH_SOCK" && ssh-add -L')
    assert (done.returncode, done.stdout) == (1, "The agent has no identities.\n")


def test_signing_with_a_forwarded_key_works(client: Client, tmp_path: Path) -> None:
    with harness.agent(tmp_path) as (place, public):
        (tmp_path / "public").write_text(public)
        sign = f"echo text | ssh-keygen -q -Y sign -n file -f {shlex.quote(str(tmp_path / 'public'))}"
        assert "BEGIN SSH SIGNATURE" in client.run(HOST, sign, SSH_AUTH_SOCK=str(place)).stdout


def test_terminal_works_through_the_owner(client: Client) -> None:
    child = pexpect.spawn(client.argv("-t", HOST, "sh")[0], client.argv("-t", HOST, "sh")[1:], env=client.environment)
    child.expect("[#$] ", timeout=30)
    child.setwinsize(33, 77)
    child.sendline("sleep 60; stty size")
    time.sleep(1)
    child.sendintr()
    child.sendline("stty size")
    child.expect("33 77", timeout=30)
    child.sendline("exit 5")
    child.expect(pexpect.EOF, timeout=30)
    child.close()
    assert child.exitstatus == 5


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_client_leaves_neither_owner_nor_session(client: Client, number: signal.Signals) -> None:
    process = subprocess.Popen(
        client.argv(HOST, "echo $$; exec cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=client.environment
    )
    assert process.stdin is not None and process.stdout is not None
    remote = int(process.stdout.readline())
    harness.wait_for(client.socket.exists, "the owner serves")
    process.send_signal(number)
    process.wait(20)
    process.stdin.close()
    process.stdout.close()
    harness.wait_for(lambda: not _runs(remote), "the remote command ends")
    harness.wait_for(lambda: not client.socket.exists(), "the owner ends")


def test_session_survives_its_owner_and_another_session_serves(client: Client, tmp_path: Path) -> None:
    with harness.agent(tmp_path) as (place, public):
        environment = {**client.environment, "SSH_AUTH_SOCK": str(place)}
        command = 'while read -r line; do eval "$line"; done'
        first = subprocess.Popen(
            client.argv(HOST, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert first.stdin is not None and first.stdout is not None
        print("ssh-add -L", file=first.stdin, flush=True)
        assert first.stdout.readline().strip() == public
        os.kill(_owner_of(first.pid), signal.SIGKILL)
        print("echo alive", file=first.stdin, flush=True)
        assert first.stdout.readline() == "alive\n"
        print("ssh-add -L 2>/dev/null; echo $?", file=first.stdin, flush=True)
        assert first.stdout.readline() != "0\n"
        second = subprocess.Popen(client.argv(HOST, "sleep 30"), env=environment)
        harness.wait_for(lambda: harness.keys(client.socket) == public, "the second owner serves")
        print("ssh-add -L", file=first.stdin, flush=True)
        assert first.stdout.readline().strip() == public, "the first session uses the second one's owner"
        first.stdin.close()
        assert first.wait(20) == 0
        second.terminate()
        second.wait(20)


def test_ssh_works_when_the_owner_has_disappeared(client: Client, tmp_path: Path) -> None:
    text = client.config.read_text().replace("/owner.py", "/missing.py")
    client.config.write_text(text)
    with harness.agent(tmp_path) as (place, public):
        assert client.run(HOST, "ssh-add -L", SSH_AUTH_SOCK=str(place)).stdout.strip() == public


def test_name_too_long_for_a_socket_forwards_the_agent(client: Client, tmp_path: Path) -> None:
    with harness.agent(tmp_path) as (place, public):
        done = client.run("identity-" + "x" * 100, "ssh-add -L", SSH_AUTH_SOCK=str(place))
    assert done.stdout.strip() == public
    assert not (client.folder / "spt-flow/s").exists()


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _owner_of(ssh: int) -> int:
    """Return the process of the owner below an OpenSSH client."""
    children = Path(f"/proc/{ssh}/task/{ssh}/children").read_text().split()
    return next(int(child) for child in children if b"owner.py" in Path(f"/proc/{child}/cmdline").read_bytes())
