# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The installed collection works like the checkout, from any folder, on the oldest and newest ansible-core."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.integration import playbook_harness

GALAXY = Path(sys.executable).parent / "ansible-galaxy"


def galaxy(*argv: str, cwd: Path) -> str:
    done = subprocess.run([str(GALAXY), *argv], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tarball")
    galaxy("collection", "build", "--output-path", str(folder), cwd=playbook_harness.CHECKOUT)
    (built,) = folder.glob("spt-flow-*.tar.gz")
    return built


def programs(end: str) -> Path:
    """Return the folder with `ansible-playbook` of one pinned ansible-core."""
    argv = [str(playbook_harness.CHECKOUT / "tools/venv"), "--dev", "--end", end]
    return Path(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600).stdout.strip()) / "bin"


def test_tarball_contains_what_users_need_and_nothing_else(tarball: Path) -> None:
    with tarfile.open(tarball) as tar:
        names = set(tar.getnames())
        big = [member.name for member in tar.getmembers() if member.size > 5_000_000]
    assert {"playbooks/up.yml", "plugins/action/workspace.py", "image/Dockerfile", "meta/runtime.yml"} <= names
    assert {"playbooks/ansible.cfg", "tools/runner-dir"} <= names
    assert not [name for name in names if name.startswith("tools/") and name != "tools/runner-dir"]
    assert not [name for name in names if name.split("/")[0] in (".git", ".ansible", ".venv", "artifacts", ".ci")]
    assert not [name for name in names if name.endswith((".pyc", ".tar.gz"))]
    assert big == []


@pytest.mark.parametrize("end", ["max", "min"])
def test_installed_collection_works(tarball: Path, tmp_path: Path, end: str) -> None:
    installed = tmp_path / "collections"
    galaxy("collection", "install", str(tarball), "--offline", "--no-deps", "-p", str(installed), cwd=tmp_path)
    with playbook_harness.playbooks(tmp_path, programs=programs(end), cwd=tmp_path, installed=installed) as playbooks:
        assert playbooks.up()["changed"]
        assert playbooks.up()["changed"] is False
        done = playbooks.run("ssh", SPT_FLOW_COMMAND="exit 5")
        assert (done.returncode, done.stdout) == (5, "")
        assert playbooks.name in playbooks.run("status").stdout
        assert playbooks.json("stop", SPT_FLOW_WORKSPACE=playbooks.name)["changed"]
        assert playbooks.json("delete", SPT_FLOW_WORKSPACE=playbooks.name, SPT_FLOW_CONFIRM="true")["changed"]
        assert playbook_harness.belongings(playbooks.owner) == []


def test_up_without_our_callbacks_prints_how_to_enter(tarball: Path, tmp_path: Path) -> None:
    installed = tmp_path / "collections"
    galaxy("collection", "install", str(tarball), "--offline", "--no-deps", "-p", str(installed), cwd=tmp_path)
    with playbook_harness.playbooks(tmp_path, cwd=tmp_path, installed=installed, callbacks=False) as playbooks:
        done = playbooks.run("up", SPT_FLOW_REPO=str(playbooks.repository))
        assert done.returncode == 0 and "ssh -F " in done.stdout and "password" in done.stdout
        done = playbooks.run("ssh", SPT_FLOW_COMMAND="exit 3")
        assert done.returncode == 2 and "ANSIBLE_CALLBACKS_ENABLED=spt.flow.connect" in done.stdout
        configuration = installed / "ansible_collections/spt/flow/playbooks/ansible.cfg"
        done = playbooks.run("ssh", SPT_FLOW_COMMAND="exit 3", ANSIBLE_CONFIG=str(configuration))
        assert (done.returncode, done.stdout) == (3, "")
        done = playbooks.run("status", SPT_FLOW_OUTPUT="json")
        assert done.returncode == 2 and "ANSIBLE_STDOUT_CALLBACK=spt.flow.output" in done.stdout
