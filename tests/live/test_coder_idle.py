# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The automatic stop of a real server, watched: with a short schedule, put off by keepalive, and switched off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput
from ansible_collections.spt.flow.plugins.module_utils._node.reaper import coder as reaper_coder
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Result, WorkspaceSpec
from ansible_collections.spt.flow.tests.live import conftest
from ansible_collections.spt.flow.tests.live.conftest import LiveServer

SHORT = Settings(profile="slim", cpus=1.0, memory=1 << 30, kvm="disabled", wait_timeout=600, idle_stop=120)
SPEC = WorkspaceSpec("me", SHORT, "idle")
LATEST = 90.0
"""Seconds after its time within which the server has stopped a workspace, on a busy machine."""


@pytest.fixture(scope="module")
def idle_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that looks every second for workspaces to stop."""
    reason = conftest.missing()
    if reason:
        pytest.skip(reason)
    with (
        conftest.postgres() as database,
        conftest.server(database, tmp_path_factory.mktemp("coder")) as server,
    ):
        server.stop()
        server.environment["CODER_AUTOBUILD_POLL_INTERVAL"] = "1s"
        server.start()
        assert server.admin is not None
        coder_template.roll_out(server.admin, server.wanted(SHORT))
        yield server


def ensure(server: LiveServer, state: str = "started", hours: float = 0.0) -> Result:
    return lifecycle.ensure(server.target(), SPEC, state, hours=hours, by="ada")


@pytest.fixture(autouse=True)
def workspace(idle_server: LiveServer) -> Iterator[None]:
    client = idle_server.client(idle_server.token)
    template = client.template("spt-flow")
    assert template is not None
    client.create_workspace(SPEC.name, template["id"])
    ensure(idle_server)
    yield
    ensure(idle_server, "absent")


def state(server: LiveServer) -> str:
    found = server.client(server.token).workspace(SPEC.name)
    assert found is not None
    return str(found["latest_build"]["status"])


def left(server: LiveServer) -> float:
    """Return the seconds until the server stops the workspace."""
    found = server.client(server.token).workspace(SPEC.name)
    assert found is not None
    return reaper_coder.epoch(found["latest_build"]["deadline"]) - time.time()


def test_unused_workspace_is_stopped_by_the_server_and_says_why(idle_server: LiveServer) -> None:
    shown = idle_server.target().list("me")[0]
    assert shown.life.stops_at is not None
    assert 0 < shown.life.stops_at - time.time() <= SHORT.idle_stop + 1
    end = shown.life.stops_at + LATEST
    while state(idle_server) != "stopped":
        assert time.time() < end, "it goes on"
        time.sleep(1)
    assert time.time() >= shown.life.stops_at
    found = idle_server.client(idle_server.token).workspace(SPEC.name)
    assert found is not None and found["latest_build"]["reason"] == "autostop"
    again = ensure(idle_server)
    assert again.changed and state(idle_server) == "running"


def test_keepalive_outlasts_the_stop_and_never_shortens(idle_server: LiveServer) -> None:
    ensure(idle_server, "kept", hours=2.0)
    assert left(idle_server) == pytest.approx(7200, abs=60)
    shorter = ensure(idle_server, "kept", hours=0.5)
    assert not shorter.changed
    assert left(idle_server) == pytest.approx(7200, abs=120)
    time.sleep(SHORT.idle_stop + 15)
    assert state(idle_server) == "running"
    with pytest.raises(InvalidInput, match="for 25 hours"):
        ensure(idle_server, "kept", hours=25.0)
    ensure(idle_server, "kept", hours=24.0)
    assert left(idle_server) == pytest.approx(86400, abs=60)
    ensure(idle_server, "kept", hours=0.0)
    assert left(idle_server) < 86400 / 2


def test_reaper_caps_a_stop_that_the_dashboard_put_off_for_a_week(idle_server: LiveServer, tmp_path: Path) -> None:
    client = idle_server.client(idle_server.token)
    found = client.workspace(SPEC.name)
    assert found is not None
    client.extend(found["id"], datetime.now(UTC) + timedelta(days=7))
    assert sweep(idle_server, tmp_path).capped == ["ada/idle"]
    assert left(idle_server) == pytest.approx(86400, abs=120)


def test_workspace_whose_stop_was_switched_off_is_stopped_after_a_day_without_use(
    idle_server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The day is shortened to ten seconds; the server refuses any deadline for such a workspace."""
    client = idle_server.client(idle_server.token)
    found = client.workspace(SPEC.name)
    assert found is not None
    client.put_ttl(found["id"], None)
    kept = ensure(idle_server, "kept", hours=3.0)
    assert not kept.changed and "no idle stop" in kept.msg
    assert sweep(idle_server, tmp_path).stopped == []
    monkeypatch.setattr(reaper_coder, "LONGEST", 10.0)
    time.sleep(15)
    assert sweep(idle_server, tmp_path).stopped == ["ada/idle"]
    end = time.monotonic() + 120
    while state(idle_server) != "stopped":
        assert time.monotonic() < end, "it goes on"
        time.sleep(1)


def sweep(server: LiveServer, folder: Path) -> reaper_coder.Report:
    token = (server.folder / "etc/reaper.token").read_text().strip()
    return reaper_coder.sweep(reaper_coder.Api(server.url, token), path=f"{folder}/state.json")
