# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan and apply the users of a Coder server: create, suspend and offboard them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ....module_utils._node.errors import Conflict, FlowError, InvalidInput, NotFound
from ..common.progress import Progress
from .admin import CoderAdmin
from .client import Json, search_query
from .jobs import follow
from .login import _NAME, LONGEST_PASSWORD
from .tokens import forget

STOP_TIMEOUT = 300.0
RUNNING = frozenset({"running", "starting", "pending", "failed"})
"""States of a latest build after which containers may run; for ``failed`` that is unknown."""
ACTIVE, OFFBOARDED = "present", "offboarded"


@dataclass(frozen=True)
class Person:
    """The wanted user; roles that are ``None`` do not change.

    ``state``: ``present`` (may sign in) or ``offboarded`` (suspended, without tokens and roles, workspaces stopped,
    homes kept). ``login_type``: ``password``, ``none`` (a service account), ``oidc`` or ``github``.
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
        """Create from an action's options. Raise ``InvalidInput``."""
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
                f"{found.username[:40]!r} is not a user name on a Coder server.",
                "Use at most 32 letters, digits and single hyphens between them.",
            )
        if len(found.password) > LONGEST_PASSWORD:
            raise InvalidInput(
                f"The password of {found.username} is longer than the {LONGEST_PASSWORD} characters that a Coder "
                "server accepts."
            )
        if found.password and found.login_type != "password":
            raise InvalidInput(f"{found.username} has a password, but signs in with {found.login_type}.")
        return found


@dataclass(frozen=True)
class Plan:
    """The plan for a user: ``actions`` in order, the diff, and their parameters."""

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
        """Return one line for messages."""
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
    """Read the current state and plan the changes. Raise ``Conflict`` if the name belongs to another user."""
    found = client.user(person.username)
    if found and person.email and found.get("email", "").lower() != person.email.lower():
        raise Conflict(
            f"The user name {person.username} on {client.http.config.url} belongs to {found.get('email')}, "
            f"not to {person.email}.",
            "Choose another name; a Coder server never reassigns user names.",
        )
    return _plan_leaving(client, person, found) if person.state == OFFBOARDED else _plan_present(client, person, found)


def _plan_present(client: CoderAdmin, person: Person, found: Json | None) -> Plan:
    before = _seen(client, person, found)
    after: dict[str, Any] = {**before, "status": "active"}
    actions = []
    if found is None:
        if not person.email:
            raise InvalidInput(f"The new user {person.username} needs an e-mail address.", "Add email=…")
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
    """Return a user's status and roles where they matter, or nothing for a missing user."""
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
    """Carry out the plan. The next run plans from the new state and completes an interrupted one."""
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
    """Queue all stops, then wait for all. Raise the first failure after all have ended."""
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
            f"Cannot stop all workspaces: {'; '.join(failures)}.",
            "Check the log on the dashboard, then run the command again.",
        )


def _ended(client: CoderAdmin, build_id: str, name: str) -> str:
    """Wait for a build. Return why it failed, or nothing."""
    try:
        found = follow(f"build of {name}", client.http.waiter(STOP_TIMEOUT), lambda: client.build(build_id))
    except NotFound:
        return ""
    failed = found["job"]["status"] == "failed"
    return f"{name}: {client.http.clean(found['job'].get('error') or 'failed')}" if failed else ""
