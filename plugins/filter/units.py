# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter `units_to_restart`: which units of systemd a role has to restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import units


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"units_to_restart": units.to_restart}
