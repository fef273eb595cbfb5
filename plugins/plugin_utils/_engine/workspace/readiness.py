# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read from the workspace agent's log when a started workspace is usable.

Separate from ``lifecycle``, because `up` on a running workspace does not read a log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ....module_utils._node.errors import Conflict, DeadlineExceeded, FlowError, Unhealthy, redact
from ..common import untrusted
from ..common.progress import Progress
from ..common.wait import Waiter
from .models import ENDING, STATES, STEPS, Liveness, Step, Workspace

if TYPE_CHECKING:
    from .target import Readable

FINAL = ("ok", "failed", "skipped", "needs-auth")
SILENCE = 45.0
"""Seconds without a log line after which the user is told where to look, and told again."""
LAST_LINES = 5
"""Lines of a log that an error shows."""
LONGEST_EVENT = 65536
MOST_STEPS = 32
MOST_NOTES = 4
MOMENTS = ("since", "stops_at", "keepalive_until")
WORDS = ("reason", "keepalive_by")
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"


def event(line: str) -> dict[str, Any] | None:
    """Return the agent's event in a log line, or ``None``."""
    if not line.startswith("{") or '"spt_flow"' not in line:
        return None
    try:
        data = untrusted.record(untrusted.parse(line, LONGEST_EVENT))
    except ValueError:
        return None
    kind = untrusted.word(data.get("event"), _NAME)
    if data.get("spt_flow") != 1 or not kind:
        return None
    return {
        **data,
        "event": kind,
        "boot": untrusted.word(data.get("boot"), _NAME),
        "reason": untrusted.line(data.get("reason")),
    }


def boots(target: Readable, workspace: Workspace) -> frozenset[str]:
    """Return the ids of the starts in the log."""
    events = (event(line) for line in target.logs(workspace))
    return frozenset(e["boot"] for e in events if e and e["event"] == "start")


def clone_failed(target: Readable, workspace: Workspace) -> bool:
    """Return whether the clone of the newest start failed."""
    watch = Watch(Progress())
    for line in target.logs(workspace):
        watch.feed(line)
    return watch.state("clone") == "failed"


class Watch:
    """State of the newest start, from its log. ``old`` are ids of earlier starts.

    With ``ci``, the IDE is ignored. With ``docker``, Docker inside is waited for.
    """

    def __init__(
        self, progress: Progress, old: frozenset[str] = frozenset(), ci: bool = False, docker: bool = False
    ) -> None:
        self._ci = ci
        self._docker = docker
        self.steps: dict[str, Step] = {}
        self.life = Liveness()
        self.notes: list[str] = []
        self.tail: deque[str] = deque(maxlen=LAST_LINES)
        self._progress = progress
        self._old = old
        self._current = False

    def feed(self, line: str) -> None:
        """Process one line of the log."""
        data = event(line)
        if data is None:
            if self._current or not self._old:
                self.tail.append(redact(untrusted.line(line.rstrip())))
            return
        if data["event"] == "start":
            self._current = data["boot"] not in self._old
            self.steps, self.life = {}, Liveness()
        elif self._current and data["event"] == "step":
            self._step(data)
        elif self._current and data["event"] == "life":
            self.life = liveness_of(data)
        elif data["event"] == "note":
            self.notes = [*self.notes, untrusted.line(data.get("text"), 400)][-MOST_NOTES:]

    def _step(self, data: dict[str, Any]) -> None:
        step = step_of(data)
        if step is None or (step.name not in self.steps and len(self.steps) >= MOST_STEPS):
            return
        before = self.steps.get(step.name, Step(step.name))
        self.steps[step.name] = step
        if step.state == before.state:
            return
        if step.state == "running":
            self._progress.note(f"{step.name}: {step.detail or 'running'}")
        elif step.state in FINAL:
            seconds = max(0.0, step.ended - step.started) if step.ended and step.started else 0.0
            self._progress.done(step.name, seconds, f"{step.state}{', ' + step.detail if step.detail else ''}")

    def state(self, name: str) -> str:
        return self.steps.get(name, Step(name)).state

    @property
    def usable(self) -> bool:
        """Return whether the IDE answers; a CI job does not need it."""
        return self._ci or self.state("ide") in ("ok", "skipped")

    @property
    def complete(self) -> bool:
        """Return whether everything that clients wait for is done."""
        if not self.usable or self.state("clone") not in FINAL:
            return False
        return not self._docker or self.state("clone") != "ok" or self.state("docker") in FINAL

    @property
    def settled(self) -> bool:
        """Return whether a session has nothing left to finish."""
        return all(self.state(name) not in ("failed", "needs-auth") for name in ("clone", "dotfiles"))

    def apply(self, workspace: Workspace) -> Workspace:
        order = [*STEPS, *(name for name in self.steps if name not in STEPS)]
        steps = tuple(self.steps[name] for name in order if name in self.steps)
        # A server that stops workspaces itself knows when; the workspace agent does not.
        life = workspace.life if workspace.life.stops_at else self.life
        notes = tuple(note for note in self.notes if note and note not in workspace.notes)
        return replace(workspace, steps=steps, life=life, notes=(*workspace.notes, *notes))


