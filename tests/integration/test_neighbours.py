# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two workspaces of different owners on one node: no attempt to read, divert, slow or stop the other succeeds.

The attempts are rows of neighbours_harness; each runs as the workspace's user and as its root. The results are in
artifacts/neighbours.md.
"""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.tests.integration import network_harness, noise_harness
from ansible_collections.spt.flow.tests.integration.harness import Harness
from ansible_collections.spt.flow.tests.integration.harness import harness as make_harness
from ansible_collections.spt.flow.tests.integration.neighbours_harness import (
    FILES,
    MEMORY,
    NETWORK,
    NOISES,
    PROCESSES,
    Way,
)

WAYS = (*NETWORK, *MEMORY, *PROCESSES, *FILES)
ARTIFACT = Path(__file__).resolve().parents[2] / "artifacts/neighbours.md"
USERS = {"coder": "1000:1000", "root": "0:0"}
SLOWER = 2.0
"""A neighbour that takes more than this many times its quiet time counts as slowed."""
TRIES = 3
"""A busy machine is slow now and then; an attack that works, works every time."""
Pair = tuple[Workspace, Workspace]


@pytest.fixture(scope="module")
def harnesses(
    tmp_path_factory: pytest.TempPathFactory, image: image_identity.Image
) -> Iterator[tuple[Harness, Harness]]:
    """Two owners."""
    with (
        make_harness(tmp_path_factory.mktemp("a"), image) as one,
        make_harness(tmp_path_factory.mktemp("b"), image) as other,
    ):
        yield one, other


@pytest.fixture(scope="module")
def pair(harnesses: tuple[Harness, Harness]) -> Pair:
    """The attacker, with every processor and Docker inside, and the victim."""
    one, other = harnesses
    if not one.target.probe_engine().runtime:
        pytest.skip("the engine was not prepared by the role host_docker")
    limits = {"cpus": 1024.0, "memory": 1 << 30, "pids": 400, "wait_timeout": 300}
    return (
        one.up(one.spec(one.repository("attacker"), docker="auto", **limits)),
        other.up(other.spec(other.repository("victim"), docker="auto", wait_timeout=300)),
    )


@pytest.fixture(scope="module")
def words(harnesses: tuple[Harness, Harness], pair: Pair) -> dict[str, str]:
    found = harnesses[1].inspect(pair[1].id)
    network = found["NetworkSettings"]["Networks"]["spt-flow"]
    gateway = network["Gateway"]
    return {
        "victim": network["IPAddress"],
        "gateway": gateway,
        "subnet": ".".join([*gateway.split(".")[:2], "255.255"]),
        "host": subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()[0],
        "victim_port": pair[1].url.rsplit(":", 1)[1].strip("/"),
        "victim_pid": str(found["State"]["Pid"]),
        "victim_id": pair[1].id,
        "victim_name": found["Name"].lstrip("/"),
        "mac": network["MacAddress"],
        "mark": f"mark{secrets.token_hex(6)}",
    }


def filled(script: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        script = script.replace(f"{{{name}}}", value)
    return script


def run(harness: Harness, workspace: Workspace, script: str, user: str) -> tuple[int, str]:
    done = harness.target.exec(workspace, ["bash", "-c", script], user=user, timeout=60)
    said = (done.stderr or done.stdout).strip().splitlines()
    return done.status, said[-1][:80].replace("|", "/") if said else ""


def tried(
    harnesses: tuple[Harness, Harness], pair: Pair, way: Way, words: dict[str, str], user: str
) -> tuple[str, str]:
    """Return the result of ``way``, and the attacker's output."""
    (one, other), (attacker, victim) = harnesses, pair
    if way.before:
        run(other, victim, filled(way.before, words), "0:0" if user == "0:0" else "1000:1000")
    control, said = run(other, victim, filled(way.control, words), "0:0")
    if control:
        return f"no means ({control})", said
    if not way.watch:
        status, said = run(one, attacker, filled(way.attack, words), user)
        return "SUCCEEDED" if status == 0 else "held", said
    argv = ["docker", "exec", "-u", "0:0", victim.id, "bash", "-c", filled(way.watch, words)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as watching:
        subprocess.run(["sleep", "0.5"], check=True)
        said = run(one, attacker, filled(way.attack, words), user)[1]
        return "SUCCEEDED" if watching.wait(30) == 0 else "held", said


def alive(harness: Harness, victim: Workspace, before: dict[str, object]) -> bool:
    state = harness.inspect(victim.id)["State"]
    noise_harness.by_ide(victim)
    return (state["Running"], state["Pid"]) == (before["Running"], before["Pid"])


@pytest.fixture(scope="module")
def rows() -> Iterator[list[tuple[str, str, str, str, str]]]:
    """Rows of the table, which is printed and kept when the module has run."""
    found: list[tuple[str, str, str, str, str]] = []
    yield found
    counted = Counter(verdict for _kind, _name, _who, verdict, _said in found)
    lines = [
        f"{len({name for _kind, name, *_rest in found})} ways, {len(found)} tries: "
        + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counted.items())),
        "",
        "| To | Way | As | Verdict | It said |",
        "| --- | --- | --- | --- | --- |",
        *("| " + " | ".join(row) + " |" for row in found),
    ]
    ARTIFACT.parent.mkdir(exist_ok=True)
    ARTIFACT.write_text("\n".join(lines) + "\n")
    print("\n".join(["", *lines]))


