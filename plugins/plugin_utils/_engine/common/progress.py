# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stages with timings, and lines of output. The caller passes the function that prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Pass one plain line per event to ``say``, with the seconds since the start; keep the stages for the result."""

    def __init__(self, say: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say or (lambda line: None)
        self._clock = clock
        self._start = clock()
        self.stages: list[tuple[str, float]] = []

    @property
    def elapsed(self) -> float:
        return self._clock() - self._start

    def note(self, text: str) -> None:
        """Print a line that does not belong to a stage."""
        self._say(f"[{self.elapsed:6.1f}s] {text}")

    def done(self, name: str, seconds: float, detail: str = "") -> None:
        """Add a stage that was timed elsewhere (the steps of the workspace agent)."""
        self.stages.append((name, seconds))
        self.note(f"{name}: {detail or 'done'} ({seconds:.1f}s)")

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[None]:
        """Announce ``doing``, then print the time it took. Exceptions pass unchanged."""
        self.note(f"{name}: {doing}")
        begun = self._clock()
        yield
        self.done(name, self._clock() - begun)


MOST_KEPT = 16 << 20
"""Maximum number of characters of output that are kept."""


class Lines:
    """Show lines as they arrive, or in batches of at most ``size`` characters or ``seconds``, and keep the last ones.

    Under ansible-runner each call of ``say`` writes a file (docs/decisions/batched-output.md). Callers that batch must
    call ``due`` regularly.
    """

    def __init__(
        self, say: Callable[[str], None], batch: bool, size: int = 4096, seconds: float = 0.5, keep: int = 10_000
    ) -> None:
        self.kept: list[str] = []
        self._say = say
        self._batch = batch
        self._size, self._seconds, self._keep = size, seconds, keep
        self._waiting: list[str] = []
        self._length = self._kept = 0
        self._since = time.monotonic()

    def add(self, line: str) -> None:
        if self._keep:
            self.kept.append(line)
            self._kept += len(line)
            while len(self.kept) > self._keep or self._kept > MOST_KEPT:
                self._kept -= len(self.kept.pop(0))
        self._waiting.append(line)
        self._length += len(line) + 1
        self.due()

    def due(self) -> None:
        """Show the waiting lines if they are many or old enough."""
        if not self._batch or self._length >= self._size or time.monotonic() - self._since >= self._seconds:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._say("\n".join(self._waiting))
        self._waiting, self._length = [], 0
        self._since = time.monotonic()
