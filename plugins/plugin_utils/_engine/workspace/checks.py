# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One thing that workspaces need, and whether it is there."""

from __future__ import annotations

from dataclasses import asdict, dataclass

TIMEOUT = 20.0
"""Seconds for each question to a program, an engine or a server."""


@dataclass(frozen=True)
class Check:
    """``state``: ok, missing (workspaces cannot be used without it) or note (a feature is missing). ``hint``: how to
    get it.
    """

    name: str
    state: str
    message: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)
