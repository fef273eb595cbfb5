# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reach a Docker engine on another machine with OpenSSH."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import FlowError

MOST_SOCKET = 45
"""Longest directory in which SSH can still create a socket: 104 characters on some systems, minus its own 58."""


def engine_argv(engine: str) -> list[str]:
    """Return the start of a command that runs on the machine of ``engine`` (ssh://…), without prompts.

    The first call keeps its connection open for calls within the next minute.
    """
    url = urlsplit(engine)
    settings = {"BatchMode": "yes", "StrictHostKeyChecking": "yes", "ConnectTimeout": "10", "ServerAliveInterval": "30"}
    sockets = runtime_folder()
    if len(str(sockets)) <= MOST_SOCKET:
        settings |= {"ControlMaster": "auto", "ControlPath": f"{sockets}/%C", "ControlPersist": "60"}
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    port = ["-p", str(url.port)] if url.port else []
    return ["ssh", "-T", *options, *port, "--", f"{url.username}@{url.hostname}" if url.username else str(url.hostname)]


def runtime_folder() -> Path:
    """Return a directory that only the user can enter, in memory if the machine offers that."""
    refused = []
    for path in _candidates():
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            status = path.lstat()
        except OSError as error:
            refused.append(f"{path}: {error.strerror}")
            continue
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return path
        refused.append(f"{path}: not the user's own")
    raise FlowError("Cannot find a private directory for the SSH key.", "Checked " + "; ".join(refused) + ".")


def _candidates() -> Iterator[Path]:
    uid = os.getuid()
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(given) and not any(c.isspace() or c in "\"'%$`\\" for c in given):
        yield Path(given) / "spt-flow"
    yield Path(f"/run/user/{uid}/spt-flow")
    yield Path(f"/dev/shm/spt-flow-{uid}")  # noqa: S108 - owner and mode are checked
    yield Path(tempfile.gettempdir()) / f"spt-flow-{uid}"
