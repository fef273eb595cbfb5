# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's routes. Paths name their parts as the API description does; ``{id}`` must be a UUID."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from . import search, views
from .accounts import User
from .jobs import iso
from .rules import NO_SUCH, Refused, check_schedule, invalid
from .state import State, Template, Workspace

TAR_TYPES = ("application/x-tar", "application/zip", "application/x-zip-compressed")


class Body(dict[str, Any]):
    """A request's JSON. Missing required fields are refused, unknown fields ignored."""

    def __missing__(self, name: str) -> Any:
        raise invalid(**{name: 'Validation failed for tag "required" with value: ""'})


@dataclass
class Call:
    """One request. ``user`` is set unless the route is public."""

    state: State
    asker: User | None
    parts: tuple[str, ...]
    query: Mapping[str, str]
    body: Body
    raw: bytes
    kind: str
    url: str
    token: str = ""

    @property
    def user(self) -> User:
        assert self.asker is not None
        return self.asker

    def require(self, *roles: str) -> None:
        if not self.user.may(*roles):
            raise Refused(403, "Forbidden.")

    def number(self, name: str) -> int:
        text = self.query.get(name, "") or "0"
        if not re.fullmatch(r"-?\d+", text):
            raise Refused(400, "Query parameter must be an integer.", **{name: f"{text!r} is no integer"})
        return int(text)

    def page(self, found: list[Any]) -> list[Any]:
        """Return ``limit``; absent or 0 means all."""
        limit, offset = self.number("limit"), self.number("offset")
        return found[offset : offset + limit] if limit else found[offset:]

    def person(self, name: str) -> User:
        """Return the user of the path; other users are visible to callers with a role."""
        found = self.state.user(name, self.asker)
        if found.id != self.user.id and not self.user.may("user-admin", "template-admin", "organization-admin"):
            raise Refused(404, NO_SUCH)
        return found

    def after(self) -> int:
        if "follow" in self.query:
            raise Refused(400, "The fake has no WebSocket, and follow asks for one (whatever its value).")
        return self.number("after")

    def workspace(self, change: bool = False) -> Workspace:
        found = self.state.workspace(self.parts[0], self.query.get("include_deleted") == "true")
        return self.seen(found, change)

    def seen(self, found: Workspace, change: bool = False) -> Workspace:
        """Access to workspaces of others: template admins read, organization admins change."""
        own = found.owner == self.user.id
        if not own and not self.user.may("template-admin", "organization-admin"):
            raise Refused(404, NO_SUCH)
        if change and not own and not self.user.may("organization-admin"):
            raise Refused(403, "Forbidden.")
        return found


@dataclass
class Reply:
    """An answer whose status is not the route's usual one."""

    status: int
    data: Any


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    pattern: re.Pattern[str]
    handler: Callable[[Call], Any]
    status: int
    open: bool
    per_minute: int


ROUTES: list[Route] = []


def route(
    method: str, path: str, status: int = 200, open: bool = False, per_minute: int = 512
) -> Callable[[Callable[[Call], Any]], Callable[[Call], Any]]:
    def keep(handler: Callable[[Call], Any]) -> Callable[[Call], Any]:
        full = path if path == "/healthz" else f"/api/v2{path}"
        pattern = re.compile(re.sub(r"\\\{\w+\\\}", "([^/]+)", re.escape(full)))
        ROUTES.append(Route(method, full, pattern, handler, status, open, per_minute))
        return handler

    return keep


def uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise Refused(400, f'Invalid UUID "{text}".', "invalid UUID length") from None


# The server


@route("GET", "/healthz", open=True)
def healthz(call: Call) -> Any:
    return "OK"


@route("GET", "/", open=True)
def root(call: Call) -> Any:
    return {"message": "👋"}


@route("GET", "/buildinfo", open=True)
def buildinfo(call: Call) -> Any:
    return views.buildinfo(call.state, call.url)


@route("GET", "/applications/host")
def app_host(call: Call) -> Any:
    return {"host": call.state.app_host}


@route("GET", "/debug/health")
def debug_health(call: Call) -> Any:
    call.require()
    return views.health(call.state)


