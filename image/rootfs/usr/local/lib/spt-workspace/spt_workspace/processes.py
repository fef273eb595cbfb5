# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's child processes: commands that it waits for, services that it restarts, and how both are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .contract import Failure, reason
from .record import Journal

RESTARTS = 6
"""A service that ends more often, each time within ten minutes, is not started again."""


@dataclass(frozen=True)
class Outcome:
    """The result of a command; ``lines`` are its last 200 lines of output."""

    status: int
    lines: tuple[str, ...]
    timed_out: bool = False

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Children:
    """Starts children in process groups of their own and ends them all when the workspace stops."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._alive: set[subprocess.Popen[bytes]] = set()

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], stdout: int = subprocess.PIPE, cwd: str = "/", keep: int = -1
    ) -> subprocess.Popen[bytes]:
        """Start ``argv`` without a terminal or input; it inherits the descriptor ``keep`` (a lock)."""
        with self._lock:
            if self.stopping.is_set():
                raise Failure("The workspace is stopping.")
            try:
                child = subprocess.Popen(
                    list(argv),
                    env=dict(env),
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[keep] if keep >= 0 else [],
                )
            except OSError as error:
                raise Failure(f"{argv[0]} cannot be started: {reason(error)}.") from None
            self._alive.add(child)
        return child

    def forget(self, child: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._alive.discard(child)

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        timeout: float,
        say: Callable[[str], None] = lambda line: None,
        cwd: str = "/",
        keep: int = -1,
    ) -> Outcome:
        """Run ``argv``, pass each output line to ``say``; kill it with its group after ``timeout`` seconds."""
        child = self.start(argv, env, cwd=cwd, keep=keep)
        late = threading.Event()

        def expire() -> None:
            late.set()
            end(child, signal.SIGKILL)

        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            lines: list[str] = []
            if child.stdout is None:
                raise Failure(f"{argv[0]} cannot be read.")
            for raw in child.stdout:
                line = raw.decode(errors="replace").rstrip()
                lines = [*lines[-199:], line]
                say(line)
            status = child.wait()
        finally:
            timer.cancel()
            if child.poll() is None:
                end(child, signal.SIGKILL)
                child.wait()
            self.forget(child)
        return Outcome(status, tuple(lines), late.is_set())

    def stop(self, last: subprocess.Popen[bytes] | None, ask: Callable[[], None], grace: float = 5.0) -> None:
        """End all children but ``last`` (SIGKILL after 5 s), then ``last`` by ``ask`` (SIGKILL after 15 s)."""
        with self._lock:
            self.stopping.set()
            first = [child for child in self._alive if child is not last]
        for child in first:
            end(child, signal.SIGTERM)
        self._wait(first, grace)
        if last is not None and last.poll() is None:
            ask()
            self._wait([last], 3 * grace)

    @staticmethod
    def _wait(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
        until = time.monotonic() + seconds
        while any(child.poll() is None for child in children) and time.monotonic() < until:
            time.sleep(0.02)
        for child in children:
            # Also after a clean end, because other processes of its group may still run.
            end(child, signal.SIGKILL)


def end(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the process group of ``child``."""
    try:
        os.killpg(child.pid, number)
    except (ProcessLookupError, PermissionError):
        return


def describe(status: int) -> str:
    """Return how a child ended, in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def backoff(failures: int) -> float:
    """Return the seconds to wait after ``failures`` failures: 1, 2, 4 … at most 60."""
    return float(min(60, 2 ** max(0, failures - 1)))


class Service:
    """A step that is a long-running program: started, checked until ready, restarted with exponential back-off."""

    def __init__(
        self,
        name: str,
        children: Children,
        journal: Journal,
        launch: Callable[[], subprocess.Popen[bytes]],
        ready: Callable[[], bool],
        patience: float,
        tick: float = 1.0,
    ) -> None:
        self.name = name
        self.settled = threading.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self._children = children
        self._journal = journal
        self._launch = launch
        self._ready = ready
        self._patience = patience
        self._tick = tick

    def supervise(self) -> None:
        """Run in a thread until the workspace stops or the program has failed too often."""
        try:
            self._supervise()
        except Failure as failure:
            self._report("failed", failure.sentence)
        finally:
            self.settled.set()

    def _supervise(self) -> None:
        failures = 0
        self._report("running", "starting")
        while not self._children.stopping.is_set():
            began = time.monotonic()
            child = self.process = self._launch()
            threading.Thread(target=self._pump, args=(child,), daemon=True).start()
            self._watch(child, began, failures)
            status = child.wait()
            end(child, signal.SIGKILL)
            self._children.forget(child)
            if self._children.stopping.is_set():
                return
            lived = time.monotonic() - began
            failures = 1 if lived * self._tick > 600 else failures + 1
            if failures > RESTARTS:
                raise Failure(
                    f"{self.name} ended {failures} times in a row, last with {describe(status)}; "
                    "it is not started again. The log says why. To try again, restart the workspace."
                )
            wait = backoff(failures)
            self._report(
                "running", f"ended with {describe(status)} after {lived:.0f} s; try {failures + 1} in {wait:.0f} s"
            )
            self._children.stopping.wait(wait / self._tick)

    def _watch(self, child: subprocess.Popen[bytes], began: float, failures: int) -> None:
        warned = False
        while child.poll() is None and not self._children.stopping.is_set():
            if self._ready():
                waited = time.monotonic() - began
                again = f", started again {failures} times" if failures else ""
                self._report("ok", f"ready in {waited:.1f} s{again}")
                self.settled.set()
                return
            if time.monotonic() - began > self._patience and not warned:
                warned = True
                self._report("failed", f"{self.name} did not answer within {self._patience:.0f} s; it is still tried.")
                self.settled.set()
            time.sleep(1.0 if warned else 0.05)

    def _pump(self, child: subprocess.Popen[bytes]) -> None:
        for raw in child.stdout or ():
            self._journal.log(self.name, raw.decode(errors="replace"))

    def _report(self, state: str, detail: str) -> None:
        if not self._children.stopping.is_set():
            self._journal.step(self.name, state, detail)
