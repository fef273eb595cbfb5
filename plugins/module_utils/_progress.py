# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stages with timings (private to the collection); whoever asks passes the function that prints a line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Tells ``say`` one plain line per event, after the seconds since the start; remembers stages for the result."""

    def __init__(self, say: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say or (lambda line: None)
        self._clock = clock
        self._start = clock()
        self.stages: list[tuple[str, float]] = []

    @property
    def elapsed(self) -> float:
        return self._clock() - self._start

    def note(self, text: str) -> None:
        """One line that belongs to no stage."""
        self._say(f"[{self.elapsed:6.1f}s] {text}")

    def done(self, name: str, seconds: float, detail: str = "") -> None:
        """A stage that somebody else timed (the start contract's steps)."""
        self.stages.append((name, seconds))
        self.note(f"{name}: {detail or 'done'} ({seconds:.1f}s)")

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[None]:
        """Announce ``doing``, then the time it took; a failure passes through untouched."""
        self.note(f"{name}: {doing}")
        begun = self._clock()
        yield
        self.done(name, self._clock() - begun)
