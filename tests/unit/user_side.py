# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the user's side: an agent socket that answers the two extensions, or misbehaves."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answer = Callable[[dict[str, Any]], "dict[str, Any] | bytes | None"]
"""From a request to its answer: an object, raw bytes, or ``None`` to end the connection without one."""


UNKNOWN = {"ok": False, "error": "The request has an unknown kind."}
OTHER = b"\x00\x00\x00\x01\x05"
"""The answer of an agent that does not know the extension."""


class UserSide:
    """``asked`` has the requests, ``raw`` the messages of the agent protocol itself.

    They are answered with ``keys``, or by the agent at ``upstream``. ``stream`` is the socket to which a stream leads.
    ``ping`` is the answer to a ping, ``None`` to hang.
    """

    def __init__(
        self,
        place: Path,
        answer: Answer,
        keys: bytes = b"\x0c\x00\x00\x00\x00",
        upstream: str = "",
        stream: str = "",
        ping: dict[str, Any] | bytes | None = UNKNOWN,
    ) -> None:
        self.place = place
        self.answer = answer
        self.keys = keys
        self.upstream = upstream
        self.stream = stream
        self.ping = ping
        self.pinged = 0
        self.asked: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self._open: list[socket.socket] = []
        place.parent.mkdir(parents=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def end(self) -> None:
        """End the session: its socket and all connections."""
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self.place.unlink()
            self.place.parent.rmdir()
        for client in self._open:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = self._listener.accept()
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while head := client.recv(4, socket.MSG_WAITALL):
                message = client.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL)
                if message[0] != 27 or b"@spt.flow" not in message[:30]:
                    self.raw.append(message)
                    keys = ask_agent(Path(self.upstream), message) if self.upstream else self.keys
                    client.sendall(struct.pack(">I", len(keys)) + keys)
                    continue
                name, body = strings(message[1:])
                if json.loads(body) == {"kind": "ping"}:
                    self._ping(client)
                    continue
                self.asked.append(json.loads(body))
                answer = self.answer(self.asked[-1])
                if answer is None:
                    return
                if name == b"stream@spt.flow":
                    client.sendall(struct.pack(">I", 1) + b"\x06")
                    self._pipe(client)
                    return
                client.sendall(answer if isinstance(answer, bytes) else framed(answer))

    def _ping(self, client: socket.socket) -> None:
        """Answer as the user's side does, or hang, or be another agent."""
        self.pinged += 1
        if self.ping is None:
            time.sleep(60)
        elif isinstance(self.ping, bytes):
            client.sendall(self.ping)
        else:
            client.sendall(framed(self.ping))

    def _pipe(self, client: socket.socket) -> None:
        """Join the connection to ``stream``; without one, answer everything in capital letters."""
        if not self.stream:
            while block := client.recv(4096):
                client.sendall(block.upper())
            return
        with socket.socket(socket.AF_UNIX) as far:
            far.connect(self.stream)
            ends = {client: far, far: client}
            while True:
                for source in select.select(list(ends), [], [])[0]:
                    block = source.recv(65536)
                    if not block:
                        return
                    ends[source].sendall(block)


def framed(answer: dict[str, Any]) -> bytes:
    text = json.dumps(answer).encode()
    return struct.pack(">I", 5 + len(text)) + b"\x06" + struct.pack(">I", len(text)) + text


def ask_agent(place: Path, message: bytes = b"\x0b") -> bytes:
    """Return an agent's answer to one message, by default to the request for its keys."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(place))
        client.sendall(struct.pack(">I", len(message)) + message)
        (length,) = struct.unpack(">I", client.recv(4, socket.MSG_WAITALL))
        return client.recv(length, socket.MSG_WAITALL)


def strings(data: bytes) -> list[bytes]:
    found = []
    while data:
        end = 4 + struct.unpack(">I", data[:4])[0]
        found.append(data[4:end])
        data = data[end:]
    return found


@contextmanager
def session(root: Path, answer: Answer, name: str = "ssh-a", age: float = 0, **more: Any) -> Iterator[UserSide]:
    """A live session, ``age`` seconds old, of a workspace with this root."""
    made = UserSide(root / "tmp" / name / "agent.1", answer, **more)
    if age:
        status = made.place.stat()
        os.utime(made.place, (status.st_atime - age, status.st_mtime - age))
    try:
        yield made
    finally:
        made.end()


def credentials(username: str = "u", password: str = "p") -> Answer:
    """Answer git's requests."""

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        return {"ok": True, "output": f"username={username}\npassword={password}\n"}

    return answer
