# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark's table: rows appear as they are measured, and a part that fails does not end the run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from common import Failed, Part, Table

ROW = ("a thing", "1 s", "≤ 2 s", "yes")


def test_row_is_printed_before_the_next_part_starts(capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []

    def second() -> str:
        printed.append(capsys.readouterr().out)
        return ""

    table = Table()
    table.measure(Part("first", lambda: "a remark", lambda: [ROW]))
    table.measure(Part("second", second, list))
    assert printed == ["| a thing | 1 s | ≤ 2 s | yes |\n"]
    assert table.remarks == ["a remark"]


def failing(error: BaseException) -> Part:
    def measure() -> str:
        raise error

    return Part("broken", measure, list)


@pytest.mark.parametrize("error", [Failed("'up' ended with 1"), SystemExit("'up' ended with 1"), KeyError("vanished")])
def test_failed_part_is_named_and_the_next_part_runs(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table()
    table.measure(failing(error))
    table.measure(Part("next", lambda: "", lambda: [ROW]))
    assert table.rows == [("broken", "failed", "", "**no**"), ROW]
    assert table.failures == ["broken"]
    assert ("'up' ended with 1" if not isinstance(error, KeyError) else "vanished") in capsys.readouterr().err


def test_interrupt_ends_the_benchmark() -> None:
    with pytest.raises(KeyboardInterrupt):
        Table().measure(failing(KeyboardInterrupt()))
