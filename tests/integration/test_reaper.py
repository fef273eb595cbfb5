# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reaper on the real engine, restricted to one owner's objects, an hour later."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node.reaper import engine as reaper_engine
from ansible_collections.spt.flow.tests.integration.harness import Harness

HOUR = 3600.0


class Window:
    """The engine, restricted to one owner's objects in lists."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    def __getattr__(self, name: str) -> Any:
        return getattr(self._harness.engine, name)

    def get_json(self, path: str, query: Any = None) -> Any:
        if query:
            query = {**query, "filters": {"label": [f"spt.flow.owner={self._harness.owner}"]}}
        return self._harness.engine.get_json(path, query)


def sweep(harness: Harness, folder: Path, later: float = 0.0, dry: bool = False) -> reaper_engine.Report:
    path = str(folder / "run" / "reaper.json")
    boot = time.clock_gettime(time.CLOCK_BOOTTIME) + later
    return reaper_engine.sweep(path, dry, Window(harness), lambda: boot, lambda: time.time() + later)  # type: ignore[arg-type]


def test_expired_workspaces_are_deleted_and_a_users_workspace_stays(harness: Harness, tmp_path: Path) -> None:
    repository = harness.repository()
    person = harness.up(harness.spec(repository))
    deadline = int(time.time()) + 1800
    ci = harness.up(replace(harness.spec(repository, name="ci-one"), kind="ci", deadline=deadline))
    # Created and never started, as by a client that was killed in between.
    harness.target.create(replace(harness.spec(repository, name="ci-two"), kind="ci", deadline=deadline), _progress())
    assert sweep(harness, tmp_path).reaped == []
    names = {f"spt-flow-{harness.owner}-ci-one", f"spt-flow-{harness.owner}-ci-two"}
    assert {d.name for d in sweep(harness, tmp_path, HOUR, dry=True).expired} == names
    argv = ["script", "-qfc", f"docker exec -it {harness.name(ci)} sleep 300", str(tmp_path / "screen")]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as person_there:
        time.sleep(2)
        begun = time.monotonic()
        report = sweep(harness, tmp_path, HOUR)
        took = time.monotonic() - begun
        person_there.wait(30)
    assert set(report.reaped) == names and report.failed == {} and took < 20
    assert reaper_engine.WARNING in (tmp_path / "screen").read_text(errors="replace")
    harness.is_exactly(person.name)
    assert harness.inspect(person.id)["State"]["Running"]
    assert sweep(harness, tmp_path, 100 * 24 * HOUR).reaped == []
    harness.is_exactly(person.name)


def test_docker_volume_is_deleted_after_its_workspace(harness: Harness, tmp_path: Path) -> None:
    person = harness.up(harness.spec(harness.repository()))
    harness.target._remove(person.id)
    assert sweep(harness, tmp_path, 0).reaped == [] and sweep(harness, tmp_path, 2 * HOUR).reaped == []
    subprocess.run(
        ["docker", "volume", "rm", f"{harness.name(person)}-home"], check=True, capture_output=True, timeout=60
    )
    assert sweep(harness, tmp_path, 2 * HOUR).reaped == []
    assert sweep(harness, tmp_path, 4 * HOUR).reaped == [f"{harness.name(person)}-docker"]
    assert harness.volumes() == []


def _progress() -> Any:
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress

    return Progress()
