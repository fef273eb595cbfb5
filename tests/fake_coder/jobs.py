# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What takes time: provisioner jobs and agents, each a function of the clock; nothing runs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

FOREVER = float("inf")
PENDING_LIMIT = 1800.0
HUNG_LIMIT = 300.0
CANCEL_TIME = 1.0
"""Seconds of an interrupted Terraform; the server waits up to 10 minutes."""


def new_id() -> str:
    return str(uuid4())


def iso(moment: float | None) -> str | None:
    """Format a time as Go does: RFC 3339, UTC, fractional seconds; an infinite or missing time is the zero time."""
    if moment is None or moment == FOREVER:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Clock:
    """Seconds since 1970. With ``speed`` 0 the clock stands still until moved; 1 is the wall clock."""

    def __init__(self, speed: float = 0.0, start: float | None = None) -> None:
        self.speed = speed
        self._start = time.time() if start is None else start
        self._origin = time.monotonic()
        self._moved = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._start + self._moved + (time.monotonic() - self._origin) * self.speed

    def restart(self, speed: float) -> None:
        """Continue from now: the wall clock, for a state that was kept in a file."""
        self.__init__(speed)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, float]:
        return {"speed": self.speed}

    def __setstate__(self, kept: dict[str, float]) -> None:
        self.restart(kept["speed"])

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._moved += seconds

    def sleep(self, seconds: float) -> None:
        """Sleep function for clients: no real waiting while the clock stands still, otherwise shortened by its speed.

        If several clients sleep, the clock must not stand still, because each would move it for all others.
        """
        if self.speed:
            time.sleep(seconds / self.speed)
        else:
            self.advance(seconds)


@dataclass(frozen=True)
class Script:
    """A start script of the agent; it ends ``seconds`` after the agent has connected."""

    name: str = "spt-flow"
    seconds: float = 1.0
    exit_code: int = 0
    timed_out: bool = False
    output: tuple[str, ...] = ("the workspace is ready",)
    log_source: str = field(default_factory=new_id)
    id: str = field(default_factory=new_id)


@dataclass(frozen=True)
class Behaviour:
    """Durations in seconds, and results. With ``connect`` ``inf`` the agent never connects.

    ``error`` fails the job after ``lines`` of the level ``error``. ``error_code`` is the API's.
    """

    queue: float = 0.2
    start: float = 3.0
    stop: float = 2.0
    delete: float = 2.0
    load: float = 2.0
    connect: float = 1.0
    connection_timeout: float = 120.0
    scripts: tuple[Script, ...] = (Script(),)
    error: str = ""
    error_code: str = ""
    lines: tuple[str, ...] = ()


@dataclass
class Line:
    """A line of a provisioner's log; ``at`` is counted from the job's start."""

    at: float
    stage: str
    output: str
    level: str = "info"


@dataclass
class Job:
    """A provisioner job. ``started`` is infinite if no provisioner takes it."""

    kind: str
    created: float
    initiator: str
    file_id: str
    input: dict[str, str]
    started: float
    ends: float
    error: str = ""
    error_code: str = ""
    lines: list[Line] = field(default_factory=list)
    cancel_asked: float | None = None
    canceled: float = FOREVER
    seconds: float = 0.0
    tags: dict[str, str] = field(default_factory=lambda: {"scope": "organization", "owner": ""})
    id: str = field(default_factory=new_id)
    worker: str = field(default_factory=new_id)

    def status(self, now: float) -> str:
        if self.cancel_asked is not None and now >= self.cancel_asked:
            return "canceled" if now >= self.canceled else "canceling"
        if now < self.started:
            return "pending"
        if now < self.ends:
            return "running"
        return "failed" if self.error else "succeeded"

    def over(self, now: float) -> bool:
        return self.status(now) in ("succeeded", "failed", "canceled")

    def completed(self) -> float:
        return min(self.ends, self.canceled)

    def cancel(self, now: float) -> None:
        self.cancel_asked = now
        self.canceled = now if now < self.started else now + CANCEL_TIME

    def fail(self, at: float, error: str) -> None:
        """Fail it at ``at``, whether it had started or not."""
        self.started, self.ends, self.error = min(self.started, at), at, error
        self.lines = [line for line in self.lines if self.started + line.at <= at]

    def log(self, now: float, after: int) -> list[tuple[int, float, Line]]:
        """Return (id, time, line) of what has been written by ``now``; ids start at 1."""
        end = min(now, self.completed())
        shown = [(n, self.started + line.at, line) for n, line in enumerate(self.lines, 1)]
        return [(n, at, line) for n, at, line in shown if at <= end and n > after]