def test_enough_attempts_are_made() -> None:
    names = [way.name for way in WAYS] + [*noise_harness.NOISES, *NOISES]
    assert len(names) >= 40 and len(set(names)) == len(names)
    assert {way.kind for way in WAYS} == {"read", "divert", "slow", "stop"}


def test_no_attempt_reaches_the_neighbour(
    harnesses: tuple[Harness, Harness], pair: Pair, words: dict[str, str], rows: list[tuple[str, str, str, str, str]]
) -> None:
    before = harnesses[1].inspect(pair[1].id)["State"]
    for way in WAYS:
        for who, user in USERS.items():
            rows.append((way.kind, way.name, who, *tried(harnesses, pair, way, words, user)))
    assert [row for row in rows if row[3] != "held"] == []
    assert alive(harnesses[1], pair[1], before)


def test_frames_on_the_bridge_do_not_reach_the_neighbour(harnesses: tuple[Harness, Harness], pair: Pair) -> None:
    """As if the attacker had raw sockets: enter its network from the host, with every capability."""
    if not Path("/sys/class/net/spt-flow0").exists() or os.geteuid() != 0:
        pytest.skip("needs root on the engine's machine")
    attacker, victim = (
        str(harness.inspect(one.id)["State"]["Pid"]) for harness, one in zip(harnesses, pair, strict=True)
    )
    enter = ["nsenter", "--net", "--target"]
    hear = [*enter, victim, sys.executable, "-c", network_harness.HEAR, "2"]
    with subprocess.Popen(hear, stdout=subprocess.PIPE, text=True) as hearing:
        assert hearing.stdout and hearing.stdout.readline() == "ready\n"
        subprocess.run([*enter, attacker, sys.executable, "-c", network_harness.SEND, "hello"], check=True, timeout=20)
        assert hearing.stdout.readline().strip() == "silence"


@pytest.mark.parametrize("name", [*noise_harness.NOISES, *NOISES])
def test_noise_does_not_slow_or_stop_the_neighbour(
    harnesses: tuple[Harness, Harness],
    pair: Pair,
    words: dict[str, str],
    rows: list[tuple[str, str, str, str, str]],
    name: str,
) -> None:
    program = filled({**noise_harness.NOISES, **NOISES}[name], words)
    before = harnesses[1].inspect(pair[1].id)["State"]
    ratios: list[float] = []
    while not ratios or (ratios[-1] > SLOWER and len(ratios) < TRIES):
        quiet = noise_harness.latencies(pair[1], 3.0)
        with noise_harness.noise(pair[0], name, 5.0, program) as child:
            beside = noise_harness.latencies(pair[1], 5.0, child)
        ratios.append(
            max(statistics.median(beside[entry]) / statistics.median(quiet[entry]) for entry in noise_harness.ENTRIES)
        )
    # Other tests use the same two processors; `make test-full` measures again with nothing else running.
    slowed = ratios[-1] > SLOWER and "PYTEST_XDIST_WORKER" not in os.environ
    figures = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    rows.append(("slow", name, "coder", "SUCCEEDED" if slowed else "held", f"{figures} times the quiet time"))
    assert alive(harnesses[1], pair[1], before)
    assert not slowed, rows[-1]
