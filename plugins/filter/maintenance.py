# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that tell roles whether a disruptive step may run now."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import maintenance


def _parse_time(now: Any) -> datetime:
    return datetime.fromtimestamp(float(now), UTC) if now is not None else datetime.now(UTC)


def maintenance_open(hours: str, override: Any = False, now: Any = None) -> bool:
    """Return whether a disruptive step may run: outside business hours, or on request."""
    try:
        return boolean(override) or maintenance.is_open(str(hours), _parse_time(now))
    except FlowError as error:
        raise AnsibleFilterError(str(error))


def maintenance_pending(hours: str, step: str, now: Any = None) -> str:
    """Return the sentence about a step that waits for the end of the business hours."""
    try:
        return maintenance.pending(step, str(hours), _parse_time(now))
    except FlowError as error:
        raise AnsibleFilterError(str(error))


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"maintenance_open": maintenance_open, "maintenance_pending": maintenance_pending}
