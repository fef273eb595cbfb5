# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many clients at once: names are the lock (docs/decisions/identity-and-names.md)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from ansible_collections.spt.flow.tests.integration.lab import WAIT, Lab, git

CLIENTS = 10


def outcomes(processes: list[subprocess.Popen[str]]) -> list[dict]:
    said = [process.communicate(timeout=WAIT) for process in processes]
    assert all("Traceback" not in err for _out, err in said), said
    return [json.loads(out) for out, _err in said]


def test_ten_at_once_make_one_workspace(lab: Lab) -> None:
    source = lab.repository()
    done = outcomes([lab.up_process(source) for _ in range(CLIENTS)])
    assert all(one["ok"] for one in done), done
    assert len({one["id"] for one in done}) == 1
    assert {one["clone"] for one in done} <= {"ok", "skipped"}
    lab.is_exactly("demo")
    workspace = lab.up(lab.spec(source))
    assert lab.inside(workspace, "git -C ~/demo rev-parse HEAD") == git(source, "rev-parse", "HEAD")


def test_ten_at_once_start_a_stopped_one(lab: Lab) -> None:
    source = lab.repository()
    workspace = lab.up(lab.spec(source))
    lab.ensure(lab.spec(source), "stopped")
    done = outcomes([lab.up_process(source) for _ in range(CLIENTS)])
    assert all(one["ok"] for one in done), done
    assert {one["id"] for one in done} == {workspace.id}
    # The engine tells everybody who asks before the container runs that it was them.
    assert any(one["changed"] for one in done)
    lab.is_exactly("demo")


def test_at_once_for_repositories_of_one_name_each_gets_its_own(lab: Lab) -> None:
    sources: list[Path] = [lab.repository(where=where) for where in "abc"]
    done = outcomes([lab.up_process(source) for source in sources for _ in range(2)])
    assert all(one["ok"] for one in done), done
    names = {str(source): {one["name"] for one in done[2 * i : 2 * i + 2]} for i, source in enumerate(sources)}
    assert all(len(found) == 1 for found in names.values()), names
    every = sorted(name for found in names.values() for name in found)
    assert len(set(every)) == 3
    lab.is_exactly(*every)
    for source in sources:
        workspace = lab.up(lab.spec(source))
        head = lab.inside(workspace, "cd ~ && git -C */ rev-parse HEAD")
        assert head == git(source, "rev-parse", "HEAD")


def test_restarts_and_ups_at_once_leave_one_workspace_with_its_home(lab: Lab) -> None:
    source = lab.repository()
    lab.inside(lab.up(lab.spec(source)), "echo precious > ~/note")
    mixed = [lab.up_process(source, state=state, pids=900) for state in ("restarted", "started") * 3]
    done = outcomes(mixed)
    assert any(one["ok"] for one in done), done
    workspace = lab.up(lab.spec(source))
    assert lab.inside(workspace, "cat ~/note") == "precious"
    lab.is_exactly("demo")


def test_delete_beside_up_leaves_all_or_nothing(lab: Lab) -> None:
    source = lab.repository()
    lab.up(lab.spec(source))
    done = outcomes([lab.up_process(source, state=state) for state in ("absent", "started", "absent", "started")])
    assert all(one["ok"] or one["message"] for one in done), done
    lab.ensure(lab.spec(source))
    lab.is_exactly("demo")
    lab.ensure(lab.spec(source), "absent")
    lab.is_exactly()
