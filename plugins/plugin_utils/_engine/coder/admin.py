# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Coder's API as methods: writing templates, users, tokens, the server's health.

The other half of ``_coder_client``, apart so that the verbs do not import it. Roles that a call needs are Coder's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....module_utils._node.errors import FlowError, InvalidInput, NotFound, Unhealthy
from .client import API, PAGE, CoderClient, Json, _part, _values
from .retry import BROKEN_TRIES, Unsure

TAR = "application/x-tar"
_SECOND = 1_000_000_000
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")


class CoderAdmin(CoderClient):
    """What roles and actions for operators need, on top of what the verbs need."""

    # The server

    def healthy(self, within: float = 5.0) -> bool:
        """Whether the listener answers ``/healthz`` in so many seconds; it never looks at the database."""
        try:
            return bool(self.http.request("GET", "/healthz", timeout=within).data == "OK")
        except FlowError:
            return False

    def version(self) -> tuple[int, int, int]:
        """The server's version. Raises ``Unhealthy`` when it names none."""
        text = str(self.buildinfo().get("version", ""))
        found = _VERSION.match(text)
        if not found:
            raise Unhealthy(f"The Coder server {self.http.config.url} calls its version {text!r}.")
        return int(found[1]), int(found[2]), int(found[3])

    def debug_health(self, force: bool = False) -> Json:
        """``healthy``, ``severity`` and the sections ``access_url``, ``database``, ``derp``, ``websocket``,
        ``workspace_proxy``, ``provisioner_daemons``; owners only. Up to 10 minutes old unless forced."""
        return self._object("GET", f"{API}/debug/health", query={"force": True} if force else None)

    def entitlements(self) -> Json | None:
        """``features``, ``has_license``, …; ``None`` from a server built without the licensed part."""
        return self._maybe(f"{API}/entitlements")

    def provisioner_daemons(self, organization: str = "default") -> list[Json]:
        """``id``, ``name``, ``status`` (``idle``, ``busy``, ``offline``), ``version``, ``tags``, ``last_seen_at``, …"""
        return self._list(f"{API}/organizations/{_part(organization)}/provisionerdaemons")

    def provisioner_job(self, job_id: str, organization: str = "default") -> Json | None:
        """``status``, ``error``, ``error_code``, ``queue_position``, ``available_workers``, …"""
        return self._maybe(f"{API}/organizations/{_part(organization)}/provisionerjobs/{_part(job_id)}")

    # Templates

    def upload(self, tar: bytes) -> str:
        """The id of the file; the same bytes from the same user keep theirs. The server allows 12 a minute."""
        answer = self._request("POST", f"{API}/files", body=tar, content_type=TAR, repeat=True)
        return str(answer.data["hash"])

    def create_version(
        self,
        file_id: str,
        name: str,
        template_id: str = "",
        message: str = "",
        user_variable_values: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        organization: str = "default",
    ) -> Json:
        """Start the import of an uploaded archive. Send all variables: those left out keep the active
        version's values.

        Without ``template_id`` the version is attached by ``create_template``. Raises ``Conflict`` when the template
        has a version of this name, be it one that failed.
        """
        path = f"{API}/organizations/{_part(organization)}/templateversions"
        body = {
            "name": name,
            "message": message,
            "template_id": template_id,
            "storage_method": "file",
            "file_id": file_id,
            "provisioner": "terraform",
            "tags": dict(tags or {}),
            "user_variable_values": _values(user_variable_values),
        }
        # One without a template cannot be looked for, but a second one is harmless: it belongs to nothing.
        return self._make(path, body, lambda: self.version_by_name(template_id, name) if template_id else None)

    def versions(self, template_id: str, include_archived: bool = False) -> Iterator[list[Json]]:
        """Pages of a template's versions, newest first."""
        query = {"include_archived": True} if include_archived else {}
        yield from self._pages(f"{API}/templates/{_part(template_id)}/versions", "", query, PAGE)

    def version_by_name(self, template_id: str, name: str) -> Json | None:
        return self._maybe(f"{API}/templates/{_part(template_id)}/versions/{_part(name)}")

    def version_variables(self, version_id: str) -> list[Json]:
        """``name``, ``value`` (``*redacted*`` when ``sensitive``), ``default_value``, …; 403 while importing."""
        return self._list(f"{API}/templateversions/{_part(version_id)}/variables")

    def version_logs(self, version_id: str, after: int = 0) -> list[Json]:
        """As ``build_logs``, of an import."""
        return self._list(f"{API}/templateversions/{_part(version_id)}/logs", {"after": after or None})

    def cancel_version(self, version_id: str) -> bool:
        """Ask the import to end; ``False`` when it has ended or is ending already."""
        return self._unless_over(f"{API}/templateversions/{_part(version_id)}/cancel")

    def create_template(
        self, name: str, template_version_id: str, settings: Mapping[str, Any], organization: str = "default"
    ) -> Json:
        """A template with its first version, whose import need not have succeeded (look first).

        ``settings`` has the field names of *creation*: ``dormant_ttl_ms``, ``delete_ttl_ms`` and
        ``template_use_classic_parameter_flow`` are called otherwise in what comes back. Fields that need a licence are
        ignored without a word: compare.
        """
        path = f"{API}/organizations/{_part(organization)}/templates"
        body = {"name": name, "template_version_id": template_version_id, **settings}
        return self._make(path, body, lambda: self.template(name, organization))

    def patch_template(self, template_id: str, changes: Mapping[str, Any]) -> Json:
        """Change these fields and no other; what needs a licence is ignored without a word: compare."""
        return self._object("PATCH", f"{API}/templates/{_part(template_id)}", dict(changes), repeat=True)

    def promote(self, template_id: str, version_id: str) -> None:
        """Make a version the active one. Raises ``AuthError`` (403) unless its import succeeded."""
        self._send("PATCH", f"{API}/templates/{_part(template_id)}/versions", {"id": version_id}, repeat=True)

    def archive_versions(self, template_id: str, everything: bool = False) -> list[str]:
        """Archive versions that no workspace uses, only failed ones unless ``everything``; their ids."""
        path = f"{API}/templates/{_part(template_id)}/versions/archive"
        return self._object("POST", path, {"all": everything}, repeat=True).get("archived_ids") or []

    def delete_template(self, template_id: str) -> None:
        """Raises ``InvalidInput`` while a workspace uses it, be it stopped."""
        self._delete(f"{API}/templates/{_part(template_id)}")

    # Users

    def has_first_user(self) -> bool:
        """Needs no token."""
        return self._maybe(f"{API}/users/first") is not None

    def create_first_user(self, email: str, username: str, password: str, name: str = "") -> None:
        """The owner of a fresh server. Raises ``Conflict`` when there is a user, ``Unsure`` when the answer got lost
        (then log in), ``InvalidInput`` for a password below 52 bits or above 64 characters."""
        body = {"email": email, "username": username, "password": password, "trial": False}
        self._send("POST", f"{API}/users/first", {**body, "name": name} if name else body)

    def login(self, email: str, password: str) -> str:
        """A session token of 24 h, to be kept in memory. Raises ``AuthError``; 60 tries a minute."""
        body = {"email": email, "password": password}
        return str(self._object("POST", f"{API}/users/login", body, repeat=True)["session_token"])

    def logout(self) -> None:
        """End the session that this client's token is."""
        self._send("POST", f"{API}/users/logout", repeat=True)

    def users(self, query: str = "") -> Iterator[list[Json]]:
        """Pages of users; ``query`` as ``status:active``, ``role:owner`` or a part of a name or an address."""
        yield from self._pages(f"{API}/users", "users", {"q": query or None}, PAGE)

    def create_user(
        self,
        email: str,
        username: str,
        organization_ids: Sequence[str],
        name: str = "",
        login_type: str = "none",
        password: str = "",
        roles: Sequence[str] = (),
    ) -> Json:
        """An active user. ``login_type`` ``none`` is for machines: no password, tokens are made by an owner.

        Raises ``Conflict`` when the name or the address is taken.
        """
        body = {
            "email": email,
            "username": username,
            "name": name,
            "login_type": login_type,
            "password": password,
            "user_status": "active",
            "organization_ids": list(organization_ids),
            "roles": list(roles) or None,
        }
        return self._make(f"{API}/users", body, lambda: self.user(username))

    def update_roles(self, user: str, roles: Sequence[str]) -> Json:
        """Replace the site's roles of a user: ``owner``, ``template-admin``, ``user-admin``, ``auditor``."""
        return self._object("PUT", f"{API}/users/{_part(user)}/roles", {"roles": list(roles)})

    def member_roles(self, user: str, organization: str = "default") -> list[str]:
        """Names of a user's roles in the organization, without the implicit ``organization-member``."""
        members = self._list(f"{API}/organizations/{_part(organization)}/members")
        found = (member for member in members if user in (member["user_id"], member["username"]))
        return sorted(role["name"] for member in found for role in member.get("roles") or [])

    def update_member_roles(self, user: str, roles: Sequence[str], organization: str = "default") -> Json:
        """Replace the roles of a user in the organization, such as ``organization-admin``; nobody changes their own."""
        path = f"{API}/organizations/{_part(organization)}/members/{_part(user)}/roles"
        return self._object("PUT", path, {"roles": list(roles)})

    def suspend(self, user: str) -> Json:
        """From now on every key of theirs is refused."""
        return self._object("PUT", f"{API}/users/{_part(user)}/status/suspend")

    def activate(self, user: str) -> Json:
        return self._object("PUT", f"{API}/users/{_part(user)}/status/activate")

    # Tokens

    def tokens(self, user: str = "me", include_expired: bool = False) -> list[Json]:
        """``id``, ``token_name``, ``created_at``, ``expires_at``, ``last_used``, ``scopes``, … never the secret."""
        query = {"include_expired": True} if include_expired else None
        return self._list(f"{API}/users/{_part(user)}/keys/tokens", query)

    def token(self, name: str, user: str = "me") -> Json | None:
        return self._maybe(f"{API}/users/{_part(user)}/keys/tokens/{_part(name)}")

    def max_token_lifetime(self, user: str = "me") -> float:
        """Seconds; 7 days at most for an owner (unless the server is told otherwise)."""
        found = self._object("GET", f"{API}/users/{_part(user)}/keys/tokens/tokenconfig")
        return float(found["max_token_lifetime"]) / _SECOND

    def create_token(self, name: str, seconds: float, user: str = "me", scopes: Sequence[str] = ()) -> str:
        """The new token, told only once. Raises ``Conflict`` when the user has one of this name.

        One whose secret got lost on the way is deleted, and another is made.
        """
        if "all" in scopes:
            raise InvalidInput("A token's scope 'all' does not exist.", "Leave the scopes out, or use coder:all.")
        path = f"{API}/users/{_part(user)}/keys/tokens"
        body: Json = {"token_name": name, "lifetime": round(seconds * _SECOND)}
        if scopes:
            body["scopes"] = list(scopes)
        unsure: Unsure | None = None
        for _try in range(BROKEN_TRIES):
            try:
                return str(self._object("POST", path, body)["key"])
            except Unsure as error:
                unsure = error
            lost = self.token(name, user)
            if lost is not None:
                self.delete_token(lost["id"], user)
        if unsure is None:
            raise AssertionError("unsure is set by now")
        raise unsure

    def delete_token(self, key_id: str, user: str = "me") -> None:
        """By its id, which is what stands before the hyphen; no error when it is gone."""
        self._delete(f"{API}/users/{_part(user)}/keys/{_part(key_id)}")

    def _delete(self, path: str) -> None:
        try:
            self._send("DELETE", path)
        except NotFound:
            # Absent is what was asked for; an answer may also have got lost, and this is its second try.
            return


def cli_url(server: str, system: str, machine: str) -> str:
    """Where the server hands out its own command line; ``system`` is linux, darwin or windows, ``machine`` amd64, …."""
    return f"{server}/bin/coder-{system}-{machine}" + (".exe" if system == "windows" else "")
