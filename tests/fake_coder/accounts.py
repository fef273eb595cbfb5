# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users and their credentials: passwords, sessions, tokens."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .jobs import Clock, new_id
from .rules import NO_SUCH, Refused, check_name, check_password

WEEK = 7 * 86400.0
CENTURY = 876_600 * 3600.0
SITE_ROLES = frozenset({"owner", "member", "template-admin", "user-admin", "auditor", "agents-access"})
ORGANIZATION_ROLES = frozenset(
    f"organization-{word}" for word in ("admin", "template-admin", "user-admin", "auditor", "member")
)
SCOPES = re.compile(
    r"coder:(all|application_connect|workspaces\.(create|operate|delete|access)|templates\.(build|author)|"
    r"apikeys\.manage_self)|(workspace|template|api_key|file|user|user_secret|organization|task|user_skill):[a-z_*]+"
)


@dataclass
class User:
    username: str
    email: str
    login_type: str
    created: float
    password: str = ""
    name: str = ""
    status: str = "active"
    roles: set[str] = field(default_factory=set)
    organization_roles: set[str] = field(default_factory=set)
    id: str = field(default_factory=new_id)

    def may(self, *roles: str) -> bool:
        return "owner" in self.roles or bool(set(roles) & (self.roles | self.organization_roles))


@dataclass
class Key:
    """A session (``login_type`` password) or a long-lived token."""

    user: str
    secret: str
    created: float
    lifetime: float
    login_type: str
    name: str = ""
    scopes: list[str] = field(default_factory=list)
    used: float | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(5))

    @property
    def expires(self) -> float:
        return self.created + self.lifetime


class Accounts:
    """``max_admin_lifetime`` is CODER_MAX_ADMIN_TOKEN_LIFETIME, in seconds."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.max_admin_lifetime = WEEK
        self.users: dict[str, User] = {}
        self.keys: dict[str, Key] = {}

    @property
    def now(self) -> float:
        return self.clock()

    def first_user(self, email: str, username: str, password: str, name: str = "") -> User:
        if self.users:
            raise Refused(409, "The initial user has already been created.")
        check_name(username, "username")
        check_password(password)
        user = User(username, email, "password", self.now, password, name, roles={"owner"})
        self.users[user.id] = user
        return user

    def create_user(self, body: Mapping[str, Any]) -> User:
        username, email, kind = body["username"], body.get("email", ""), body.get("login_type") or "password"
        check_name(username, "username")
        if not body.get("organization_ids"):
            raise Refused(400, "Validation failed.", organization_ids="At least one organization is required.")
        if body.get("service_account"):
            raise Refused(403, "Service Accounts is a Premium feature. Contact sales!")
        taken = [u for u in self.users.values() if username.lower() == u.username.lower() or email == u.email]
        if taken:
            raise Refused(409, "User already exists.", username="This value is already in use and should be unique.")
        if kind == "password":
            check_password(body.get("password") or "")
        roles = self._site_roles(body.get("roles") or [])
        user = User(username, email, kind, self.now, body.get("password") or "", body.get("name") or "")
        user.status, user.roles = body.get("user_status") or "dormant", roles
        self.users[user.id] = user
        return user

    def _site_roles(self, roles: list[str]) -> set[str]:
        unknown = set(roles) - SITE_ROLES
        if unknown:
            raise Refused(400, "One or more roles are invalid.", roles=", ".join(sorted(unknown)))
        return set(roles) - {"member"}

    def set_roles(self, user: User, roles: list[str]) -> None:
        user.roles = self._site_roles(roles)

    def set_organization_roles(self, asker: User, user: User, roles: list[str]) -> None:
        if asker.id == user.id:
            raise Refused(400, "You cannot change your own organization roles.")
        if set(roles) - ORGANIZATION_ROLES:
            raise Refused(400, "One or more roles are invalid.")
        user.organization_roles = set(roles) - {"organization-member"}

    def user(self, name: str, asker: User | None = None) -> User:
        if name == "me" and asker:
            return asker
        for user in self.users.values():
            if name in (user.id,) or name.lower() == user.username.lower():
                return user
        raise Refused(404, NO_SUCH)

    def login(self, email: str, password: str) -> str:
        user = next((u for u in self.users.values() if u.email == email), None)
        if user is None or not secrets.compare_digest(user.password.encode(), password.encode()) or not password:
            raise Refused(401, "Incorrect email or password.")
        if user.login_type != "password":
            raise Refused(
                403, f'Incorrect login type, attempting to use "password" but user is of login type "{user.login_type}"'
            )
        if user.status == "suspended":
            raise Refused(401, "Your account is suspended. Contact an admin to reactivate your account.")
        user.status = "active"
        return self._key(Key(user.id, "", self.now, 86400.0, "password"))

    def _key(self, key: Key) -> str:
        secret = secrets.token_hex(11)
        key.secret = hashlib.sha256(secret.encode()).hexdigest()
        self.keys[key.id] = key
        return f"{key.id}-{secret}"

    def give_token(self, user: User, token: str, name: str = "given") -> None:
        """Make ``<id>-<secret>`` a token of the user, for tests and for a server that starts with one."""
        key_id, _hyphen, secret = token.partition("-")
        key = Key(user.id, hashlib.sha256(secret.encode()).hexdigest(), self.now, CENTURY, "token", name, ["coder:all"])
        key.id = key_id
        self.keys[key_id] = key

    def authenticate(self, token: str) -> User:
        """Return the caller, or 401 with the reason."""
        signed_out = "You are signed out or your session has expired. Please sign in again to continue."
        if not token:
            raise Refused(401, signed_out, 'Cookie "coder_session_token" or query parameter must be provided.')
        key_id, hyphen, secret = token.partition("-")
        key = self.keys.get(key_id)
        if not hyphen or key is None or hashlib.sha256(secret.encode()).hexdigest() != key.secret:
            raise Refused(401, signed_out, "API key is invalid.")
        if self.now >= key.expires:
            raise Refused(401, signed_out, f"API key expired at {key.expires}.")
        user = self.users[key.user]
        if user.status == "suspended":
            raise Refused(401, "User is not active (status = suspended). Contact an admin to reactivate your account.")
        user.status = "active"
        key.used = self.now
        if key.login_type == "password":
            key.created = self.now
        return user

    def max_lifetime(self, user: User) -> float:
        return self.max_admin_lifetime if "owner" in user.roles else CENTURY

    def create_token(self, asker: User, user: User, body: Mapping[str, Any]) -> str:
        if asker.id != user.id and "owner" not in asker.roles:
            raise Refused(404, NO_SUCH)
        lifetime = (body.get("lifetime") or WEEK * 1e9) / 1e9
        if lifetime > self.max_lifetime(user):
            raise Refused(
                400,
                "Failed to validate create API key request.",
                f"lifetime must be less than {self.max_lifetime(user) / 3600:g}h0m0s",
            )
        scopes = body.get("scopes") or ["coder:all"]
        if "all" in scopes:
            raise Refused(500, "Failed to create API key.", "invalid input value for enum api_key_scope")
        if any(not SCOPES.fullmatch(scope) for scope in scopes):
            raise Refused(400, "Failed to validate API key scopes.")
        name = body.get("token_name") or f"token-{new_id()[:8]}"
        if any(key.user == user.id and key.name == name for key in self.keys.values()):
            raise Refused(
                409,
                f'A token with name "{name}" already exists.',
                token_name="This value is already in use and should be unique.",
            )
        return self._key(Key(user.id, "", self.now, lifetime, "token", name, list(scopes)))
