# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets with a stable path that lead to the newest live session, for every process of the workspace."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..contract import Paths
from . import sessions

MOST_CONNECTIONS = 64
BLOCK = 65536
HELLO = 10.0
"""Seconds in which a session must say how its user signs, and a client must send a request."""
INTERVAL = 1.0
RETRY = 15.0
"""Seconds after which a session that did not answer is asked again."""
REQUEST_IDENTITIES, IDENTITIES_ANSWER, FAILURE = 11, 12, 5
Key = tuple[Path, int]
"""A socket, and its inode, because a later session may have the same path."""


class Directory:
    """Which sockets are those of the user's side, and which are other agents."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._ours: dict[Key, bool] = {}
        self._again: dict[Key, float] = {}
        self._lock = threading.Lock()

    def ordered(self) -> list[tuple[Key, bool]]:
        """Return the sockets of the user's side, the newest first, then the others, and which are which."""
        found = [_key(place) for place in sessions.sockets(self._paths)]
        with self._lock:
            self._ours = {key: ours for key, ours in self._ours.items() if key in found}
            self._again = {key: when for key, when in self._again.items() if key in found}
            now = time.monotonic()
            unknown = [key for key in found if key not in self._ours or self._again.get(key, math.inf) < now]
            for key in unknown:
                # Not asked by another thread meanwhile, which does not wait: the session may hang.
                self._ours[key] = False
                self._again.pop(key, None)
        for key in unknown:
            self._meet(key)
        with self._lock:
            known = [(key, self._ours.get(key, False)) for key in found]
        return sorted(known, key=lambda item: not item[1])

    def _meet(self, key: Key) -> None:
        ours, again = False, math.inf
        try:
            sessions.connect_user(key[0]).close()
            ours = True
        except sessions.Ended:
            again = time.monotonic() + RETRY
        except sessions.Silent:
            pass
        with self._lock:
            self._ours[key] = ours
            if again < math.inf:
                self._again[key] = again


def _key(place: Path) -> Key:
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
        for (place, _inode), ours in directory.ordered():
            with contextlib.suppress(sessions.Silent):
                client = sessions.connect_user(place) if ours else sessions.connect(place)
                client.settimeout(None)
                return client
        return None

    return Relay(paths.agent, connect, _without_keys)


def watch(directory: Directory, sign: Callable[[dict[str, Any]], None], stopping: threading.Event) -> None:
    """Tell ``sign`` in a thread how the user of the newest session signs, whenever that is another session."""

    def body() -> None:
        answers: dict[Key, dict[str, Any]] = {}
        current: Key | None = None
        while not stopping.wait(INTERVAL):
            with contextlib.suppress(OSError, sessions.Silent):
                live = [key for key, ours in directory.ordered() if ours]
                answers = {key: answers[key] for key in live if key in answers}
                if not live or live[0] == current:
                    continue
                newest = live[0]
                answers[newest] = answers.get(newest) or sessions.query(newest[0], {"kind": "signing"}, HELLO)
                sign(answers[newest])
                current = newest

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