@route("GET", "/entitlements")
def entitlements(call: Call) -> Any:
    return {
        "features": {},
        "has_license": False,
        "trial": False,
        "errors": [],
        "warnings": [],
        "require_telemetry": False,
        "refreshed_at": iso(call.state.now),
    }


@route("GET", "/organizations")
def organizations(call: Call) -> Any:
    return [views.organization(call.state)]


def _organization(call: Call) -> None:
    if call.parts[0].lower() not in ("default", views.ORGANIZATION, call.state.organization, views.ZERO_ID):
        raise Refused(404, NO_SUCH)


@route("GET", "/organizations/{organization}")
def organization(call: Call) -> Any:
    _organization(call)
    return views.organization(call.state)


@route("GET", "/organizations/{organization}/members")
def members(call: Call) -> Any:
    _organization(call)
    return [views.member(call.state, user) for user in call.state.users.values()]


@route("PUT", "/organizations/{organization}/members/{user}/roles")
def member_roles(call: Call) -> Any:
    _organization(call)
    call.require("organization-admin")
    user = call.state.user(call.parts[1], call.user)
    call.state.set_organization_roles(call.user, user, call.body["roles"])
    member = views.member(call.state, user)
    return {name: member[name] for name in ("user_id", "organization_id", "created_at", "updated_at", "roles")}


@route("GET", "/organizations/{organization}/provisionerdaemons")
def provisioners(call: Call) -> Any:
    _organization(call)
    return [views.provisioner(call.state, number) for number in range(len(call.state.slots))]


@route("GET", "/organizations/{organization}/provisionerjobs/{job}")
def provisioner_job(call: Call) -> Any:
    _organization(call)
    state = call.state
    jobs = [b.job for w in state.workspaces.values() for b in w.builds] + [v.job for v in state.versions.values()]
    found = next((job for job in jobs if job.id == call.parts[1]), None)
    if found is None:
        raise Refused(404, NO_SUCH)
    return views.job(state, found)


# Users and keys


@route("GET", "/users/first", open=True)
def has_first_user(call: Call) -> Any:
    if not call.state.users:
        raise Refused(404, "The initial user has not been created!")
    return {"message": "The initial user has already been created!"}


@route("POST", "/users/first", 201, open=True)
def first_user(call: Call) -> Any:
    body = call.body
    user = call.state.first_user(body["email"], body["username"], body["password"], body.get("name") or "")
    return {"user_id": user.id, "organization_id": call.state.organization}


@route("POST", "/users/login", 201, open=True, per_minute=60)
def login(call: Call) -> Any:
    return {"session_token": call.state.login(call.body["email"], call.body["password"])}


@route("POST", "/users/logout")
def logout(call: Call) -> Any:
    call.state.keys.pop(call.token.partition("-")[0], None)
    return {"message": "Logged out!"}


@route("GET", "/users")
def users(call: Call) -> Any:
    call.require("user-admin", "template-admin", "organization-admin", "auditor")
    found = sorted(call.state.users.values(), key=lambda user: user.username)
    for word in call.query.get("q", "").lower().split():
        key, colon, value = word.partition(":")
        if key == "status" and colon:
            found = [user for user in found if user.status == value]
        elif key == "role" and colon:
            found = [user for user in found if value in user.roles]
        elif colon and key != "name":
            raise Refused(400, "Invalid user search query.", **{key: "is not a valid query param"})
        else:
            text = value if colon else word
            found = [user for user in found if text in user.username.lower() or text in user.email.lower()]
    return {"users": [views.user(call.state, user) for user in call.page(found)], "count": len(found)}


@route("POST", "/users", 201)
def create_user(call: Call) -> Any:
    call.require("user-admin", "organization-admin")
    call.body["username"]
    return views.user(call.state, call.state.create_user(call.body))


@route("GET", "/users/{user}")
def user(call: Call) -> Any:
    return views.user(call.state, call.person(call.parts[0]))


@route("PUT", "/users/{user}/roles")
def user_roles(call: Call) -> Any:
    """Observed on v2.35.1: a caller who may not see the user gets 404."""
    who = call.person(call.parts[0])
    call.require()
    if who.id == call.user.id:
        raise Refused(400, "You cannot change your own roles.")
    call.state.set_roles(who, call.body["roles"])
    return views.user(call.state, who)


