# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documented commands for developers, taken from the documents and typed into a shell.

Those of CI are in test_hostile_checkout.py.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests import documents
from ansible_collections.spt.flow.tests.integration import playbook_harness
from ansible_collections.spt.flow.tests.integration.playbook_harness import CHECKOUT, Playbooks

README = documents.sections(CHECKOUT / "README.md")
TUTORIAL = documents.sections(CHECKOUT / "docs/tutorials/developer.md")
BARE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of a new user's shell, without Ansible."""


@pytest.fixture
def playbooks(tmp_path: Path) -> Iterator[Playbooks]:
    with playbook_harness.playbooks(tmp_path) as made:
        yield made


def typed(playbooks: Playbooks, text: str, **environment: str) -> str:
    """Return the output of ``text``, typed into one shell that ends at the first failure."""
    done = subprocess.run(
        ["bash", "-e", "-c", text],
        cwd=playbooks.cwd,
        env=playbooks.environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=playbook_harness.TIMEOUT,
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
def test_commands_for_developers_work_as_typed(playbooks: Playbooks, text: str) -> None:
    """From ``make quickstart`` to ``delete``, which the environment confirms."""
    shown = typed(playbooks, text, PATH=BARE_PATH, SPT_FLOW_CONFIRM="true")
    assert "Workspace hello-flow created" in shown and "Workspace hello-flow deleted" in shown
    assert playbook_harness.belongings(playbooks.owner) == []


def test_printed_commands_work_as_pasted(playbooks: Playbooks) -> None:
    shown = typed(playbooks, README["Quick start: this machine"].splitlines()[0], PATH=BARE_PATH)
    found = re.search(r"once before: (.*)\)", shown)
    assert found, shown
    assert "SSH configuration" in typed(playbooks, found[1], PATH=BARE_PATH)
    assert "spt-flow" in (playbooks.home / ".ssh/config").read_text()


def test_installed_user_needs_one_line_of_setup(playbooks: Playbooks, tmp_path: Path) -> None:
    """From any folder, without a warning, and with the command's exit status."""
    installed = playbooks.home / ".ansible/collections/ansible_collections/spt"
    installed.mkdir(parents=True)
    (installed / "flow").symlink_to(CHECKOUT)
    playbooks.cwd = tmp_path
    text = README["Install it for use anywhere"]
    shown = typed(playbooks, text.replace("https://host/owner/name.git", str(playbooks.repository)))
    assert f"Workspace {playbooks.name} created" in shown
    assert "WARNING" not in shown
    command = f"{text.splitlines()[0]}\nset +e\nansible-playbook spt.flow.ssh\ntest $? = 3"
    typed(playbooks, command, SPT_FLOW_COMMAND="exit 3")
