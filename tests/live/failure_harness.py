# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Coder server of its own whose parts a test stops and kills: server, database, Terraform and state.

The engine behind the node's proxy is the shared one.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.http import CoderHttp
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.jobs import ENDED
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Result, WorkspaceSpec
from ansible_collections.spt.flow.tests.integration.proxy_harness import Proxied, proxy
from ansible_collections.spt.flow.tests.live import conftest
from ansible_collections.spt.flow.tests.live.conftest import Database, LiveServer

SETTINGS = Settings(profile="slim", cpus=1.0, memory=1 << 30, kvm="disabled", wait_timeout=600)
SPEC = WorkspaceSpec("me", SETTINGS, "fragile")
NO_STATE = {"version": 4, "terraform_version": "1.11.4", "serial": 9, "lineage": "x", "outputs": {}, "resources": []}
LIMIT = 300.0


@dataclass
class Site:
    """A server with its database, behind one node's proxy."""

    server: LiveServer
    database: Database
    proxied: Proxied

    def target(self, said: list[str] | None = None) -> CoderTarget:
        client = self.server.client(self.server.token)
        if said is not None:
            client.http = CoderHttp(client.http.config, say=said.append)
        return CoderTarget(client)

    def ensure(self, state: str = "started", said: list[str] | None = None) -> Result:
        return lifecycle.ensure(self.target(said), SPEC, state, progress=Progress(print))

    def workspace(self) -> dict[str, Any] | None:
        return self.server.client(self.server.token).workspace(SPEC.name)

    def create(self) -> str:
        """Ask for a workspace as a click in the dashboard does; return its id without waiting."""
        client = self.server.client(self.server.token)
        template = client.template("spt-flow")
        assert template is not None
        return str(client.create_workspace(SPEC.name, template["id"])["id"])

    def at(self, stage: str) -> None:
        """Wait until the newest build is in this stage."""
        client = self.server.client(self.server.token)

        def there() -> bool:
            found = self.workspace()
            assert found is not None
            lines = client.build_logs(found["latest_build"]["id"])
            return any(stage.lower() in line["stage"].lower() for line in lines)

        wait(f"stage {stage}", there, pause=0.02)

    def kill_terraform(self) -> int:
        """Kill the server's Terraform and its providers, as the kernel does when memory is short; return how many."""
        assert self.server.process is not None
        programs = list(_descendants(self.server.process.pid))
        for pid in programs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(programs)

    def lose_state(self) -> None:
        """Make the server forget what Terraform has made for the workspace."""
        found = self.workspace()
        assert found is not None and self.server.admin is not None
        path = f"/api/v2/workspacebuilds/{found['latest_build']['id']}/state"
        state = base64.b64encode(json.dumps(NO_STATE).encode()).decode()
        self.server.admin.http.request("PUT", path, body={"state": state})

    def end_hung_builds(self) -> None:
        """Make builds without a worker old enough for the server, which waits five minutes otherwise."""
        age = "UPDATE provisioner_jobs SET updated_at = updated_at - interval '10 minutes' WHERE completed_at IS NULL"
        done = self.database.run("psql", "-d", "coder", "-c", age)
        assert done.returncode == 0, done.stderr
        self.ended()

    def ended(self) -> None:
        """Wait until no build is in progress."""

        def over() -> bool:
            found = self.workspace()
            return found is None or found["latest_build"]["job"]["status"] in ENDED

        wait("the end of the build", over)

    def click_delete(self) -> None:
        """Delete the workspace as a click in the dashboard does, and wait for it."""
        found = self.workspace()
        assert found is not None
        self.server.client(self.server.token).create_build(found, "delete")
        wait("the deletion", lambda: self.workspace() is None)

    def check_reap(self) -> subprocess.CompletedProcess[str]:
        """List what the playbook would delete from this node and this server."""
        return conftest.bootstrap(self.server, "--check", playbook="reap", nodes=("node1",))

    def reap(self, workspace_id: str) -> dict[str, Any]:
        """Run the last play of the playbook for one workspace; the first would also reap the shared engine."""
        path = self.server.folder / "hosts.yml"
        argv = [str(Path(sys.executable).parent / "ansible"), "node1", "-i", str(path), "-o", "-m", "spt.flow.reap"]
        env = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(conftest.CHECKOUT / ".ansible/collections")}
        argv += ["-a", json.dumps({"coder_gone": [workspace_id]})]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout.split(" => ", 1)[1]))


def wait(what: str, ready: Callable[[], bool], pause: float = 0.5) -> None:
    end = time.monotonic() + LIMIT
    while not ready():
        assert time.monotonic() < end, f"timed out waiting for {what}"
        time.sleep(pause)


def _descendants(pid: int) -> Iterator[int]:
    """Yield the processes below this one; the server's are Terraform and its providers."""
    for folder in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            for child in (folder / "children").read_text().split():
                yield from _descendants(int(child))
                yield int(child)


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Run server, database and proxy in ``folder``, with our template."""
    for name in ("coder", "proxy"):
        (folder / name).mkdir()
    with (
        conftest.database_server() as database,
        conftest.server(database.url, folder / "coder") as server,
        proxy(folder / "proxy") as proxied,
    ):
        server.stop()
        server.environment["CODER_JOB_HANG_DETECTOR_INTERVAL"] = "2s"
        server.start()
        assert server.admin is not None
        coder_template.roll_out(server.admin, proxied.wanted(SETTINGS, "spt-flow"))
        yield Site(server, database, proxied)


@contextmanager
def full(folders: Sequence[Path]) -> Iterator[Callable[[], None]]:
    """Put each folder on a memory file system without space; the result makes room."""
    fillers = [folder / "filler" for folder in folders]
    mounted = []

    def make_room() -> None:
        for filler in fillers:
            filler.unlink()

    try:
        for folder, filler in zip(folders, fillers, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
            mounted.append(folder)
            subprocess.run(["dd", "if=/dev/zero", f"of={filler}"], capture_output=True, check=False)
        yield make_room
    finally:
        for folder in mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def objects(workspace_id: str) -> list[str]:
    """Return the names of all containers and volumes of a workspace."""
    engine = docker_http.connect()
    query = {"filters": {"label": [f"spt.flow.coder={workspace_id}"]}}
    containers = engine.get_json("/containers/json", {"all": True, **query})
    volumes = engine.get_json("/volumes", query).get("Volumes") or []
    return sorted([*(one["Names"][0].lstrip("/") for one in containers), *(one["Name"] for one in volumes)])


def running(workspace_id: str) -> list[str]:
    return [name for name in objects(workspace_id) if name == f"spt-flow-{workspace_id}"]


def put(workspace_id: str, text: str) -> None:
    """Write a file into the home, through the engine."""
    argv = ["docker", "exec", f"spt-flow-{workspace_id}", "sh", "-c", f"echo {text} > /home/coder/kept"]
    subprocess.run(argv, check=True, capture_output=True)


def kept(workspace_id: str) -> str:
    argv = ["docker", "exec", f"spt-flow-{workspace_id}", "cat", "/home/coder/kept"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
