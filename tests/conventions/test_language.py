# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain English in code: docstrings, comments, messages and names; see CONTRIBUTING.md, section Language.

Documents are checked by test_documentation.py.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.conventions.language import NAME, found, found_in_text

CHECKOUT = Path(__file__).resolve().parents[2]


CODE = (
    "plugins",
    "roles",
    "playbooks",
    "extensions",
    "inventories",
    "templates",
    "tools",
    "tests",
    "Makefile",
    ".github",
)
OWN = {"tests/conventions/language.py", "tests/conventions/test_language.py"}
"""Files that contain the words because they define or test the rule."""


def sources() -> list[Path]:
    """Return the files with code that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *CODE]
    names = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [CHECKOUT / name for name in names if name and name not in OWN and (CHECKOUT / name).is_file()]


def checked(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    named = [f"name: {path.stem}"] if NAME.fullmatch(path.stem) else []
    python = path.suffix == ".py" or text.startswith("#!") and "python3" in text.partition("\n")[0]
    return named + (found(text) if python else found_in_text(text))


def test_code_is_in_plain_english() -> None:
    hits = {str(path.relative_to(CHECKOUT)): checked(path) for path in sources()}
    assert {name.partition("/")[0] for name in hits} == set(CODE)
    assert {name: words for name, words in hits.items() if words} == {}


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('def f():\n    """Write the file anew."""', "anew"),
        ('LIMIT = 3\n"""Seconds for whoever waits."""', "whoever"),
        ("x = 1  # nobody reads it", "nobody"),
        ('raise ValueError(f"Waited {limit} s for it, in vain.")', "in vain"),
        ('raise ValueError("The job\\nended well today.")', "ended well"),
        ("def test_what_nobody_said(): ...", "nobody"),
        ("def _judge(): ...", "_judge"),
        ("class StartContract: ...\n# the start contract of the image", "start contract"),
    ],
)
def test_breaking_the_rule_is_reported(line: str, word: str, tmp_path: Path) -> None:
    original = (CHECKOUT / "plugins/plugin_utils/_engine/common/wait.py").read_text(encoding="utf-8")
    copy = tmp_path / "wait.py"
    copy.write_text(f"{original}\n{line}\n", encoding="utf-8")
    assert found(original) == []
    assert [hit.partition(": ")[2] for hit in found(copy.read_text(encoding="utf-8"))] == [word]


@pytest.mark.parametrize(
    ("name", "text", "hits"),
    [
        ("main.yml", "- name: Write the file anew\n", ["1: anew"]),
        ("unit.service.j2", "# Started by whoever\n[Unit]\n", ["1: whoever"]),
        ("door", "#!/bin/sh\n", ["name: door"]),
        ("tool", '#!/usr/bin/env python3\n"""Wait in vain."""\n', ["2: in vain"]),
        ("drop.sh", "sudo -u nobody true\n", []),
    ],
)
def test_other_kinds_of_files_are_checked(name: str, text: str, hits: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert checked(tmp_path / name) == hits


def test_data_that_is_not_a_message_is_not_checked() -> None:
    assert found('NAMES = {"nobody": 65534}') == []
