# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Create the first user of a Coder server and log in with a password."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ....module_utils._node.errors import Conflict, FlowError, InvalidInput
from ..common.progress import Progress
from .admin import CoderAdmin
from .retry import Unsure

LONGEST_PASSWORD = 64
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
