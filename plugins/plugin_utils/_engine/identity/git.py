# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answer git's credential protocol with the user's own git, then with gh or glab."""

from __future__ import annotations

import hashlib

from ....module_utils._node.errors import InvalidInput, NotFound
from . import policy
from .program import Deadline

ONE = frozenset({"protocol", "host", "path", "username", "password", "authtype", "credential", "ephemeral", "continue"})
ONE |= {"oauth_refresh_token", "password_expiry_utc"}
MANY = frozenset({"capability[]", "state[]", "wwwauth[]"})
"""Fields of the protocol. Others are dropped; ``url`` could name another host than ``host``."""
MOST_FIELDS = 200
MOST_GIVEN = 1000
OPERATIONS = {"get": "fill", "store": "approve", "erase": "reject"}
Fields = list[tuple[str, str]]


def parse(text: str) -> Fields:
    """Return the known fields of a request. Raise ``InvalidInput`` for one that two readers could understand
    differently.
    """
    if any(not char.isprintable() and char != "\n" for char in text):
        raise InvalidInput("The request contains control characters.")
    fields: Fields = []
    for line in text.split("\n"):
        name, mark, value = line.partition("=")
        if line and not mark:
            raise InvalidInput("The request has a line without '='.")
        if name == "url" or (name in ONE and any(name == known for known, _value in fields)):
            raise InvalidInput(f"The request has {name} twice, or in a form that is not accepted.")
        if name in ONE or name in MANY:
            fields.append((name, value))
    if len(fields) > MOST_FIELDS:
        raise InvalidInput("The request has too many fields.")
    return fields


def host_of(fields: Fields) -> str:
    """Return the canonical host of a request. Raise ``InvalidInput``."""
    values = dict(fields)
    if values.get("protocol") != "https":
        raise InvalidInput("Credentials are only given for https.", "Use an https:// address.")
    return policy.canonical(values.get("host", ""))


class Git:
    """Answers requests of one session.

    Only what this session took from the user's git is stored or erased there. So a workspace can neither erase nor
    replace other credentials, and a token of gh never reaches git's own store.
    """

    def __init__(self) -> None:
        self._given: set[bytes] = set()

    def get(self, fields: Fields, host: str, deadline: Deadline) -> str:
        """Return the answer to a request. Raise ``NotFound`` or ``Failed``."""
        status, out = deadline.run(["git", "credential", "fill"], _text(fields))
        found = _answer(out, fields) if status == 0 else []
        if found:
            if len(self._given) < MOST_GIVEN:
                self._given.add(_digest(found))
            return _text(found)
        user, token = token_of(host, deadline)
        if token:
            return _text(
                [*(f for f in fields if f[0] in ("protocol", "host")), ("username", user), ("password", token)]
            )
        raise NotFound(f"Your machine has no credentials for {host}.", login_hint(host))

    def tell(self, operation: str, fields: Fields, deadline: Deadline) -> None:
        """Store or erase a credential at the user's side if this session gave it."""
        if _digest(fields) in self._given:
            deadline.run(["git", "credential", OPERATIONS[operation]], _text(fields))


def token_of(host: str, deadline: Deadline) -> tuple[str, str]:
    """Return a user name and the token of gh or glab for ``host``; empty texts without one."""
    if token := deadline.token("gh", "auth", "token", "--hostname", host):
        return "x-access-token", token
    if token := deadline.token("glab", "config", "get", "token", "--host", host):
        return "oauth2", token
    return "", ""


def login_hint(host: str) -> str:
    """Return the one command that gives this machine credentials for ``host``."""
    import shutil

    if shutil.which("glab") and "gitlab" in host:
        return f"Log in on your machine: glab auth login --hostname {host}"
    if shutil.which("gh"):
        return f"Log in on your machine: gh auth login --hostname {host}"
    return (
        f"On your machine, let git's credential helper save them: git credential approve "
        f"(protocol=https, host={host}, username=…, password=…), or install gh and run: gh auth login --hostname {host}"
    )


def _answer(text: str, asked: Fields) -> Fields:
    """Return the fields that git answered, or nothing unless they are a credential for what was asked."""
    try:
        found = parse(text)
    except InvalidInput:
        return []
    values, wanted = dict(found), dict(asked)
    same = all(values.get(name, wanted[name]) == wanted[name] for name in ("protocol", "host"))
    secret = values.get("password") or values.get("credential")
    return found if same and secret else []


def _digest(fields: Fields) -> bytes:
    values = dict(fields)
    parts = [values.get(name, "") for name in ("host", "username", "password", "credential")]
    return hashlib.sha256("\n".join(parts).encode()).digest()


def _text(fields: Fields) -> str:
    return "".join(f"{name}={value}\n" for name, value in fields)
