# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the documentation: generated tables, links, plain words, commands, and a short README."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options
from ansible_collections.spt.flow.tests import documents
from ansible_collections.spt.flow.tests.conventions.language import DIALECT

CHECKOUT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
REFERENCE = CHECKOUT / "docs/reference"


def pages() -> list[Path]:
    """Return every Markdown file that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [CHECKOUT / name for name in names if name and (CHECKOUT / name).is_file()]


def prose(text: str) -> str:
    """Return ``text`` without fenced blocks and comments."""
    return COMMENT.sub("", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ +(.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(text: str) -> Iterator[str]:
    """Return the targets of links and pictures outside code."""
    plain = re.sub(r"`[^`]*`", "", prose(text))
    yield from re.findall(r"\]\(([^)\s]+)\)", plain)


def broken(page: Path) -> list[str]:
    """Return links of ``page`` whose file or heading does not exist."""
    found = []
    for link in links(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / name).resolve() if name else page
        there = target.exists() and target.is_relative_to(CHECKOUT)
        if not there or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_of_a_page_have_targets(page: Path) -> None:
    assert broken(page) == []


def test_broken_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CHECKOUT", tmp_path)
    (tmp_path / "a.md").write_text(
        "# One heading\n\n[b](b.md) [c](c.md) ![d](d.png) [e](#one-heading) [f](#two) [g](https://h)\n"
    )
    (tmp_path / "b.md").write_text("```text\n[x](nowhere.md)\n```\n")
    assert broken(tmp_path / "a.md") == ["c.md", "d.png", "#two"]
    assert broken(tmp_path / "b.md") == []


def test_no_generated_cell_is_cut_off() -> None:
    for page in REFERENCE.glob("*.md"):
        for cell in re.split(r"(?<!\\)\|", page.read_text(encoding="utf-8")):
            assert cell.count("(") == cell.count(")"), f"{page.name}: {cell}"


def test_readme_is_short_and_starts_with_the_two_commands() -> None:
    lines = (CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    screen = "\n".join(lines[:24])
    assert "make quickstart REPO=" in screen
    assert "ansible-playbook up.yml -e repo=" in screen


def test_readme_links_to_every_page() -> None:
    """Every page of docs/ can be reached from the README by links."""
    todo, seen = [CHECKOUT / "README.md"], set()
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        todo += [(page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text(encoding="utf-8"))]
    assert {page for page in pages() if page.is_relative_to(CHECKOUT / "docs")} <= seen


OUTSIDE = re.compile(r"\bdecisions? [A-F]\d+|\b(design|facts),? section|\bFR\d+\b|\bPRD\b")
"""References to documents outside the repository."""


def texts() -> Iterator[tuple[Path, str]]:
    """Return every text file that git tracks, except recorded data of other projects."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for path in (CHECKOUT / name for name in names.split("\0") if name):
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" not in data and path.suffix not in (".json", ".log"):
            yield path, data.decode("utf-8", "replace")


def test_only_documents_of_the_repository_are_cited() -> None:
    assert [path for path, text in texts() if path != Path(__file__) and OUTSIDE.search(text)] == []


def test_cited_decisions_exist() -> None:
    cited = {name for _, text in texts() for name in re.findall(r"docs/decisions/([a-z-]+\.md)", text)}
    assert cited and {name for name in cited if not (CHECKOUT / "docs/decisions" / name).exists()} == set()


# Language


def plain_texts() -> Iterator[tuple[str, str]]:
    """Return pages, playbook headers, argument specifications and the example inventory, by name."""
    for page in pages():
        if not page.is_relative_to(CHECKOUT / "tests"):
            yield str(page.relative_to(CHECKOUT)), prose(page.read_text(encoding="utf-8"))
    for pattern in ("playbooks/*.yml", "roles/*/meta/argument_specs.yml", "inventories/example/**/*.yml"):
        for path in CHECKOUT.glob(pattern):
            yield str(path.relative_to(CHECKOUT)), path.read_text(encoding="utf-8")


def test_documents_use_plain_words() -> None:
    found = {name: DIALECT.findall(text) for name, text in plain_texts()}
    assert {name: words for name, words in found.items() if words} == {}


# Commands

