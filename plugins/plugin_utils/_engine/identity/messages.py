# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages of the SSH agent protocol: a length of four bytes, a type of one byte, and the type's content."""

from __future__ import annotations

import select
import socket
import struct

LARGEST = 256 * 1024
"""Largest message in bytes, as in OpenSSH."""
PATIENCE = 10.0
"""Seconds within which a message must be complete once it has begun."""
FAILURE, SUCCESS = 5, 6
REQUEST_IDENTITIES, IDENTITIES_ANSWER = 11, 12
SIGN_REQUEST = 13
EXTENSION = 27


class Broken(Exception):
    """The other side sent something that is not a message, or only a part of one."""


def read(connection: socket.socket) -> bytes:
    """Return the next message without its length; empty at the end of the connection. Raise ``Broken``."""
    connection.settimeout(None)
    try:
        first = connection.recv(1)
        if not first:
            return b""
        connection.settimeout(PATIENCE)
        (length,) = struct.unpack(">I", first + _read_exactly(connection, 3))
        if not 1 <= length <= LARGEST:
            raise Broken(f"a message of {length} bytes")
        return _read_exactly(connection, length)
    except OSError as error:
        raise Broken(str(error)) from None


def _read_exactly(connection: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        block = connection.recv(count - len(found))
        if not block:
            raise Broken("half a message")
        found += block
    return bytes(found)


def write(connection: socket.socket, message: bytes) -> None:
    """Send a message. Raise ``Broken``."""
    try:
        connection.settimeout(PATIENCE)
        connection.sendall(struct.pack(">I", len(message)) + message)
    except OSError as error:
        raise Broken(str(error)) from None


def string(value: bytes) -> bytes:
    """Return ``value`` as a string of the SSH protocol."""
    return struct.pack(">I", len(value)) + value


def strings(data: bytes, count: int) -> list[bytes]:
    """Return the first ``count`` strings of ``data``. Raise ``Broken``."""
    found = []
    for _number in range(count):
        end = 4 + int.from_bytes(data[:4], "big")
        if len(data) < max(end, 4):
            raise Broken("a string that ends too early")
        found.append(data[4:end])
        data = data[end:]
    return found


def join(one: socket.socket, other: socket.socket) -> None:
    """Copy bytes in both directions until either end closes. Raise ``Broken``."""
    pairs = {one: other, other: one}
    try:
        for connection in pairs:
            connection.settimeout(PATIENCE)
        while True:
            for ready in select.select(list(pairs), [], [])[0]:
                block = ready.recv(65536)
                if not block:
                    return
                pairs[ready].sendall(block)
    except (OSError, ValueError) as error:
        raise Broken(str(error)) from None
