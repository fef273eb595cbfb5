# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proxy on a node between the Coder server and the engine.

It listens on one Unix socket and calls the engine on another. A rejected request is answered with a sentence, which
appears in the build's log, and noted in the journal. Standard library only, because it runs on nodes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlencode

from ..docker import http as docker_http
from ..errors import FlowError, NotFound
from .body import Node, fingerprint
from .fit import KVM
from .http import PASSED_BACK, Malformed, Refused, Request, answer_head, read_request
from .rules import Call, Rules

ENGINE = "/var/run/docker.sock"
MOST_CONNECTIONS = 128
IDLE, ANSWER, LONG = 600.0, 900.0, 120.0
"""Seconds that a client may be silent, and that the engine may be silent: during a call, and during a wait."""
GRACE = 30
"""Seconds in which a leftover container may end its programs, as in the template."""
DRAIN = 20.0
"""Seconds in which running calls may finish when the service stops."""
FIRST_DESCRIPTOR = 3
"""The first socket passed by systemd."""
LONGEST_NOTE = 400
UNUSED = 60.0
"""Seconds without a client after which the program ends if systemd has the socket, so that updates take effect."""


def settings(path: str) -> tuple[Node, str]:
    """Read the node's settings and its engine's socket from the file.

    The filters are files in the directory that it names.
    """
    given = json.loads(Path(path).read_text(encoding="utf-8"))
    profiles = frozenset(fingerprint(one.read_bytes()) for one in sorted(Path(given["seccomp"]).glob("*.json")))
    node = Node(given["runtime"], tuple(given["networks"]), profiles, given.get("apparmor", ""), given.get("kvm", KVM))
    return node, given.get("engine", ENGINE)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """The engine at ``path``; one connection per call.

    Calls of the Coder server keep the API version that they name; lookups use the shared client.
    """

    def __init__(self, path: str = ENGINE) -> None:
        self.path = path
        self._client = docker_http.Engine(f"unix://{path}")
        self._removing = threading.Lock()

    def send(self, call: Call) -> tuple[_Connection, http.client.HTTPResponse]:
        """Return the connection, which the caller closes, and the answer. Raise ``OSError`` or ``HTTPException``."""
        connection = _Connection(self.path, LONG if call.long else ANSWER)
        target = call.path + (f"?{urlencode(call.query)}" if call.query else "")
        headers = {"Content-Type": "application/json"} if call.body else {}
        try:
            connection.request(call.method, target, call.body or None, headers)
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def remove(self, container: str) -> None:
        """Stop a container in an orderly way and remove it. Raise ``OSError``.

        One at a time: Terraform deletes both volumes of a workspace at once, and the engine refuses a second removal.
        """
        try:
            with self._removing:
                self._client.request_json("POST", f"/containers/{container}/stop", {"t": GRACE}, timeout=ANSWER)
                self._client.request_json("DELETE", f"/containers/{container}", {"force": True}, timeout=ANSWER)
        except NotFound:
            return
        except FlowError as error:
            raise OSError(error.message) from None

    def lookup(self, path: str) -> Any:
        """Return the engine's description of an object, ``None`` if it does not exist. Raise ``OSError``."""
        try:
            return self._client.get_json(path, timeout=ANSWER)
        except NotFound:
            return None
        except FlowError as error:
            raise OSError(error.message) from None


def note(text: str, level: int = 4) -> None:
    """Write one line to the journal, in printable characters."""
    clean = "".join(letter if letter.isprintable() and letter.isascii() else "?" for letter in text)
    os.write(2, f"<{level}>{clean[:LONGEST_NOTE]}\n".encode("ascii"))


def peer(client: socket.socket) -> str:
    """Return uid and pid of the process at the other end of a Unix socket."""
    pid, uid, _group = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"uid={uid} pid={pid}"


