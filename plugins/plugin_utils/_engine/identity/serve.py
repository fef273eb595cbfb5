# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serve the agent socket that OpenSSH forwards into a workspace.

All sessions of a workspace share the path of the socket. One owner serves it, the others wait for a lock. When the
serving owner ends, however it ends, the next one takes over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
import stat
import threading

from ....module_utils._node.errors import FlowError
from ..common import child
from . import confirm, journal, messages, policy, queries
from .agent import UsersAgent

MOST_CONNECTIONS = 64
"""Connections at the same time; more are closed at once, so that a workspace cannot exhaust this machine."""


class Server:
    """Serves one socket from the moment at which no other owner does."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._agent = UsersAgent(path)
        self._queries = queries.Queries(os.path.basename(path))
        self._serving = False
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def run(self) -> None:
        """Wait for the lock, then serve until the process ends."""
        os.umask(0o077)
        # Secrets in memory must not reach a core file.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _make_private(os.path.dirname(self._path))
        announcing = threading.Thread(target=self._agent.announce, daemon=True)
        announcing.start()
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with socket.socket(socket.AF_UNIX) as listener:
            aside = os.path.join(os.path.dirname(self._path), f".{os.getpid()}")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
            listener.bind(aside)
            listener.listen(MOST_CONNECTIONS)
            os.replace(aside, self._path)
            self._serving = True
            announcing.join()
            self._accept(listener)

    def close(self) -> None:
        """Remove the socket if this owner serves it, and end programs that still work for a request."""
        child.end_all()
        self._agent.withdraw()
        if self._serving:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _address = listener.accept()
            if not self._room.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            workspace = os.path.basename(self._path)
            talk = Conversation(connection, workspace, self._agent, self._queries)
            with connection, contextlib.suppress(messages.Broken), talk:
                talk.run()
        finally:
            self._room.release()


def _make_private(folder: str) -> None:
    """Create ``folder``. Raise ``PermissionError`` if another user can change it or the folder that it is in."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for path in (os.path.dirname(folder), folder):
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise PermissionError(path)


class Conversation:
    """Answers the requests of one connection, one after the other."""

    def __init__(self, connection: socket.socket, workspace: str, agent: UsersAgent, answers: queries.Queries) -> None:
        self._connection = connection
        self._workspace = workspace
        self._agent = agent
        self._queries = answers
        self._upstream: socket.socket | None = None

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_failure: object) -> None:
        if self._upstream:
            self._upstream.close()

    def run(self) -> None:
        """Raise ``Broken`` if the workspace breaks the protocol."""
        while request := messages.read(self._connection):
            name = messages.strings(request[1:], 1)[0] if request[0] == messages.EXTENSION else b""
            content = request[5 + len(name) :]
            if name == queries.STREAM:
                self._stream(content)
                return
            reply = self._queries.answer(content) if name == queries.QUERY else self._ask_agent(request)
            messages.write(self._connection, reply)

    def _stream(self, content: bytes) -> None:
        reply, other = self._queries.stream(content)
        messages.write(self._connection, reply)
        if other:
            with other:
                messages.join(self._connection, other)

    def _ask_agent(self, request: bytes) -> bytes:
        """Return the answer of the user's agent, or, without permission or agent, that of one that has no keys."""
        reply = self._forwarded(request) if self._allowed(request) else b""
        if reply:
            return reply
        if request[0] == messages.REQUEST_IDENTITIES:
            return bytes([messages.IDENTITIES_ANSWER]) + (0).to_bytes(4, "big")
        return bytes([messages.FAILURE])

    def _allowed(self, request: bytes) -> bool:
        try:
            mode = policy.read(self._workspace).ssh_agent
        except FlowError:
            mode = "off"
        if request[0] != messages.SIGN_REQUEST:
            return mode != "off"
        key = messages.strings(request[1:], 1)[0]
        good = mode == "on" or (mode == "ask" and confirm.confirmed(self._workspace, key))
        verdict = journal.GIVEN if good else journal.REFUSED
        journal.write(self._workspace, "ssh", confirm.fingerprint(key), verdict)
        return good

    def _forwarded(self, request: bytes) -> bytes:
        """Return the answer of the user's agent; empty without one."""
        self._upstream = self._upstream or self._agent.connect()
        if not self._upstream:
            return b""
        try:
            messages.write(self._upstream, request)
            reply = messages.read(self._upstream)
        except messages.Broken:
            reply = b""
        if not reply:
            self._upstream.close()
            self._upstream = None
        return reply