def terraform_lines(kind: str, seconds: float, behaviour: Behaviour) -> list[Line]:
    """Return a log like Terraform's, spread over the duration of the job, with the stages of v2.35.1 (live)."""
    begin = [("Setting up", ""), ("Initializing Terraform Directory", "Initializing provider plugins...")]
    plan = [*begin, ("Planning Infrastructure", "docker_volume.home: Refreshing state...")]
    end = [("Cleaning Up", "")]
    texts = {
        "import": [
            *begin,
            ("Parsing template parameters", ""),
            ("Detecting persistent resources", ""),
            ("Detecting ephemeral resources", ""),
            *end,
        ],
        "start": [
            *plan,
            ("Starting workspace", "docker_container.workspace[0]: Creating..."),
            ("Starting workspace", "docker_container.workspace[0]: Creation complete"),
            *end,
        ],
        "stop": [*plan, ("Stopping workspace", "docker_container.workspace[0]: Destroying..."), *end],
        "delete": [*plan, ("Deleting workspace", "docker_volume.home: Destroying..."), *end],
    }[kind]
    made = [Line(seconds * n / (len(texts) + 1), stage, text) for n, (stage, text) in enumerate(texts, 1)]
    # A failing job ends where it fails, and is cleaned up too.
    last = made[-2].stage
    made += [Line(seconds * 0.99, last, text, "error") for text in (*behaviour.lines, behaviour.error) if text]
    return made


@dataclass
class Agent:
    """The agent of one start build; ``begins`` is when the build ended."""

    begins: float
    behaviour: Behaviour
    name: str = "main"
    gone: float = FOREVER
    """When its connection broke."""
    id: str = field(default_factory=new_id)
    resource: str = field(default_factory=new_id)

    @property
    def connects(self) -> float:
        return self.begins + self.behaviour.connect

    def status(self, now: float) -> str:
        if now >= self.gone + 30:
            return "disconnected"
        if now >= self.connects:
            return "connected"
        return "timeout" if now >= self.begins + self.behaviour.connection_timeout else "connecting"

    def ready_at(self) -> float:
        """Return when the last start script has ended; scripts run in parallel."""
        return self.connects + max((script.seconds for script in self.behaviour.scripts), default=0.0)

    def lifecycle(self, now: float) -> str:
        if now < self.connects:
            return "created"
        if now < self.ready_at():
            return "starting"
        if any(script.timed_out for script in self.behaviour.scripts):
            return "start_timeout"
        return "start_error" if any(script.exit_code for script in self.behaviour.scripts) else "ready"

    def unhealthy(self, now: float) -> str:
        """Return the reason, or an empty string; ``start_timeout`` alone is not a reason."""
        status = self.status(now)
        reasons = {"connecting": "agent has not yet connected", "timeout": "agent is taking too long to connect"}
        if status == "disconnected":
            return "agent has lost connection"
        if self.lifecycle(now) == "start_error":
            return "agent startup script exited with an error"
        return reasons.get(status, "")

    def log(self, now: float, after: int) -> list[tuple[int, float, str, Script]]:
        """Return (id, time, text, script); a script writes evenly until it ends."""
        made = []
        for script in self.behaviour.scripts:
            for n, text in enumerate(script.output, 1):
                made.append((self.connects + script.seconds * n / len(script.output), text, script))
        made.sort(key=lambda entry: entry[0])
        return [(n, at, text, script) for n, (at, text, script) in enumerate(made, 1) if at <= now and n > after]
