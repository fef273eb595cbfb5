# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide whether and when a request to a Coder server is sent again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from secrets import SystemRandom

from ....module_utils._node.errors import DeadlineExceeded, FlowError, Unhealthy
from ..common.wait import Waiter

BROKEN_TRIES = 6
"""Attempts for a server that answers incorrectly (500, truncated JSON): seven seconds in total."""
SLOWEST = 5.0
UNSURE = "The server may have processed it nevertheless."
_RANDOM = SystemRandom()


class Unsure(Unhealthy):
    """The answer to a request that must not be repeated was lost: check before sending it again."""


@dataclass(frozen=True)
class Trouble:
    """Why an attempt failed.

    ``sent``: it may have been processed. ``after``: the value of ``Retry-After``. ``outage``: the server is unreachable
    and may come back; otherwise it answers incorrectly.
    """

    error: FlowError
    sent: bool = False
    outage: bool = False
    after: float | None = None


class Retry:
    """The attempts of one request."""

    def __init__(self, request: str, waiter: Waiter, repeat: bool, outage: float, say: Callable[[str], None]) -> None:
        self._request = request
        self._outage = outage
        self._say = say
        self._waiter = waiter
        self._repeat = repeat
        self._tries = 0
        self._broken = 0
        self._away: float | None = None

    def pause(self, trouble: Trouble) -> None:
        """Sleep until the next attempt. Raise the error if there is none."""
        error = trouble.error
        if trouble.sent and not self._repeat:
            raise Unsure(f"{error.message} {UNSURE}", error.hint, {**error.details, "unsure": True})
        self._tries += 1
        left = self._waiter.remaining
        if trouble.outage:
            self._away = left if self._away is None else self._away
            left = min(left, self._outage - (self._away - left))
        elif trouble.after is None:
            self._broken += 1
            if self._broken >= BROKEN_TRIES:
                raise error
        pause = min(0.2 * 2.0 ** min(self._tries - 1, 8), SLOWEST) * _RANDOM.uniform(0.5, 1.0)
        if trouble.after is not None:
            # A little later than requested, so that not all clients come back at once.
            pause = trouble.after + _RANDOM.uniform(0.0, 0.1 * trouble.after + 0.1)
        if pause >= left:
            raise self._exhausted(trouble)
        if trouble.outage and trouble.after is None:
            if self._tries == 1:
                self._say(f"{error.message} Waiting up to {left:.0f} s for the server and its database to come back.")
        elif self._tries == 1 or pause >= 1:
            self._say(f"{error.message} Trying again in {pause:.1f} s.")
        self._waiter.pause(pause)

    def _exhausted(self, trouble: Trouble) -> FlowError:
        error = trouble.error
        if trouble.after is not None:
            return DeadlineExceeded(
                f"{error.message} It asks for a retry in {trouble.after:g} s, which is after the "
                f"{self._waiter.timeout:g} s for {self._request}.",
                "Run the command again later.",
                error.details,
            )
        if trouble.outage:
            waited = self._waiter.timeout - self._waiter.remaining
            return Unhealthy(
                f"{error.message} {self._tries} attempts in {waited:.0f} s failed.", error.hint, error.details
            )
        return error
