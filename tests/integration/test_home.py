# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The home survives everything: 2,000 files are unchanged after each stop, kill, restart and start of the engine.

``SPT_FLOW_TEST_CYCLES`` sets the number of cycles (12). ``SPT_FLOW_TEST_ENGINE_RESTART`` includes a restart of the
engine, where the machine permits it; its value names a file that exists while the engine is stopped.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace, WorkspaceSpec
from ansible_collections.spt.flow.tests.integration.harness import Harness

CYCLES = int(os.environ.get("SPT_FLOW_TEST_CYCLES") or 12)
SEED = int(os.environ.get("SPT_FLOW_TEST_SEED") or random.SystemRandom().randrange(2**32))
FILES = 2000
TREE = "/home/coder/tree"

MAKE = r"""
import os, random, sys
tree, count = sys.argv[1], int(sys.argv[2])
chance = random.Random(7)
modes = [0o600, 0o644, 0o755, 0o444, 0o4755, 0o2750, 0o1666]
owners = [(1000, 1000), (0, 0), (1, 2), (65534, 65534), (4321, 8765)]
for number in range(count):
    folder = os.path.join(tree, f"d{number % 40}", f"e{number % 7}")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, chance.choice(["plain", "with space", "zeile\n2", "ümlaut"]) + str(number))
    if number % 50 == 0:
        os.symlink(f"../nowhere{number}", path)
        continue
    with open(path, "wb") as file:
        file.write(chance.randbytes(chance.choice([0, 1, 100, 5000])))
        if number % 97 == 0:
            file.seek(1 << 20, os.SEEK_CUR)
            file.write(b"end")
    os.setxattr(path, "user.test", str(number).encode())
    os.chown(path, *chance.choice(owners))
    os.chmod(path, chance.choice(modes))
    os.utime(path, ns=(1, 1_600_000_000_123_456_789 + number))
    if number % 41 == 0:
        os.link(path, path + ".twin")
os.mkfifo(os.path.join(tree, "fifo"))
"""

DIGEST = r"""
import hashlib, os, stat, sys
total, count = hashlib.sha256(), 0
for folder, folders, files in os.walk(sys.argv[1]):
    folders.sort()
    for name in sorted([*folders, *files]):
        path = os.path.join(folder, name)
        found = os.lstat(path)
        words = [path, found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns]
        words += [found.st_nlink if stat.S_ISREG(found.st_mode) else 0]
        if stat.S_ISREG(found.st_mode):
            count += 1
            words += [hashlib.sha256(open(path, "rb").read()).hexdigest()]
            words += [(key, os.getxattr(path, key)) for key in sorted(os.listxattr(path))]
        elif stat.S_ISLNK(found.st_mode):
            words += [os.readlink(path)]
        total.update(repr(words).encode())
print(count, total.hexdigest())
"""

ENGINE_PROGRAM = "/usr/local/lib/spt-flow/spt-flow-engine"


def python(harness: Harness, workspace: Workspace, script: str, *words: str) -> str:
    done = harness.target.exec(workspace, ["python3", "-c", script, *words], timeout=120, user="0:0")
    assert done.status == 0, done
    return done.stdout.strip()


class Cycle:
    """Ways in which a workspace stops and comes back; each returns the settings of the next ``up``."""

    def __init__(self, harness: Harness, source: Path, chance: random.Random) -> None:
        self.harness, self.source, self.chance = harness, source, chance
        self.settings: dict[str, Any] = {}

    @property
    def spec(self) -> WorkspaceSpec:
        return self.harness.spec(self.source, **self.settings)

    def stop(self, workspace: Workspace) -> None:
        self.harness.ensure(self.spec, "stopped")

    def kill(self, workspace: Workspace) -> None:
        self.harness.kill(workspace.id)

    def remove(self, workspace: Workspace) -> None:
        self.harness.engine.request_json("DELETE", f"/containers/{workspace.id}", {"force": True})

    def restart(self, workspace: Workspace) -> None:
        self.settings = {"pids": self.chance.randrange(500, 5000), "memory": self.chance.choice([1, 2]) << 30}
        self.harness.ensure(self.spec, "restarted")

    def fail_to_restart(self, workspace: Workspace) -> None:
        try:
            self.harness.ensure(self.harness.spec(self.source, wait_timeout=0, pids=64), "restarted")
        except FlowError:
            return
        raise AssertionError("a restart that may not take any time has ended")

    def engine(self, workspace: Workspace) -> None:
        restart_engine()


def again(until: float) -> None:
    """End an engine and start it with the same arguments."""
    pid = int(Path("/var/run/docker.pid").read_text())
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.2)
    # Start it detached, or the next restart would wait for a process that nothing reaps.
    with open("/run/spt-flow-test-dockerd.log", "ab") as log:
        subprocess.run(["setsid", "--fork", *argv], stdout=log, stderr=log, check=True, timeout=90)


def restart_engine() -> None:
    """End the engine and start it as it was started."""
    busy = Path(os.environ["SPT_FLOW_TEST_ENGINE_RESTART"])
    busy.touch()
    try:
        until = time.monotonic() + 90
        if Path("/run/systemd/system").exists():
            subprocess.run(["systemctl", "restart", "docker"], check=True, timeout=90)
        elif Path("/run/spt-flow/dockerd.pid").exists():
            subprocess.run([ENGINE_PROGRAM, "restart"], check=True, timeout=90)
        else:
            again(until)
        while time.monotonic() < until:
            try:
                docker_http.connect().get_json("/version")
                return
            except FlowError:
                time.sleep(0.3)
        raise AssertionError("the engine did not come back")
    finally:
        busy.unlink()


def test_home_is_unchanged_after_every_cycle(harness: Harness) -> None:
    chance = random.Random(SEED)
    cycle = Cycle(harness, harness.repository(), chance)
    ways: list[Callable[[Workspace], None]] = [
        cycle.stop,
        cycle.kill,
        cycle.restart,
        cycle.remove,
        cycle.fail_to_restart,
    ]
    if os.environ.get("SPT_FLOW_TEST_ENGINE_RESTART"):
        ways.append(cycle.engine)
    workspace = harness.up(cycle.spec)
    python(harness, workspace, MAKE, TREE, str(FILES))
    before = python(harness, workspace, DIGEST, TREE)
    assert int(before.split()[0]) >= FILES * 0.98
    order: list[Callable[[Workspace], None]] = []
    for number in range(CYCLES):
        order = order or chance.sample(ways, len(ways))
        way = order.pop()
        print(f"SPT_FLOW_TEST_SEED={SEED} cycle {number}: {way.__name__}")
        way(workspace)
        workspace = harness.up(cycle.spec)
        assert python(harness, workspace, DIGEST, TREE) == before, (number, way.__name__)
        harness.is_exactly("demo")
