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
    """Wait until the server answers.

    Return the seconds it took. Raise ``DeadlineExceeded`` or the server's last error.
    """
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
    """An owner who signs in with a password, and becomes the first user of a new server."""

    email: str
    password: str = field(repr=False)
    username: str = ""
    name: str = ""

    def check(self) -> None:
        """Raise ``InvalidInput`` for values that the server would always reject."""
        if "@" not in self.email or not self.password:
            raise InvalidInput("A login needs an e-mail address and a password; user names are not accepted.")
        if len(self.password) > LONGEST_PASSWORD:
            raise InvalidInput(
                f"The password of {self.email} has {len(self.password)} characters; a Coder server accepts "
                f"{LONGEST_PASSWORD}."
            )


def make_first(client: CoderAdmin, login: Login) -> None:
    """Create the first user. If another client was faster, the login shows who that was."""
    if not login.username:
        raise InvalidInput(
            f"The Coder server {client.http.config.url} does not have a user yet, and no first user was given.",
            "Run the bootstrap: ansible-playbook spt.flow.bootstrap -i <inventory>",
        )
    with suppress(Conflict, Unsure):
        client.create_first_user(login.email, login.username, login.password, login.name)


@contextmanager
def session(client: CoderAdmin, login: Login) -> Iterator[CoderAdmin]:
    """Yield a client signed in by password. The session ends with the block and only exists in memory."""
    token = client.login(login.email, login.password)
    signed = CoderAdmin(client.http.signed(token, f"the login of {login.email}"))
    try:
        yield signed
    finally:
        with suppress(FlowError):
            signed.logout()
