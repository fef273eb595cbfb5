# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the agent sockets of live sessions, and ask the user's side through them.

Each session of OpenSSH and of Coder's agent has a socket of its own, which ends with it. The user's side answers two
extensions of the SSH agent protocol (draft-ietf-sshm-ssh-agent, section 3.8): ``query@spt.flow`` has one JSON object
each way, ``stream@spt.flow`` turns the connection into a pipe. Other agents answer with a failure.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contract import Failure, Paths

PATTERNS = ("tmp/ssh-*/agent.*", "tmp/auth-agent*/listener.sock")
"""Sockets of sshd and of Coder's agent, below the root."""
MOST = 32
"""Sockets that are looked at, so that other programs' files do not delay the answer."""
QUERY, STREAM = "query@spt.flow", "stream@spt.flow"
SUCCESS, EXTENSION = 6, 27
LARGEST = 256 * 1024
PATIENCE = 30.0
"""Seconds for an answer, in which the user may confirm something or type a password."""
CONNECT = 2.0
"""Seconds in which a live session answers a ping. A sleeping laptop does not, but its session stays for minutes."""
STREAM_PATIENCE = 10.0

NO_SESSION = "No connected session can give credentials. Connect from your own machine and try again."
ENDED = "The session ended before it gave credentials. Connect from your own machine and try again."
LATE = "Your own machine did not answer in time. Check its connection and its credential helper, and try again."


class Silent(Exception):
    """The socket is not one of the user's side."""


class Ended(Silent):
    """The session ended while it was asked."""

    sentence = ENDED


class Late(Ended):
    """The session did not answer in time."""

    sentence = LATE


def sockets(paths: Paths) -> list[Path]:
    """Return the sockets of live sessions, the newest first."""
    found = []
    for pattern in PATTERNS:
        for place in paths.root.glob(pattern):
            try:
                status = place.lstat()
            except OSError:
                continue
            if stat.S_ISSOCK(status.st_mode) and status.st_uid == os.getuid():
                found.append((status.st_mtime_ns, place))
    return [place for _time, place in sorted(found, reverse=True)[:MOST]]


def connect(place: Path) -> socket.socket:
    """Return a connection. Raise ``Silent``."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(CONNECT)
    try:
        client.connect(str(place))
    except OSError as error:
        client.close()
        # The second is Linux's answer when too many connections wait.
        raise (Late if isinstance(error, (socket.timeout, BlockingIOError)) else Silent) from None
    return client


def connect_user(place: Path) -> socket.socket:
    """Return a connection to the user's side, which has answered a ping. Raise ``Silent``."""
    client = connect(place)
    try:
        # The answer may be that this kind is unknown: it has come, and by our extension.
        if _extension(client, QUERY, {"kind": "ping"}, CONNECT) is None:
            raise Silent
    except Silent:
        client.close()
        raise
    return client


def query(place: Path, request: Mapping[str, Any], patience: float = PATIENCE) -> dict[str, Any]:
    """Return the answer of one session. Raise ``Silent``."""
    with connect_user(place) as client:
        answer = _extension(client, QUERY, request, patience)
    if answer is None:
        raise Silent
    return answer


def ask(paths: Paths, request: Mapping[str, Any], patience: float = PATIENCE) -> dict[str, Any]:
    """Return the answer of the newest session that gives one. Raise ``Failure`` with what the user can do."""
    problem = NO_SESSION
    until = time.monotonic() + patience
    for place in sockets(paths):
        try:
            answer = query(place, request, until - time.monotonic())
        except Ended as ended:
            problem = ended.sentence
            continue
        except Silent:
            continue
        if answer.get("ok") is True:
            return answer
        words = (_sentence(answer.get(key)) for key in ("error", "hint"))
        raise Failure(" ".join(word for word in words if word) or "Your own machine refused.", 4)
    raise Failure(problem, 4)


def stream(paths: Paths, kind: str) -> socket.socket:
    """Return a connection that is a pipe to the user's ``kind`` of agent. Raise ``Silent``."""
    for place in sockets(paths):
        try:
            client = connect_user(place)
        except Silent:
            continue
        try:
            if _extension(client, STREAM, {"kind": kind}, STREAM_PATIENCE) is not None:
                client.settimeout(None)
                return client
        except Silent:
            pass
        client.close()
    raise Silent


def _extension(client: socket.socket, name: str, request: Mapping[str, Any], patience: float) -> dict[str, Any] | None:
    """Return the JSON object of the answer, ``None`` if the agent does not know the extension."""
    body = bytes([EXTENSION]) + _string(name.encode()) + _string(json.dumps(request).encode())
    until = time.monotonic() + patience
    try:
        client.settimeout(max(0.1, patience))
        client.sendall(_string(body))
        (length,) = struct.unpack(">I", _exactly(client, 4, until))
        if not 1 <= length <= LARGEST:
            raise Silent
        answer = _exactly(client, length, until)
    except socket.timeout:
        raise Late from None
    except OSError:
        raise Ended from None
    if answer[0] != SUCCESS:
        return None
    if len(answer) == 1:
        return {}
    try:
        found = json.loads(answer[5:])
    except ValueError:
        raise Silent from None
    if not isinstance(found, dict):
        raise Silent
    return found


def _exactly(client: socket.socket, count: int, until: float) -> bytes:
    found = bytearray()
    while len(found) < count:
        remaining = until - time.monotonic()
        if remaining <= 0:
            raise Late
        client.settimeout(remaining)
        block = client.recv(count - len(found))
        if not block:
            raise Ended
        found += block
    return bytes(found)


def _string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _sentence(value: object) -> str:
    text = value if isinstance(value, str) else ""
    return "".join(letter for letter in text if letter.isprintable())[:500]
