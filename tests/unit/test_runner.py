# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How ansible-runner and its Python interface handle refused runs; no engine is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
PROGRAM = """
import json, sys, ansible_runner
folder, playbook = sys.argv[1:]
run = ansible_runner.run(private_data_dir=folder, playbook=playbook, suppress_env_files=True, quiet=True)
print(run.stdout.read())
sys.exit(run.rc)
"""


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    kept["PATH"] = f"{PROGRAMS}:{kept['PATH']}"
    return {**kept, "HOME": str(tmp_path), "DOCKER_HOST": "unix:///nowhere", **more}


def run(how: str, tmp_path: Path, folder: Path, playbook: str, **values: str) -> subprocess.CompletedProcess[str]:
    argv = [str(PROGRAMS / "ansible-runner"), "run", str(folder), "-p", playbook]
    if how == "python":
        argv = [sys.executable, "-c", PROGRAM, str(folder), playbook]
    env = environment(tmp_path, **values)
    return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a private-data directory of ours."""
    place = tmp_path / "private"
    subprocess.run([str(CHECKOUT / "tools/runner-dir"), str(place)], check=True, capture_output=True, timeout=60)
    return place


def forget(folder: Path, *names: str) -> None:
    """Remove variables from the directory, as if a user wrote it by hand without them."""
    file = folder / "env/envvars"
    values: dict[str, Any] = json.loads(file.read_text())
    file.write_text(json.dumps({name: text for name, text in values.items() if name not in names}))


@pytest.mark.parametrize("how", ["command", "python"])
def test_checkout_as_project_is_refused(tmp_path: Path, folder: Path, how: str) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "ansible.cfg").write_text("[defaults]\ncallbacks_enabled = spt.flow.connect\n")
    shutil.rmtree(folder / "project")
    (folder / "project").symlink_to(checkout)
    values = {"SPT_FLOW_REPO": str(checkout), "SPT_FLOW_COMMAND": "true"}
    ours = run(how, tmp_path, folder, "spt.flow.ci", **values)
    assert "a file of the repository" not in ours.stdout
    forget(folder, "ANSIBLE_CONFIG")
    done = run(how, tmp_path, folder, "spt.flow.ci", **values)
    assert done.returncode == 125 and "a file of the repository" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("how", ["command", "python"])
def test_command_that_nothing_would_run_is_refused(tmp_path: Path, folder: Path, how: str) -> None:
    values = {"SPT_FLOW_WORKSPACE": "demo", "SPT_FLOW_COMMAND": "exit 3"}
    forget(folder, "ANSIBLE_CONFIG")
    done = run(how, tmp_path, folder, "spt.flow.ssh", **values)
    assert done.returncode == 2 and "ANSIBLE_CALLBACKS_ENABLED=spt.flow.connect" in done.stdout, done.stdout


def test_installed_collection_is_found_in_its_folder(tmp_path: Path) -> None:
    """`tools/runner-dir` of a collection in any folder names that folder and its configuration."""
    place = tmp_path / "any/ansible_collections/spt/flow/tools"
    place.mkdir(parents=True)
    shutil.copy(CHECKOUT / "tools/runner-dir", place)
    subprocess.run([str(place / "runner-dir"), str(tmp_path / "new")], check=True, capture_output=True, timeout=60)
    found = json.loads((tmp_path / "new/env/envvars").read_text())
    assert found["ANSIBLE_COLLECTIONS_PATH"] == str(tmp_path / "any")
    assert found["ANSIBLE_CONFIG"] == f"{tmp_path}/any/ansible_collections/spt/flow/playbooks/ansible.cfg"
