# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start session owners and SSH agents for a test, and speak to them as a workspace does."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh

FORWARDED = ("sh", "-c", "echo ready; cat >/dev/null")
"""A command that lasts as long as its input is open, like one that carries a connection."""


def argv(path: Path, *command: str) -> list[str]:
    return [sys.executable, "-IS", str(workspace_ssh.OWNER), str(path), *command]


def wait_for(condition: Callable[[], Any], what: str, within: float = 20.0) -> None:
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until, f"timed out: {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def owner(path: Path, served: bool = True, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run an owner of ``path`` until the block ends; with ``served``, wait until it answers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSH_", "GIT_", "SPT_FLOW_"))}
    process = subprocess.Popen(
        argv(path, *FORWARDED), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**kept, **environment}
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        if served:
            wait_for(lambda: answers(path), "the owner serves its socket")
        yield process
    finally:
        if process.stdin:
            process.stdin.close()
        process.wait(20)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextlib.contextmanager
def agent(folder: Path) -> Iterator[tuple[Path, str]]:
    """Run an SSH agent with one key. Yield its socket and the key's public part."""
    place, key = folder / "agent", folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mine", "-f", str(key)], check=True)
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL)
    try:
        wait_for(place.exists, "the agent's socket")
        subprocess.run(["ssh-add", "-q", str(key)], env={**os.environ, "SSH_AUTH_SOCK": str(place)}, check=True)
        yield place, key.with_suffix(".pub").read_text().strip()
    finally:
        process.terminate()
        process.wait(20)


def keys(path: Path) -> str:
    """Return what `ssh-add -L` says through the socket ``path``."""
    environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
    done = subprocess.run(["ssh-add", "-L"], env=environment, capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout + done.stderr).strip()


def sign(path: Path, public: Path, file: Path) -> subprocess.CompletedProcess[bytes]:
    """Sign ``file`` with a key of the agent at ``path``."""
    argv = ["ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", str(public), str(file)]
    environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
    return subprocess.run(argv, env=environment, capture_output=True, timeout=30, check=False)


class Inside:
    """A workspace's end of the forwarded agent connection."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.settimeout(60)

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.socket.close()

    def ask(self, message: bytes) -> bytes:
        """Send a message and return the answer; empty if the connection was closed."""
        self.socket.sendall(framed(message))
        return self.read()

    def query(self, **query: Any) -> dict[str, Any]:
        """Send a query. Return its answer; empty if the connection was closed."""
        reply = self.ask(extension("query@spt.flow", query))
        assert reply[:1] in (b"", b"\x06"), reply[:1]
        answer: dict[str, Any] = json.loads(reply[5:]) if reply else {}
        return answer

    def git(self, text: str, operation: str = "get") -> dict[str, Any]:
        return self.query(kind="git", operation=operation, input=text)

    def read(self) -> bytes:
        head = self._read_exactly(4)
        return self._read_exactly(int.from_bytes(head, "big")) if head else b""

    def _read_exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            block = self.socket.recv(count - len(found))
            if not block:
                return b""
            found += block
        return found


def framed(message: bytes) -> bytes:
    return struct.pack(">I", len(message)) + message


def string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def extension(name: str, content: dict[str, Any]) -> bytes:
    return b"\x1b" + string(name.encode()) + string(json.dumps(content).encode())


@dataclass
class User:
    """A user's machine: a home of its own, and programs that only this user has."""

    home: Path
    socket: Path
    workspace: str = "demo"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": f"{self.home}/bin:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "GIT_CONFIG_NOSYSTEM": "1",
        }

    def program(self, name: str, script: str) -> Path:
        path = self.home / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def helper(self, script: str) -> None:
        """Make ``script`` git's credential helper; ``$1`` is the operation."""
        (self.home / ".gitconfig").write_text(f"[credential]\n\thelper = {self.program('helper', script)}\n")

    def settings(self, **values: str) -> None:
        path = self.home / "config/spt-flow/config.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
        path.chmod(0o600)

    def record(self, *hosts: str, own: bool = True, **inventory: Any) -> None:
        path = self.home / "state/spt-flow/workspaces" / f"{self.workspace}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"own": own, "hosts": hosts, "inventory": inventory}))

    def log(self) -> list[dict[str, Any]]:
        path = self.home / "state/spt-flow/credentials.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @contextlib.contextmanager
    def session(self, **environment: str) -> Iterator[Inside]:
        with owner(self.socket, **{**self.environment, **environment}), Inside(self.socket) as inside:
            yield inside


def private(folder: Path) -> Path:
    """Return the path of a socket in a folder that only this user can enter."""
    (folder / "run").mkdir(mode=0o700)
    (folder / "run/s").mkdir(mode=0o700)
    return folder / "run/s/demo"


def status(pid: int) -> Mapping[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
