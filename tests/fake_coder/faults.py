# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faulty answers: single ones, a share of all, or all of them while the server restarts."""

from __future__ import annotations

import random
import re
from collections import deque
from dataclasses import dataclass

from .jobs import Clock

REFUSALS = ("429", "503")
"""Kinds whose request is never executed."""
KINDS = (*REFUSALS, "500", "502", "504", "reset", "truncated", "timeout", "html")


@dataclass
class Fault:
    """``kind`` is one of ``KINDS``. With ``processed`` the request is executed and only its answer fails.

    ``method`` and ``path`` (a pattern) select requests. ``retry_after`` is in seconds, for 429 and 503. ``delay`` is
    how long a ``timeout`` really lasts, in seconds.
    """

    kind: str
    processed: bool = False
    method: str = ""
    path: str = ""
    retry_after: float | None = None
    delay: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind} is no fault of {', '.join(KINDS)}")
        if self.processed and self.kind in REFUSALS:
            raise ValueError(f"what {self.kind} answers is not carried out")

    def meets(self, method: str, path: str) -> bool:
        return self.method in ("", method) and (not self.path or re.search(self.path, path) is not None)


class Faults:
    """Decides which request gets which fault: the queued ones, and a ``share`` of all from ``kinds`` by ``seed``."""

    def __init__(self, clock: Clock, seed: int = 1) -> None:
        self.share = 0.0
        self.kinds: tuple[str, ...] = ("429", "500", "502", "503", "reset", "truncated")
        self.retry_after = 1.0
        self.met: list[str] = []
        self._clock = clock
        self._queue: deque[Fault] = deque()
        self._random = random.Random(seed)
        self._back = 0.0

    def add(self, kind: str, processed: bool = False, times: int = 1, **more: object) -> None:
        """Let the next ``times`` matching requests fail."""
        for _time in range(times):
            self._queue.append(Fault(kind, processed, **more))  # type: ignore[arg-type]

    def restart(self, seconds: float) -> None:
        """Break every connection without an answer, for this long by the clock."""
        self._back = self._clock() + seconds

    @property
    def away(self) -> bool:
        return self._clock() < self._back

    def pick(self, method: str, path: str) -> Fault | None:
        fault = next((one for one in self._queue if one.meets(method, path)), None)
        if fault is not None:
            self._queue.remove(fault)
        elif self._random.random() < self.share:
            kind = self._random.choice(self.kinds)
            processed = kind not in (*REFUSALS, "html") and self._random.random() < 0.5
            fault = Fault(kind, processed, retry_after=self.retry_after if kind == "429" else None)
        if fault is not None:
            self.met.append(fault.kind)
        return fault
