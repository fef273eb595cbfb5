# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role host_docker decides about an engine: its settings, its remapping and its restart."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import engine_plan

USER, SLICE, FILE = "spt-flow-remap", "spt-flow.slice", "/etc/docker/daemon.json"
REMAPPED: dict[str, Any] = {"userns-remap": USER}
PLAIN: dict[str, Any] = {}
ENGINE: dict[str, Any] = {
    "systemd": True,
    "unified": True,
    "content": 0,
    "settings": REMAPPED,
    "newer": True,
    "ours": True,
    "info": {"running": 1, "remapped": True},
}
IDLE = {"running": 0, "remapped": True}
UNMAPPED = {"settings": PLAIN, "content": 3, "info": {"running": 1, "remapped": False}}


@pytest.mark.parametrize(
    ("wanted", "engine", "settings", "written", "window_open"),
    [
        ("later", {}, REMAPPED, [], False),
        ("now", {}, REMAPPED, [], True),
        ("now", {"info": IDLE}, REMAPPED, [], False),
        ("not needed", {"newer": False}, REMAPPED, [], True),
        ("not needed", {"info": {}}, REMAPPED, [], True),
        ("later", {"newer": False}, REMAPPED, [FILE], False),
        ("not needed", {"newer": False}, REMAPPED, ["/etc/spt-flow/runtime.env"], False),
        ("now", UNMAPPED, PLAIN, [], True),
        ("later", UNMAPPED, PLAIN, [], False),
        ("blocked", UNMAPPED, REMAPPED, [FILE], True),
        # The file was switched by a run that was interrupted; the engine still runs without the remapping.
        ("blocked", {**UNMAPPED, "settings": REMAPPED}, REMAPPED, [], True),
        ("blocked", {"settings": {"userns-remap": "default"}}, REMAPPED, [FILE], True),
        ("now", {**UNMAPPED, "info": {"running": 0, "remapped": False}}, REMAPPED, [FILE], False),
        ("manual", {"systemd": False, "ours": False}, REMAPPED, [], True),
        ("manual", {"systemd": False, "ours": False, "info": IDLE}, REMAPPED, [], True),
        ("now", {"systemd": False}, REMAPPED, [], True),
    ],
)
def test_when_the_engine_restarts(
    wanted: str, engine: dict[str, Any], settings: dict[str, Any], written: list[str], window_open: bool
) -> None:
    assert engine_plan.restart({**ENGINE, **engine}, settings, written, window_open) == wanted


@pytest.mark.parametrize("newer", [True, False])
@pytest.mark.parametrize(("systemd", "ours"), list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("remapped", [True, False])
def test_running_containers_are_never_restarted_outside_a_window_or_lost(
    newer: bool, systemd: bool, ours: bool, remapped: bool
) -> None:
    for wanted, window_open in itertools.product([PLAIN, REMAPPED], [True, False]):
        engine = {**ENGINE, "newer": newer, "systemd": systemd, "ours": ours}
        engine["info"] = {"running": 1, "remapped": remapped}
        decision = engine_plan.restart(engine, wanted, [FILE], window_open)
        if decision == "now":
            assert window_open and remapped == ("userns-remap" in wanted)


@pytest.mark.parametrize(
    ("wanted", "engine", "migrate"),
    [
        (True, {"settings": PLAIN, "content": 0}, False),
        (False, {"settings": PLAIN, "content": 1}, False),
        (True, {"settings": PLAIN, "content": 1}, True),
        (True, {"settings": REMAPPED, "content": 1}, False),
        (False, {"settings": {"userns-remap": "default"}, "content": 1}, False),
    ],
)
def test_only_an_engine_without_content_is_remapped_unasked(
    wanted: bool, engine: dict[str, Any], migrate: bool
) -> None:
    assert engine_plan.remap(engine, USER, migrate) is wanted


@pytest.mark.parametrize(
    ("engine", "ours", "extra", "wanted"),
    [
        ({}, {}, {}, {"cgroup-parent": SLICE}),
        ({"unified": False}, {}, {}, {}),
        ({"systemd": False}, {}, {}, {}),
        ({"settings": {"debug": True}}, {"debug": False}, {}, {"cgroup-parent": SLICE, "debug": False}),
        ({}, {"debug": False}, {"debug": True}, {"cgroup-parent": SLICE, "debug": True}),
        ({"settings": {"cgroup-parent": "other.slice"}}, {}, {}, {"cgroup-parent": "other.slice"}),
        ({"settings": {"cgroup-parent": SLICE}, "unified": False}, {}, {}, {}),
        (
            {"settings": {"log-opts": {"tag": "x", "max-size": "1m"}}},
            {"log-opts": {"max-size": "5m"}},
            {},
            {"cgroup-parent": SLICE, "log-opts": {"tag": "x", "max-size": "5m"}},
        ),
    ],
)
def test_settings_are_merged(
    engine: dict[str, Any], ours: dict[str, Any], extra: dict[str, Any], wanted: dict[str, Any]
) -> None:
    given = {**ENGINE, "settings": {}, **engine}
    assert engine_plan.settings(given, ours, extra, SLICE) == wanted
    assert engine_plan.settings({**given, "settings": wanted}, ours, extra, SLICE) == wanted, "a second run changes it"


@pytest.mark.parametrize("where", ["settings", "extra"])
@pytest.mark.parametrize(("driver", "sliced"), [("systemd", True), ("cgroupfs", False)])
def test_configured_cgroup_driver_decides_about_the_slice(where: str, driver: str, sliced: bool) -> None:
    named = {"exec-opts": ["native.cgroupdriver=x", f"native.cgroupdriver={driver}"]}
    engine = {**ENGINE, "unified": not sliced, "settings": named if where == "settings" else {}}
    found = engine_plan.settings(engine, {}, named if where == "extra" else {}, SLICE)
    assert (found.get("cgroup-parent") == SLICE) is sliced


def test_reset_keeps_what_is_not_the_roles() -> None:
    runtimes = {"spt-flow": {"path": "/x"}, "other": {"path": "/y"}}
    engine = {"settings": {"runtimes": runtimes, "cgroup-parent": SLICE, "userns-remap": USER, "debug": True}}
    kept = {"runtimes": {"other": {"path": "/y"}}, "userns-remap": USER, "debug": True}
    assert engine_plan.remaining_settings(engine, SLICE) == kept
    assert engine_plan.remaining_settings({"settings": {}}, SLICE) == {"runtimes": {}}
