# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared by the tests of CI runs: a repository with two commits, the playbook as a process, and killing it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.tests.integration import playbook_harness
from ansible_collections.spt.flow.tests.integration.playbook_harness import Playbooks, git


@contextlib.contextmanager
def two_commits(folder: Path) -> Iterator[Playbooks]:
    """Playbooks whose repository has two commits."""
    with playbook_harness.playbooks(folder) as playbooks:
        (playbooks.repository / "second.txt").write_text("second\n")
        git("add", ".", cwd=playbooks.repository)
        git("commit", "--quiet", "-m", "second", cwd=playbooks.repository)
        yield playbooks


def values(playbooks: Playbooks, folder: Path, command: str, **more: str) -> dict[str, str]:
    wanted = {"repo": str(playbooks.repository), "command": command, "artifacts_dir": str(folder), "docker": "disabled"}
    return {f"SPT_FLOW_{name.upper()}": value for name, value in {**wanted, **more}.items()}


def record(folder: Path) -> dict[str, Any]:
    """Return the record of the only run below ``folder``."""
    (path,) = folder.glob("*/run.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def start(playbooks: Playbooks, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        playbooks.argv("ci"),
        cwd=playbooks.cwd,
        env=playbooks.environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def family(pid: int) -> list[int]:
    """Return ``pid`` and its descendants."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def kill(run: subprocess.Popen[str]) -> None:
    """Kill all processes of a client at once, so that none of them can react."""
    for pid in family(run.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.wait()


def begun(folder: Path, word: str = "begun", seconds: float = 180.0) -> str:
    """Return the workspace's name of the only run below ``folder``, once its job has written ``word``."""
    until(lambda: any(word in log.read_text() for log in folder.glob("*/job.log")), seconds)
    return next(folder.glob("*/job.log")).parent.name


def until(look: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.5)


def networks() -> set[str]:
    return set(playbook_harness.docker("network", "ls", "--format", "{{.Name}}").split())
