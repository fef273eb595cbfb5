# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The update jobs of the offered pipelines, run with git, a stand-in for `make image-update` and one for `gh`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
TOKEN = "glpat-of-this-test"
HOOK = """#!/bin/sh
for number in $(seq 0 $((GIT_PUSH_OPTION_COUNT - 1))); do eval echo "\\$GIT_PUSH_OPTION_$number"; done >options
"""


def git(folder: Path, *words: str) -> str:
    argv = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def script(file: str) -> str:
    document: dict[str, Any] = yaml.safe_load((CHECKOUT / file).read_text())
    if "jobs" not in document:
        return str(document["workspace image update"]["script"][0])
    (step,) = [step for step in document["jobs"]["update"]["steps"] if "image-update" in step.get("run", "")]
    return str(step["run"])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone with a server that takes push options; ``bin`` has the programs of a runner."""
    server, clone = tmp_path / "project.git", tmp_path / "clone"
    git(tmp_path, "init", "--quiet", "--bare", "-b", "main", str(server))
    git(server, "config", "receive.advertisePushOptions", "true")
    (server / "hooks/pre-receive").write_text(HOOK)
    (server / "hooks/pre-receive").chmod(0o755)
    git(tmp_path, "clone", "--quiet", str(server), str(clone))
    (clone / "image").mkdir()
    (clone / "image/versions.yml").write_text("version: 1\n")
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "-m", "first")
    git(clone, "push", "--quiet", "origin", "HEAD:main")
    (tmp_path / "bin").mkdir()
    program(tmp_path, "gh", 'echo "$*" >>"$RUNNER/gh"')
    return clone


def program(root: Path, name: str, text: str) -> None:
    (root / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (root / "bin" / name).chmod(0o755)


def run(checkout: Path, file: str) -> subprocess.CompletedProcess[str]:
    root = checkout.parent
    environment = {
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "HOME": str(root),
        "RUNNER": str(root),
        "GITHUB_RUN_ID": "7",
        "GITHUB_SERVER_URL": "https://github.example",
        "CI_PIPELINE_ID": "7",
        "CI_PROJECT_URL": str(root / "project"),
        "IMAGE_UPDATE_TOKEN": TOKEN,
    }
    argv = ["bash", "-e", "-o", "pipefail", "-c", script(file)]
    return subprocess.run(argv, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60, check=False)


FILES = ["templates/pipelines/github.yml", "templates/pipelines/gitlab.yml", ".github/workflows/image.yml"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("status", [0, 1])
def test_newer_versions_are_proposed(checkout: Path, file: str, status: int) -> None:
    """The index that does not answer (status 1) fails the job after the proposal."""
    program(checkout.parent, "make", f"echo version: 2 >image/versions.yml; exit {status}")
    done = run(checkout, file)
    assert done.returncode == status, done.stderr
    server = checkout.parent / "project.git"
    assert git(server, "show", "image-update-7:image/versions.yml") == "version: 2"
    assert git(server, "show", "main:image/versions.yml") == "version: 1"
    if "gitlab" in file:
        options = (server / "options").read_text().split()
        assert options == ["merge_request.create", "merge_request.target=main"]
    else:
        assert (checkout.parent / "gh").read_text() == "pr create --fill\n"
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES)
def test_without_newer_versions_nothing_is_pushed(checkout: Path, file: str) -> None:
    program(checkout.parent, "make", "exit 0")
    assert run(checkout, file).returncode == 0
    assert git(checkout.parent / "project.git", "branch", "--format=%(refname:short)") == "main"
    assert not (checkout.parent / "gh").exists()
