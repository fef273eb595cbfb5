# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which units of systemd a role has to restart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

DIRECTORY = PurePosixPath("/etc/systemd/system")


def to_restart(units: Mapping[str, Mapping[str, bool]], written: Collection[str] = ()) -> list[str]:
    """Units that are not active or not enabled, that changed since systemd read them, or whose files were written.

    The state counts, not only what this run wrote, so that a run repairs an interrupted one. A timer and its service
    belong together: restarting the timer makes systemd read both.
    """
    changed = {path.stem for path in map(PurePosixPath, written) if path.parent == DIRECTORY}
    return [name for name, state in units.items() if _due(state) or PurePosixPath(name).stem in changed]


def _due(state: Mapping[str, bool]) -> bool:
    return not state["active"] or not state["enabled"] or state["reload"]
