# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import errors
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common import wait as common_wait


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def waiter(timeout: float, check: bool = False) -> tuple[common_wait.Waiter, Clock]:
    clock = Clock()
    return common_wait.Waiter(timeout, check, clock, clock.sleep), clock


def test_until_returns_the_result():
    wait, clock = waiter(10)
    answers = iter([None, None, "there"])
    assert wait.until("it", lambda: next(answers)) == "there"
    assert clock.slept == [0.1, 0.1]


def test_until_ends_at_the_deadline_after_a_last_try():
    wait, clock = waiter(3)
    with pytest.raises(errors.DeadlineExceeded, match="Timed out after 3 s waiting for a miracle") as caught:
        wait.until("a miracle", lambda: None)
    assert clock.now == pytest.approx(103)
    assert caught.value.code == 5


def test_false_result_is_a_result():
    wait, _clock = waiter(1)
    assert wait.until("it", lambda: False) is False


def test_check_mode_does_not_wait():
    wait, clock = waiter(10, check=True)
    assert wait.until("it", lambda: pytest.fail("asked")) is None
    wait.pause(5)
    assert clock.slept == []


def test_pause_does_not_go_beyond_the_deadline():
    wait, clock = waiter(2)
    wait.pause(60)
    assert clock.slept == [2] and wait.expired
