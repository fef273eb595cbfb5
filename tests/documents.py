# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that our documents tell users to run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[1]


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of ``page`` in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    """Return the lines of a block that a reader types."""
    lines: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            lines.append(line.removeprefix("$ "))
        elif lines and lines[-1].endswith("\\"):
            lines.append(line)
    return lines


def session(page: Path) -> str:
    """Return everything that a reader of ``page`` types, as a shell script."""
    return "\n".join(line for block in blocks(page, "console") for line in commands(block))


def sections(page: Path) -> dict[str, str]:
    """Return the commands of each section of ``page`` that has any, by its heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for part in re.split(
        r"^(#+ [^\n]*$|```\w*\n.*?^```$)", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    ):
        if re.match(r"#+ ", part):
            heading = part.lstrip("# ")
        elif part.startswith("```console\n"):
            found.setdefault(heading, []).extend(commands(part))
    return {heading: "\n".join(lines) for heading, lines in found.items()}


def github(page: Path, values: dict[str, str]) -> list[dict[str, Any]]:
    """Return the steps with a command of the workflows in ``page``, with ``${{ … }}`` replaced by ``values``."""
    found = []
    for document in _yaml(page, "jobs:"):
        for job in document["jobs"].values():
            text = yaml.safe_dump([step for step in job["steps"] if "run" in step])
            found += yaml.safe_load(re.sub(r"\$\{\{ ([\w.]+) \}\}", lambda match: values[match[1]], text))
    return found


def gitlab(page: Path, values: dict[str, str]) -> list[tuple[list[str], dict[str, str]]]:
    """Return scripts and variables of the GitLab jobs in ``page``."""
    found = []
    for document in _yaml(page, "  script:"):
        for job in document.values():
            variables = {
                name: re.sub(r"\$(CI_\w+)", lambda match: values[match[1]], str(text))
                for name, text in job["variables"].items()
            }
            found.append((job["script"], variables))
    return found


def _yaml(page: Path, mark: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in blocks(page, "yaml") if mark in f"\n{block}"]


def pages() -> list[Path]:
    """Return every page for readers."""
    found = [CHECKOUT / "README.md"]
    for folder, _folders, files in os.walk(CHECKOUT / "docs"):
        found += [Path(folder) / name for name in files if name.endswith(".md")]
    return sorted(found)
