# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may use a Coder server (private to the collection): its first user, people who come and leave, tokens.

What is to be done is planned from reads alone, so check mode tells what a run would do; acting follows the plan.
Passwords, sessions and tokens are arguments and return values here, never part of a plan, a sentence or a ``repr``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ._coder_admin import CoderAdmin
from ._coder_client import Json, moment, search_query
from ._coder_http import Unsure
from ._coder_jobs import follow
from ._errors import AuthError, Conflict, FlowError, InvalidInput, NotFound
from ._progress import Progress

DAY = 86400.0
LONGEST_PASSWORD = 64
STOP_TIMEOUT = 300.0
RUNNING = frozenset({"running", "starting", "pending", "failed"})
"""States of a latest build after which containers may run; of ``failed`` nobody knows."""
ACTIVE, OFFBOARDED = "present", "offboarded"
_NAME = re.compile(r"[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*")


def wait_healthy(client: CoderAdmin, timeout: float, progress: Progress | None = None) -> float:
    """Wait until the server answers; the seconds that it took. Raises ``DeadlineExceeded`` or what it answered last."""
    waiter = client.http.waiter(timeout)
    told = False

    def look() -> bool | None:
        nonlocal told
        if client.healthy(max(0.1, min(5.0, waiter.remaining))):
            return True
        if not told and progress:
            progress.note(f"server: waiting up to {timeout:g} s until {client.http.config.url} answers")
        told = True
        return None

    waiter.until(f"the Coder server {client.http.config.url} to answer", look, 0.3, 2.0)
    return waiter.timeout - waiter.remaining


# Sessions


@dataclass(frozen=True)
class Login:
    """An owner who signs in with a password, and who becomes the server's first user where there is none."""

    email: str
    password: str = field(repr=False)
    username: str = ""
    name: str = ""

    def check(self) -> None:
        """Raises ``InvalidInput`` for what the server would refuse whatever it is."""
        if "@" not in self.email or not self.password:
            raise InvalidInput("A login takes an e-mail address and a password; user names do not sign in.")
        if len(self.password) > LONGEST_PASSWORD:
            raise InvalidInput(
                f"The password of {self.email} has {len(self.password)} characters, a Coder server takes "
                f"{LONGEST_PASSWORD}."
            )


def make_first(client: CoderAdmin, login: Login) -> None:
    """Make the first user; whoever else has done so meanwhile is left alone, and signing in tells who it was."""
    if not login.username:
        raise InvalidInput(
            f"The Coder server {client.http.config.url} has no user yet, and none is named for it.",
            "Run the bootstrap: ansible-playbook spt.flow.bootstrap -i <inventory>",
        )
    with suppress(Conflict, Unsure):
        client.create_first_user(login.email, login.username, login.password, login.name)


@contextmanager
def session(client: CoderAdmin, login: Login) -> Iterator[CoderAdmin]:
    """A client signed in by password; the session ends with the block, and is nowhere but in memory."""
    token = client.login(login.email, login.password)
    signed = CoderAdmin(client.http.signed(token, f"the login of {login.email}"))
    try:
        yield signed
    finally:
        with suppress(FlowError):
            signed.logout()


# People


@dataclass(frozen=True)
class Person:
    """A user as they are to be; roles that are ``None`` stay as they are.

    ``state``: ``present`` (may sign in) or ``offboarded`` (suspended, without tokens and roles, workspaces stopped,
    homes kept). ``login_type``: ``password``, ``none`` (a machine), ``oidc`` or ``github``.
    """

    username: str
    email: str = ""
    name: str = ""
    state: str = ACTIVE
    roles: tuple[str, ...] | None = None
    organization_roles: tuple[str, ...] | None = None
    login_type: str = "none"
    password: str = field(default="", repr=False)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Person:
        """From an action's options. Raises ``InvalidInput``."""
        roles = {
            name: None if given.get(name) is None else tuple(sorted(given[name]))
            for name in ("roles", "organization_roles")
        }
        texts = {
            name: str(given[name])
            for name in ("username", "email", "name", "state", "login_type", "password")
            if given.get(name)
        }
        found = cls(**texts, **roles)  # type: ignore[arg-type]
        if len(found.username) > 32 or not _NAME.fullmatch(found.username):
            raise InvalidInput(
                f"{found.username[:40]!r} is no user name on a Coder server.",
                "Letters, digits and single hyphens between them, 32 at most.",
            )
        if len(found.password) > LONGEST_PASSWORD:
            raise InvalidInput(
                f"The password of {found.username} is longer than the {LONGEST_PASSWORD} characters that a Coder "
                "server takes."
            )
        if found.password and found.login_type != "password":
            raise InvalidInput(f"{found.username} has a password, but signs in by {found.login_type}.")
        return found