class Proxy:
    """Serve the socket ``listener`` by the rules, with one thread per connection."""

    def __init__(self, listener: socket.socket, rules: Rules, engine: Engine, unused: float | None = None) -> None:
        self._listener, self._rules, self._engine = listener, rules, engine
        self._unused = unused
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._clients = self._busy = 0
        self._stopping = False

    def serve(self) -> None:
        """Serve until ``stop``, or until unused. Running calls may finish then."""
        while not self._stopping:
            ready = select.select([self._listener], [], [], self._unused)[0]
            if not ready and self._clients == 0:
                break
            if not ready:
                continue
            try:
                client = self._listener.accept()[0]
            except OSError:
                break
            if not self._places.acquire(timeout=1):
                note("refused: too many connections")
                client.close()
                continue
            with self._lock:
                self._clients += 1
            threading.Thread(target=self._connection, args=(client,), daemon=True).start()
        end = time.monotonic() + DRAIN
        while self._busy and time.monotonic() < end:
            time.sleep(0.05)

    def stop(self) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _connection(self, client: socket.socket) -> None:
        try:
            client.settimeout(IDLE)
            with client, client.makefile("rb") as stream:
                while not self._stopping and self._request(client, stream):
                    pass
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._clients -= 1
            self._places.release()

    def _request(self, client: socket.socket, stream: BinaryIO) -> bool:
        """Answer one request. Return whether another may follow."""
        request: Request | None = None
        try:
            request = read_request(stream)
            if request is None:
                return False
            with self._working():
                return self._forward(client, request, self._rules.engine_call(request))
        except Malformed as error:
            note(f"refused: not a request by {peer(client)}: {error}")
            _say(client, 400, f"spt.flow refuses a malformed request to the engine: {error}.", True)
            return False
        except Refused as error:
            what = f"{request.method} {request.path}" if request else "a request"
            note(f"refused: {what} by {peer(client)}: {error}")
            sentence = (
                f"spt.flow refuses {what[:120]} on this node: {error}. Only calls that its own template needs are "
                "allowed."
            )
            _say(client, 403, sentence, request is None or request.last)
            return request is not None and not request.last
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            note(f"the engine did not answer: {type(error).__name__}: {error}", 3)
            _say(client, 502, f"The engine of this node does not answer ({type(error).__name__}).", True)
            return False

    @contextlib.contextmanager
    def _working(self) -> Any:
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1

    def _forward(self, client: socket.socket, request: Request, call: Call) -> bool:
        if call.leftover:
            note(f"removed the leftover container {call.leftover[:12]} before {call.method} {call.path}", 5)
            self._engine.remove(call.leftover)
        connection, answer = self._engine.send(call)
        with contextlib.closing(connection):
            headers = {name: answer.headers[name] for name in PASSED_BACK if name in answer.headers}
            bodiless = call.method == "HEAD" or answer.status in (204, 304)
            if not bodiless:
                headers["Transfer-Encoding"] = "chunked"
            client.sendall(answer_head(answer.status, answer.reason or "-", headers, request.last))
            if not bodiless:
                # Flush each part: a client that waits for a container gets the head at once and the end much later.
                while block := answer.read1(65536):
                    client.sendall(b"%x\r\n%s\r\n" % (len(block), block))
                client.sendall(b"0\r\n\r\n")
        return not request.last


def _say(client: socket.socket, status: int, sentence: str, last: bool) -> None:
    body = json.dumps({"message": sentence}).encode()
    headers: Mapping[str, str] = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    with contextlib.suppress(OSError):
        client.sendall(answer_head(status, http.client.responses[status], headers, last) + body)


def is_socket_activated() -> bool:
    """Return whether systemd has opened the socket, which then outlives this program."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1"


def listening(path: str) -> socket.socket:
    """Return systemd's socket, or a new one at ``path`` without systemd."""
    if is_socket_activated():
        return socket.socket(fileno=FIRST_DESCRIPTOR)
    made = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    before = os.umask(0o117)
    try:
        made.bind(path)
    finally:
        os.umask(before)
    made.listen(MOST_CONNECTIONS)
    return made


def main(configuration: str, path: str) -> int:
    """Serve until a signal ends the program."""
    try:
        node, engine_path = settings(configuration)
    except (OSError, ValueError, KeyError, TypeError, Refused) as error:
        sys.stderr.write(f"spt-flow-engine-proxy: cannot use {configuration}: {error}\n")
        return 1
    engine = Engine(engine_path)
    proxy = Proxy(listening(path), Rules(node, engine.lookup), engine, UNUSED if is_socket_activated() else None)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_frame: proxy.stop())
    proxy.serve()
    return 0
