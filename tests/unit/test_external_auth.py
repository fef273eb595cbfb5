# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""External authentication: the server's variables, and waiting for a user who has to log in at a Git host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import external_auth
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.probe import Probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle, login
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import coder_harness

REPO = Repository.parse("https://git.example.com/team/demo.git")
SPEC = WorkspaceSpec("me", Settings(wait_timeout=60), repository=REPO)
GITHUB = {"type": "github", "client_id": "id", "client_secret": "canary"}
OWN = {"type": "gitlab", "id": "work", "host": "Git.Example.com", "client_id": "id", "client_secret": "canary"}


def test_a_public_host_needs_an_application_and_nothing_else() -> None:
    found = external_auth.environment([GITHUB])
    assert found == {
        "CODER_EXTERNAL_AUTH_0_TYPE": "github",
        "CODER_EXTERNAL_AUTH_0_CLIENT_ID": "id",
        "CODER_EXTERNAL_AUTH_0_CLIENT_SECRET": "canary",
        "CODER_EXTERNAL_AUTH_0_ID": "github",
        "CODER_EXTERNAL_AUTH_0_DISPLAY_NAME": "github.com",
        "CODER_EXTERNAL_AUTH_0_REGEX": r"^(https?://)?([^/@]+@)?github\.com(/.*)?$",
    }


def test_a_host_of_the_company_gets_its_addresses() -> None:
    found = external_auth.environment([GITHUB, {**OWN, "scopes": ["read_api", "write_repository"], "no_refresh": True}])
    assert found["CODER_EXTERNAL_AUTH_1_AUTH_URL"] == "https://git.example.com/oauth/authorize"
    assert found["CODER_EXTERNAL_AUTH_1_SCOPES"] == "read_api write_repository"
    assert found["CODER_EXTERNAL_AUTH_1_NO_REFRESH"] == "true"
    assert found["CODER_EXTERNAL_AUTH_1_DISPLAY_NAME"] == "git.example.com"
    assert not [name for name in found if name.endswith("_HOST")]
    assert external_auth.ids([GITHUB, OWN]) == ["github", "work"]
    assert json.loads(external_auth.variable(["work", "github"])) == ["github", "work"]


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("https://git.example.com/team/demo.git", True),
        ("https://ada@git.example.com/team/demo.git", True),
        ("git.example.com", True),
        ("https://git.example.com.evil.test/demo", False),
        ("https://evil.test/git.example.com/demo", False),
        ("https://gitXexample.com/demo", False),
        ("https://evil.test/@git.example.com/demo", False),
    ],
)
def test_the_login_serves_addresses_of_its_host_only(address: str, good: bool) -> None:
    pattern = external_auth.environment([OWN])["CODER_EXTERNAL_AUTH_0_REGEX"]
    assert bool(re.match(pattern, address)) == good


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"type": "github"}, "lacks client_id, client_secret"),
        ({**GITHUB, "type": "svn"}, "unknown type svn"),
        ({**GITHUB, "secret": "canary"}, "unknown key secret"),
        ({**GITHUB, "host": "https://github.com"}, "invalid host"),
        ({**GITHUB, "id": "a b"}, "invalid id"),
        ({**GITHUB, "type": "bitbucket-server"}, "invalid host"),
    ],
)
def test_unusable_providers_are_refused_without_their_secret(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        external_auth.environment([wrong])
    assert "canary" not in f"{refused.value.message}{refused.value.hint}"


def test_an_id_is_given_once() -> None:
    with pytest.raises(InvalidInput, match="has the id github twice"):
        external_auth.ids([GITHUB, GITHUB])


def test_the_servers_own_words_about_its_licence_are_repeated() -> None:
    words = "You have multiple External Auth Providers configured but this is an Enterprise feature. Reduce to one."
    assert external_auth.refusals({"errors": [words, "Other."], "warnings": []}) == [words]
    assert external_auth.refusals(None) == external_auth.refusals({"errors": None}) == []


# The login of a user


@pytest.fixture
def fake() -> Iterator[Fake]:
    with coder_harness.server() as made:
        yield made


@pytest.fixture
def target(fake: Fake) -> CoderTarget:
    return CoderTarget(coder_harness.client(fake))


def provider(fake: Fake, host: str = "git.example.com", authenticated: bool = False) -> dict[str, Any]:
    url = f"{fake.url}/external-auth/work"
    found = {"id": "work", "type": "gitlab", "display_name": host, "display_icon": "", "optional": True}
    return {**found, "authenticate_url": url, "authenticated": authenticated}


def up(target: CoderTarget, said: list[str], state: str = "needs-auth", **more: Any) -> list[str]:
    spec = more.pop("spec", SPEC)
    result = lifecycle.ensure(target, spec, probe=lambda *words: Probe(state), progress=Progress(said.append), **more)
    return list(result.notes)


def test_up_shows_the_link_and_waits_until_the_user_has_logged_in(
    fake: Fake, target: CoderTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.state.external_auth = [provider(fake, "other.example.com"), provider(fake)]
    monkeypatch.setattr(login, "INTERVAL", 0.05)
    said: list[str] = []

    def user(line: str) -> None:
        said.append(line)
        if "Open " in line:
            fake.state.external_auth[1]["authenticated"] = True

    result = lifecycle.ensure(target, SPEC, probe=lambda *words: Probe("needs-auth"), progress=Progress(user))
    assert any(f"Open {fake.url}/external-auth/work" in line and "git.example.com" in line for line in said), said
    assert any("login: done" in line for line in said)
    assert any("clones with your login on the server" in note for note in result.notes)


def test_up_continues_without_a_login(fake: Fake, target: CoderTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.state.external_auth = [provider(fake)]
    monkeypatch.setattr(login, "PATIENCE", 0.3)
    said: list[str] = []
    notes = up(target, said)
    assert any("login: not finished" in line for line in said)
    assert any("git.example.com asks for credentials" in note for note in notes)


@pytest.mark.parametrize("state", ["open", "needs-auth"])
def test_up_does_not_ask_without_need(fake: Fake, target: CoderTarget, state: str) -> None:
    fake.state.external_auth = [provider(fake, authenticated=state == "needs-auth")]
    said: list[str] = []
    notes = up(target, said, state)
    assert not [line for line in said if "login:" in line]
    assert any("your login on the server" in note for note in notes) == (state == "needs-auth")


def test_check_mode_and_ci_do_not_wait_for_a_login(fake: Fake, target: CoderTarget) -> None:
    fake.state.external_auth = [provider(fake)]
    said: list[str] = []
    up(target, said, check=True)
    assert login.logged_in(target, replace(SPEC, kind="ci"), Progress(said.append), lifecycle.Waiter(5)) is False
    assert not [line for line in said if "login:" in line]
