# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role host_docker: the engine's settings, and when it restarts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import engine_plan


def engine_remap(engine: Mapping[str, Any], user: str, migrate: Any = False) -> bool:
    return engine_plan.remap(engine, user, boolean(migrate))


def engine_restart(
    engine: Mapping[str, Any], settings: Mapping[str, Any], written: Sequence[str], window_open: Any = False
) -> str:
    return engine_plan.restart(engine, settings, written, boolean(window_open))


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "engine_remap": engine_remap,
            "engine_restart": engine_restart,
            "engine_settings": engine_plan.settings,
            "engine_remaining_settings": engine_plan.remaining_settings,
        }
