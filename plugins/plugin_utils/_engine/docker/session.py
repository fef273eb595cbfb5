# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How to enter a running workspace, read by one command inside it.

Apart from ``_docker_target``, because `up` asks this first, by the container's name, and imports the rest meanwhile.
"""

from __future__ import annotations

import json
from typing import Any

from ..workspace.models import ENDING, Session

PREFIX = "spt-flow-"
USER = "1000:1000"
UNREADABLE = (ValueError, TypeError, AttributeError)
READ = ("cat", "/run/spt-flow/session.json", "/run/spt-flow/steps.json", "/run/spt-flow/life.json")
"""What the start contract keeps for clients that enter: parts of what its `status` says, without starting a Python."""


def container_name(owner: str, name: str) -> str:
    return f"{PREFIX}{owner}-{name}"


def to_session(url: str, text: str) -> Session:
    """From what `status` prints, or from its parts one after the other. Raises what ``UNREADABLE`` names."""
    data: dict[str, Any] = {}
    decoder = json.JSONDecoder()
    text = text.strip()
    while text:
        part, end = decoder.raw_decode(text)
        data |= dict(part)
        text = text[end:].lstrip()
    ide, steps, life = data.get("ide") or {}, data.get("steps") or {}, data.get("life") or data
    return Session(
        url,
        ide.get("password", ""),
        data.get("host_key", ""),
        data.get("directory", ""),
        clone=(steps.get("clone") or {}).get("state", ""),
        ending=life.get("reason") in ENDING,
        dotfiles=(steps.get("dotfiles") or {}).get("state", ""),
        ports=tuple(int(port) for port in data.get("ports") or () if 1024 <= int(port) <= 65535),
    )
