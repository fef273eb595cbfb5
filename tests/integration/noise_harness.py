# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Noise that one workspace makes and its effect on neighbours; shared by the test and the benchmark.

Every noise ends at its deadline, even when its client was killed.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.tests.integration.harness import Harness

CGROUPS = Path("/sys/fs/cgroup")
LOUD: dict[str, Any] = {"cpus": 1024.0, "memory": 1 << 30, "pids": 400}
"""Limits of the noisy workspace: all processors, but less memory than the machine has."""

_LOOP = "import os, sys, time\nend = time.time() + float(sys.argv[1])\n"
NOISES: dict[str, str] = {
    "fork bomb": _LOOP
    + "while time.time() < end:\n try: os.fork()\n except OSError as e: sys.argv[1:] = [str(e)]\nos._exit(0)",
    "CPU hog": _LOOP + "for _ in range(5): os.fork()\nwhile time.time() < end: pass\nos._exit(0)",
    "memory hog": _LOOP
    + "while time.time() < end:\n if os.fork():\n  os.wait()\n  continue\n held = []\n"
    + " while time.time() < end: held.append(b'x' * (16 << 20))\n os._exit(0)",
    "disk filler": _LOOP + "name = os.path.expanduser('~/.noise')\n"
    "try:\n while time.time() < end:\n"
    "  with open(name, 'wb', 0) as f:\n"
    "   while time.time() < end and f.tell() < 1 << 30: f.write(os.urandom(1 << 20) * 8)\n"
    "   os.fsync(f.fileno())\n"
    "finally: os.unlink(name)",
}
"""Python programs by name; the argument is the number of seconds."""


@contextlib.contextmanager
def noise(workspace: Workspace, name: str, seconds: float, program: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Run ``name``, or the given program, in ``workspace`` as its user.

    The body of the ``with`` statement runs meanwhile; its end waits for the noise to end.
    """
    argv = ["docker", "exec", "-u", "1000:1000", workspace.id, "python3", "-c", program or NOISES[name], str(seconds)]
    begun = time.monotonic()
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        time.sleep(1)
        yield child
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds + 60 - (time.monotonic() - begun))
        child.kill()


# Effects on a neighbour


def by_exec(workspace: Workspace) -> None:
    subprocess.run(["docker", "exec", workspace.id, "true"], check=True, capture_output=True, timeout=60)


def by_ide(workspace: Workspace) -> None:
    with urllib.request.urlopen(f"{workspace.url}healthz", timeout=60) as answer:
        assert answer.status == 200


Entry = Callable[[Workspace], None]
ENTRIES: dict[str, Entry] = {"docker exec": by_exec, "IDE": by_ide}


def latencies(
    workspace: Workspace, seconds: float, child: subprocess.Popen[bytes] | None = None, **more: Entry
) -> dict[str, list[float]]:
    """Measure the seconds of every answer of ``workspace`` by entry, in turns, for ``seconds`` while ``child`` lives.

    Every entry is measured at least once.
    """
    entries = {**ENTRIES, **more}
    found: dict[str, list[float]] = {name: [] for name in entries}
    end = time.monotonic() + seconds
    while not all(found.values()) or (time.monotonic() < end and (child is None or child.poll() is None)):
        for name, entry in entries.items():
            begun = time.monotonic()
            entry(workspace)
            found[name].append(time.monotonic() - begun)
            time.sleep(0.02)
    return found


def table(quiet: dict[str, list[float]], noisy: dict[str, dict[str, list[float]]]) -> str:
    """Render medians and worst answers as Markdown; the ratio is that of the medians."""
    rows = ["| Noise | Entry | Median | Worst | Quiet median | Ratio |", "| --- | --- | --- | --- | --- | --- |"]
    for noise_name, entries in noisy.items():
        for entry, answers in entries.items():
            median, base = statistics.median(answers), statistics.median(quiet[entry])
            figures = [f"{value * 1000:.0f} ms" for value in (median, max(answers), base)]
            rows.append(f"| {noise_name} | {entry} | {' | '.join(figures)} | {median / base:.2f} |")
    return "\n".join(rows) + "\n"


# Counters of the kernel


def counter(harness: Harness, workspace: Workspace, which: str) -> int:
    """Return the counter ``pids`` (refused forks) or ``oom`` (killed processes) of the workspace's cgroup.

    Versions 1 and 2 name them differently; a missing file is an error of the test.
    """
    controller, names, word = {
        "pids": ("pids", ("pids.events",), "max"),
        "oom": ("memory", ("memory.oom_control", "memory.events"), "oom_kill"),
    }[which]
    pid = harness.inspect(workspace.id)["State"]["Pid"]
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        folder = CGROUPS / controllers / path.lstrip("/") if controllers else CGROUPS / path.lstrip("/")
        if controllers not in ("", controller):
            continue
        for name in names:
            if (folder / name).exists():
                words = dict(line.split() for line in (folder / name).read_text().splitlines())
                return int(words[word])
    raise AssertionError(f"no {which} counter of {workspace.name}")


def pair(harness: Harness) -> tuple[Workspace, Workspace]:
    """A workspace that will be noisy, and its neighbour, whose IDE answers."""
    loud = harness.up(harness.spec(harness.repository("loud"), **LOUD))
    other = harness.up(harness.spec(harness.repository("other")))
    for entry in ENTRIES.values():
        entry(other)
    return loud, other


def measure(harness: Harness, rounds: int, seconds: float = 5.0) -> Iterator[tuple[str, str, float, float]]:
    """Yield (noise, entry, median with noise, median when quiet) in seconds; quiet is measured before each noise."""
    loud, other = pair(harness)
    for _ in range(rounds):
        for name in NOISES:
            quiet = latencies(other, seconds / 2)
            with noise(loud, name, seconds + 1) as child:
                noisy = latencies(other, seconds, child)
            for entry in ENTRIES:
                yield name, entry, statistics.median(noisy[entry]), statistics.median(quiet[entry])
