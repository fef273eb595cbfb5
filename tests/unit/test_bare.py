# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""tests/bare/names finds every name that a bare ansible-core does not have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = Path(__file__).resolve().parents[1] / "bare/names"
GOOD = """\
- hosts: all
  tasks:
    - name: Only what ansible-core has
      ansible.builtin.debug:
        msg: "{{ [1] | map('string') | ansible.builtin.b64encode }} {{ lookup('ansible.builtin.env', 'HOME') }}"
      when: inventory_hostname is match('a') and [{}] | selectattr('x', 'defined') | list == []
"""


def names(folder: Path, playbook: str) -> subprocess.CompletedProcess[str]:
    (folder / "playbooks").mkdir()
    (folder / "playbooks/play.yml").write_text(playbook)
    return subprocess.run([sys.executable, NAMES, folder], capture_output=True, text=True, check=False)


def test_names_of_ansible_core_are_accepted(tmp_path: Path) -> None:
    done = names(tmp_path, GOOD)
    assert done.returncode == 0, done.stdout + done.stderr


WRONG = (
    ("ansible.builtin.debug", "community.nowhere.debug", "module community.nowhere.debug"),
    ("ansible.builtin.b64encode", "community.nowhere.encode", "filter community.nowhere.encode"),
    ("map('string')", "map('community.nowhere.dict_kv', 'path')", "filter community.nowhere.dict_kv"),
    ("is match('a')", "is community.nowhere.match('a')", "test community.nowhere.match"),
    ("'defined'", "'community.nowhere.defined'", "test community.nowhere.defined"),
    ("ansible.builtin.env", "community.nowhere.env", "lookup community.nowhere.env"),
)


def test_names_of_undeclared_collections_are_refused(tmp_path: Path) -> None:
    playbook = GOOD
    for old, new, _ in WRONG:
        playbook = playbook.replace(old, new)
    done = names(tmp_path, playbook)
    assert done.returncode == 1
    assert done.stdout.splitlines() == sorted(f"{line}: {tmp_path}/playbooks/play.yml" for _, _, line in WRONG)
