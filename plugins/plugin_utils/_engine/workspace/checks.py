# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A requirement of workspaces and whether it is met."""

from __future__ import annotations

from dataclasses import asdict, dataclass

TIMEOUT = 20.0
"""Seconds for each query of a program, an engine or a server."""

SKEW = 60.0
WRONG = 3600.0
"""Seconds of clock difference from which certificates and tokens are rejected."""


@dataclass(frozen=True)
class Check:
    """``state``: ok, missing (required) or note (a feature is missing). ``hint``: how to fix it."""

    name: str
    state: str
    message: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def clock_skew(ahead: float, whose: str) -> list[Check]:
    """Return a check if another clock is ``ahead`` of this machine's by too many seconds."""
    if abs(ahead) <= SKEW:
        return []
    words = f"This machine's clock is {abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} {whose}."
    state = "missing" if abs(ahead) > WRONG else "note"
    return [Check("clock", state, words, "Correct the clock that is wrong: sudo timedatectl set-ntp true")]