def liveness_of(data: dict[str, Any]) -> Liveness:
    """Return the liveness from the agent's record; empty if any value has the wrong type."""
    given = {name: data[name] for name in (*MOMENTS, *WORDS) if data.get(name) is not None}
    moments = {name: untrusted.moment(value) for name, value in given.items() if name in MOMENTS}
    words = {name: untrusted.line(value, 200) for name, value in given.items() if name in WORDS}
    if None in moments.values() or any(not isinstance(given[name], str) for name in words):
        return Liveness()
    return Liveness(**words, **moments)  # type: ignore[arg-type]


def step_of(data: dict[str, Any]) -> Step | None:
    """Return the step of an event, or ``None`` if its name or state is invalid."""
    name, state = untrusted.word(data.get("step"), _NAME), untrusted.word(data.get("state"), STATES)
    if not name or not state:
        return None
    started, ended = (untrusted.moment(data.get(key)) for key in ("started", "ended"))
    return Step(name, state, started, ended, redact(untrusted.line(data.get("detail"))))


def complete(workspace: Workspace) -> bool:
    """Return whether a target that waits itself, such as for a rollback, already found the workspace ready."""
    return workspace.step("ide").state in ("ok", "skipped") and workspace.step("clone").state in FINAL


def wait_ready(
    target: Readable, workspace: Workspace, progress: Progress, waiter: Waiter, old: frozenset[str] | None = frozenset()
) -> Workspace:
    """Follow the log until the IDE answers and the clone is done or has failed. Return the workspace with its steps and
    liveness.

    ``old`` are ids of earlier starts. ``None`` means that another client started it: then the last start in the log
    counts; if it is about to end, wait for that and raise ``Conflict``. Raise ``Unhealthy`` if the workspace or its IDE
    ends, ``DeadlineExceeded`` if the IDE does not answer in time. A clone may take longer.
    """
    if waiter.check:
        return workspace
    if old is None:
        events = [e for e in map(event, target.logs(workspace)) if e]
        if ending(events):
            wait_until_ended(target, workspace, progress, waiter, events)
            raise Conflict(f"Workspace {workspace.name} is being stopped.", "Run the command again.")
        old = frozenset([e["boot"] for e in events if e["event"] == "start"][:-1])
    ci = workspace.kind == "ci"
    # A job's first command may need Docker inside. A log that ends before the workspace may not tell when it answers.
    watch = Watch(progress, old, ci=ci, docker=ci and target.log_ends_with_workspace)
    for line in _followed(target, workspace, waiter, progress):
        if line is not None:
            watch.feed(line)
        if watch.complete:
            return watch.apply(workspace)
        if watch.state("ide") == "failed" and not watch.usable:
            detail = watch.steps["ide"].detail
            raise Unhealthy(
                f"The IDE of workspace {workspace.name} did not start: {detail}.", _log_hint(watch, workspace)
            )
        if line is None:
            break
    if not waiter.expired:
        failed = "".join(f" Step {s.name} failed: {s.detail}" for s in watch.steps.values() if s.state == "failed")
        what = (
            "ended while it was starting"
            if target.log_ends_with_workspace
            else "is not usable: its start script failed"
        )
        raise Unhealthy(f"Workspace {workspace.name} {what}.{failed}", _log_hint(watch, workspace), _log(watch))
    if not watch.usable:
        raise DeadlineExceeded(
            f"The IDE of workspace {workspace.name} did not answer within {waiter.timeout:g} s.",
            _log_hint(watch, workspace),
            _log(watch),
        )
    return watch.apply(workspace)


