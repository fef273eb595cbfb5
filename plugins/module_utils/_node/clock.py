# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The time of another machine."""

from __future__ import annotations


def from_header(date: str) -> float | None:
    """Return the time (epoch, whole seconds) of an answer's header ``Date``; ``None`` where there is none."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None
