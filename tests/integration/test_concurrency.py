# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many clients in parallel: names act as the lock (docs/decisions/identity-and-names.md)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from ansible_collections.spt.flow.tests.integration.harness import WAIT, Harness, git

CLIENTS = 10


def outcomes(processes: list[subprocess.Popen[str]]) -> list[dict]:
    said = [process.communicate(timeout=WAIT) for process in processes]
    assert all("Traceback" not in err for _out, err in said), said
    return [json.loads(out) for out, _err in said]


def test_ten_parallel_runs_create_one_workspace(harness: Harness) -> None:
    source = harness.repository()
    done = outcomes([harness.up_process(source) for _ in range(CLIENTS)])
    assert all(one["ok"] for one in done), done
    assert len({one["id"] for one in done}) == 1
    assert {one["clone"] for one in done} <= {"ok", "skipped"}
    harness.is_exactly("demo")
    workspace = harness.up(harness.spec(source))
    assert harness.inside(workspace, "git -C ~/demo rev-parse HEAD") == git(source, "rev-parse", "HEAD")


def test_ten_parallel_runs_start_a_stopped_workspace(harness: Harness) -> None:
    source = harness.repository()
    workspace = harness.up(harness.spec(source))
    harness.ensure(harness.spec(source), "stopped")
    done = outcomes([harness.up_process(source) for _ in range(CLIENTS)])
    assert all(one["ok"] for one in done), done
    assert {one["id"] for one in done} == {workspace.id}
    # The engine tells every client that asks before the container runs that it started it.
    assert any(one["changed"] for one in done)
    harness.is_exactly("demo")


def test_parallel_repositories_of_one_name_get_one_workspace_each(harness: Harness) -> None:
    sources: list[Path] = [harness.repository(where=where) for where in "abc"]
    done = outcomes([harness.up_process(source) for source in sources for _ in range(2)])
    assert all(one["ok"] for one in done), done
    names = {str(source): {one["name"] for one in done[2 * i : 2 * i + 2]} for i, source in enumerate(sources)}
    assert all(len(found) == 1 for found in names.values()), names
    every = sorted(name for found in names.values() for name in found)
    assert len(set(every)) == 3
    harness.is_exactly(*every)
    for source in sources:
        workspace = harness.up(harness.spec(source))
        head = harness.inside(workspace, "cd ~ && git -C */ rev-parse HEAD")
        assert head == git(source, "rev-parse", "HEAD")


def test_parallel_restarts_and_ups_leave_one_workspace_with_its_home(harness: Harness) -> None:
    source = harness.repository()
    harness.inside(harness.up(harness.spec(source)), "echo precious > ~/note")
    mixed = [harness.up_process(source, state=state, pids=900) for state in ("restarted", "started") * 3]
    done = outcomes(mixed)
    assert any(one["ok"] for one in done), done
    workspace = harness.up(harness.spec(source))
    assert harness.inside(workspace, "cat ~/note") == "precious"
    harness.is_exactly("demo")


def test_parallel_delete_and_up_leave_all_or_nothing(harness: Harness) -> None:
    source = harness.repository()
    harness.up(harness.spec(source))
    done = outcomes([harness.up_process(source, state=state) for state in ("absent", "started", "absent", "started")])
    assert all(one["ok"] or one["message"] for one in done), done
    harness.ensure(harness.spec(source))
    harness.is_exactly("demo")
    harness.ensure(harness.spec(source), "absent")
    harness.is_exactly()
