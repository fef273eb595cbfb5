# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures of the server itself: the next `up`, `restart` or `delete` repairs the workspace, and nothing is left.

The server, its database and the node's proxy are this file's own. The engine behind the proxy is the shared one.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.http import CoderHttp
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

    def lose_state(self) -> None:
        """Make the server forget what Terraform has made for the workspace."""
        found = self.workspace()
        assert found is not None and self.server.admin is not None
        path = f"/api/v2/workspacebuilds/{found['latest_build']['id']}/state"
        state = base64.b64encode(json.dumps(NO_STATE).encode()).decode()
        self.server.admin.http.request("PUT", path, body={"state": state})

    def end_hung_builds(self) -> None:
        """Make builds that nobody works on old enough for the server, which waits five minutes otherwise."""
        age = "UPDATE provisioner_jobs SET updated_at = updated_at - interval '10 minutes' WHERE completed_at IS NULL"
        done = self.database.run("psql", "-d", "coder", "-c", age)
        assert done.returncode == 0, done.stderr

        def ended() -> bool:
            found = self.workspace()
            return found is None or found["latest_build"]["job"]["status"] in ("failed", "canceled", "succeeded")

        wait("the end of the hung build", ended)


def wait(what: str, ready: Callable[[], bool], pause: float = 0.5) -> None:
    end = time.monotonic() + LIMIT
    while not ready():
        assert time.monotonic() < end, f"timed out waiting for {what}"
        time.sleep(pause)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    reason = conftest.missing()
    if reason:
        pytest.skip(reason)
    with (
        conftest.database_server() as database,
        conftest.server(database.url, tmp_path_factory.mktemp("coder")) as server,
        proxy(tmp_path_factory.mktemp("proxy")) as proxied,
    ):
        server.stop()
        server.environment["CODER_JOB_HANG_DETECTOR_INTERVAL"] = "2s"
        server.start()
        assert server.admin is not None
        coder_template.roll_out(server.admin, proxied.wanted(SETTINGS, "spt-flow"))
        yield Site(server, database, proxied)


@pytest.fixture(autouse=True)
def clean(site: Site) -> Iterator[None]:
    """Each test starts without a workspace, and must end without a refusal of the proxy."""
    before = site.proxied.refused()
    yield
    site.ensure("absent")
    assert site.proxied.refused() == before


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


def test_up_waits_for_a_database_that_is_down(site: Site) -> None:
    """Half a minute without a database, during an `up` on a running workspace."""
    site.create()
    site.ensure()
    site.database.stop()
    back = threading.Timer(30.0, site.database.start)
    back.start()
    said: list[str] = []
    try:
        result = site.ensure(said=said)
    finally:
        back.join()
    assert result.workspace is not None and result.workspace.state == "running"
    assert any("Waiting up to" in line and "database" in line for line in said), said
    # The server ends itself some minutes after it lost its database, and its service starts it again.
    site.server.stop()
    site.server.start()


@pytest.mark.parametrize("verb", ["started", "restarted", "absent"])
def test_server_killed_during_a_build_is_repaired_by_the_next_command(site: Site, verb: str) -> None:
    """Terraform runs on without the server, so the container may exist although no state knows it."""
    identifier = site.create()
    site.at("Starting")
    site.server.kill()
    time.sleep(3)
    site.server.start()
    site.end_hung_builds()
    site.ensure(verb)
    if verb == "absent":
        assert objects(identifier) == []
    else:
        assert running(identifier) == [f"spt-flow-{identifier}"]
        site.ensure("absent")
        assert objects(identifier) == []


@pytest.mark.parametrize("verb", ["started", "restarted"])
def test_lost_terraform_state_is_repaired_and_the_home_is_kept(site: Site, verb: str) -> None:
    identifier = site.create()
    site.ensure()
    put(identifier, "precious")
    site.lose_state()
    # A stop without state cannot find the container: it runs on.
    site.ensure("stopped")
    assert running(identifier)
    site.ensure(verb)
    assert kept(identifier) == "precious"
