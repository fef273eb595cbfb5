# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the speed table about CI: a run against the same by hand, the reaper, the time after a TTL.

``samples`` has seconds, bytes and counts by name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import Failed, Row, Samples, median, note, verdict

Play = Callable[..., Any]
MANY, EXPIRED = 1000, 100
TOKEN = "benchbench-aaaaaaaaaaaaaaaaaaaaaa"
TTL = 20
COMMAND = "git rev-parse HEAD"
BY_HAND = "cat >/tmp/b && git clone -q /tmp/b r && cd r && " + COMMAND


def overhead(playbook: Play, image: str, repository: Path, folder: Path, samples: Samples, rounds: int) -> str:
    """Measure a command with `ci.yml`, in turns with an empty play and the same command in a plain container.

    ``playbook(verb, **values)`` runs one and returns its seconds.
    """
    bundle = folder / "bundle"
    subprocess.run(["git", "-C", str(repository), "bundle", "create", "-q", str(bundle), "HEAD", "main"], check=True)
    runtime = subprocess.run(["docker", "info", "--format", "{{.Runtimes}}"], capture_output=True, text=True).stdout
    words = ["--runtime", "spt-flow"] if "spt-flow:" in runtime else []
    hand = ["docker", "run", "--rm", "-i", *words, "--entrypoint", "sh", image, "-c", BY_HAND]
    values = {"repo": str(repository), "command": COMMAND, "artifacts_dir": str(folder / "runs"), "docker": "disabled"}
    for _round in range(rounds):
        note(samples, "ci empty", playbook("empty").seconds)
        note(samples, "ci", playbook("ci", **values).seconds)
        begun = time.monotonic()
        with bundle.open("rb") as stdin:
            subprocess.run(hand, stdin=stdin, stdout=subprocess.DEVNULL, check=True)
        note(samples, "ci by hand", time.monotonic() - begun)
    return ""


def reaper(run: Play, checkout: Path, folder: Path, samples: Samples, rounds: int) -> str:
    """Measure the timer's program: a pass over many workspaces of a fake server, some of them expired.

    ``run(argv, environment, memory)`` returns seconds and memory of a process.
    """
    from ansible_collections.spt.flow.tests.unit import coder_harness

    library = folder / "lib/spt_flow_node"
    shutil.copytree(checkout / "plugins/module_utils/_node", library)
    token = folder / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    program = str(checkout / "roles/workspace_reaper/files/spt-flow-reaper")
    env = {**os.environ, "SPT_FLOW_LIB": str(library.parent), "NO_PROXY": "127.0.0.1"}
    with coder_harness.server(0.0) as fake:
        fake.state.give_token(fake.state.user("admin"), TOKEN)
        fake.state.slots = [0.0] * MANY
        words = ["--coder", fake.url, "--token-file", str(token), "--state", str(folder / "state.json")]
        fill(fake, MANY - EXPIRED, 80000)
        for number in range(2 * rounds):
            fill(fake, EXPIRED, 60)
            fake.state.clock.advance(600)
            before, memory = len(fake.seen), number >= rounds
            done = run([sys.executable, program, *words], env, memory)
            note(samples, "reaper memory" if memory else "reaper", done.memory if memory else done.seconds)
            note(samples, "reaper requests", len(fake.seen) - before)
            if done.output.count("deleted workspace") != EXPIRED:
                raise Failed(f"the reaper did not delete {EXPIRED} workspaces:\n{done.output}")
            fake.state.clock.advance(60)
    return ""


def fill(fake: Any, many: int, ttl: float) -> None:
    state = fake.state
    with fake.lock:
        ada, template = state.user("ada"), state.template_by_name("spt-flow-ci")
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(state.now + ttl))
        for _number in range(many):
            values = [{"name": "deadline", "value": ends}]
            name = f"ci-{len(state.workspaces):05}"
            state.create_workspace(
                ada,
                ada,
                {"name": name, "template_id": template.id, "ttl_ms": 86_400_000, "rich_parameter_values": values},
            )
    state.clock.advance(60)


def deletion(
    client: Any, start: Callable[..., subprocess.Popen[bytes]], owner: str, samples: Samples, runs: int
) -> str:
    """Measure the seconds from the TTL to the end of a workspace whose client was killed, so that it ends itself.

    ``start(number)`` starts a run of ``TTL`` seconds with an endless command.
    """
    waiting: dict[str, float] = {}
    for number in range(runs):
        process = start(number)
        found = None
        while found is None and process.poll() is None:
            listed = containers(client, f"spt.flow.owner={owner}", "spt.flow.kind=ci")
            found = next((one for one in listed if one["Id"] not in waiting), None)
            time.sleep(0.1)
        if found is None:
            raise Failed("a CI run ended before its client was killed")
        waiting[found["Id"]] = float(found["Labels"]["spt.flow.deadline"])
        for pid in family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    while waiting:
        present = {one["Id"] for one in containers(client, f"spt.flow.owner={owner}")}
        for gone in set(waiting) - present:
            note(samples, "after the TTL", max(0.0, time.time() - waiting.pop(gone)))
        time.sleep(0.2)
    return ""


def containers(client: Any, *labels: str) -> list[dict[str, Any]]:
    """List containers by labels in one request; a request per container would fail when one vanishes in between."""
    found: list[dict[str, Any]] = client.api.containers(all=True, filters={"label": list(labels)})
    return found


def family(pid: int) -> list[int]:
    """Return a process and all its descendants, in any session."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def overhead_rows(samples: Samples) -> Iterator[Row]:
    ours, hand, empty = (median(samples, name) for name in ("ci", "ci by hand", "ci empty"))
    measured = f"{ours:.2f} s; by hand {hand:.2f} s, empty play {empty:.2f} s"
    holds = verdict(ours <= 2 * empty + hand)
    yield "a command by `ci.yml`, with its workspace", measured, "≤ by hand + 2 × empty", holds


def reaper_rows(samples: Samples) -> Iterator[Row]:
    seconds, memory = median(samples, "reaper"), max(samples["reaper memory"]) / 2**20
    asked, most = max(samples["reaper requests"]), MANY / 100 + 2 + EXPIRED
    measured = f"{seconds:.2f} s, {memory:.0f} MiB, {asked:.0f} requests"
    holds = verdict(seconds <= 5 and memory <= 100 and asked <= most)
    what = f"a pass of the reaper over {MANY:,} Coder workspaces, {EXPIRED} expired"
    yield what, measured, f"≤ 5 s, ≤ 100 MiB, ≤ {most:.0f} requests", holds


def deletion_rows(samples: Samples) -> Iterator[Row]:
    times = samples["after the TTL"]
    late = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
    measured = f"p95 {late:.1f} s, at most {max(times):.1f} s, of {len(times)}"
    holds = verdict(late <= 75 and max(times) <= 120)
    yield "from the TTL to nothing, client killed", measured, "≤ 75 s, ≤ 2 min", holds
