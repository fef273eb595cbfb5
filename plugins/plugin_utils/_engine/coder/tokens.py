# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Create, verify and renew tokens of service accounts on a Coder server."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ....module_utils._node.errors import AuthError
from .admin import CoderAdmin
from .client import Json, moment

DAY = 86400.0


@dataclass(frozen=True)
class TokenRequest:
    """A token to provide: ``lifetime`` of a new one, and the time before its end at which it is replaced, in seconds.

    Our tokens are called ``name``, ``name-2``, ``name-3`` …, because the name stays taken until the old token is
    deleted, which is the last step.
    """

    name: str
    user: str = "me"
    lifetime: float = 30 * DAY
    rotate_before: float = 10 * DAY

    def ours(self, token_name: str) -> bool:
        return re.fullmatch(re.escape(self.name) + r"(-\d+)?", token_name) is not None


@dataclass(frozen=True)
class TokenState:
    """State of a token. ``reason``: why it must be replaced; empty if it is good."""

    reason: str
    key: Json = field(default_factory=dict)
    username: str = ""

    @property
    def good(self) -> bool:
        return not self.reason


def verify(client: CoderAdmin, wish: TokenRequest, now: datetime | None = None) -> TokenState:
    """Check that the token of ``client`` works, belongs to the right user and lasts long enough.

    Raise server errors: an outage must not replace a token.
    """
    if not client.http.config.token:
        return TokenState("it does not exist")
    try:
        who = client.me()
    except AuthError as error:
        if error.details.get("status") != 401:
            raise
        said = str(error.details.get("said", ""))
        return TokenState("it has expired" if "expired at" in said else "the server does not know it")
    username = str(who["username"])
    if wish.user != "me" and username.lower() != wish.user.lower():
        return TokenState(f"it belongs to {username}, not to {wish.user}")
    key_id = client.http.config.token.partition("-")[0]
    key = next((one for one in client.tokens() if one["id"] == key_id), None)
    if key is None:
        return TokenState("it is a session, not a long-lived token", username=username)
    if not wish.ours(str(key.get("token_name", ""))):
        return TokenState(f"it is called {key.get('token_name')}, not {wish.name}", key, username)
    left = (moment(key["expires_at"]) - (now or datetime.now(UTC))).total_seconds()
    total = (moment(key["expires_at"]) - moment(key["created_at"])).total_seconds()
    # The server's cap may be shorter than the margin, and a token must not be replaced at every run.
    if left <= min(wish.rotate_before, total / 2):
        return TokenState(f"it expires in {max(left, 0) / DAY:.1f} days", key, username)
    return TokenState("", key, username)


@dataclass(frozen=True)
class NewToken:
    """A new token. ``capped``: the seconds it was cut to, or 0; ``stale``: ids to delete later."""

    token: str = field(repr=False)
    name: str
    lifetime: float
    capped: float
    stale: tuple[str, ...]


def mint(client: CoderAdmin, wish: TokenRequest) -> NewToken:
    """Create a token in addition to the existing ones, which ``forget`` deletes once the new one is stored."""
    lifetime, capped = lifetime_of(client, wish)
    old = [one for one in client.tokens(wish.user, include_expired=True) if wish.ours(str(one.get("token_name", "")))]
    taken = {str(one["token_name"]) for one in old}
    numbers = (wish.name if number == 1 else f"{wish.name}-{number}" for number in range(1, len(taken) + 2))
    name = next(one for one in numbers if one not in taken)
    token = client.create_token(name, lifetime, wish.user)
    return NewToken(token, name, lifetime, capped, tuple(str(one["id"]) for one in old))


def lifetime_of(client: CoderAdmin, wish: TokenRequest) -> tuple[float, float]:
    """Return (seconds that a new token of the user gets, the cap that limited it or 0)."""
    cap = client.max_token_lifetime(wish.user)
    return (cap, cap) if wish.lifetime > cap else (wish.lifetime, 0.0)


def forget(client: CoderAdmin, user: str, ids: Iterable[str]) -> None:
    for key_id in ids:
        client.delete_token(key_id, user)


def cap_sentence(user: str, capped: float, lifetime: float) -> str:
    """Explain why a token has a shorter lifetime than requested."""
    return (
        f"The server limits tokens of {user} to {capped / DAY:g} days instead of {lifetime / DAY:g} (owners' tokens "
        "last 7 days; use an account with a lesser role)."
    )
