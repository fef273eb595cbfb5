# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A misbehaving workspace is limited; another one and the host still answer, and nothing outside is killed.

No measurement fails a test: results go to ``artifacts/noisy-neighbour.md``, the ratios are rows of ``make bench``.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.tests.integration import noise_harness, sshd_harness
from ansible_collections.spt.flow.tests.integration.harness import Harness

ARTIFACT = Path(__file__).parents[2] / "artifacts/noisy-neighbour.md"
SECONDS = 6.0
BITES = {"fork bomb": "pids", "memory hog": "oom"}
"""The counter that shows when the noisy workspace reaches its limit; it may use every processor (see test_limits)."""


@pytest.fixture(scope="module")
def pair(shared_harness: Harness) -> tuple[Workspace, Workspace]:
    return noise_harness.pair(shared_harness)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with sshd_harness.sshd(tmp_path_factory.mktemp("sshd")) as config:
        yield config


def test_forks_of_one_workspace_do_not_delay_entering_another() -> None:
    """The kernel's mechanism for that; without it `docker exec` next to a fork bomb took 13 to 27 times as long."""
    release = os.uname().release
    if tuple(int(number) for number in re.findall(r"\d+", release)[:2]) < (6, 0):
        pytest.skip(f"favordynmods is known from Linux 6.0 on, this is {release}")
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    options = [mount[3].split(",") for mount in mounts if mount[2] == "cgroup2"]
    if not Path("/usr/local/lib/spt-flow/spt-flow-engine").exists() or not options:
        pytest.skip("this engine was not prepared by host_docker, or the machine has no cgroups of version 2")
    assert any("favordynmods" in words for words in options)


@pytest.fixture
def canary() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host that the kernel would kill before any other."""
    with subprocess.Popen(["sleep", "600"]) as process:
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")
        yield process
        process.kill()


@pytest.fixture(scope="module")
def figures(pair: tuple[Workspace, Workspace], host: Path) -> Iterator[dict[str, dict[str, list[float]]]]:
    """Answers next to each noise; the table is written when the module has run."""
    quiet = noise_harness.latencies(pair[1], 4.0, ssh=lambda _workspace: by_ssh(host))
    found: dict[str, dict[str, list[float]]] = {}
    yield found
    text = noise_harness.table(quiet, found)
    ARTIFACT.parent.mkdir(exist_ok=True)
    ARTIFACT.write_text(text)
    print(f"\n{text}")


def by_ssh(host: Path) -> None:
    sshd_harness.answers(host, within=60)


def processes(harness: Harness, workspace: Workspace) -> set[tuple[int, str]]:
    """Return (pid, start time) of the workspace's own processes, without those of ``docker exec``."""
    root = harness.inspect(workspace.id)["State"]["Pid"]
    found, todo = set(), [root]
    while todo:
        pid = todo.pop()
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found.add((pid, stat[19]))
        todo += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found


@pytest.mark.parametrize("name", noise_harness.NOISES)
def test_noisy_workspace_is_held_to_its_limits_and_harms_no_other(
    shared_harness: Harness,
    pair: tuple[Workspace, Workspace],
    host: Path,
    canary: subprocess.Popen[bytes],
    figures: dict[str, dict[str, list[float]]],
    name: str,
) -> None:
    loud, other = pair
    kernel = {which: noise_harness.counter(shared_harness, loud, which) for which in ("pids", "oom")}
    states = {w.name: shared_harness.inspect(w.id)["State"] for w in pair}
    before = processes(shared_harness, other)
    engine = shared_harness.engine.get_json("/info")["ID"]

    with noise_harness.noise(loud, name, SECONDS) as child:
        figures[name] = noise_harness.latencies(other, SECONDS, child, ssh=lambda _workspace: by_ssh(host))

    if name in BITES:
        assert noise_harness.counter(shared_harness, loud, BITES[name]) > kernel[BITES[name]], (
            "the limit was never reached"
        )
    assert (noise_harness.counter(shared_harness, loud, "oom") > kernel["oom"]) == (name == "memory hog")
    assert noise_harness.counter(shared_harness, other, "oom") == 0
    assert canary.poll() is None, "the host itself ran out of memory"
    assert before <= processes(shared_harness, other), "a process of the neighbour was killed"
    assert shared_harness.engine.get_json("/info")["ID"] == engine
    for workspace in pair:
        state = shared_harness.inspect(workspace.id)["State"]
        assert (state["Running"], state["Pid"]) == (True, states[workspace.name]["Pid"]), workspace.name
        assert shared_harness.inside(workspace, "echo here") == "here"
