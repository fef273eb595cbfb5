# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make test` and `make test-full` name every part that did not run."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SKIPPED = '<testcase name="a"><skipped message="there is no program coder"/></testcase>'
PASSED = '<testcase name="b"/>'


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("spt_flow_test_runs", str(CHECKOUT / "tools/test"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    monkeypatch.setattr(module, "ARTIFACTS", tmp_path)
    return module


def run(runs: ModuleType, monkeypatch: pytest.MonkeyPatch, cases: str, capsys: Any) -> str:
    def step(name: str, command: list[str]) -> bool:
        report = next(word for word in command if word.startswith("--junitxml=")).partition("=")[2]
        Path(report).write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        return True

    monkeypatch.setattr(runs, "step", step)
    runs.pytest("live", "max", "tests/live")
    runs.report()
    return str(capsys.readouterr().out)


def test_part_of_which_nothing_ran_is_named_with_its_reason(
    runs: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(runs, "FULL", True)
    assert "\nskipped: live (there is no program coder)\n" in run(runs, monkeypatch, SKIPPED, capsys)


def test_part_that_ran_is_not_named(runs: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(runs, "FULL", True)
    said = run(runs, monkeypatch, SKIPPED + PASSED, capsys)
    assert "\nskipped: nothing\n" in said and "skipped 1: there is no program coder" in said


def test_short_run_names_what_only_the_full_one_does(
    runs: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(runs, "FULL", False)
    said = run(runs, monkeypatch, PASSED, capsys)
    assert "the fat image" in said and "a real Coder server" in said and "(make test-full)" in said
