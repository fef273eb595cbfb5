# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documented commands, taken from the documents, run nothing of a hostile checkout outside the workspace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.tests import documents, hostile_ansible
from ansible_collections.spt.flow.tests.hostile_ansible import LURES, Lure
from ansible_collections.spt.flow.tests.integration import playbook_harness
from ansible_collections.spt.flow.tests.integration.playbook_harness import CHECKOUT, Playbooks, git

CI = CHECKOUT / "docs/ci.md"
SESSIONS = [CHECKOUT / "README.md", CI, CHECKOUT / "docs/tutorials/ci.md"]
WANTED = {"SPT_FLOW_COMMAND": "cat hello.txt", "SPT_FLOW_PROFILE": "slim", "SPT_FLOW_MEMORY": "1g"}


SHORT = Path(f"/tmp/spt-{os.getpid()}")
"""A short home path: Ansible puts a socket into TMPDIR, and socket paths are limited to 107 bytes."""


@pytest.fixture
def playbooks(tmp_path: Path) -> Iterator[Playbooks]:
    """A checkout full of traps, and the collection installed for the user who runs commands in it."""
    with playbook_harness.playbooks(tmp_path) as made:
        installed = made.home / ".ansible/collections/ansible_collections/spt"
        installed.mkdir(parents=True)
        (installed / "flow").symlink_to(CHECKOUT)
        script(made).write_text(f'#!/bin/sh\necho "$*" >>{canary(made)}\n')
        script(made).chmod(0o755)
        hostile_ansible.plant(made.repository, script(made))
        git("add", "--all", cwd=made.repository)
        git("commit", "--quiet", "-m", "lures", cwd=made.repository)
        made.cwd = made.repository
        SHORT.symlink_to(made.home)
        try:
            yield made
        finally:
            SHORT.unlink()


def script(playbooks: Playbooks) -> Path:
    return playbooks.home.parent / "evil.sh"


def canary(playbooks: Playbooks) -> Path:
    return playbooks.home.parent / "canary"


def run(playbooks: Playbooks, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"TMPDIR": str(SHORT), "TOKEN": "t", **environment}
    done = subprocess.run(
        argv,
        cwd=playbooks.cwd,
        env=playbooks.environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert not canary(playbooks).exists(), f"{canary(playbooks).read_text()}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done


def succeeded(playbooks: Playbooks) -> int:
    """Return the number of jobs that ran and succeeded."""
    records = [json.loads(path.read_text()) for path in playbooks.home.parent.rglob("run.json")]
    return sum(record["status"] == 0 and record["ran"] for record in records)


@pytest.mark.parametrize(
    ("page", "jobs"), list(zip(SESSIONS, (1, 2, 3), strict=True)), ids=lambda value: str(value)[-12:]
)
def test_commands_of_a_reader_run_nothing_of_the_checkout(playbooks: Playbooks, page: Path, jobs: int) -> None:
    text = documents.session(page)
    if page == SESSIONS[0]:
        text = text[text.index("\nmake venv install\n") :].partition("spt.flow.ci")[0] + "spt.flow.ci)\n"
    # The fixture installs it.
    text = re.sub(r"^(make |export PATH=).*\n", "", text, flags=re.MULTILINE)
    text = text.replace("ci-demo-0a1b2c3d", '$(ls "$OLDPWD/spt-flow-ci" | head -n 1)')
    nowhere = {"CODER_URL": "http://127.0.0.1:9", "CODER_SESSION_TOKEN": "none"} if page == CI else {}
    done = run(playbooks, "bash", "-c", text, SPT_FLOW_TARGET="docker", **nowhere)
    assert succeeded(playbooks) == jobs, done.stdout + done.stderr


@pytest.mark.parametrize("mode", [0o755, 0o777], ids=["", "world-writable"])
def test_github_runner_runs_nothing_of_the_checkout(playbooks: Playbooks, tmp_path: Path, mode: int) -> None:
    playbooks.repository.chmod(mode)
    (tmp_path / "temp").mkdir()
    values = {
        "github.workspace": str(playbooks.repository),
        "github.sha": git("rev-parse", "HEAD", cwd=playbooks.repository),
        "runner.temp": str(tmp_path / "temp"),
        "secrets.DEPLOY_TOKEN": "token",
    }
    (step,) = documents.github(CI, values)
    playbooks.cwd = Path(step.get("working-directory", playbooks.repository))
    run(playbooks, "bash", "-e", "-c", step["run"], **{**step["env"], **WANTED})
    assert succeeded(playbooks) == 1


def test_gitlab_runner_runs_nothing_of_the_checkout(playbooks: Playbooks) -> None:
    values = {
        "CI_PROJECT_DIR": str(playbooks.repository),
        "CI_COMMIT_SHA": git("rev-parse", "HEAD", cwd=playbooks.repository),
    }
    ((lines, variables),) = documents.gitlab(CI, values)
    run(playbooks, "bash", "-e", "-c", "\n".join(lines), **{**variables, "DEPLOY_TOKEN": "token", **WANTED})
    assert succeeded(playbooks) == 1


def test_python_program_runs_nothing_of_the_checkout(playbooks: Playbooks, tmp_path: Path) -> None:
    (block,) = documents.blocks(CI, "python")
    (tmp_path / "job.py").write_text(block)
    more = {"SPT_FLOW_REPO": str(playbooks.repository), "SPT_FLOW_ARTIFACTS_DIR": str(tmp_path / "runs")}
    done = run(playbooks, str(Path(sys.executable)), str(tmp_path / "job.py"), **more, **WANTED)
    assert succeeded(playbooks) == 1, done.stdout + done.stderr


def test_every_page_with_a_job_is_tested() -> None:
    found = {page for page in documents.pages() for block in documents.blocks(page, r"\w+") if "spt.flow.ci" in block}
    assert found <= set(SESSIONS), "the tests above must run the commands of these pages"


@pytest.mark.parametrize("lure", LURES, ids=lambda lure: lure.name)
def test_traps_work_on_plain_ansible(tmp_path: Path, lure: Lure) -> None:
    """Plain Ansible in the checkout runs the marked traps. Without an engine nothing else happens."""
    with playbook_harness.playbooks(tmp_path) as playbooks:
        installed = playbooks.home / ".ansible/collections/ansible_collections/spt"
        installed.mkdir(parents=True)
        (installed / "flow").symlink_to(CHECKOUT)
        script(playbooks).write_text(f'#!/bin/sh\necho "$*" >>{canary(playbooks)}\n')
        script(playbooks).chmod(0o755)
        hostile_ansible.plant(playbooks.repository, script(playbooks), [lure])
        environment: dict[str, Any] = {"SPT_FLOW_REPO": str(playbooks.repository), "SPT_FLOW_COMMAND": "true"}
        done = subprocess.run(
            [str(playbooks.programs / "ansible-playbook"), "spt.flow.ci"],
            cwd=playbooks.repository,
            env=playbooks.environment(**environment, DOCKER_HOST="unix:///nowhere"),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert canary(playbooks).exists() is lure.works, done.stdout + done.stderr
        if lure.configuration and not lure.works:
            assert "a file of the repository" in done.stdout + done.stderr
