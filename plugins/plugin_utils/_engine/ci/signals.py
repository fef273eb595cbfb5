# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop a CI run on a signal, once, without losing the destruction of its workspace."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


class Stopped(BaseException):
    """A signal arrived. Not an ``Exception``, so that no handler mistakes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Stops:
    """Turn SIGTERM, SIGINT, SIGHUP and the end of the parent process into one ``Stopped``, in the main thread.

    Inside ``held``, a signal is only stored in ``signum`` for the code inside to check. After ``ignore_signals``, no
    signal has an effect. The end of the parent is raised even inside ``held``, because writing to the parent may block.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.signum = 0
        self.orphaned = False
        self._holds = 0
        self._deaf = False
        self._before: dict[int, Any] = {}
        self._over = threading.Event()

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
            parent = os.getppid()
            threading.Thread(target=self._watch, args=(parent,), name="spt-flow-parent", daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _watch(self, parent: int) -> None:
        """Detect a killed parent:

        `kill -9` of ansible-playbook (how ansible-runner cancels) does not reach the workers, which have sessions of
        their own.
        """
        while not self._over.wait(0.5):
            if os.getppid() != parent:
                self.orphaned = True
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _note(self, signum: int, _frame: Any) -> None:
        if self._deaf or self.signum:
            return
        self.signum = signum
        if self.orphaned or not self._holds:
            raise Stopped(signum)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def ignore_signals(self) -> None:
        self._deaf = True

    def check(self) -> None:
        """Raise a signal stored while held."""
        if self.signum and not self._deaf:
            raise Stopped(self.signum)
