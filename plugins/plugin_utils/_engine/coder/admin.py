# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Coder's API for administrators: templates, users, tokens and the server's health.

Separate from ``client``, so that playbooks for developers need not import it. Role names are Coder's.
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
    """API calls of roles and operators, on top of those for developers."""

    # The server

    def healthy(self, within: float = 5.0) -> bool:
        """Return whether ``/healthz`` answers within the given seconds.

        The server does not check its database for it.
        """
        try:
            return bool(self.http.request("GET", "/healthz", timeout=within).data == "OK")
        except FlowError:
            return False

    def version(self) -> tuple[int, int, int]:
        """Return the server's version. Raise ``Unhealthy`` if the answer has none."""
        text = str(self.buildinfo().get("version", ""))
        found = _VERSION.match(text)
        if not found:
            raise Unhealthy(f"The Coder server {self.http.config.url} reports the invalid version {text!r}.")
        return int(found[1]), int(found[2]), int(found[3])

    def debug_health(self, force: bool = False) -> Json:
        """Return ``healthy``, ``severity`` and the sections ``access_url``, ``database``, ``derp``, ``websocket``,
        ``workspace_proxy``, ``provisioner_daemons``.

        For owners only. Up to 10 minutes old unless forced.
        """
        return self._object("GET", f"{API}/debug/health", query={"force": True} if force else None)

    def entitlements(self) -> Json | None:
        """Return ``features``, ``has_license``, …; ``None`` from a server built without the licensed part."""
        return self._get_or_none(f"{API}/entitlements")

    def provisioner_daemons(self, organization: str = "default") -> list[Json]:
        """Return ``id``, ``name``, ``status`` (``idle``, ``busy``, ``offline``), ``version``, ``tags``,
        ``last_seen_at``, …
        """
        return self._list(f"{API}/organizations/{_part(organization)}/provisionerdaemons")

    def provisioner_job(self, job_id: str, organization: str = "default") -> Json | None:
        """Return ``status``, ``error``, ``error_code``, ``queue_position``, ``available_workers``, …"""
        return self._get_or_none(f"{API}/organizations/{_part(organization)}/provisionerjobs/{_part(job_id)}")

    # Templates

    def upload(self, tar: bytes) -> str:
        """Return the id of the file; the server keeps the id for the same bytes of the same user.

        Limited to 12 a minute.
        """
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
        """Start the import of an uploaded archive.

        Send all variables: omitted ones keep the active version's values. Without ``template_id`` the version is
        attached by ``create_template``. Raise ``Conflict`` if the template has a version of this name, even a failed
        one.
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
        # A version without a template cannot be searched, but a duplicate is harmless: it is not used.
        return self._make(path, body, lambda: self.version_by_name(template_id, name) if template_id else None)

    def versions(self, template_id: str, include_archived: bool = False) -> Iterator[list[Json]]:
        """Yield pages of a template's versions, newest first."""
        query = {"include_archived": True} if include_archived else {}
        yield from self._pages(f"{API}/templates/{_part(template_id)}/versions", "", query, PAGE)

    def version_by_name(self, template_id: str, name: str) -> Json | None:
        return self._get_or_none(f"{API}/templates/{_part(template_id)}/versions/{_part(name)}")

    def version_variables(self, version_id: str) -> list[Json]:
        """Return ``name``, ``value`` (``*redacted*`` if ``sensitive``), ``default_value``, …; 403 while importing."""
        return self._list(f"{API}/templateversions/{_part(version_id)}/variables")

    def version_logs(self, version_id: str, after: int = 0) -> list[Json]:
        """Return the logs of an import, like ``build_logs``."""
        return self._list(f"{API}/templateversions/{_part(version_id)}/logs", {"after": after or None})

    def cancel_version(self, version_id: str) -> bool:
        """Cancel the import. Return ``False`` if it has ended or is already ending."""
        return self._patch_running(f"{API}/templateversions/{_part(version_id)}/cancel")

    def create_template(
        self, name: str, template_version_id: str, settings: Mapping[str, Any], organization: str = "default"
    ) -> Json:
        """Create a template with its first version, whose import need not have succeeded (check first).

        ``settings`` uses the field names of *creation*: ``dormant_ttl_ms``, ``delete_ttl_ms`` and
        ``template_use_classic_parameter_flow`` have other names in answers. The server silently ignores fields that
        need a licence, so compare the answer.
        """
        path = f"{API}/organizations/{_part(organization)}/templates"
        body = {"name": name, "template_version_id": template_version_id, **settings}
        return self._make(path, body, lambda: self.template(name, organization))

    def patch_template(self, template_id: str, changes: Mapping[str, Any]) -> Json:
        """Change these fields only. The server silently ignores fields that need a licence, so compare the answer."""
        return self._object("PATCH", f"{API}/templates/{_part(template_id)}", dict(changes), repeat=True)

    def promote(self, template_id: str, version_id: str) -> None:
        """Activate a version. Raise ``AuthError`` (403) unless its import succeeded."""
        self._send("PATCH", f"{API}/templates/{_part(template_id)}/versions", {"id": version_id}, repeat=True)

    def archive_versions(self, template_id: str, everything: bool = False) -> list[str]:
        """Archive unused versions, only failed ones unless ``everything``. Return their ids."""
        path = f"{API}/templates/{_part(template_id)}/versions/archive"
        return self._object("POST", path, {"all": everything}, repeat=True).get("archived_ids") or []

    def delete_template(self, template_id: str) -> None:
        """Delete a template. Raise ``InvalidInput`` while a workspace uses it, even a stopped one."""
        self._delete(f"{API}/templates/{_part(template_id)}")

    # Users

    def has_first_user(self) -> bool:
        """Return whether a user exists. Needs no token."""
        return self._get_or_none(f"{API}/users/first") is not None

    def create_first_user(self, email: str, username: str, password: str, name: str = "") -> None:
        """Create the owner of a new server.

        Raise ``Conflict`` if a user exists, ``Unsure`` if the answer was lost (then log in), ``InvalidInput`` for a
        password below 52 bits of entropy or above 64 characters.
        """
        body = {"email": email, "username": username, "password": password, "trial": False}
        self._send("POST", f"{API}/users/first", {**body, "name": name} if name else body)

    def login(self, email: str, password: str) -> str:
        """Return a session token of 24 h, to be kept in memory.

        Raise ``AuthError``. Limited to 60 attempts a minute.
        """
        body = {"email": email, "password": password}
        return str(self._object("POST", f"{API}/users/login", body, repeat=True)["session_token"])

    def logout(self) -> None:
        """End the session of this client's token."""
        self._send("POST", f"{API}/users/logout", repeat=True)

    def users(self, query: str = "") -> Iterator[list[Json]]:
        """Yield pages of users; ``query`` such as ``status:active``, ``role:owner`` or part of a name or an address."""
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
        """Create an active user.

        ``login_type`` ``none`` is for service accounts: no password, an owner creates tokens. Raise ``Conflict`` if the
        name or the address is taken.
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
        """Replace a user's site roles: ``owner``, ``template-admin``, ``user-admin``, ``auditor``."""
        return self._object("PUT", f"{API}/users/{_part(user)}/roles", {"roles": list(roles)})

    def member_roles(self, user: str, organization: str = "default") -> list[str]:
        """Return a user's roles in the organization, without the implicit ``organization-member``."""
        members = self._list(f"{API}/organizations/{_part(organization)}/members")
        found = (member for member in members if user in (member["user_id"], member["username"]))
        return sorted(role["name"] for member in found for role in member.get("roles") or [])

    def update_member_roles(self, user: str, roles: Sequence[str], organization: str = "default") -> Json:
        """Replace a user's roles in the organization, such as ``organization-admin``. Users cannot change their own."""
        path = f"{API}/organizations/{_part(organization)}/members/{_part(user)}/roles"
        return self._object("PUT", path, {"roles": list(roles)})

    def suspend(self, user: str) -> Json:
        """Suspend a user: all their tokens stop working."""
        return self._object("PUT", f"{API}/users/{_part(user)}/status/suspend")

    def activate(self, user: str) -> Json:
        return self._object("PUT", f"{API}/users/{_part(user)}/status/activate")

    # Tokens

    def tokens(self, user: str = "me", include_expired: bool = False) -> list[Json]:
        """Return ``id``, ``token_name``, ``created_at``, ``expires_at``, ``last_used``, ``scopes``, …; never the
        secret.
        """
        query = {"include_expired": True} if include_expired else None
        return self._list(f"{API}/users/{_part(user)}/keys/tokens", query)

    def token(self, name: str, user: str = "me") -> Json | None:
        return self._get_or_none(f"{API}/users/{_part(user)}/keys/tokens/{_part(name)}")

    def max_token_lifetime(self, user: str = "me") -> float:
        """Return the limit in seconds; by default at most 7 days for an owner."""
        found = self._object("GET", f"{API}/users/{_part(user)}/keys/tokens/tokenconfig")
        return float(found["max_token_lifetime"]) / _SECOND

    def create_token(self, name: str, seconds: float, user: str = "me", scopes: Sequence[str] = ()) -> str:
        """Return a new token, which the server shows only once. Raise ``Conflict`` if the user has one of this name.

        If the secret was lost in transit, the token is deleted and another is created.
        """
        if "all" in scopes:
            raise InvalidInput("The token scope 'all' does not exist.", "Omit the scopes, or use coder:all.")
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
            raise AssertionError("unsure must be set here")
        raise unsure

    def delete_token(self, key_id: str, user: str = "me") -> None:
        """Delete a token by its id, which is the part before the hyphen. A missing token is not an error."""
        self._delete(f"{API}/users/{_part(user)}/keys/{_part(key_id)}")

    def _delete(self, path: str) -> None:
        try:
            self._send("DELETE", path)
        except NotFound:
            # Already absent, as requested; this may also be the retry of a lost answer.
            return


def cli_url(server: str, system: str, machine: str) -> str:
    """Return the address of the server's own command line.

    ``system``: linux, darwin or windows; ``machine``: amd64, ….
    """
    return f"{server}/bin/coder-{system}-{machine}" + (".exe" if system == "windows" else "")
