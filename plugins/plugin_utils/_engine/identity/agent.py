# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find and reach the user's own SSH agent."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator

ANY_HOST = "spt.flow"
"""A host that no block of ours matches, to read what the user's own configuration says about every host."""


class UsersAgent:
    """The user's agent, as plain OpenSSH would find it from this process.

    Owners of several sessions share one socket, and only one of them serves it. So each owner links its agent next to
    the socket: a session that was opened without an agent does not hide the agent of another.
    """

    def __init__(self, served: str) -> None:
        self._served = served
        self._link = f"{served}.agent-{os.getpid()}"

    def announce(self) -> None:
        """Link the agent of this process, if it has one."""
        path = self._own()
        if path:
            with contextlib.suppress(FileExistsError):
                os.symlink(path, self._link)

    def withdraw(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._link)

    def connect(self) -> socket.socket | None:
        """Return a connection to the first agent that answers, or ``None``."""
        for path in self._candidates():
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(path)
            except OSError:
                connection.close()
                continue
            return connection
        return None

    def _candidates(self) -> Iterator[str]:
        """Yield this owner's agent first, then those of other sessions; links of owners that have died are removed."""
        yield self._link
        folder, name = os.path.split(self._served)
        for entry in sorted(os.listdir(folder)):
            start, _dot, pid = entry.rpartition(".agent-")
            if start != name or not pid.isdigit():
                continue
            path = os.path.join(folder, entry)
            if _runs(int(pid)):
                yield path
            else:
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def _own(self) -> str:
        path = _configured()
        if path is None:
            path = os.environ.get("SSH_AUTH_SOCK", "")
        # OpenSSH may have put the session's own socket into the environment, which would be an endless loop.
        return "" if path == self._served else path


def _configured() -> str | None:
    """Return the agent's socket that `IdentityAgent` in the user's own configuration names, if it names one."""
    try:
        done = subprocess.run(
            ["ssh", "-G", ANY_HOST], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = (line.partition(" ") for line in done.stdout.splitlines())
    value = next((value.strip('"') for name, _blank, value in words if name == "identityagent"), None)
    if value is None or value == "SSH_AUTH_SOCK" or "%" in value:
        return None
    return "" if value == "none" else os.path.expanduser(os.path.expandvars(value))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
