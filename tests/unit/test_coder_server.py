# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users and tokens on the fake server: planned before executed, idempotent, and without showing secrets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import (
    AuthError,
    Conflict,
    DeadlineExceeded,
    FlowError,
    InvalidInput,
    Unhealthy,
)
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import login as coder_login
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import tokens as coder_tokens
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import users as coder_users
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import coder_harness

PASSWORD = "correct horse battery staple 1"
LOGIN = coder_login.Login("admin@example.com", PASSWORD, "admin", "The Owner")
ADMIN = "c123456789-d123456789012345678901"
BOT = coder_users.Person("flow-bot", "bot@example.com", "Bot", organization_roles=("organization-template-admin",))


@pytest.fixture
def fresh() -> Iterator[Fake]:
    with coder_harness.running() as made:
        made.state.users.clear()
        made.state.keys.clear()
        yield made


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A server with a template, the owner ``admin``, and the user ``ada`` with a token."""
    with coder_harness.server() as made:
        made.state.give_token(made.state.user("admin"), ADMIN)
        yield made


def client(fake: Fake, token: str = ADMIN, outage: float = 5.0) -> CoderAdmin:
    return CoderAdmin(coder_harness.client(fake, token, outage).http)


def now(fake: Fake) -> datetime:
    return datetime.fromtimestamp(fake.state.clock(), UTC)


# The server


def test_starting_server_is_waited_for() -> None:
    with coder_harness.running() as fake:
        anonymous = coder_harness.connect(fake, "")
        assert coder_login.wait_healthy(anonymous, 30) < 1


def test_silent_server_is_waited_for_within_the_timeout() -> None:
    with coder_harness.running() as fake:
        anonymous = coder_harness.connect(fake, "")
        url = fake.url
    said: list[str] = []
    with pytest.raises(DeadlineExceeded, match=url):
        coder_login.wait_healthy(anonymous, 20, coder_users.Progress(said.append))
    assert len(said) == 1 and url in said[0]


# The first user


def test_first_user_is_created_once_and_logs_in(fresh: Fake) -> None:
    anonymous = coder_harness.connect(fresh, "")
    assert not anonymous.has_first_user()
    for _time in range(2):
        coder_login.make_first(anonymous, LOGIN)
    assert [user.username for user in fresh.state.users.values()] == ["admin"]
    with coder_login.session(anonymous, LOGIN) as owner:
        assert owner.me()["username"] == "admin"
    assert not fresh.state.keys, "the session ends with the block"


def test_weak_password_is_reported_and_creates_no_user(fresh: Fake) -> None:
    weak = replace(LOGIN, password="Kanarie1")
    with pytest.raises(InvalidInput, match="password") as refused:
        coder_login.make_first(coder_harness.connect(fresh, ""), weak)
    assert "Kanarie1" not in str(refused.value) and not fresh.state.users
    assert "Kanarie1" not in repr(weak)
    with pytest.raises(InvalidInput, match="65 characters"):
        replace(LOGIN, password="x" * 65).check()


def test_wrong_password_is_reported_without_showing_it(fake: Fake) -> None:
    wrong = replace(LOGIN, password="not the password at all 7")
    with pytest.raises(AuthError) as refused, coder_login.session(client(fake, ""), wrong):
        pass
    assert "not the password" not in str(refused.value)


# Users


def test_user_with_roles_is_created_once(fake: Fake) -> None:
    admin = client(fake)
    planned = coder_users.plan(admin, BOT)
    assert planned.actions == ("create", "organization_roles")
    assert "flow-bot" not in [user.username for user in fake.state.users.values()], "planning changes nothing"
    coder_users.carry_out(admin, planned)
    user = fake.state.user("flow-bot")
    assert (user.status, user.login_type, user.organization_roles) == (
        "active",
        "none",
        {"organization-template-admin"},
    )
    assert coder_users.plan(admin, BOT).actions == ()


def test_roles_are_replaced_only_if_listed(fake: Fake) -> None:
    admin = client(fake)
    fake.state.user("ada").roles = {"auditor"}
    assert not coder_users.plan(admin, coder_users.Person("ada")).changed
    planned = coder_users.plan(admin, coder_users.Person("ada", roles=("template-admin",)))
    assert (planned.before["roles"], planned.after["roles"]) == (["auditor"], ["template-admin"])
    coder_users.carry_out(admin, planned)
    assert fake.state.user("ada").roles == {"template-admin"}


def test_existing_name_is_never_given_to_another_person(fake: Fake) -> None:
    with pytest.raises(Conflict, match="ada@example.com"):
        coder_users.plan(client(fake), coder_users.Person("ada", "adam@example.com"))


def test_departed_user_is_suspended_and_loses_tokens_and_workspaces_stop(fake: Fake) -> None:
    admin, ada = client(fake), coder_harness.client(fake)
    fake.state.user("ada").roles = {"owner"}
    template = ada.template("spt-flow")
    assert template is not None
    ada.create_workspace("demo", template["id"])
    fake.state.clock.advance(60)
    leaving = coder_users.Person("ada", state=coder_users.OFFBOARDED)
    planned = coder_users.plan(admin, leaving)
    assert planned.actions == ("roles", "suspend", "tokens", "workspaces")
    assert planned.before["running"] == ["demo"] and coder_harness.TOKEN not in repr(planned)
    coder_users.carry_out(admin, planned)
    with pytest.raises(AuthError):
        ada.me()
    kept = admin.workspace("demo", "ada")
    assert kept is not None and kept["latest_build"]["transition"] == "stop", "the home stays"
    assert kept["latest_build"]["status"] == "stopped"
    assert admin.tokens("ada") == []
    assert not coder_users.plan(admin, leaving).changed
    assert not coder_users.plan(admin, coder_users.Person("nobody-here", state=coder_users.OFFBOARDED)).changed
    back = coder_users.plan(admin, coder_users.Person("ada"))
    assert back.actions == ("activate",)


def test_interrupted_run_is_resumed(fake: Fake) -> None:
    admin = client(fake)
    leaving = coder_users.plan(admin, coder_users.Person("ada", state=coder_users.OFFBOARDED))
    coder_users.carry_out(admin, replace(leaving, actions=("suspend",)))
    assert coder_users.plan(admin, coder_users.Person("ada", state=coder_users.OFFBOARDED)).actions == ("tokens",)


def test_missing_role_is_reported(fake: Fake) -> None:
    ada = client(fake, coder_harness.TOKEN)
    with pytest.raises(FlowError) as refused:
        coder_users.carry_out(ada, coder_users.plan(ada, BOT))
    assert refused.value.kind == "auth" and "role" in refused.value.hint
    assert coder_harness.TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"username": "a_b"},
        {"username": "a" * 33},
        {"username": "-a"},
        {"username": "bob", "password": "x" * 65, "login_type": "password"},
        {"username": "bob", "password": "x" * 30},
    ],
)
def test_invalid_user_is_refused_before_any_change(values: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        coder_users.Person.of(values)
    assert "x" * 30 not in str(refused.value)


def test_users_are_created_once_despite_faults(fake: Fake) -> None:
    admin = client(fake)
    fake.faults.share = 0.2
    for number in range(8):
        person = replace(BOT, username=f"bot-{number}", email=f"bot-{number}@example.com")
        for _try in range(5):
            with suppress(Unhealthy, DeadlineExceeded):
                coder_users.carry_out(admin, coder_users.plan(admin, person))
                break
    fake.faults.share = 0
    assert sum(user.username.startswith("bot-") for user in fake.state.users.values()) == 8


# Tokens


WISH = coder_tokens.TokenRequest("spt-flow", "ada", 30 * coder_tokens.DAY, 10 * coder_tokens.DAY)


def test_token_is_created_verified_and_stored(fake: Fake) -> None:
    made = coder_tokens.mint(client(fake), WISH)
    assert made.token not in repr(made) and (made.name, made.capped) == ("spt-flow", 0)
    assert coder_tokens.verify(client(fake, made.token), WISH, now(fake)).good
    fake.state.clock.advance(19 * coder_tokens.DAY)
    assert coder_tokens.verify(client(fake, made.token), WISH, now(fake)).good
    fake.state.clock.advance(2 * coder_tokens.DAY)
    aging = coder_tokens.verify(client(fake, made.token), WISH, now(fake))
    assert aging.reason.startswith("it expires in 9.") and aging.key


def test_token_creates_its_successor_and_is_removed(fake: Fake) -> None:
    first = coder_tokens.mint(client(fake), WISH)
    own = client(fake, first.token)
    mine = replace(WISH, user="me")
    second = coder_tokens.mint(own, mine)
    assert second.name == "spt-flow-2" and second.stale == (first.token.partition("-")[0],)
    coder_tokens.forget(own, mine.user, second.stale)
    assert not coder_tokens.verify(own, WISH, now(fake)).good
    assert coder_tokens.verify(client(fake, second.token), WISH, now(fake)).good
    assert coder_tokens.mint(client(fake, second.token), mine).name == "spt-flow"


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("", "it does not exist"),
        ("e123456789-f123456789012345678901", "does not know"),
        (ADMIN, "belongs to admin"),
        (coder_harness.TOKEN, "is called given"),
    ],
)
def test_wrong_token_is_classified(fake: Fake, token: str, reason: str) -> None:
    found = coder_tokens.verify(client(fake, token), WISH, now(fake))
    assert reason in found.reason and not found.good
    assert token == "" or token not in repr(found)


def test_expired_token_is_recognised(fake: Fake) -> None:
    made = coder_tokens.mint(client(fake), WISH)
    fake.state.clock.advance(31 * coder_tokens.DAY)
    assert coder_tokens.verify(client(fake, made.token), WISH, now(fake)).reason == "it has expired"


def test_session_is_not_accepted_as_a_token(fake: Fake) -> None:
    session = client(fake, "").login("admin@example.com", PASSWORD)
    assert "session" in coder_tokens.verify(client(fake, session), coder_tokens.TokenRequest("x"), now(fake)).reason


def test_owner_token_is_capped_and_renewed_at_half_its_lifetime(fake: Fake) -> None:
    wish = coder_tokens.TokenRequest("spt-flow", "admin")
    made = coder_tokens.mint(client(fake), wish)
    assert made.capped == made.lifetime == 7 * coder_tokens.DAY
    assert "to 7 days instead" in coder_tokens.cap_sentence("admin", made.capped, wish.lifetime)
    assert coder_tokens.verify(client(fake, made.token), wish, now(fake)).good, "not replaced at every run"
    fake.state.clock.advance(4 * coder_tokens.DAY)
    assert not coder_tokens.verify(client(fake, made.token), wish, now(fake)).good


def test_only_owners_create_tokens_for_others(fake: Fake) -> None:
    with pytest.raises(FlowError) as refused:
        coder_tokens.mint(client(fake, coder_harness.TOKEN), coder_tokens.TokenRequest("spt-flow", "admin"))
    assert refused.value.kind in ("auth", "not_found")


def test_unreachable_server_does_not_replace_a_token(fake: Fake) -> None:
    fake.faults.share = 1.0
    with pytest.raises((Unhealthy, DeadlineExceeded)):
        coder_tokens.verify(client(fake, coder_harness.TOKEN, outage=0.5), WISH, now(fake))
    fake.faults.share = 0
