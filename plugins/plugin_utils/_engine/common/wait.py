# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait with a deadline on the monotonic clock. Check mode never waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ....module_utils._node.errors import DeadlineExceeded

T = TypeVar("T")


class Waiter:
    """A deadline ``timeout`` seconds from now, shared by all waits of one run.

    Tests replace ``clock`` and ``sleep``. With ``check``, every wait ends at once.
    """

    def __init__(
        self,
        timeout: float,
        check: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.timeout = timeout
        self.check = check
        self._clock = clock
        self._sleep = sleep
        self._end = clock() + timeout

    @property
    def remaining(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self._end - self._clock())

    def extend(self, seconds: float) -> None:
        """Move the deadline by ``seconds`` that were spent on something other than waiting."""
        self._end += seconds

    @property
    def expired(self) -> bool:
        return self.remaining == 0

    def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the deadline."""
        if not self.check:
            self._sleep(min(seconds, self.remaining))

    def until(self, what: str, ready: Callable[[], T | None], interval: float = 0.1, slowest: float = 2.0) -> T | None:
        """Return the first result of ``ready`` that is not ``None``; ``None`` in check mode.

        The interval between calls is a tenth of the time waited so far, within ``interval`` to ``slowest`` seconds:
        long waits poll rarely, and the end is noticed 5 % late on average. ``what`` completes "waiting for". Raise
        ``DeadlineExceeded``.
        """
        while not self.check:
            answer = ready()
            if answer is not None:
                return answer
            if self.expired:
                raise DeadlineExceeded(f"Timed out after {self.timeout:g} s waiting for {what}.")
            waited = self.timeout - self.remaining
            self.pause(min(max(interval, waited / 10), slowest))
        return None
