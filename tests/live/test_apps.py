# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The IDE's own address on a real server with a wildcard access URL, as role coder_server sets it."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace, WorkspaceSpec
from ansible_collections.spt.flow.tests.live.conftest import LiveServer

SETTINGS = Settings(profile="slim", cpus=1.0, memory=1 << 30, kvm="disabled", docker="disabled", wait_timeout=600)
WILDCARD = {"CODER_WILDCARD_ACCESS_URL": "*.apps.test", "CODER_DISABLE_PATH_APPS": "true"}


@pytest.fixture(scope="module")
def workspace(live_server: LiveServer) -> Iterator[Workspace]:
    """A workspace on the server with a wildcard; afterwards the server is restored."""
    assert live_server.admin is not None
    live_server.stop()
    before = dict(live_server.environment)
    live_server.environment |= WILDCARD
    live_server.start()
    made, target = None, CoderTarget(live_server.client(live_server.token), "apps")
    try:
        assert live_server.client(live_server.token).app_host().startswith("*.apps.test")
        wanted = coder_template.ours(SETTINGS, "dev", "apps", {}, network="bridge", subdomain="true")
        coder_template.roll_out(live_server.admin, wanted)
        made = target.create(WorkspaceSpec("me", SETTINGS, "own"), Progress())
        yield made
    finally:
        if made is not None:
            target.delete(made, Progress())
        live_server.stop()
        live_server.environment = before
        live_server.start()


def answer(live_server: LiveServer, path: str, host: str = "") -> tuple[int, str, str]:
    """Return status, redirect and text of the server's answer to the workspace's owner."""
    server = urlsplit(live_server.url).netloc
    connection = http.client.HTTPConnection(server, timeout=60)
    connection.request("GET", path, headers={"Host": host or server, "Coder-Session-Token": live_server.token})
    found = connection.getresponse()
    text = found.read().decode(errors="replace")
    connection.close()
    return found.status, found.headers.get("Location", ""), text


def test_up_prints_the_own_address_of_the_ide(live_server: LiveServer, workspace: Workspace) -> None:
    port = urlsplit(live_server.url).port
    assert re.fullmatch(rf"http://ide--(main--)?own--ada\.apps\.test:{port}/", workspace.url or ""), workspace.url


def test_ide_is_not_served_at_the_address_of_the_dashboard(live_server: LiveServer, workspace: Workspace) -> None:
    status, _to, text = answer(live_server, "/@ada/own.main/apps/ide/healthz")
    assert status == 403 and '"status"' not in text


def test_ide_is_served_at_its_own_address(live_server: LiveServer, workspace: Workspace) -> None:
    host, end = urlsplit(workspace.url or "").netloc, time.monotonic() + 300
    status, text = 0, ""
    while time.monotonic() < end and status != 200:
        status, _to, text = answer(live_server, "/healthz", host)
        time.sleep(2)
    assert status == 200 and '"status"' in text, (status, text[:300])
