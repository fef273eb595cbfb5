# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the version of the Docker API without asking the engine first (docs/decisions/docker-api-client.md)."""

from __future__ import annotations

import re

SPOKEN = ("1.41", "1.44")
"""Versions that the client is written for. Engines 20.10 to 28 accept the first, engine 29 only the second."""


def after_refusal(spoken: str, status: int, said: str, newest: str) -> str:
    """Return the version to use after an engine rejected ``spoken``, or nothing if the version was not the reason.

    ``newest`` is the engine's header ``Api-Version``. An engine that supports no version of ``SPOKEN`` gets its own
    newest one.
    """
    if status != 400 or "is too old" not in said or _number(newest) <= _number(spoken):
        return ""
    known = (version for version in SPOKEN if _number(spoken) < _number(version) <= _number(newest))
    return next(known, newest)


def _number(version: str) -> tuple[int, ...]:
    """Return the parts of a version; empty for other text, which counts as older than every version."""
    found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", version)
    return (int(found[1]), int(found[2])) if found else ()
