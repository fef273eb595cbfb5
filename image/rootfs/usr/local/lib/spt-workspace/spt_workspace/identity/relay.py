# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets with a stable path that lead to the newest live session, for every process of the workspace."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..contract import Paths
from . import sessions

MOST_CONNECTIONS = 64
BLOCK = 65536
HELLO = 5.0
"""Seconds in which a new session must answer."""
INTERVAL = 1.0
REQUEST_IDENTITIES, IDENTITIES_ANSWER, FAILURE = 11, 12, 5


class Directory:
    """Which sockets are those of the user's side, and which are other agents. Each is asked once."""

    def __init__(self, paths: Paths, newcomer: Callable[[dict[str, Any]], None] = lambda answer: None) -> None:
        self._paths = paths
        self._newcomer = newcomer
        self._known: dict[tuple[Path, int], bool] = {}
        self._lock = threading.Lock()

    def ordered(self) -> list[Path]:
        """Return the sockets of the user's side, the newest first, then the others."""
        with self._lock:
            found = {self._key(place): place for place in sessions.sockets(self._paths)}
            self._known = {key: ours for key, ours in self._known.items() if key in found}
            for key, place in found.items():
                if key not in self._known:
                    self._known[key] = self._answers(place)
            return sorted(found.values(), key=lambda place: not self._known[self._key(place)])

    def _answers(self, place: Path) -> bool:
        try:
            answer = sessions.query(place, {"kind": "signing"}, HELLO)
        except sessions.Silent:
            return False
        self._newcomer(answer)
        return True

    def _key(self, place: Path) -> tuple[Path, int]:
        try:
            return place, place.stat().st_ino
        except OSError:
            return place, 0


class Relay:
    """Listens at ``place`` and joins each connection to the one that ``connect`` returns."""

    def __init__(
        self,
        place: Path,
        connect: Callable[[], socket.socket | None],
        alone: Callable[[socket.socket], None],
    ) -> None:
        self._place = place
        self._connect = connect
        self._alone = alone
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def start(self) -> None:
        """Listen in a thread. Raise ``OSError``."""
        listener = socket.socket(socket.AF_UNIX)
        new = self._place.with_name(f".{self._place.name}.new")
        new.unlink(missing_ok=True)
        listener.bind(str(new))
        os.chmod(new, 0o600)
        listener.listen(MOST_CONNECTIONS)
        os.replace(new, self._place)
        threading.Thread(target=self._accept, args=(listener,), name=self._place.name, daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _address = listener.accept()
            if not self._room.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError):
                upstream = self._connect()
                if upstream is None:
                    self._alone(client)
                    return
                with upstream:
                    _join(client, upstream)
        finally:
            self._room.release()


def agent(paths: Paths, directory: Directory) -> Relay:
    """Return the relay of the SSH agent."""

    def connect() -> socket.socket | None:
        for place in directory.ordered():
            with contextlib.suppress(sessions.Silent):
                client = sessions.connect(place)
                client.settimeout(None)
                return client
        return None

    return Relay(paths.agent, connect, _without_keys)


def watch(directory: Directory, stopping: threading.Event) -> None:
    """Look for new sessions in a thread, so that git signs in each before anything has used its agent."""

    def body() -> None:
        while not stopping.wait(INTERVAL):
            directory.ordered()

    threading.Thread(target=body, name="sessions", daemon=True).start()


def _join(one: socket.socket, other: socket.socket) -> None:
    """Copy both ways until one side ends."""
    ends = {one: other, other: one}
    while True:
        ready, _w, _x = select.select(list(ends), [], [])
        for source in ready:
            block = source.recv(BLOCK)
            if not block:
                return
            ends[source].sendall(block)


def _without_keys(client: socket.socket) -> None:
    """Answer like an agent without keys, until the client ends."""
    client.settimeout(HELLO)
    while True:
        head = client.recv(5, socket.MSG_WAITALL)
        if len(head) < 5:
            return
        (length,) = struct.unpack(">I", head[:4])
        if not 1 <= length <= sessions.LARGEST or len(client.recv(length - 1, socket.MSG_WAITALL)) < length - 1:
            return
        answer = bytes([IDENTITIES_ANSWER, 0, 0, 0, 0]) if head[4] == REQUEST_IDENTITIES else bytes([FAILURE])
        client.sendall(struct.pack(">I", len(answer)) + answer)