@route("PUT", "/users/{user}/status/suspend")
def suspend(call: Call) -> Any:
    return _status(call, "suspended")


@route("PUT", "/users/{user}/status/activate")
def activate(call: Call) -> Any:
    return _status(call, "active")


def _status(call: Call, status: str) -> Any:
    call.require("user-admin")
    who = call.state.user(call.parts[0], call.user)
    if who.id == call.user.id:
        raise Refused(400, "You cannot suspend yourself.")
    if "owner" in who.roles:
        raise Refused(400, 'You cannot suspend a user with the "owner" role. You must remove the role first.')
    who.status = status
    return views.user(call.state, who)


def _keys_of(call: Call) -> User:
    who = call.state.user(call.parts[0], call.user)
    if who.id != call.user.id and "owner" not in call.user.roles:
        raise Refused(404, NO_SUCH)
    return who


@route("POST", "/users/{user}/keys/tokens", 201)
def create_token(call: Call) -> Any:
    return {"key": call.state.create_token(call.user, _keys_of(call), call.body)}


@route("GET", "/users/{user}/keys/tokens")
def tokens(call: Call) -> Any:
    """``null`` if there are none."""
    who, state = _keys_of(call), call.state
    all_users = call.query.get("include_all") == "true" and "owner" in call.user.roles
    found = [key for key in state.keys.values() if key.login_type == "token" and (all_users or key.user == who.id)]
    if call.query.get("include_expired") != "true":
        found = [key for key in found if key.expires > state.now]
    return [views.key(state, key) for key in found] or None


@route("GET", "/users/{user}/keys/tokens/tokenconfig")
def token_config(call: Call) -> Any:
    return {"max_token_lifetime": int(call.state.max_lifetime(_keys_of(call)) * 1e9)}


@route("GET", "/users/{user}/keys/tokens/{keyname}")
def token(call: Call) -> Any:
    who = _keys_of(call)
    for key in call.state.keys.values():
        if key.user == who.id and key.login_type == "token" and key.name == call.parts[1]:
            return views.key(call.state, key)
    raise Refused(404, NO_SUCH)


@route("DELETE", "/users/{user}/keys/{keyid}", 204)
def delete_key(call: Call) -> Any:
    who, key = _keys_of(call), call.state.keys.get(call.parts[1])
    if key is None or key.user != who.id:
        raise Refused(404, NO_SUCH)
    del call.state.keys[key.id]


# Files, versions, templates


@route("POST", "/files", 201, per_minute=12)
def upload(call: Call) -> Any:
    if call.kind not in TAR_TYPES:
        raise Refused(400, f'Unsupported content type header "{call.kind}".')
    file, fresh = call.state.upload(call.user, call.raw)
    return Reply(201 if fresh else 200, {"hash": file.id})


@route("POST", "/organizations/{organization}/templateversions", 201)
def create_version(call: Call) -> Any:
    _organization(call)
    call.require("template-admin", "organization-admin", "organization-template-admin")
    if call.body["storage_method"] != "file" or call.body["provisioner"] not in ("terraform", "echo"):
        raise invalid(storage_method='Validation failed for tag "oneof"')
    return views.version(call.state, call.state.create_version(call.user, call.body))


@route("GET", "/templateversions/{id}")
def template_version(call: Call) -> Any:
    return views.version(call.state, call.state.version(call.parts[0]))


@route("PATCH", "/templateversions/{id}/cancel")
def cancel_version(call: Call) -> Any:
    call.state.cancel(call.state.version(call.parts[0]).job, True)
    return {"message": "Job has been marked as canceled..."}


@route("GET", "/templateversions/{id}/logs")
def version_logs(call: Call) -> Any:
    return views.job_logs(call.state, call.state.version(call.parts[0]).job, call.after())


@route("GET", "/templateversions/{id}/rich-parameters")
def parameters(call: Call) -> Any:
    version = call.state.version(call.parts[0])
    if not version.job.over(call.state.now):
        raise Refused(403, "Job hasn't completed!")
    return version.source.parameters


