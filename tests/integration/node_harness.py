# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A workspace host that is reached by SSH: this machine's engine behind an sshd on loopback."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


@dataclass(frozen=True)
class Node:
    """``address`` is the engine's; ``path`` starts with an `ssh` that knows the host's key and has a key for it."""

    name: str
    address: str
    path: str
    inventory: Path
    known_hosts: Path


@contextmanager
def node(folder: Path, name: str = "loop") -> Iterator[Node]:
    if SSHD is None or os.geteuid():
        pytest.skip("needs root and sshd")
    for key in ("host", "user"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(argv, check=True, timeout=30)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "StrictModes no\nUsePAM no\nUseDNS no\nPidFile none\nPermitRootLogin yes\n"
    )
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "config").write_text(
        f"UserKnownHostsFile {known}\nGlobalKnownHostsFile /dev/null\nIdentityFile {folder}/user\nIdentitiesOnly yes\n"
    )
    # OpenSSH finds its files by the passwd entry, so the test's files are named; of two -F options the last one counts.
    (folder / "bin").mkdir()
    (folder / "bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    (folder / "bin/ssh").chmod(0o755)
    inventory = folder / "hosts.yml"
    inventory.write_text(
        f"all: {{children: {{flow_nodes: {{hosts: {{{name}: "
        f"{{ansible_host: 127.0.0.1, ansible_port: {port}, ansible_user: {getpass.getuser()}}}}}}}}}}}\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            for _attempt in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            address = f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
            yield Node(name, address, f"{folder}/bin:{os.environ['PATH']}", inventory, known)
        finally:
            daemon.terminate()
            daemon.wait(10)
