# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Coder server gets users, a token and templates by playbooks; only what the fake server cannot prove."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import AuthError, NotFound
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import tokens as coder_tokens
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
from ansible_collections.spt.flow.tests.live.conftest import LiveServer, bootstrap


def test_second_run_changes_nothing_and_shows_no_secret(live_server: LiveServer) -> None:
    token = (live_server.folder / "etc/coder.token").read_text().strip()
    done = bootstrap(live_server, "-vvvv", "--diff")
    assert done.returncode == 0 and "changed=0" in done.stdout, done.stdout[-3000:]
    assert live_server.password not in done.stdout + done.stderr
    assert token.partition("-")[2] not in done.stdout + done.stderr
    assert (live_server.folder / "etc/coder.token").read_text().strip() == token


def test_token_of_the_bot_only_rolls_out_templates(live_server: LiveServer) -> None:
    more = {"flow_profile": "slim", "flow_cpus": 1, "flow_memory": "1g", "flow_kvm": "disabled"}
    more |= {"coder_template_network": "bridge"}
    only = ("--tags", "coder_template")  # the reaper would be installed on this machine
    done = bootstrap(live_server, *only, playbook="servers", coder_template_name="bots", **more)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert live_server.admin is not None
    for name, bump in (("bots", 7_200_000), ("bots-ci", 0)):
        template = live_server.admin.template(name)
        assert template is not None and template["activity_bump_ms"] == bump
        assert template["created_by_name"] == "flow-bot"
    again = bootstrap(live_server, *only, playbook="servers", coder_template_name="bots", **more)
    assert again.returncode == 0 and "changed=0" in again.stdout, again.stdout[-3000:]
    bot = live_server.client((live_server.folder / "etc/coder.token").read_text().strip())
    assert bot.user("ada") is None or not bot.member_roles("ada")
    # The server hides what a user may not see (v2.35.1: 404, not 403).
    with pytest.raises(NotFound):
        bot.update_roles("ada", ["owner"])


def test_valid_token_creates_its_successor(live_server: LiveServer) -> None:
    bot = live_server.client((live_server.folder / "etc/coder.token").read_text().strip())
    made = coder_tokens.mint(bot, coder_tokens.TokenRequest("other", "me"))
    wish = coder_tokens.TokenRequest("other", "flow-bot")
    fresh = live_server.client(made.token)
    assert coder_tokens.verify(fresh, wish).good
    again = coder_tokens.mint(fresh, coder_tokens.TokenRequest("other", "me"))
    assert again.name == "other-2"
    last = live_server.client(again.token)
    coder_tokens.forget(last, "me", again.stale)
    assert coder_tokens.verify(fresh, wish).reason == "the server does not know it"
    assert coder_tokens.verify(last, wish).good
    last.delete_token(again.token.partition("-")[0])


def test_owner_token_is_capped_at_a_week(live_server: LiveServer) -> None:
    assert live_server.admin is not None
    assert coder_tokens.lifetime_of(live_server.admin, coder_tokens.TokenRequest("x")) == (7 * 86400.0, 7 * 86400.0)


def test_weak_password_is_refused_with_its_reason(live_server: LiveServer) -> None:
    weak = {"username": "eve", "email": "eve@example.com", "login_type": "password", "password": "Kanarie1"}
    done = bootstrap(live_server, "-vvv", coder_users=[weak])
    assert done.returncode == 2 and "password" in done.stdout
    assert "Kanarie1" not in done.stdout + done.stderr and "Traceback" not in done.stdout


def test_departed_user_cannot_log_in_and_the_workspace_stops_with_its_home(live_server: LiveServer) -> None:
    """It needs the template of the test before: this file runs as a whole."""
    assert live_server.admin is not None
    bob = {"username": "bob", "email": "bob@example.com"}
    assert bootstrap(live_server, coder_users=[bob]).returncode == 0
    token = live_server.admin.create_token("his", 86400, "bob")
    theirs = CoderTarget(live_server.client(token), "bots")
    spec = replace(WorkspaceSpec("me", Settings(profile="slim", wait_timeout=600)), name="his")
    template = live_server.client(token).template("bots")
    assert template is not None
    live_server.client(token).create_workspace("his", template["id"])
    lifecycle.ensure(theirs, spec, "started")
    done = bootstrap(live_server, coder_users=[{**bob, "state": "offboarded"}])
    assert done.returncode == 0, done.stdout[-3000:]
    assert "suspended, 1 token revoked, stopped his, homes kept" in done.stdout
    with pytest.raises(AuthError):
        live_server.client(token).me()
    kept = live_server.admin.workspace("his", "bob")
    assert kept is not None and kept["latest_build"]["status"] == "stopped"
    again = bootstrap(live_server, coder_users=[{**bob, "state": "offboarded"}])
    assert "changed=0" in again.stdout, again.stdout[-2000:]
    live_server.admin.create_build(kept, "delete")
