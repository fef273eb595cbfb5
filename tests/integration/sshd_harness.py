# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real OpenSSH server on loopback for one test, and the client configuration to reach it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.integration.agent_harness import docker, wait_for

SEPARATION = Path("/run/sshd")
"""The empty directory that sshd requires."""


@contextlib.contextmanager
def sshd(folder: Path, address: str = "127.0.0.1") -> Iterator[Path]:
    """Serve this user, shell and sftp, below ``folder``, on one of this machine's addresses.

    Yields an ssh configuration whose host is ``loopback``.
    """
    program = shutil.which("sshd")
    if program is None:
        pytest.skip("needs openssh-server")
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress {address}:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
    )
    key = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[{address}]:{port} {key}")
    options = {
        "HostName": address,
        "Port": port,
        "User": getpass.getuser(),
        "IdentityFile": folder / "user",
        "UserKnownHostsFile": folder / "known_hosts",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
    }
    lines = ["Host loopback", *(f"  {name} {value}" for name, value in options.items())]
    (folder / "ssh_config").write_text("\n".join(lines) + "\n")
    # Keep the directory, as on every machine that runs sshd: another test's server may need it.
    SEPARATION.mkdir(mode=0o755, exist_ok=True)
    server = subprocess.Popen(
        [program, "-D", "-e", "-f", str(folder / "sshd_config")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    (folder / "server.pid").write_text(str(server.pid))
    try:
        answers(folder / "ssh_config")
        yield folder / "ssh_config"
    finally:
        server.terminate()
        server.wait(20)


def answers(config: Path, within: float = 10.0) -> float:
    """Return the seconds of a login with one command; retry until ``within`` seconds are over."""
    until = time.monotonic() + within
    while True:
        begun = time.monotonic()
        done = subprocess.run(["ssh", "-F", str(config), "loopback", "true"], capture_output=True, timeout=60)
        if done.returncode == 0:
            return time.monotonic() - begun
        assert time.monotonic() < until, done.stderr.decode()
        time.sleep(0.1)


def hang_up(folder: Path) -> None:
    """Kill the sessions of the server below ``folder``, like a machine that loses power; the server stays."""
    for line in (folder / "server.pid").read_text().split():
        for child in Path(f"/proc/{line}/task/{line}/children").read_text().split():
            for process in (*Path(f"/proc/{child}/task/{child}/children").read_text().split(), child):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)


@contextlib.contextmanager
def open_git_server(image: str) -> Iterator[dict[str, str]]:
    """Serve one repository without access control, with sshd in a container of ``image`` on the default bridge."""
    name = f"spt-flow-test-open-git-server-{os.getpid()}"
    script = (
        "set -e; umask 077; mkdir ~/r; cd ~/r; git init -q -b main; "
        "git -c user.name=a -c user.email=a@b commit -q --allow-empty -m one; cd; git clone -q --bare r r.git; "
        "ssh-keygen -q -t ed25519 -N '' -f ~/host; sudo passwd -d coder; sudo mkdir -p /run/sshd; "
        "exec sudo /usr/sbin/sshd -D -e -p 2222 -o UsePAM=no -o StrictModes=no -o HostKey=/home/coder/host "
        "-o PermitEmptyPasswords=yes -o PasswordAuthentication=yes"
    )
    docker("run", "-d", "--name", name, "--user", "1000:1000", "--entrypoint", "/bin/sh", image, "-c", script)
    try:
        wait_for(lambda: "Server listening" in docker("logs", name).stderr, 60, lambda: docker("logs", name).stderr)
        address = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name).stdout.strip()
        public = docker("exec", name, "cat", "/home/coder/host.pub").stdout
        head = docker("exec", name, "git", "-C", "/home/coder/r.git", "rev-parse", "HEAD").stdout.strip()
        known = f"[{address}]:2222 {' '.join(public.split()[:2])}\n"
        yield {"url": f"ssh://coder@{address}:2222/home/coder/r.git", "known": known, "head": head}
    finally:
        docker("rm", "-f", name, check=False)