@route("GET", "/templateversions/{id}/variables")
def version_variables(call: Call) -> Any:
    version = call.state.version(call.parts[0])
    if not version.job.over(call.state.now):
        raise Refused(403, "Job hasn't completed!")
    return views.variables(version)


@route("GET", "/templateversions/{id}/presets")
def presets(call: Call) -> Any:
    """The only answer with capitalised keys."""
    return call.state.version(call.parts[0]).source.presets


@route("GET", "/templateversions/{id}/external-auth")
def external_auth(call: Call) -> Any:
    call.state.version(call.parts[0])
    return call.state.external_auth


@route("GET", "/organizations/{organization}/templates")
def templates(call: Call) -> Any:
    _organization(call)
    found = [one for one in call.state.templates.values() if not one.deleted]
    for word in call.query.get("q", "").split():
        key, colon, value = word.partition(":")
        name = (value if colon else word).strip('"').lower()
        if key == "exact_name":
            found = [one for one in found if one.name.lower() == name]
        elif key == "deprecated":
            found = [] if value == "true" else found
        elif colon and key != "name":
            raise Refused(400, "Invalid template search query.", **{key: "is not a valid query param"})
        else:
            found = [one for one in found if name in (one.name if colon else one.settings["display_name"]).lower()]
    return [views.template(call.state, one) for one in sorted(found, key=lambda one: one.name)]


@route("POST", "/organizations/{organization}/templates", 201)
def create_template(call: Call) -> Any:
    _organization(call)
    call.require("template-admin", "organization-admin", "organization-template-admin")
    return views.template(call.state, call.state.create_template(call.user, call.body))


@route("GET", "/organizations/{organization}/templates/{templatename}")
def template_by_name(call: Call) -> Any:
    _organization(call)
    return views.template(call.state, call.state.template_by_name(call.parts[1]))


@route("GET", "/templates/{id}")
def template(call: Call) -> Any:
    return views.template(call.state, call.state.template_by_id(call.parts[0]))


def _template(call: Call) -> Template:
    call.require("template-admin", "organization-admin", "organization-template-admin")
    return call.state.template_by_id(call.parts[0])


@route("PATCH", "/templates/{id}")
def patch_template(call: Call) -> Any:
    one = _template(call)
    call.state.patch_template(one, call.body)
    return views.template(call.state, one)


@route("DELETE", "/templates/{id}")
def delete_template(call: Call) -> Any:
    call.state.delete_template(_template(call))
    return {"message": "Template has been deleted!"}


@route("GET", "/templates/{id}/versions")
def versions(call: Call) -> Any:
    found = call.state.versions_of(call.state.template_by_id(call.parts[0]))
    if call.query.get("include_archived") != "true":
        found = [one for one in found if not one.archived]
    return [views.version(call.state, one) for one in call.page(found)]


@route("PATCH", "/templates/{id}/versions")
def promote(call: Call) -> Any:
    call.state.promote(_template(call), uuid(call.body["id"]))
    return {"message": "Updated the active template version!"}


@route("GET", "/templates/{id}/versions/{templateversionname}")
def version_by_name(call: Call) -> Any:
    for one in call.state.versions_of(call.state.template_by_id(call.parts[0])):
        if one.name.lower() == call.parts[1].lower():
            return views.version(call.state, one)
    raise Refused(404, f'No template version found by name "{call.parts[1]}".')


@route("POST", "/templates/{id}/versions/archive")
def archive_versions(call: Call) -> Any:
    one = _template(call)
    return {"template_id": one.id, "archived_ids": call.state.archive_versions(one, bool(call.body.get("all")))}


# Workspaces and builds


@route("GET", "/workspaces")
def workspaces(call: Call) -> Any:
    found = search.workspaces(call.state, call.user, call.query.get("q", ""))
    return {"workspaces": [views.workspace(call.state, one) for one in call.page(found)], "count": len(found)}


@route("POST", "/users/{user}/workspaces", 201)
def create_workspace(call: Call) -> Any:
    owner = call.person(call.parts[0])
    return views.workspace(call.state, call.state.create_workspace(call.user, owner, call.body))


