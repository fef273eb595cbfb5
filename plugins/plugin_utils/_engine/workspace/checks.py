# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One thing that workspaces need, and whether it is there."""

from __future__ import annotations

from dataclasses import asdict, dataclass

TIMEOUT = 20.0
"""Seconds for each query of a program, an engine or a server."""

SKEW = 60.0
WRONG = 3600.0
"""Seconds from which on certificates and tokens are refused."""


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


def clock_skew(ahead: float, whose: str) -> list[Check]:
    """Return a check where another clock is ``ahead`` of this machine's by too many seconds."""
    if abs(ahead) <= SKEW:
        return []
    words = f"This machine's clock is {abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} {whose}."
    state = "missing" if abs(ahead) > WRONG else "note"
    return [Check("clock", state, words, "Correct the clock that is wrong: sudo timedatectl set-ntp true")]
