# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""CI runs with faults on the real engine: each cleanup mechanism alone, full disks, lost nodes, runner timeouts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.reaper import engine as reaper_engine
from ansible_collections.spt.flow.tests.integration import ci_harness, playbook_harness
from ansible_collections.spt.flow.tests.integration.ci_harness import record, start, values
from ansible_collections.spt.flow.tests.integration.playbook_harness import CHECKOUT, Playbooks
from ansible_collections.spt.flow.tests.integration.test_faults import dying_engine

RUNNER = """
import json, pathlib, sys
import ansible_runner

folder, more = sys.argv[1], json.loads(sys.argv[2])
runs = pathlib.Path(folder).parent / "runs"
if more.pop("cancel", False):
    more["cancel_callback"] = lambda: any("begun" in log.read_text() for log in runs.glob("*/job.log"))
run = ansible_runner.run(
    private_data_dir=folder, playbook="spt.flow.ci", quiet=True, suppress_env_files=True,
    event_handler=lambda event: False, **more,
)
print(json.dumps([run.rc, run.status]))
"""


@pytest.fixture(scope="module")
def playbooks(tmp_path_factory: pytest.TempPathFactory, image: Any) -> Iterator[Playbooks]:
    with ci_harness.two_commits(tmp_path_factory.mktemp("ci")) as playbooks:
        yield playbooks


def frozen(name: str) -> None:
    """Disable the workspace's own deadline: stop its main process."""
    subprocess.run(["docker", "exec", "--user", "0", name, "pkill", "-STOP", "-f", "spt-workspace run"], check=False)


class Window:
    """The engine, restricted to one owner's objects in lists."""

    def __init__(self, owner: str) -> None:
        self._owner, self._engine = owner, docker_http.connect()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def get_json(self, path: str, query: Any = None) -> Any:
        if query:
            query = {**query, "filters": {"label": [f"spt.flow.owner={self._owner}"]}}
        return self._engine.get_json(path, query)


def reaped(playbooks: Playbooks, folder: Path, later: float) -> list[str]:
    """Return what a pass of the node's reaper deletes, ``later`` seconds from now."""
    boot, wall = time.clock_gettime(time.CLOCK_BOOTTIME) + later, time.time() + later
    path = str(folder / "run/reaper.json")
    return reaper_engine.sweep(path, False, Window(playbooks.owner), lambda: boot, lambda: wall).reaped  # type: ignore[arg-type]


@pytest.mark.parametrize("alone", ["the run", "the platform", "the reaper"])
def test_each_cleanup_mechanism_is_sufficient_alone(playbooks: Playbooks, tmp_path: Path, alone: str) -> None:
    ttl = 600 if alone == "the reaper" else 30
    run = start(playbooks, values(playbooks, tmp_path, "echo begun; sleep 900", ttl=str(ttl)))
    workspace = ci_harness.begun(tmp_path)
    container = f"spt-flow-{playbooks.owner}-{workspace}"
    ends = float(
        playbook_harness.docker("inspect", container, "--format", '{{index .Config.Labels "spt.flow.deadline"}}')
    )
    if alone != "the platform":
        frozen(container)
    if alone != "the run":
        ci_harness.kill(run)
        assert playbook_harness.belongings(playbooks.owner) == [container], (
            "killing the client must not end the workspace"
        )
    if alone == "the reaper":
        assert reaped(playbooks, tmp_path, ends - time.time() - 5) == []
        assert reaped(playbooks, tmp_path, ends - time.time() + 5) == [container]
    ci_harness.until(lambda: playbook_harness.belongings(playbooks.owner) == [], ends - time.time() + 120)
    if alone == "the run":
        said, _nothing = run.communicate(timeout=60)
        assert run.returncode == 124 and "job ttl" in said, said


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("this machine cannot mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disks_of_runner_and_job_are_distinguished(playbooks: Playbooks, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as folder:
        done = playbooks.run("ci", **values(playbooks, folder, "seq 100000"))
        assert done.returncode == 125, done.stdout + done.stderr
        assert "environment" in done.stderr and "No space left on device" in done.stderr
        assert "SPT_FLOW_ARTIFACTS_DIR" in done.stderr and "workspace deleted" in done.stderr
    assert playbook_harness.belongings(playbooks.owner) == []
    done = playbooks.run("ci", **values(playbooks, tmp_path / "runs", "head -c 1G /dev/zero >/run/spt-flow/x; exit $?"))
    assert done.returncode == 1 and "No space left on device" in done.stdout, done.stdout + done.stderr
    assert record(tmp_path / "runs")["kind"] == "job"


def test_lost_node_is_an_environment_failure_and_its_workspace_ends(playbooks: Playbooks, tmp_path: Path) -> None:
    with dying_engine(tmp_path, b'"session"', answers=True) as engine:
        done = playbooks.run("ci", DOCKER_HOST=engine, **values(playbooks, tmp_path / "runs", "sleep 600", ttl="30"))
    assert done.returncode == 125, done.stdout + done.stderr
    assert "environment" in done.stderr and "workspace LEFT" in done.stderr and "its TTL ends at" in done.stderr
    found = record(tmp_path / "runs")
    assert (found["kind"], found["ran"]) == ("environment", False) and found["left"]
    ci_harness.until(lambda: playbook_harness.belongings(playbooks.owner) == [], 120)


@pytest.mark.parametrize(("more", "told"), [({"timeout": 30}, [254, "timeout"]), ({"cancel": True}, [254, "canceled"])])
def test_runner_timeout_leaves_nothing_and_is_recorded_as_cancelled(
    playbooks: Playbooks, tmp_path: Path, more: dict[str, Any], told: list[Any]
) -> None:
    """With the Python interface: timeout and cancel kill ansible-playbook at once, which its worker notices."""
    done = runner(playbooks, tmp_path, "echo begun; sleep 600", **more)
    assert json.loads(done.stdout) == told, done.stdout + done.stderr
    ci_harness.until(lambda: playbook_harness.belongings(playbooks.owner) == [], 60)
    # On a slow machine the timeout came before there was a run.
    for _folder in (tmp_path / "runs").glob("*"):
        ci_harness.until(lambda: list((tmp_path / "runs").glob("*/run.json")), 60)
        assert record(tmp_path / "runs")["kind"] == "cancelled"


def test_python_interface_returns_the_job_status_and_keeps_no_event(playbooks: Playbooks, tmp_path: Path) -> None:
    done = runner(playbooks, tmp_path, "echo hello; exit 7")
    assert json.loads(done.stdout)[0] == 7, done.stdout + done.stderr
    assert record(tmp_path / "runs")["reason"] == "failed"
    (events,) = (tmp_path / "private").glob("artifacts/*/job_events")
    assert list(events.iterdir()) == []


def runner(playbooks: Playbooks, folder: Path, command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    private = folder / "private"
    subprocess.run([str(CHECKOUT / "tools/runner-dir"), str(private)], check=True, timeout=60, capture_output=True)
    return subprocess.run(
        [sys.executable, "-c", RUNNER, str(private), json.dumps(more)],
        env=playbooks.environment(**values(playbooks, folder / "runs", command)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
