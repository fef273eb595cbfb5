# pylint: disable=unused-import; pylint takes this file for the standard library's http
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small client of the Docker Engine API, standard library only.

The Docker SDK costs 0.4 s to import, this 0.05 s (docs/decisions/docker-api-client.md).
Paths and shapes are those of Docker's API reference; ``versions`` chooses the version of the API. ``DOCKER_HOST`` may
be unix://, tcp:// (TLS by ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH``) or ssh:// (through
``docker system dial-stdio``, as Docker's own client does).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from .. import clock
from ..errors import Conflict, DeadlineExceeded, FlowError, NotFound, Unhealthy
from .versions import SPOKEN, after_refusal

DEFAULT_HOST = "unix:///var/run/docker.sock"
MOST_OUTPUT = 16 << 20
"""Maximum output of a command in a container, in bytes."""
NO_SPACE = "no space left on device"
AT_THE_DOOR = 8
_FRAME = struct.Struct(">BxxxL")


class ContainerResult(NamedTuple):
    """A finished command of the container with the id ``container``."""

    status: int
    stdout: bytes
    stderr: bytes
    container: str


class _Connection(http.client.HTTPConnection):
    """HTTP over the transport that ``DOCKER_HOST`` names."""

    def __init__(self, host: str, timeout: float | None) -> None:
        super().__init__("docker", timeout=timeout)
        self._url = urlsplit(host)
        self._child: subprocess.Popen[bytes] | None = None
        self.complaint = ""
        """Last line written by ssh, or by docker on the other side, once closed."""

    def connect(self) -> None:
        if self._url.scheme == "unix":
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._url.path)
        elif self._url.scheme == "ssh":
            self._connect_ssh()
        else:
            self._connect_tcp()

    def _connect_tcp(self) -> None:
        tls = bool(os.environ.get("DOCKER_TLS_VERIFY"))
        address = (self._url.hostname or "", self._url.port or (2376 if tls else 2375))
        plain = socket.create_connection(address, self.timeout)
        if not tls:
            self.sock = plain
            return
        import ssl

        folder = os.environ.get("DOCKER_CERT_PATH") or os.path.expanduser("~/.docker")
        context = ssl.create_default_context(cafile=os.path.join(folder, "ca.pem"))
        context.load_cert_chain(os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem"))
        self.sock = context.wrap_socket(plain, server_hostname=address[0])

    def _connect_ssh(self) -> None:
        from . import ssh as docker_ssh

        ours, theirs = socket.socketpair()
        argv = [*docker_ssh.engine_argv(self._url.geturl()), "docker", "system", "dial-stdio"]
        # A file, not a pipe: the connection that ssh keeps for the next call would keep a pipe open.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the connection
        with theirs:
            self._child = subprocess.Popen(  # pylint: disable=ansible-bad-function
                argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._complaints.fileno()
            )
        ours.settimeout(self.timeout)
        self.sock = ours

    def close(self) -> None:
        super().close()
        if self._child is not None:
            self._child.terminate()
            self._child.wait()
            self._child = None
            with self._complaints as file:
                file.seek(0)
                lines = file.read(65536).decode(errors="replace").splitlines()
            self.complaint = next((line.strip() for line in reversed(lines) if line.strip()), "")


class Engine:
    """One engine. Uses a connection per request, which takes less than a millisecond on a local socket.

    Over SSH it takes a quarter of a second, so connections are reused, and only a few are opened at a time: sshd drops
    new ones when ten are unauthenticated (``MaxStartups``).
    """

    def __init__(self, host: str = "") -> None:
        self.host = host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
        self._far = self.host.startswith("ssh://")
        self._idle: list[_Connection] = []
        self._door = threading.Semaphore(AT_THE_DOOR)
        self._date = ""
        self._version = SPOKEN[0]

    @property
    def clock(self) -> float:
        """The engine's time (epoch, whole seconds) at its last answer, or this machine's if it sent none."""
        moment = clock.from_header(self._date)
        return time.time() if moment is None else moment

    @property
    def local(self) -> bool:
        return self.host.startswith("unix://")

    def get_json(self, path: str, query: Mapping[str, Any] | None = None, timeout: float = 60.0) -> Any:
        """Return the JSON answer to a GET; errors as in ``request``."""
        return self.request_json("GET", path, query, timeout=timeout)

    def request_json(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        timeout: float = 60.0,
    ) -> Any:
        """Return the JSON answer, or ``None`` if it is empty.

        Raise ``NotFound``, ``Conflict``, ``DeadlineExceeded``, ``Unhealthy``, or ``FlowError`` for other errors.
        """
        connection, answer = self.request(method, path, query, body, timeout)
        try:
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._broken(method, path, error) from None
        self._release(connection, answer)
        if not data:
            return None
        try:
            return json.loads(data)
        except ValueError:
            raise self._broken(method, path, "its answer is not JSON") from None

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        timeout: float | None = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        """Send a request. Return the connection, which the caller closes, and a successful answer."""
        while True:
            version = self._version
            connection, answer, refusal = self._send(version, method, path, query, body, timeout, headers)
            if answer.status < 400:
                return connection, answer
            # The engine compares versions before it acts, so a request rejected for its version can be repeated.
            better = after_refusal(version, answer.status, _message(refusal), answer.headers.get("Api-Version", ""))
            if not better:
                connection.close()
                raise self._refused(method, path, answer.status, _message(refusal))
            self._release(connection, answer)
            self._version = better

    def _send(
        self,
        version: str,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Any,
        timeout: float | None,
        headers: Mapping[str, str] | None,
    ) -> tuple[_Connection, http.client.HTTPResponse, bytes]:
        """Return connection, answer and, if the engine rejected the request, the body of the answer."""
        connection = self._connection(timeout)
        data, kind = (
            (body, "application/x-tar") if isinstance(body, bytes) else (json.dumps(body).encode(), "application/json")
        )
        send = {"Content-Type": kind, **(headers or {})} if body is not None else dict(headers or {})
        try:
            with contextlib.nullcontext() if connection.sock or not self._far else self._door:
                connection.request(method, _url(version, path, query), data if body is not None else None, send)
                answer = connection.getresponse()
            self._date = answer.headers.get("Date", "")
            return connection, answer, answer.read() if answer.status >= 400 else b""
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._broken(method, path, error, connection.complaint) from None

    def _release(self, connection: _Connection, answer: http.client.HTTPResponse) -> None:
        """Keep a connection for the next request if its answer was read completely and new ones are slow."""
        if self._far and not answer.will_close:
            self._idle.append(connection)
        else:
            connection.close()

    def _connection(self, timeout: float | None) -> _Connection:
        """Return an idle connection, or a new one that is not connected yet."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return _Connection(self.host, timeout)
        connection.sock.settimeout(timeout)
        return connection

    def _refused(self, method: str, path: str, status: int, message: str) -> FlowError:
        said = message or f"status {status}"
        details = {"status": status, "said": said}
        if NO_SPACE in said:
            return Unhealthy(
                f"The Docker engine at {self.host} refused {method} {path}: its disk is full ({said}).",
                "No data is lost. Free space (docker system df shows the usage), then run the command again.",
                details,
            )
        kind = {404: NotFound, 409: Conflict}.get(status, FlowError)
        return kind(f"The Docker engine refused {method} {path}: {said}.", details=details)

    def _broken(self, method: str, path: str, error: Any, complaint: str = "") -> FlowError:
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(
                f"The Docker engine at {self.host} did not answer {method} {path} in time.",
                "Check whether it is overloaded or hangs: docker info",
            )
        if isinstance(error, PermissionError):
            return Unhealthy(
                f"This user may not use the Docker engine at {self.host}.",
                "Join the group docker (sudo usermod -aG docker $USER) and log in again.",
            )
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if self._far:
            return Unhealthy(
                f"The Docker engine at {self.host} does not answer ({complaint.rstrip('.') or reason}).",
                "Check that you can log in without a password and may use it: ssh <host> docker version",
            )
        return Unhealthy(
            f"The Docker engine at {self.host} does not answer ({reason}).",
            "Start it (sudo systemctl start docker), or set one up: make quickstart",
        )

    # Streams

    def frames(self, answer: http.client.HTTPResponse, multiplexed: bool = True) -> Iterator[tuple[int, bytes]]:
        """Yield (stream, bytes) of logs and attached execs: 1 is stdout, 2 stderr (Docker's "stream format")."""
        try:
            while True:
                if not multiplexed:
                    block = answer.read1(65536)
                    if not block:
                        return
                    yield 1, block
                    continue
                head = _read_exactly(answer, _FRAME.size)
                if head is None:
                    return
                stream, size = _FRAME.unpack(head)
                yield stream, _read_exactly(answer, size) or b""
        except (http.client.HTTPException, OSError) as error:
            raise self._broken("GET", "stream", error) from None

    def run(
        self, container: str, argv: Sequence[str], stdin: bytes = b"", timeout: float = 60.0, user: str = ""
    ) -> ContainerResult:
        """Run ``argv`` in ``container``, an id or a name, for at most ``timeout`` seconds."""
        options = {
            "Cmd": list(argv),
            "User": user,
            "AttachStdout": True,
            "AttachStderr": True,
            "AttachStdin": bool(stdin),
        }
        made = self.request_json("POST", f"/containers/{quote(container)}/exec", body=options, timeout=timeout)
        upgrade = {"Connection": "Upgrade", "Upgrade": "tcp"}
        path = f"/exec/{made['Id']}"
        connection, answer = self.request(
            "POST", f"{path}/start", body={"Detach": False}, timeout=timeout, headers=upgrade
        )
        output = {1: bytearray(), 2: bytearray()}
        end = time.monotonic() + timeout
        try:
            stream = connection.sock if answer.status == 101 else None
            if stream is not None:
                if stdin:
                    stream.sendall(stdin)
                    stream.shutdown(socket.SHUT_WR)
                source: Any = answer.fp
            else:
                source = answer
            while head := _read_exactly(source, _FRAME.size):
                which, size = _FRAME.unpack(head)
                output.setdefault(which, bytearray()).extend(_read_exactly(source, size) or b"")
                if time.monotonic() > end:
                    raise TimeoutError
                if sum(map(len, output.values())) > MOST_OUTPUT:
                    raise Unhealthy(f"A command in container {container} printed more than {MOST_OUTPUT >> 20} MiB.")
        except (OSError, http.client.HTTPException) as error:
            raise self._broken("POST", f"{path}/start", error) from None
        finally:
            connection.close()
        ended = self.get_json(f"{path}/json", timeout=timeout)
        if ended["ExitCode"] is None:
            # The connection was cut while the command was running, so its status is unknown.
            raise self._broken("POST", f"{path}/start", "its answer ended before the command")
        return ContainerResult(int(ended["ExitCode"]), bytes(output[1]), bytes(output[2]), ended["ContainerID"])


def _read_exactly(source: Any, size: int) -> bytes | None:
    """Return ``size`` bytes, or ``None`` if the stream ends earlier."""
    parts = b""
    while len(parts) < size:
        block = source.read(size - len(parts))
        if not block:
            return None
        parts += block
    return parts


def _message(body: bytes) -> str:
    """Return the engine's message in the body of an error."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def _url(version: str, path: str, query: Mapping[str, Any] | None) -> str:
    words = {
        name: json.dumps(value)
        if isinstance(value, (dict, list))
        else str(value).lower()
        if isinstance(value, bool)
        else value
        for name, value in (query or {}).items()
    }
    return f"/v{version}{path}" + (f"?{urlencode(words)}" if words else "")


def connect(host: str = "") -> Engine:
    """Return the engine that ``host``, ``DOCKER_HOST`` or Docker's default names, without a request."""
    return Engine(host)