def ending(events: Sequence[dict[str, Any]]) -> bool:
    """Return whether the newest start is about to end, though its container still runs."""
    newest = next((e for e in reversed(events) if e["event"] in ("start", "life")), None)
    return newest is not None and newest.get("reason") in ENDING


def wait_until_ended(
    target: Readable,
    workspace: Workspace,
    progress: Progress,
    waiter: Waiter,
    events: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Wait until a workspace that is about to end has ended, which ends its log, or has been started again.

    ``events`` are the events of its log, if known.
    """
    if events is None:
        events = [e for e in map(event, target.logs(workspace)) if e]
    known = sum(e["event"] == "start" for e in events)
    progress.note(f"{workspace.name} is stopping; waiting for its end")
    for line in _followed(target, workspace, waiter, progress):
        if line is None:
            break
        said = event(line)
        known -= said is not None and said["event"] == "start"
        if known < 0:
            return
    if waiter.expired:
        raise DeadlineExceeded(
            f"Workspace {workspace.name} did not stop within {waiter.timeout:g} s.",
            f"Restart it: ansible-playbook spt.flow.restart -e workspace={workspace.name}",
        )


def _log(watch: Watch) -> dict[str, Any]:
    return {"log": list(watch.tail), "steps": {name: step.state for name, step in watch.steps.items()}}


def _log_hint(watch: Watch, workspace: Workspace) -> str:
    command = f"ansible-playbook spt.flow.logs -e workspace={workspace.name}"
    if not watch.tail:
        return f"Its log: {command}"
    return "\n".join([f"The last lines of its log ({command}):", *watch.tail])


def _followed(target: Readable, workspace: Workspace, waiter: Waiter, progress: Progress) -> Iterator[str | None]:
    """Yield the log's lines as they arrive, then ``None`` once, at the end of the log or of the time.

    Reading blocks, so a thread does it. It ends with the log or with the next line after the reader has left.
    """
    import queue
    import threading

    lines: queue.Queue[str | None | FlowError] = queue.Queue()
    deaf = threading.Event()

    def read() -> None:
        try:
            for line in target.logs(workspace, follow=True):
                if deaf.is_set():
                    return
                lines.put(line)
            lines.put(None)
        except FlowError as error:
            lines.put(error)
        except Exception as error:  # noqa: BLE001 - a thread's exception would be lost
            lines.put(Unhealthy(f"Cannot follow the log of workspace {workspace.name}: {error}"))

    threading.Thread(target=read, name="spt-flow-log", daemon=True).start()
    silent = 0.0
    try:
        while True:
            pause = min(waiter.remaining, SILENCE)
            try:
                line = lines.get(timeout=pause) if pause else lines.get_nowait()
            except queue.Empty:
                if waiter.expired:
                    yield None
                    return
                silent += pause
                progress.note(
                    f"{workspace.name}: no output for {silent:.0f} s. See its log: ansible-playbook spt.flow.logs -e "
                    f"workspace={workspace.name}"
                )
                continue
            silent = 0.0
            if isinstance(line, FlowError):
                raise line
            yield line
            if line is None:
                return
    finally:
        deaf.set()
