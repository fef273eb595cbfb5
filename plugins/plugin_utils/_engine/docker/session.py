# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read how to enter a running workspace, with one command inside it.

Separate from ``target``, because `up` does this first, by the container's name, and imports the rest in the meantime.
"""

from __future__ import annotations

from typing import Any

from ..common import untrusted
from ..workspace import forwarding
from ..workspace.models import ENDING, STATES, Session

PREFIX = "spt-flow-"
USER = "1000:1000"
UNREADABLE = (ValueError,)
READ = ("cat", "/run/spt-flow/session.json", "/run/spt-flow/steps.json", "/run/spt-flow/life.json")
"""Files of the workspace agent for clients: parts of its `status`, readable without starting a Python."""


def container_name(owner: str, name: str) -> str:
    return f"{PREFIX}{owner}-{name}"


def to_session(url: str, text: str) -> Session:
    """Return a session from the output of `status`, or from its parts one after the other.

    Raise errors of ``UNREADABLE``.
    """
    data: dict[str, Any] = {}
    for part in untrusted.objects(text):
        data |= untrusted.record(part)
    ide, steps = untrusted.record(data.get("ide")), untrusted.record(data.get("steps"))
    life = untrusted.record(data.get("life")) or data
    ports, refused = forwarding.chosen(data.get("ports"))
    return Session(
        url,
        untrusted.word(ide.get("password"), r"[!-~]{1,128}"),
        untrusted.word(data.get("host_key"), r"[A-Za-z0-9@.+/= -]{1,1000}"),
        untrusted.path(data.get("directory")),
        clone=_state(steps, "clone"),
        ending=untrusted.word(life.get("reason"), ENDING) != "",
        dotfiles=_state(steps, "dotfiles"),
        ports=ports,
        refused_ports=refused,
        clone_detail=untrusted.line(untrusted.record(steps.get("clone")).get("detail")),
    )


def _state(steps: dict[str, Any], name: str) -> str:
    return untrusted.word(untrusted.record(steps.get(name)).get("state"), STATES)
