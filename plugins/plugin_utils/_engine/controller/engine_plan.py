# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role host_docker does to an engine: its settings, and when it may restart.

``engine`` is what the module engine_info returned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

DAEMON_JSON = "/etc/docker/daemon.json"
REMAP = "userns-remap"
DRIVER = "native.cgroupdriver="


def remap(engine: Mapping[str, Any], user: str, migrate: bool) -> bool:
    """Whether the engine gets the remapping to ``user``. Switching an engine hides its content, so that needs
    ``migrate``."""
    return engine["settings"].get(REMAP) == user or engine["content"] == 0 or migrate


def settings(
    engine: Mapping[str, Any], ours: Mapping[str, Any], extra: Mapping[str, Any], group: str = ""
) -> dict[str, Any]:
    """The content of daemon.json: the engine's own settings, then ``ours``, then ``extra``. ``group`` is the slice of
    workspaces, for an engine that can use slices and has no other cgroup parent."""
    kept = {name: value for name, value in engine["settings"].items() if not group or value != group}
    slices = engine["systemd"] and _cgroup_driver(engine, _merge(kept, extra)) == "systemd"
    first = {"cgroup-parent": group} if slices and group else {}
    return _merge(_merge(_merge(first, kept), ours), extra)


def remaining_settings(engine: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The content of daemon.json without the runtime and the slice. The list of runtimes stays, perhaps empty: a reload
    of the engine takes an empty list at once, but ignores a missing one."""
    kept = {name: value for name, value in engine["settings"].items() if value != group}
    runtimes = {name: value for name, value in kept.get("runtimes", {}).items() if name != "spt-flow"}
    return {**kept, "runtimes": runtimes}


def restart(engine: Mapping[str, Any], wanted: Mapping[str, Any], written: Collection[str], window_open: bool) -> str:
    """When the engine restarts: ``not needed``, ``now``, ``later`` (in a maintenance window), ``blocked`` (running
    containers would be lost) or ``manual`` (neither systemd nor the role started the engine)."""
    info = engine["info"]
    if not info or not (engine["newer"] or DAEMON_JSON in written):
        return "not needed"
    if not engine["systemd"] and not engine["ours"]:
        return "manual"
    if info["running"] == 0:
        return "now"
    if _switches_remapping(engine, wanted):
        return "blocked"
    return "now" if window_open else "later"


def _switches_remapping(engine: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    active = engine["info"]["remapped"]
    return bool((REMAP in wanted) != active or wanted.get(REMAP) != engine["settings"].get(REMAP))


def _cgroup_driver(engine: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The cgroup driver that the settings choose; by default Docker chooses systemd where cgroups have version 2."""
    named = [option for option in given.get("exec-opts", []) if option.startswith(DRIVER)]
    if named:
        return str(named[-1].removeprefix(DRIVER))
    return "systemd" if engine["unified"] and engine["systemd"] else "cgroupfs"


def _merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """``upper`` over ``lower``; mappings in both are merged, everything else is replaced."""
    merged = dict(lower)
    for name, value in upper.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
