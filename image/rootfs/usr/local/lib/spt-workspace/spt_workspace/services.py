# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two services of a workspace: the IDE, and Docker inside."""

from __future__ import annotations

import http.client
import json
import os
import pwd
import secrets
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import access
from .contract import Contract, Failure, Paths, reason, write_file
from .processes import Children, Service, end
from .record import Journal

IDE_PATIENCE = 120.0
DOCKER_PATIENCE = 60.0
SMALLEST_RANGE = 262_144
# dockerd needs an empty /run, but the workspace's files there must stay.
_INNER = 'rm -f /run/docker /run/containerd /run/xtables.lock; exec dockerd "$@"'


def ide_config(contract: Contract, password: str) -> str:
    """Return code-server's configuration. Without a password it listens on loopback only, behind a proxy that asks."""
    open_to_all = contract.ide_auth == "none" and contract.ide_bind == "127.0.0.1"
    return (
        f'bind-addr: "{contract.ide_bind}:{contract.ide_port}"\n'
        f"auth: {'none' if open_to_all else 'password'}\n"
        f'password: "{password}"\n'
        "cert: false\n"
        "disable-telemetry: true\n"
        "disable-update-check: true\n"
        "disable-getting-started-override: true\n"
    )


def ide(contract: Contract, paths: Paths, env: Mapping[str, str], children: Children, journal: Journal) -> Service:
    """Return the service code-server, with a new password that is stored in memory only."""
    password = secrets.token_urlsafe(24)
    journal.hide(password)
    config = paths.run / "code-server.yaml"
    write_file(config, ide_config(contract, password), 0o600)
    # The part of `status` that clients need to open a session: reading a file takes half the time of the command.
    enter = {"ide": {"port": contract.ide_port, "password": password}, "directory": contract.directory}
    write_file(paths.run / "session.json", json.dumps({**enter, "host_key": access.host_key(paths)}), 0o600)
    argv = ["code-server", "--config", str(config)]
    if contract.directory:
        argv.append(contract.directory)
    home = {**env, "HOME": str(paths.home)}

    def launch() -> subprocess.Popen[bytes]:
        return children.start(argv, home, cwd=str(paths.home))

    address = contract.ide_bind if contract.ide_bind not in ("0.0.0.0", "") else "127.0.0.1"  # noqa: S104
    return Service(
        "ide",
        children,
        journal,
        launch,
        lambda: answers(http.client.HTTPConnection(address, contract.ide_port, timeout=5), "/healthz"),
        IDE_PATIENCE,
        contract.tick,
    )


def answers(connection: http.client.HTTPConnection, path: str) -> bool:
    """Return whether GET ``path`` answers 200."""
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def range_problem(uid_map: str, subuid: str, user: str) -> str:
    """Return why the id range is too small for rootless Docker, else "" (docs/decisions/user-namespaces.md)."""
    ranges = [line.split(":") for line in subuid.splitlines() if line.split(":")[0] == user]
    if not ranges:
        return f"/etc/subuid has no range for {user}; the image is not one that can run Docker inside."
    mapped = [tuple(int(number) for number in line.split()) for line in uid_map.splitlines() if line.strip()]
    total = sum(count for _inside, _outside, count in mapped)
    for _user, start, count in ranges:
        first, last = int(start), int(start) + int(count) - 1
        if not any(inside <= first and last < inside + size for inside, _outside, size in mapped):
            return (
                f"The engine gives this workspace {total} ids, Docker inside needs those from {first} to {last}. "
                f"The engine's user-namespace range must have at least {SMALLEST_RANGE}."
            )
    return ""


def check_docker(paths: Paths) -> None:
    """Raise ``Failure`` when Docker inside cannot work here."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
        problem = range_problem(Path("/proc/self/uid_map").read_text(), Path("/etc/subuid").read_text(), user)
        if problem:
            raise Failure(problem)
        paths.docker_data.mkdir(exist_ok=True)
        if not os.access(paths.docker_data, os.W_OK):
            raise Failure(f"{paths.docker_data}, where Docker inside keeps its data, is not writable.")
    except (OSError, KeyError, ValueError) as error:
        words = reason(error) if isinstance(error, OSError) else str(error)
        raise Failure(f"Docker inside cannot be prepared: {words}.") from None


def docker_argv(paths: Paths, volume: bool) -> list[str]:
    """Return the command for rootlesskit and dockerd; ``volume``: the data root is a mount, where overlay2 works."""
    daemon = [
        f"--host=unix://{paths.docker_socket}",
        f"--data-root={paths.docker_data}",
        f"--exec-root={paths.runtime / 'docker'}",
        f"--pidfile={paths.runtime / 'docker.pid'}",
        "--shutdown-timeout=10",
        "--log-level=warn",
    ]
    if not volume:
        daemon.append("--storage-driver=fuse-overlayfs")
    kit = [
        "rootlesskit",
        f"--state-dir={paths.runtime / 'dockerd-rootless'}",
        "--net=slirp4netns",
        "--mtu=65520",
        "--slirp4netns-sandbox=auto",
        "--slirp4netns-seccomp=auto",
        "--disable-host-loopback",
        "--port-driver=builtin",
        "--copy-up=/etc",
        "--copy-up=/run",
        "--propagation=rslave",
    ]
    return [*kit, "sh", "-c", _INNER, "dockerd", *daemon]


def docker(
    contract: Contract,
    paths: Paths,
    env: Mapping[str, str],
    children: Children,
    journal: Journal,
    argv: Sequence[str] = (),
) -> Service:
    """Return the service rootless dockerd; ``argv`` replaces the real command in tests."""
    command = list(argv) or docker_argv(paths, os.path.ismount(paths.docker_data))
    home = {**env, "HOME": str(paths.home)}
    home.pop("DOCKER_HOST", None)

    def launch() -> subprocess.Popen[bytes]:
        for stale in (paths.runtime / "docker.pid", paths.docker_socket):
            stale.unlink(missing_ok=True)
        return children.start(command, home, cwd=str(paths.home))

    return Service(
        "docker",
        children,
        journal,
        launch,
        lambda: paths.docker_socket.exists() and answers(UnixConnection(paths.docker_socket), "/_ping"),
        DOCKER_PATIENCE,
        contract.tick,
    )


def ask_docker_to_end(service: Service, paths: Paths) -> None:
    """Send SIGTERM to dockerd, which stops its containers; rootlesskit ends with it."""
    try:
        number = int((paths.runtime / "docker.pid").read_text())
        if "dockerd" not in Path(f"/proc/{number}/comm").read_text():
            raise ValueError
        os.kill(number, signal.SIGTERM)
    except (OSError, ValueError):
        if service.process is not None:
            end(service.process, signal.SIGTERM)
