# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common import progress as common_progress


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_stages_are_printed_and_remembered():
    clock, lines = Clock(), []
    progress = common_progress.Progress(lines.append, clock)
    with progress.stage("image", "building"):
        clock.now += 12.5
    progress.done("clone", 0.4, "ok")
    assert lines == ["[   0.0s] image: building", "[  12.5s] image: done (12.5s)", "[  12.5s] clone: ok (0.4s)"]
    assert progress.stages == [("image", 12.5), ("clone", 0.4)]


def test_failure_is_passed_on_and_not_recorded_as_a_stage():
    progress = common_progress.Progress()
    with pytest.raises(ValueError, match="no"), progress.stage("image", "building"):
        raise ValueError("no")
    assert progress.stages == []
