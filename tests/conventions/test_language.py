# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain English in code: docstrings, comments, messages and names; see CONTRIBUTING.md, section Language."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.conventions.language import found

CHECKOUT = Path(__file__).resolve().parents[2]


def test_code_of_the_collection_is_in_plain_english() -> None:
    hits = {path: found(path.read_text(encoding="utf-8")) for path in (CHECKOUT / "plugins").rglob("*.py")}
    assert len(hits) > 100
    assert {str(path.relative_to(CHECKOUT)): words for path, words in hits.items() if words} == {}


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('def f():\n    """Write the file anew."""', "anew"),
        ('LIMIT = 3\n"""Seconds for whoever waits."""', "whoever"),
        ("x = 1  # nobody reads it", "nobody"),
        ('raise ValueError(f"Waited {limit} s for it, in vain.")', "in vain"),
        ('raise ValueError("The job\\nended well today.")', "ended well"),
        ("def test_what_nobody_said(): ...", "nobody"),
        ("class StartContract: ...\n# the start contract of the image", "start contract"),
    ],
)
def test_breaking_the_rule_is_reported(line: str, word: str, tmp_path: Path) -> None:
    original = (CHECKOUT / "plugins/plugin_utils/_engine/common/wait.py").read_text(encoding="utf-8")
    copy = tmp_path / "wait.py"
    copy.write_text(f"{original}\n{line}\n", encoding="utf-8")
    assert found(original) == []
    assert [hit.partition(": ")[2] for hit in found(copy.read_text(encoding="utf-8"))] == [word]


def test_data_that_is_not_a_message_is_not_checked() -> None:
    assert found('NAMES = {"nobody": 65534}') == []
