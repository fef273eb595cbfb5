# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A workspace on a real Coder server clones a private repository with the login that the server keeps for its user.

A stand-in for the Git host answers OAuth and serves the repository over HTTPS, on the address that workspaces reach.
"""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.cookiejar import CookieJar

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import external_auth
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.probe import Probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
from ansible_collections.spt.flow.tests.live.conftest import LiveServer
from ansible_collections.spt.flow.tests.live.git_host import GitHost, docker, git_host, trust

SETTINGS = Settings(profile="slim", cpus=1.0, memory=1 << 30, kvm="disabled", wait_timeout=600)
NAME = "login"


@pytest.fixture(scope="module")
def host(live_server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    with git_host(live_server.gateway, tmp_path_factory.mktemp("git-host")) as made:
        yield made


@pytest.fixture(scope="module")
def configured(live_server: LiveServer, host: GitHost) -> Iterator[None]:
    """The server with the provider, and the template that uses it."""
    assert live_server.admin is not None
    before = dict(live_server.environment)
    live_server.stop()
    live_server.environment |= external_auth.environment(host.providers())
    live_server.start()
    wanted = coder_template.ours(
        SETTINGS, "dev", "spt-flow", {}, network="bridge", external_auth=external_auth.variable(["githost"])
    )
    coder_template.roll_out(live_server.admin, wanted)
    yield
    live_server.stop()
    live_server.environment = before
    live_server.start()


def log_in(live_server: LiveServer, url: str) -> None:
    """Follow the link as the user's browser does."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    request = urllib.request.Request(f"{url}/callback", headers={"Coder-Session-Token": live_server.token})
    with opener.open(request, timeout=30) as answer:
        assert answer.status == 200


def test_up_waits_for_the_login_and_clones_with_it(
    live_server: LiveServer, host: GitHost, configured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODER_URL", live_server.url)
    monkeypatch.setenv("CODER_SESSION_TOKEN", live_server.token)
    spec = WorkspaceSpec("me", SETTINGS, NAME)
    said: list[str] = []

    def user(line: str) -> None:
        said.append(line)
        if "Open " in line:
            log_in(live_server, line.split("Open ")[1].split()[0])

    try:
        client = live_server.client(live_server.token)
        template = client.template("spt-flow")
        assert template is not None
        client.create_workspace(NAME, template["id"])
        made = lifecycle.ensure(live_server.target(), spec).workspace
        assert made is not None
        container = docker("ps", "--quiet", "--filter", f"label=spt.flow.coder={made.id}").strip()
        trust(container, host)

        wanted = replace(spec, repository=Repository.parse(host.url))
        result = lifecycle.ensure(
            live_server.target(), wanted, probe=lambda *words: Probe("needs-auth"), progress=Progress(user)
        )
        assert any("login: done" in line for line in said), said
        assert result.workspace is not None and result.workspace.step("clone").state == "ok", (said, result.notes)
        assert docker("exec", "--user", "1000", container, "cat", f"/home/coder/{NAME}/hello.txt") == "hello\n"
        assert host.refused, "git asked for the token only when it was needed"
        assert host.token not in docker("inspect", container) + docker("logs", container)
        found = docker(
            "exec", "--user", "0", container, "sh", "-c", f"grep -rl {host.token} /home /etc /var /tmp || true"
        )
        assert found == ""
    finally:
        lifecycle.ensure(live_server.target(), spec, "absent")