@dataclass(frozen=True)
class Plan:
    """What is to be done about a person: ``actions`` in order, the diff, and what the actions work on."""

    person: Person
    actions: tuple[str, ...]
    before: dict[str, Any]
    after: dict[str, Any]
    tokens: tuple[str, ...] = ()
    workspaces: tuple[Json, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.actions)

    def sentence(self, check: bool = False) -> str:
        """One line for people."""
        words = {
            "create": "created",
            "activate": "activated",
            "roles": "roles set",
            "organization_roles": "roles in the organization set",
            "suspend": "suspended",
            "tokens": f"{len(self.tokens)} token{'s' * (len(self.tokens) != 1)} revoked",
            "workspaces": "stopped " + ", ".join(one["name"] for one in self.workspaces) + ", homes kept",
        }
        done = ", ".join(words[action] for action in self.actions) or "unchanged"
        return f"{'Check mode: user' if check else 'User'} {self.person.username}: {done}."


def plan(client: CoderAdmin, person: Person) -> Plan:
    """Read what is, tell what is to be done. Raises ``Conflict`` where the name is somebody else's."""
    found = client.user(person.username)
    if found and person.email and found.get("email", "").lower() != person.email.lower():
        raise Conflict(
            f"The user name {person.username} on {client.http.config.url} belongs to {found.get('email')}, "
            f"not to {person.email}.",
            "Choose another name; a Coder server never gives a name of one person to another.",
        )
    return _plan_leaving(client, person, found) if person.state == OFFBOARDED else _plan_present(client, person, found)


def _plan_present(client: CoderAdmin, person: Person, found: Json | None) -> Plan:
    before = _seen(client, person, found)
    after: dict[str, Any] = {**before, "status": "active"}
    actions = []
    if found is None:
        if not person.email:
            raise InvalidInput(f"The new user {person.username} has no e-mail address.", "Give one: email=…")
        actions.append("create")
    elif found["status"] == "suspended":
        actions.append("activate")
    else:
        after["status"] = before["status"]
    for what in ("roles", "organization_roles"):
        wanted = getattr(person, what)
        if wanted is not None and list(wanted) != before.get(what, []):
            after[what] = list(wanted)
            if found is not None or what == "organization_roles":
                actions.append(what)
    return Plan(person, tuple(actions), before, after)


def _plan_leaving(client: CoderAdmin, person: Person, found: Json | None) -> Plan:
    if found is None:
        return Plan(person, (), {}, {})
    person = replace(person, roles=(), organization_roles=())
    before = _seen(client, person, found)
    tokens = client.tokens(person.username)
    running = [one for one in _workspaces(client, person.username) if one["latest_build"]["status"] in RUNNING]
    actions = [what for what in ("roles", "organization_roles") if before.get(what)]
    actions += ["suspend"] if found["status"] != "suspended" else []
    actions += (["tokens"] if tokens else []) + (["workspaces"] if running else [])
    names = sorted(one["name"] for one in running)
    return Plan(
        person,
        tuple(actions),
        {**before, "tokens": sorted(str(one.get("token_name", "")) for one in tokens), "running": names},
        {"status": "suspended", "roles": [], "organization_roles": [], "tokens": [], "running": []},
        tuple(str(one["id"]) for one in tokens),
        tuple(running),
    )


def _seen(client: CoderAdmin, person: Person, found: Json | None) -> dict[str, Any]:
    """Status and roles of a user, as far as they matter; nothing of nobody."""
    if found is None:
        return {}
    seen: dict[str, Any] = {"status": found["status"]}
    if person.roles is not None:
        seen["roles"] = sorted(role["name"] for role in found.get("roles") or [] if role["name"] != "member")
    if person.organization_roles is not None:
        seen["organization_roles"] = client.member_roles(found["id"])
    return seen


def _workspaces(client: CoderAdmin, username: str) -> list[Json]:
    pages = client.workspaces(search_query(owner=username))
    return [one for page in pages for one in page if one.get("owner_name", "").lower() == username.lower()]


def carry_out(client: CoderAdmin, planned: Plan, progress: Progress | None = None) -> None:
    """Do what is planned. What is killed half-way is finished by the next run, which plans from what is then."""
    person = planned.person
    deeds: dict[str, Callable[[], Any]] = {
        "create": lambda: _create(client, person),
        "activate": lambda: client.activate(person.username),
        "roles": lambda: client.update_roles(person.username, person.roles or ()),
        "organization_roles": lambda: client.update_member_roles(person.username, person.organization_roles or ()),
        "suspend": lambda: client.suspend(person.username),
        "tokens": lambda: forget(client, person.username, planned.tokens),
        "workspaces": lambda: _stop(client, planned.workspaces, progress or Progress()),
    }
    for action in planned.actions:
        deeds[action]()


def _create(client: CoderAdmin, person: Person) -> None:
    organization = str(client.organization()["id"])
    client.create_user(
        person.email,
        person.username,
        [organization],
        person.name,
        person.login_type,
        person.password,
        person.roles or (),
    )


