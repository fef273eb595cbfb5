# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``tools/docs``: generated tables follow their sources, and outdated pages are refused."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/docs"


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return runpy.run_path(str(TOOL))["main"].__globals__


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("owner, since (30m; default 1h), size; as -e.", "owner, since (30m; default 1h), size"),
        ("none", "none"),
        ("a; b; c", "a"),
        ("a (b (c; d); e), f", "a (b (c; d); e), f"),
    ],
)
def test_semicolon_in_parentheses_does_not_end_a_value(docs: dict[str, Any], text: str, kept: str) -> None:
    assert docs["before_semicolon"](text) == kept


def test_generated_tables_follow_their_sources(docs: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks/try.yml").write_text(
        "# licence\n# licence\n# Try C(it).\n# Values: hours (1; at most 2), node; as -e.\n---\n"
    )
    docs["CHECKOUT"] = tmp_path
    row = "| `spt.flow.try` | Try `it`. | hours (1; at most 2), node |"
    assert docs["playbooks"]().splitlines()[-1] == row


def test_outdated_page_is_refused(
    docs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs/reference/settings.md"
    page.parent.mkdir(parents=True)
    page.write_text("# Settings\n\n<!-- begin: settings -->\nold\n<!-- end: settings -->\n")
    docs["CHECKOUT"] = tmp_path
    docs["texts"] = lambda: iter([(page, docs["render"](page.read_text(), {"settings": lambda: "| new |"}))])
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    with pytest.raises(SystemExit, match=r"docs/reference/settings\.md.*make docs"):
        docs["main"]()
    assert "old" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["docs"])
    docs["main"]()
    assert "| new |" in page.read_text() and "old" not in page.read_text()
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    docs["main"]()
    assert "up to date" in capsys.readouterr().out
