# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which units of systemd a role restarts."""

from __future__ import annotations

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import units

GOOD = {"active": True, "enabled": True, "reload": False}


@pytest.mark.parametrize("fault", [{"active": False}, {"enabled": False}, {"reload": True}])
def test_unit_in_another_state_is_restarted(fault: dict[str, bool]) -> None:
    assert units.to_restart({"a.timer": GOOD, "b.timer": {**GOOD, **fault}}) == ["b.timer"]


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ([], []),
        (["/etc/systemd/system/a.timer"], ["a.timer"]),
        (["/etc/systemd/system/a.service"], ["a.timer"]),
        (["/etc/systemd/system/a-b.timer"], ["a-b.timer"]),
        (["/etc/spt-flow/a.timer", "/etc/systemd/system/a.timer.d/x.conf"], []),
    ],
)
def test_unit_whose_file_was_written_is_restarted(written: list[str], wanted: list[str]) -> None:
    assert units.to_restart({"a.timer": GOOD, "a-b.timer": GOOD}, written) == wanted
