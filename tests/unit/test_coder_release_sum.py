# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role coder_server installs a release only with a checksum from another source than the release itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROLE = CHECKOUT / "roles/coder_server"
KNOWN, NAMED, GIVEN = "a" * 64, "b" * 64, "c" * 64
ARCHIVE = "coder_2.99.0_linux_amd64.tar.gz"
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "known to the collection": ({"coder_server_version": "2.99.0"}, KNOWN),
    "unknown": ({"coder_server_version": "2.98.0"}, ""),
    "unknown, given": ({"coder_server_version": "2.98.0", "coder_server_sha256": GIVEN}, GIVEN),
    "a source with a checksum file next to it": ({"coder_server_source": "SOURCE/other.tar.gz"}, ""),
    "a source with a named checksum file": (
        {"coder_server_source": "SOURCE/other.tar.gz", "coder_server_checksums": "SOURCE/coder_2.98.0_checksums.txt"},
        NAMED,
    ),
    "not a checksum": ({"coder_server_sha256": "none"}, ""),
    "an image by digest": ({"coder_server_image": f"coder@sha256:{GIVEN}"}, "not needed"),
    "installed already": (
        {"__coder_server_found": {"host": {"paths": ["/usr/local/lib/spt-flow/coder/2.98.0/coder"]}}},
        "not needed",
    ),
}


def requirement() -> dict[str, Any]:
    """Return the task of the role that requires a checksum."""
    tasks = yaml.safe_load((ROLE / "tasks/preflight.yml").read_text(encoding="utf-8"))
    (task,) = (task for task in tasks if "Require a checksum" in task["name"])
    return dict(task)


def play(name: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Run the role's task for one case, and record the checksum that the role would use."""
    note = {"sum": "{{ __coder_server_sha256 }}", "accepted": "{{ outcome is success }}"}
    copy = {"content": "{{ found | to_json }}", "dest": f"{{{{ playbook_dir }}}}/{name}.json"}
    base = {"coder_server_version": "2.98.0", "__coder_server_found": {"host": {"paths": []}}, "found": note}
    return {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(path) for path in (ROLE / "defaults/main.yml", *sorted(ROLE.glob("vars/main/*.yml")))],
        "tasks": [
            {
                "vars": {**base, **variables},
                "block": [
                    {**requirement(), "register": "outcome", "ignore_errors": True},
                    {"ansible.builtin.copy": copy},
                ],
            }
        ],
    }


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], str]:
    """The role's decision for each case, and its output."""
    folder = tmp_path_factory.mktemp("sums")
    (folder / "files").mkdir()
    (folder / "files/releases.sums").write_text(f"# known\n{KNOWN}  {ARCHIVE}\n")
    (folder / "coder_2.98.0_checksums.txt").write_text(f"{NAMED}  other.tar.gz\n")
    plays = [play(str(number), variables) for number, (variables, _) in enumerate(CASES.values())]
    (folder / "play.yml").write_text(yaml.safe_dump(plays).replace("SOURCE", str(folder)))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SPT_FLOW_", "ANSIBLE_"))}
    env["ANSIBLE_COLLECTIONS_PATH"] = str(CHECKOUT / ".ansible/collections")
    program = Path(sys.executable).parent / "ansible-playbook"
    python = f"ansible_python_interpreter={sys.executable}"
    argv = [str(program), "-i", "localhost,", "-c", "local", "-e", python, "play.yml"]
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: json.loads((folder / f"{number}.json").read_text()) for number, name in enumerate(CASES)}
    return found, done.stdout + done.stderr


@pytest.mark.parametrize("name", CASES)
def test_release_is_installed_only_with_a_checksum_from_elsewhere(
    name: str, answers: tuple[dict[str, dict[str, Any]], str]
) -> None:
    wanted = CASES[name][1]
    found = answers[0][name]
    assert found["accepted"] is bool(wanted)
    if re.fullmatch("[0-9a-f]{64}", wanted):
        assert found["sum"] == wanted


def test_refusal_says_what_to_do(answers: tuple[dict[str, dict[str, Any]], str]) -> None:
    assert "the collection does not know the SHA-256 of coder_2.98.0_linux_amd64.tar.gz" in answers[1]
    assert "set coder_server_sha256" in answers[1]


def test_every_listed_checksum_is_valid() -> None:
    lines = (ROLE / "files/releases.sums").read_text(encoding="utf-8").splitlines()
    pattern = r"#.*|[0-9a-f]{64}  coder_\d+\.\d+\.\d+_linux_(amd64|arm64)\.tar\.gz"
    assert [line for line in lines if not re.fullmatch(pattern, line)] == []