def _stop(client: CoderAdmin, workspaces: tuple[Json, ...], progress: Progress) -> None:
    """Queue every stop, then wait for all; the first that failed is told when all have ended."""
    queued = []
    for one in workspaces:
        latest = client.workspace_by_id(one["id"])
        if latest is None or latest["latest_build"]["status"] not in RUNNING:
            continue
        if latest["latest_build"]["status"] in ("pending", "starting"):
            client.cancel_build(latest["latest_build"]["id"])
            _ended(client, latest["latest_build"]["id"], one["name"])
            latest = client.workspace_by_id(one["id"]) or latest
        progress.note(f"stop: {one['name']}")
        queued.append((one["name"], client.create_build(latest, "stop")["id"]))
    failures = [text for name, build in queued if (text := _ended(client, build, name))]
    if failures:
        raise FlowError(
            f"Not every workspace could be stopped: {'; '.join(failures)}.",
            "See its log on the dashboard, and run the command again.",
        )


def _ended(client: CoderAdmin, build_id: str, name: str) -> str:
    """Wait for a build; why it failed, or nothing."""
    try:
        found = follow(f"build of {name}", client.http.waiter(STOP_TIMEOUT), lambda: client.build(build_id))
    except NotFound:
        return ""
    failed = found["job"]["status"] == "failed"
    return f"{name}: {client.http.clean(found['job'].get('error') or 'failed')}" if failed else ""


# Tokens


@dataclass(frozen=True)
class Wish:
    """A token that is to be at hand: ``lifetime`` of a new one and the time before its end to replace it, in seconds.

    Tokens of ours are called ``name``, ``name-2``, ``name-3`` …, as a name is taken until the old token is deleted,
    which is the last step.
    """

    name: str
    user: str = "me"
    lifetime: float = 30 * DAY
    rotate_before: float = 10 * DAY

    def ours(self, token_name: str) -> bool:
        return re.fullmatch(re.escape(self.name) + r"(-\d+)?", token_name) is not None


@dataclass(frozen=True)
class AtHand:
    """What became of looking at a token. ``reason``: why it is to be replaced; empty when it is good."""

    reason: str
    key: Json = field(default_factory=dict)
    username: str = ""

    @property
    def good(self) -> bool:
        return not self.reason


def verify(client: CoderAdmin, wish: Wish, now: datetime | None = None) -> AtHand:
    """Whether the token of ``client``'s configuration works, is the wished user's and lasts.

    Raises what keeps the server from saying so: nothing is replaced because a server was away.
    """
    if not client.http.config.token:
        return AtHand("there is none")
    try:
        who = client.me()
    except AuthError as error:
        if error.details.get("status") != 401:
            raise
        said = str(error.details.get("said", ""))
        return AtHand("it has expired" if "expired at" in said else "the server does not know it")
    username = str(who["username"])
    if wish.user != "me" and username.lower() != wish.user.lower():
        return AtHand(f"it belongs to {username}, not to {wish.user}")
    key_id = client.http.config.token.partition("-")[0]
    key = next((one for one in client.tokens() if one["id"] == key_id), None)
    if key is None:
        return AtHand("it is no long-lived token, but a session", username=username)
    if not wish.ours(str(key.get("token_name", ""))):
        return AtHand(f"it is called {key.get('token_name')}, not {wish.name}", key, username)
    left = (moment(key["expires_at"]) - (now or datetime.now(UTC))).total_seconds()
    total = (moment(key["expires_at"]) - moment(key["created_at"])).total_seconds()
    # A server's cap may be shorter than the wished margin, and a token must not be replaced at every run.
    if left <= min(wish.rotate_before, total / 2):
        return AtHand(f"it expires in {max(left, 0) / DAY:.1f} days", key, username)
    return AtHand("", key, username)


@dataclass(frozen=True)
class Minted:
    """A new token. ``capped``: the seconds that it was cut to, 0 when it was not; ``stale``: ids to delete later."""

    token: str = field(repr=False)
    name: str
    lifetime: float
    capped: float
    stale: tuple[str, ...]


def mint(client: CoderAdmin, wish: Wish) -> Minted:
    """A new token beside those that are there; they are deleted by ``forget`` once the new one lies where it should."""
    lifetime, capped = lifetime_of(client, wish)
    old = [one for one in client.tokens(wish.user, include_expired=True) if wish.ours(str(one.get("token_name", "")))]
    taken = {str(one["token_name"]) for one in old}
    numbers = (wish.name if number == 1 else f"{wish.name}-{number}" for number in range(1, len(taken) + 2))
    name = next(one for one in numbers if one not in taken)
    token = client.create_token(name, lifetime, wish.user)
    return Minted(token, name, lifetime, capped, tuple(str(one["id"]) for one in old))


def lifetime_of(client: CoderAdmin, wish: Wish) -> tuple[float, float]:
    """(seconds that a new token of the user gets, the cap that made it so or 0)."""
    cap = client.max_token_lifetime(wish.user)
    return (cap, cap) if wish.lifetime > cap else (wish.lifetime, 0.0)


def forget(client: CoderAdmin, user: str, ids: Iterable[str]) -> None:
    for key_id in ids:
        client.delete_token(key_id, user)


def cap_sentence(user: str, capped: float, lifetime: float) -> str:
    """Why a token lives shorter than asked for."""
    return (
        f"The server gives tokens of {user} {capped / DAY:g} days at most, not the {lifetime / DAY:g} asked for "
        "(an owner's live 7 days; give the work to a user with a lesser role)."
    )