@route("GET", "/users/{user}/workspace/{workspacename}")
def workspace_by_name(call: Call) -> Any:
    owner = call.person(call.parts[0])
    found = call.state.find_workspace(owner, call.parts[1], call.query.get("include_deleted") == "true")
    if found is None:
        raise Refused(404, NO_SUCH)
    return views.workspace(call.state, call.seen(found))


@route("GET", "/workspaces/{id}")
def workspace(call: Call) -> Any:
    return views.workspace(call.state, call.workspace())


@route("GET", "/workspaces/{id}/builds")
def builds(call: Call) -> Any:
    one = call.workspace()
    return [views.build(call.state, one, build) for build in call.page(one.builds[::-1])]


@route("POST", "/workspaces/{id}/builds", 201)
def create_build(call: Call) -> Any:
    one = call.workspace(change=True)
    return views.build(call.state, one, call.state.create_build(call.user, one, call.body))


def _build(call: Call, change: bool = False) -> tuple[Workspace, Any]:
    for one in call.state.workspaces.values():
        for build in one.builds:
            if build.id == call.parts[0]:
                return call.seen(one, change), build
    raise Refused(404, NO_SUCH)


@route("GET", "/workspacebuilds/{id}")
def build(call: Call) -> Any:
    return views.build(call.state, *_build(call))


@route("GET", "/workspacebuilds/{id}/parameters")
def build_parameters(call: Call) -> Any:
    return [{"name": name, "value": value} for name, value in _build(call)[1].parameters.items()]


@route("GET", "/workspacebuilds/{id}/logs")
def build_logs(call: Call) -> Any:
    return views.job_logs(call.state, _build(call)[1].job, call.after())


@route("PATCH", "/workspacebuilds/{id}/cancel")
def cancel_build(call: Call) -> Any:
    one, build = _build(call, change=True)
    allowed = call.state.templates[one.template].settings["allow_user_cancel_workspace_jobs"]
    call.state.cancel(build.job, allowed or "owner" in call.user.roles, call.query.get("expect_status", ""))
    return {"message": "Job has been marked as canceled..."}


@route("GET", "/workspaceagents/{id}")
def agent(call: Call) -> Any:
    return views.agent(call.state, _agent(call))


@route("GET", "/workspaceagents/{id}/logs")
def agent_logs(call: Call) -> Any:
    return views.agent_logs(call.state, _agent(call), call.after())


def _agent(call: Call) -> Any:
    for one in call.state.workspaces.values():
        for build in one.builds:
            if build.agent and build.agent.id == call.parts[0] and build.job.status(call.state.now) == "succeeded":
                call.seen(one)
                return build.agent
    raise Refused(404, NO_SUCH)


@route("PUT", "/workspaces/{id}/extend")
def extend(call: Call) -> Any:
    one = call.workspace(change=True)
    try:
        deadline = datetime.fromisoformat(call.body["deadline"]).timestamp()
    except ValueError:
        raise Refused(400, "Request body must be valid JSON.") from None
    call.state.extend(one, deadline)
    return {"message": f"Deadline updated to {call.body['deadline']}."}


@route("PUT", "/workspaces/{id}/ttl", 204)
def ttl(call: Call) -> Any:
    call.state.put_ttl(call.workspace(change=True), call.body.get("ttl_ms"))


@route("PUT", "/workspaces/{id}/autostart", 204)
def autostart(call: Call) -> Any:
    check_schedule(call.body.get("schedule"))
    call.workspace(change=True).autostart = call.body.get("schedule") or None


@route("PUT", "/workspaces/{id}/dormant")
def dormant(call: Call) -> Any:
    """If nothing changed: 304."""
    one, wanted = call.workspace(change=True), bool(call.body["dormant"])
    if wanted == (one.dormant is not None):
        return Reply(304, None)
    one.dormant = call.state.now if wanted else None
    return views.workspace(call.state, one)


def find(method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
    """Return the route of a path and its parts; the route with more literal words has priority."""
    found = [(one, match) for one in ROUTES if one.method == method and (match := one.pattern.fullmatch(path))]
    if not found:
        return None
    best, match = min(found, key=lambda pair: pair[0].path.count("{"))
    return best, match.groups()