JOBS = "tests/integration/test_hostile_checkout.py::test_commands_of_a_reader_run_nothing_of_the_checkout"
TYPED = "tests/integration/test_documented_commands.py::test_commands_for_developers_work_as_typed"
TESTS = {
    (
        "README.md",
        "spt.flow",
    ): "tests/integration/test_workspace_playbooks.py::test_up_creates_a_workspace_with_an_open_ide",
    ("README.md", "Quick start: this machine"): TYPED,
    ("README.md", "Quick start: three machines"): "extensions/molecule/e2e/converge.yml",
    ("README.md", "Quick start: CI"): JOBS,
    ("README.md", "Install it for use anywhere"): (
        "tests/integration/test_documented_commands.py::test_installed_user_needs_one_line_of_setup"
    ),
    ("docs/ci.md", "*"): JOBS,
    ("docs/tutorials/ci.md", "*"): JOBS,
    ("docs/tutorials/developer.md", "*"): TYPED,
    ("docs/tutorials/operator.md", "*"): "extensions/molecule/e2e/molecule.yml",
    ("docs/nodes.md", "Run a workspace on another host"): (
        "tests/integration/test_nodes.py::test_every_playbook_works_on_a_node"
    ),
    ("docs/nodes.md", "Drain a host"): (
        "tests/integration/test_nodes.py::test_drained_engine_stops_all_keeps_homes_and_starts_nothing"
    ),
    ("docs/nodes.md", "Manage the workspaces of a team or a course"): (
        "tests/integration/test_nodes.py::test_inventory_list_is_applied_twice"
    ),
}
"""The test that runs the commands of each section's ``console`` blocks. Other examples are marked ``text``."""


def test_commands_are_tested_or_marked_as_examples() -> None:
    used = set()
    for page in pages():
        name = str(page.relative_to(CHECKOUT))
        for heading in documents.sections(page):
            key = (name, "*") if (name, "*") in TESTS else (name, heading)
            assert key in TESTS, f"{name}, {heading}: name the test that runs these commands, or make it a text block"
            used.add(key)
    assert used == set(TESTS)
    for test in TESTS.values():
        file, _, function = test.partition("::")
        found = [path for path in (CHECKOUT / file, CHECKOUT / "extensions" / file) if path.exists()]
        assert found and f"def {function}(" in found[0].read_text(encoding="utf-8") + "def (", test


def shell_lines() -> Iterator[tuple[str, str]]:
    """Yield every line of every command block, including examples, with the name of its page."""
    for page in pages():
        for block in documents.blocks(page, "(?:console|text|sh)"):
            yield from ((str(page.relative_to(CHECKOUT)), line) for line in block.splitlines())


def test_documented_commands_use_existing_names() -> None:
    """Check playbooks, their values, make targets and settings, also in examples."""
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    headers = "\n".join(path.read_text(encoding="utf-8") for path in (CHECKOUT / "playbooks").glob("*.yml"))
    wrong = []
    for page, line in shell_lines():
        words = line.partition("#")[0]
        wrong += [
            f"{page}: {name}"
            for name in re.findall(r"ansible-playbook (?:\S+/)?(?:spt\.flow\.)?([a-z_]+)(?:\.yml)?", words)
            if not (CHECKOUT / f"playbooks/{name}.yml").exists()
        ]
        wrong += [
            f"{page}: -e {name}"
            for name in re.findall(r"-e '?([a-z_]+)=", words)
            if name not in options.OPTIONS and not re.search(rf"\b{name}\b", headers)
        ]
        wrong += [
            f"{page}: SPT_FLOW_{name}"
            for name in re.findall(r"SPT_FLOW_([A-Z_]+)=", words)
            if name.lower() not in options.OPTIONS
        ]
        if made := re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*make ((?:[a-z-]+ ?)+)", words):
            wrong += [f"{page}: make {name}" for name in made[1].split() if name not in targets]
    assert wrong == []


def test_quoted_messages_exist() -> None:
    """Messages in the first column of docs/troubleshooting.md are what the programs really print."""
    paths = [*CHECKOUT.glob("plugins/**/*.py"), *CHECKOUT.glob("tools/*"), CHECKOUT / "image/rootfs"]
    source = " ".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())
    # A program may split a sentence over several lines.
    joined = re.sub(r'"\s*\n?\s*f?"', "", source)
    page = (CHECKOUT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        words for row in re.findall(r"^\| ([^|]*) \|", page, re.MULTILINE) for words in re.findall(r"`([^`]+)`", row)
    ]
    assert len(quoted) > 15
    assert [words for words in quoted if words not in joined] == []
