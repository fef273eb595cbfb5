# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documented commands for developers, taken out of the documents and typed into a shell.

Those of CI are in test_hostile_checkout.py.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests import documents
from ansible_collections.spt.flow.tests.integration import doors_kit
from ansible_collections.spt.flow.tests.integration.doors_kit import CHECKOUT, Doors

README = documents.sections(CHECKOUT / "README.md")
TUTORIAL = documents.sections(CHECKOUT / "docs/tutorials/developer.md")
BARE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What a new user's shell searches: no Ansible is there."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Doors]:
    with doors_kit.doors(tmp_path) as made:
        yield made


def typed(house: Doors, text: str, **environment: str) -> str:
    """The output of ``text``, typed into one shell that ends at the first failure."""
    done = subprocess.run(
        ["bash", "-e", "-c", text],
        cwd=house.cwd,
        env=house.environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=doors_kit.TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "text",
    [README["Quick start: this machine"], "\n".join(TUTORIAL.values())],
    ids=["README", "tutorial"],
)
def test_commands_for_developers_work_as_typed(house: Doors, text: str) -> None:
    """From ``make quickstart`` to ``delete``, whose question is answered by the environment."""
    shown = typed(house, text, PATH=BARE_PATH, SPT_FLOW_CONFIRM="true")
    assert "Workspace hello-flow created" in shown and "Workspace hello-flow deleted" in shown
    assert doors_kit.belongings(house.owner) == []


def test_printed_commands_work_as_pasted(house: Doors) -> None:
    shown = typed(house, README["Quick start: this machine"].splitlines()[0], PATH=BARE_PATH)
    found = re.search(r"once before: (.*)\)", shown)
    assert found, shown
    assert "SSH configuration" in typed(house, found[1], PATH=BARE_PATH)
    assert "spt-flow" in (house.home / ".ssh/config").read_text()


def test_an_installed_user_types_one_line_of_setup(house: Doors, tmp_path: Path) -> None:
    """Anywhere, without a warning, and the command's exit status is the run's."""
    installed = house.home / ".ansible/collections/ansible_collections/spt"
    installed.mkdir(parents=True)
    (installed / "flow").symlink_to(CHECKOUT)
    house.cwd = tmp_path
    text = README["Install it for use anywhere"]
    shown = typed(house, text.replace("https://host/owner/name.git", str(house.repository)))
    assert f"Workspace {house.name} created" in shown
    assert "WARNING" not in shown
    command = f"{text.splitlines()[0]}\nset +e\nansible-playbook spt.flow.ssh\ntest $? = 3"
    typed(house, command, SPT_FLOW_COMMAND="exit 3")
