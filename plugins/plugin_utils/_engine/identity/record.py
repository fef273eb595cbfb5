# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this machine knows about each workspace that it enters, for session owners.

A workspace cannot write it, so it cannot widen what it may ask for.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ....module_utils._node import atomic

OPTIONS = ("credentials", "credential_hosts", "ssh_agent")
"""Options that owners of sessions obey."""


@dataclass(frozen=True)
class Record:
    """``hosts`` are those of the workspace's repository and dotfiles, ``inventory`` the inventory's values of
    ``OPTIONS``. ``own`` is false for a CI workspace and for one of another owner.
    """

    own: bool = False
    hosts: tuple[str, ...] = ()
    inventory: Mapping[str, Any] = field(default_factory=dict)


def state_folder() -> str:
    """Return the folder for what must survive a restart of this machine."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "spt-flow")


def remember(workspace: str, record: Record) -> None:
    """Write the record of ``workspace``, which is its name for OpenSSH, if it differs."""
    path = _path(workspace)
    text = json.dumps(asdict(record), sort_keys=True)
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        if file.read() == text:
            return
    # Without a record, sessions forward the SSH agent and nothing else.
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        atomic.write(path, text)


def read(workspace: str) -> Record:
    """Return the record of ``workspace``; of an unknown one, an empty record."""
    try:
        with open(_path(workspace), encoding="utf-8") as file:
            data = json.load(file)
        return Record(data["own"] is True, tuple(map(str, data["hosts"])), dict(data["inventory"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Record()


def forget(workspace: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(_path(workspace))


def _path(workspace: str) -> str:
    return os.path.join(state_folder(), "workspaces", f"{os.path.basename(workspace)}.json")
