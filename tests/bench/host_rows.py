# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the speed table about workspace hosts: snapshots, the runtime, a converged ``site.yml``.

Each part fills ``samples`` (seconds by name), and ``rows`` builds the table's rows from them. Compared commands run in
turns within one run, so that noise of the machine affects both.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import Failed, Row, Samples, median, note, ratio, verdict

FILES = 50_000
BYTES = 600_000_000
POOL = 8 << 20
NUMBERED = Path("/usr/local/lib/spt-flow/audit-id.sh")
RUNTIMES = ("runc", "spt-flow")
STARTS_PER_ROUND, EXECS_PER_ROUND = 6, 20
TIMEOUT = 1800.0


def timed(samples: Samples, name: str, action: Callable[..., object], *words: Any, sync: bool = False) -> None:
    """Take one sample; with ``sync`` what others have yet to write to the disk is written first."""
    if sync:
        os.sync()
    begun = time.monotonic()
    action(*words)
    note(samples, name, time.monotonic() - begun)


def call(*argv: str, cwd: Path | None = None) -> str:
    """Return a command's output; if it fails, end the benchmark with its output."""
    done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode != 0:
        raise Failed(f"'{' '.join(argv)}' ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


# Snapshots


def fill(home: Path, files: int = FILES, size: int = BYTES) -> None:
    """Create a home of ``files`` files with ``size`` bytes in total, half of each incompressible, all different."""
    source = random.Random(1)
    pool, words = source.randbytes(POOL), b"def main() -> None:\n    return\n" * 2000
    mean = size // files
    for number in range(files):
        folder = home / f"d{number // 500}"
        if number % 500 == 0:
            folder.mkdir(parents=True)
        half = (mean // 4 + mean * 3 // 2 * (number % 101) // 100) // 2
        start = number * 7919 % (POOL - half)
        (folder / f"f{number}").write_bytes(b"%012d" % number + pool[start : start + half] + words[: half - 12])


def snapshots(place: Path, samples: Samples, rounds: int) -> str:
    """First and unchanged snapshot and a restore by the node's program, compared with ``tar --zstd`` and ``cp -a``.

    Returns what was measured, or why nothing was.
    """
    from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import config as snapshots_config
    from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import run as snapshots_run

    missing = [name for name in ("restic", "zstd") if not shutil.which(name)]
    if missing:
        return f"snapshots: not measured, {' and '.join(missing)} is not installed"
    home = place / "docker/volumes/spt-flow-bench-home/_data"
    fill(home)
    total = sum(entry.stat().st_size for folder in home.iterdir() for entry in folder.iterdir())
    for number in range(rounds):
        here = place / f"round{number}"
        here.mkdir()
        config = snapshots_config.Config(
            repository=str(here / "repository"),
            password_file=str(here / "password"),
            state=str(here / "state"),
            lock=str(here / "lock"),
            cache=str(here / "cache"),
            data_root=str(place / "docker"),
            engine=False,
        )
        snapshots_config.set_password(config)
        snapshots_config.init(config)
        archive, copy = here / "home.tar.zst", here / "copy"
        timed(samples, "tar", call, "tar", "--zstd", "-cf", str(archive), "-C", str(home.parent), home.name, sync=True)
        timed(samples, "cp", call, "cp", "-a", "--", str(home), str(copy), sync=True)
        timed(samples, "first", snapshots_run.run, config, sync=True)
        timed(samples, "unchanged", snapshots_run.run, config, sync=True)
        shutil.rmtree(copy)
        for name in ("restored", "untarred"):
            (here / name).mkdir()
        timed(samples, "untar", call, "tar", "--zstd", "-xf", str(archive), "-C", str(here / "untarred"), sync=True)
        timed(samples, "restore", config.restic().restore, "latest", str(here / "restored"), sync=True)
        found = sum(1 for folder in (here / "restored" / home.name).iterdir() for _ in folder.iterdir())
        if found != FILES:
            raise Failed(f"{found} of {FILES} files came back")
        shutil.rmtree(here)
    shutil.rmtree(place / "docker")
    return f"{FILES} files, {total / 1e6:.0f} MB, half of it incompressible, kind of source: live"


def snapshot_rows(samples: Samples) -> Iterator[Row]:
    if "first" not in samples:
        return
    first, tar, copy = (median(samples, name) for name in ("first", "tar", "cp"))
    yield f"snapshot of {FILES} files, first", f"{first:.1f} s; `tar --zstd` {tar:.1f} s, `cp -a` {copy:.1f} s", "", ""
    share = ratio(samples, "unchanged", "first")
    measured = f"{median(samples, 'unchanged'):.2f} s = {share:.2f} × first"
    yield "snapshot, unchanged", measured, "≤ 0.2 × first", verdict(share <= 0.2)
    restore, untar = median(samples, "restore"), median(samples, "untar")
    measured = f"{restore:.1f} s; `tar --zstd` {untar:.1f} s, `cp -a` {copy:.1f} s"
    yield "restore, all read back and verified", measured, "", ""


# The runtime


def runtime(image: str, owner: str, samples: Samples, rounds: int) -> str:
    """Measure starts and execs with the runtime spt-flow and with plain runc, on the same engine, in turns."""
    offered = call("docker", "info", "--format", "{{range $name, $_ := .Runtimes}}{{$name}} {{end}}").split()
    if "spt-flow" not in offered:
        return "runtime: not measured, the engine does not offer spt-flow"
    common = ["docker", "run", "--rm", "--network=none", f"--label=spt-flow.bench={owner}", "--entrypoint=sleep"]
    common += ["-e", f"SPT_FLOW_OWNER={owner}", "-e", "SPT_FLOW_WORKSPACE=bench"]
    running = {name: call(*common, "-d", f"--runtime={name}", image, "3600").strip() for name in RUNTIMES}
    try:
        for number in range(rounds * EXECS_PER_ROUND):
            for name in RUNTIMES if number % 2 else reversed(RUNTIMES):
                timed(samples, f"exec {name}", call, "docker", "exec", running[name], "true")
                if number % EXECS_PER_ROUND < STARTS_PER_ROUND:
                    timed(samples, f"start {name}", call, *common, f"--runtime={name}", image, "0")
    finally:
        for identifier in running.values():
            subprocess.run(["docker", "rm", "-f", identifier], capture_output=True, timeout=60)
    return "with the audit number" if NUMBERED.exists() else "without the audit number (host_audit is not here)"


def runtime_rows(samples: Samples) -> Iterator[Row]:
    for what, name in (("container start", "start"), ("`docker exec`", "exec")):
        if f"{name} runc" in samples:
            share = ratio(samples, f"{name} spt-flow", f"{name} runc")
            ours, plain = (median(samples, f"{name} {runtime}") * 1000 for runtime in ("spt-flow", "runc"))
            measured = f"{ours:.0f} ms = {share:.3f} × runc's {plain:.0f} ms"
            yield f"{what} by the runtime `spt-flow`", measured, "≤ 1.05 ×", verdict(share <= 1.05)


# Volumes

WORK = (
    'cd "$1" && rm -rf source clone && git init -q source && python3 - source <<"EOF"\n'
    "import pathlib, random, sys\n"
    "source = random.Random(1)\n"
    "for number in range(1500):\n"
    "    path = pathlib.Path(sys.argv[1], f'd{number // 100}', f'f{number}.py')\n"
    "    path.parent.mkdir(exist_ok=True)\n"
    "    path.write_text('x = 1\\n' * source.randrange(50, 1500))\n"
    "EOF\n"
    "git -C source add . && git -C source -c user.name=b -c user.email=b@example.com commit -q -m b"
    " && git clone -q source clone && python3 -m compileall -q clone && sync -f . && rm -rf source clone"
)


def volumes(image: str, owner: str, samples: Samples, rounds: int) -> str:
    """Measure commit, clone and build in a volume with its own file system and in a plain one, in turns."""
    if not Path("/usr/local/lib/spt-flow/spt-flow-disk").exists():
        return "volumes: not measured, the engine's runtime does not limit disk"
    names = {"sized": f"spt-flow-{owner}-bench-home", "plain": f"spt-flow-{owner}-plain"}
    common = ["docker", "run", "-d", "--runtime=spt-flow", "--network=none", f"--label=spt-flow.bench={owner}"]
    common += ["--user=1000", "--entrypoint=sleep", "-e", f"SPT_FLOW_DISK={20 << 30}"]
    mounts = ["-v", f"{names['sized']}:/home/coder", "-v", f"{names['plain']}:/plain"]
    identifier = call(*common, *mounts, image, "7200").strip()
    try:
        call("docker", "exec", "--user=0", identifier, "chown", "1000:1000", "/plain")
        for number in range(rounds):
            places = (("sized", "/home/coder"), ("plain", "/plain"))
            for name, path in places if number % 2 else reversed(places):
                argv = ["docker", "exec", identifier, "sh", "-c", WORK, "sh", path]
                timed(samples, f"volume {name}", call, *argv, sync=True)
    finally:
        subprocess.run(["docker", "rm", "-f", identifier], capture_output=True, timeout=120)
        subprocess.run(["docker", "volume", "rm", *names.values()], capture_output=True, timeout=120)
    return "volumes: commit, clone and byte-compile 1500 files"


def volume_rows(samples: Samples) -> Iterator[Row]:
    if "volume sized" in samples:
        share = ratio(samples, "volume plain", "volume sized")
        sized, plain = median(samples, "volume sized"), median(samples, "volume plain")
        measured = f"{sized:.1f} s = {share:.2f} × as fast as a plain volume's {plain:.1f} s"
        yield "commit, clone and build in a volume with a limit", measured, "≥ 0.9 ×", verdict(share >= 0.9)


# Neighbours


def neighbours(place: Path, samples: Samples, rounds: int) -> str:
    """Measure how long a workspace takes to answer next to a misbehaving one, and when all is quiet."""
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
    from ansible_collections.spt.flow.tests.integration import harness, noise_harness

    with harness.harness(place, image_identity.identity()) as made:
        for noise, entry, loud, quiet in noise_harness.measure(made, rounds):
            samples.setdefault(f"{noise}: {entry}", []).append(loud)
            samples.setdefault(f"quiet, {noise}: {entry}", []).append(quiet)
    return "neighbours: the loud one has every processor, 1 GiB and 400 processes"


def neighbour_rows(samples: Samples) -> Iterator[Row]:
    for name in samples:
        noise, _, entry = name.partition(": ")
        if not entry or noise.startswith("quiet, "):
            continue
        share = ratio(samples, name, f"quiet, {name}")
        figures = f"{median(samples, name) * 1000:.0f} ms = {share:.2f} × quiet"
        yield f"{entry} of a workspace next to a {noise}", figures, "≤ 2 ×", verdict(share <= 2)


# A node


@contextmanager
def machine(checkout: Path, place: Path, owner: str) -> Iterator[str]:
    """Start a systemd container like molecule does; yield an inventory with it as the only node."""
    name, inventory = f"spt-flow-{owner}", place / "hosts.json"
    node = {"ansible_connection": "community.docker.docker", "ansible_python_interpreter": "/usr/bin/python3"}
    inventory.write_text(json.dumps({"all": {"children": {"flow_nodes": {"hosts": {name: node}}}}}))
    values = {"molecule_yml": {"platforms": [{"name": name}]}}
    values["molecule_scenario_directory"] = str(checkout / "extensions/molecule/host_docker")  # type: ignore[assignment]
    try:
        call("ansible-playbook", "extensions/molecule/default/create.yml", "-e", json.dumps(values), cwd=checkout)
        yield str(inventory)
    finally:
        subprocess.run(["docker", "rm", "-f", "-v", name], capture_output=True, timeout=120)


def site(inventory: str, checkout: Path, env: dict[str, str], samples: Samples, rounds: int) -> str:
    """Measure ``site.yml`` on converged hosts of ``inventory``, against an empty play."""

    def play(path: str) -> str:
        argv = ["ansible-playbook", path, "-i", inventory]
        done = subprocess.run(argv, cwd=checkout, env=env, capture_output=True, text=True, timeout=TIMEOUT)
        if failed(done.stdout):
            raise Failed(f"'{' '.join(argv)}' ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr}")
        return done.stdout

    play("site.yml")
    for _ in range(rounds):
        timed(samples, "site empty", play, "tests/bench/empty.yml")
        timed(samples, "site", lambda: unchanged(play("site.yml")))
    return "the node of site.yml is a systemd container" if inventory.endswith("hosts.json") else ""


def recap(output: str) -> list[str]:
    """The recap's lines of hosts; localhost only tells the verdict, which no container can meet in full (audit)."""
    lines = output.partition("PLAY RECAP")[2].splitlines()
    return [line for line in lines if "unreachable=" in line and not line.startswith("localhost ")]


def failed(output: str) -> bool:
    words = ("failed=0", "unreachable=0")
    return "PLAY RECAP" not in output or not all(word in line for line in recap(output) for word in words)


def unchanged(output: str) -> None:
    if not all("changed=0" in line for line in recap(output)):
        raise Failed(f"the second run of site.yml changed something:\n{output}")


def site_rows(samples: Samples) -> Iterator[Row]:
    if "site" in samples:
        share = ratio(samples, "site", "site empty")
        measured = f"{median(samples, 'site'):.1f} s = {share:.1f} × empty"
        yield "`site.yml` on a converged node", measured, "≤ 15 ×", verdict(share <= 15)
