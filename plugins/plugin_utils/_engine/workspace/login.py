# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let a user log in at a Git host on the target's server, so that the workspace clones a private repository itself."""

from __future__ import annotations

from ..common.progress import Progress
from ..common.wait import Waiter
from .models import WorkspaceSpec
from .target import KeepsLogins, Target

PATIENCE = 180.0
"""Seconds to wait for a user who has to log in."""
INTERVAL = 2.0


def logged_in(target: Target, spec: WorkspaceSpec, progress: Progress, waiter: Waiter) -> bool:
    """Return whether the target's server has the user's login at the repository's host.

    Show the link and wait for the user, but not in check mode and not in CI. The wait does not count as part of
    ``waiter``.
    """
    if spec.repository is None or not isinstance(target, KeepsLogins):
        return False
    login = target.git_login(spec)
    if login is None or login.done or waiter.check or spec.kind == "ci":
        return login is not None and login.done
    progress.note(
        f"login: {spec.repository.host} asks for credentials. Open {login.url} to let the workspace clone with your "
        f"account there; waiting for up to {PATIENCE / 60:g} minutes."
    )
    begun = waiter.remaining
    patience = Waiter(PATIENCE)
    while login is not None and not login.done and not patience.expired:
        waiter.pause(min(INTERVAL, patience.remaining))
        login = target.git_login(spec)
    waiter.extend(begun - waiter.remaining)
    done = login is not None and login.done
    progress.note("login: done" if done else "login: not finished; your own credentials are used in your session")
    return done
