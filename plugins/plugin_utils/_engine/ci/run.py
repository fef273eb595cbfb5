# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one CI job in a workspace of its own and always destroy the workspace."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ....module_utils._node.errors import AuthError, Cancelled, Conflict, FlowError, InvalidInput, NotFound, Unhealthy
from ..common.progress import Lines, Progress
from ..repository.address import ci_name
from ..workspace.models import Workspace, WorkspaceSpec
from ..workspace.target import ensure_client
from . import artifacts as ci_artifacts
from . import job as ci_job
from . import record as ci_record
from .request import _COMMIT as COMMIT
from .request import Job, check_commit
from .signals import Stopped, Stops

if TYPE_CHECKING:
    from ..workspace.target import Target


CLASSES = ("job", "environment", "cancelled")
NOT_RUN = 125
"""Exit status if the command did not run or its outcome is unknown (like `docker run`)."""
OUT_OF_TIME = 124
"""Exit status if the TTL ended the command (like `timeout`)."""
RESERVE = 30.0
"""Seconds of the TTL that are reserved for collecting, at most a tenth of it."""
LAST_LINES = 100
"""Lines at the end of a job's output that are shown if earlier output was not."""
DESTROY = 60.0
"""Seconds in which deleting is retried."""
OF_THE_JOB = (InvalidInput, NotFound, AuthError)
"""Errors before the command ran that do not depend on the environment."""


@dataclass
class Outcome:
    """How a run ended. ``status`` is the exit status of the whole run; ``left`` names a workspace that still exists.

    ``kind`` is one of ``CLASSES``, ``reason`` a word about it, ``ran`` whether the command's own status is known.
    """

    kind: str = "environment"
    reason: str = "unknown"
    status: int = NOT_RUN
    ran: bool = False
    msg: str = ""
    hint: str = ""
    workspace: str = ""
    commit: str = ""
    folder: str = ""
    artifacts: list[str] = field(default_factory=list)
    reports: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stages: list[tuple[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    left: str = ""


def run(
    target: Target,
    spec: WorkspaceSpec,
    job: Job,
    progress: Progress | None = None,
    lines: Lines | None = None,
    enter: Callable[[Workspace, str], Sequence[str]] | None = None,
    now: Callable[[], float] = time.time,
) -> Outcome:
    """Run ``job`` in a workspace of its own. Classified failures are returned, not raised.

    ``lines`` receives the command's output. ``enter`` returns the argument list that runs a shell command in the
    workspace with this process's pipes (default: OpenSSH).
    """
    from ..workspace import ssh as workspace_ssh

    with Stops() as stops:
        shown = lines or Lines(lambda text: None, batch=False)
        return _Run(target, spec, job, progress or Progress(), shown, enter or workspace_ssh.argv, now, stops)()


class _Run:
    def __init__(
        self,
        target: Target,
        spec: WorkspaceSpec,
        job: Job,
        progress: Progress,
        lines: Lines,
        enter: Callable[[Workspace, str], Sequence[str]],
        now: Callable[[], float],
        stops: Stops,
    ) -> None:
        self.target, self.job, self.progress, self.lines = target, job, progress, lines
        self.enter, self.now, self.stops = enter, now, stops
        self.deadline = int(now()) + job.ttl
        self.spec = replace(
            spec,
            kind="ci",
            name=spec.name or ci_name(spec.repository),
            ref=job.commit or spec.ref,
            deadline=self.deadline,
            dotfiles="",
        )
        self.started = now()
        self.folder = job.folder / self.spec.name
        self.outcome = Outcome(workspace=self.spec.name)
        self.touched = False
        self.workspace: Workspace | None = None

    def __call__(self) -> Outcome:
        try:
            self._phases()
        except Stopped as stop:
            self._cancelled(stop.signum)
        except FlowError as error:
            self._failed(error)
        except OSError as error:
            self._failed(FlowError(f"The run failed: {error.strerror or error}: {error.filename or ''}".rstrip(": ")))
        except Exception as error:  # noqa: BLE001 - always delete the workspace and classify the run
            self._failed(FlowError(f"The run failed: {type(error).__name__}: {error}"))
        finally:
            self.stops.ignore_signals()
            if self.touched:
                self._destroy()
        return self._closed()

    def _phases(self) -> None:
        check_commit(self.job.commit)
        self._make_folder()
        workspace = self._create()
        directory = self._directory(workspace)
        self._exact(workspace, directory)
        self._job(workspace, directory)
        self._collect(workspace, directory)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise Unhealthy(f"Cannot create the directory {self.folder}: {error.strerror}.", ci_job.ROOM) from None
        self.outcome.folder = str(self.folder)

    def _create(self) -> Workspace:
        from ..workspace import lifecycle

        if self.target.find(self.spec) is not None:
            raise Conflict(
                f"The workspace {self.spec.name} already exists.", "Do not set a name; each run chooses its own."
            )
        self.outcome.notes += ensure_client(self.target, self.progress, needed=True)
        self.touched = True
        result = lifecycle.ensure(self.target, self.spec, "started", progress=self.progress)
        self.outcome.notes += result.notes
        workspace = result.workspace
        if workspace is None:
            raise Unhealthy(f"The engine did not create workspace {self.spec.name}.")
        self.workspace = workspace
        clone = workspace.step("clone")
        if self.spec.repository is not None and clone.state != "ok":
            self._refused_clone(clone.state, clone.detail)
        return workspace

    def _refused_clone(self, state: str, detail: str) -> None:
        what = f"The clone of {self.spec.repository.identity if self.spec.repository else ''}"
        if state == "needs-auth":
            raise AuthError(
                f"{what} needs credentials that a CI workspace does not have.",
                "Use the pipeline's own checkout: SPT_FLOW_REPO=$PWD",
            )
        if "has no branch, tag or commit" in detail:
            raise NotFound(
                f"{what} failed: {detail}", "Check that the commit is pushed, and in the history that was fetched."
            )
        raise Unhealthy(f"{what} is {state}{': ' if detail else ''}{detail}.".replace("..", "."))

    def _directory(self, workspace: Workspace) -> str:
        if self.spec.repository is None or not self.target.clone_path_known:
            return self.target.session(workspace).directory
        return self.spec.repository.directory

    def _exact(self, workspace: Workspace, directory: str) -> None:
        """Verify that the clone is at the requested commit."""
        if self.spec.repository is None:
            return
        done = self.target.exec(workspace, ["git", "-C", directory, "rev-parse", "--verify", "HEAD"])
        said = done.stdout.strip()
        self.outcome.commit = said if COMMIT.fullmatch(said) else ""
        if done.status or not self.outcome.commit:
            raise Unhealthy(f"Workspace {workspace.name} does not report which commit it cloned.")
        if self.job.commit and self.outcome.commit != self.job.commit:
            raise Unhealthy(f"The clone is at {self.outcome.commit}, not at {self.job.commit}.")

    def _job(self, workspace: Workspace, directory: str) -> None:
        variables = {
            "CI": "true",
            "SPT_FLOW_CI": self.spec.name,
            "SPT_FLOW_COMMIT": self.outcome.commit,
            **self.job.env,
        }
        until = self.deadline - min(RESERVE, self.job.ttl / 10)
        self.progress.note(f"job: running in {workspace.name}, at most {max(0, until - self.now()):.0f} s")
        begun = self.progress.elapsed
        argv = self.enter(workspace, ci_job.remote_command(directory))
        with self.stops.held(), self._log() as (log, tell):

            def enough() -> bool:
                self.lines.due()
                return self.stops.signum != 0 or self.now() >= until

            ended = ci_job.run(
                argv,
                ci_job.payload(self.job.command, variables),
                ci_job.Mask(self.job.env.values()),
                tell,
                enough,
            )
            for line in log.last(LAST_LINES):
                self.lines.add(line)
            self.lines.flush()
        self.progress.done(
            "job", self.progress.elapsed - begun, "ended" if ended.status is None else f"status {ended.status}"
        )
        self.stops.check()
        self._record_result(ended, workspace, until)

    @contextlib.contextmanager
    def _log(self) -> Iterator[tuple[ci_job.Log, Callable[[str], None]]]:
        """Open job.log. The returned function takes a line of output, writes it and shows it."""
        path = self.folder / "job.log"
        said = False

        def tell(text: str) -> None:
            nonlocal said
            if log.add(text):
                self.lines.add(text)
            elif not said:
                said = True
                self.lines.add(f"[spt.flow] Further output is not shown. {path} keeps its end.")

        with contextlib.closing(ci_job.Log(path)) as log:
            yield log, tell
        if log.cut:
            self.outcome.notes.append(f"The job printed too much: {log.cut} bytes are missing in {path}.")

    def _record_result(self, ended: ci_job.Ended, workspace: Workspace, until: float) -> None:
        outcome = self.outcome
        if ended.status is not None:
            outcome.kind, outcome.status, outcome.ran = "job", ended.status, True
            outcome.reason = "failed" if ended.status else "passed"
            outcome.msg = f"The job ended with status {ended.status}." if ended.status else "The job succeeded."
        elif self.now() >= until:
            outcome.kind, outcome.reason, outcome.status = "job", "ttl", OUT_OF_TIME
            outcome.msg = f"The job was stopped: it did not finish within its TTL of {self.job.ttl} s."
            outcome.hint = "Raise the TTL: SPT_FLOW_TTL"
        else:
            said = "; ".join(ended.words)[:300] or "gone"
            raise Unhealthy(f"The connection to workspace {workspace.name} was lost while the job ran: {said}.")

    def _collect(self, workspace: Workspace, directory: str) -> None:
        """Fetch artifacts and reports. A failure does not change the job's verdict."""
        if not self.job.artifacts and not self.job.junit:
            return
        try:
            with self.progress.stage("collect", "artifacts and reports"), self.stops.held():
                argv = self.enter(workspace, ci_artifacts.remote_command(directory, self.job.artifacts, self.job.junit))
                found = ci_artifacts.fetch(
                    argv, self.folder, max(10.0, self.deadline - self.now()), lambda: bool(self.stops.signum)
                )
        except FlowError as error:
            self.outcome.notes.append(f"Cannot collect artifacts: {error.message}")
            return
        finally:
            self.stops.check()
        self.outcome.artifacts, self.outcome.reports = found.files, found.reports
        self.outcome.notes += found.notes

    # The end

    def _cancelled(self, signum: int) -> None:
        name = signal.Signals(signum).name
        self.outcome.kind, self.outcome.reason, self.outcome.status = "cancelled", name.lower(), 128 + signum
        self.outcome.msg = f"The run was cancelled by {name}."
        self.outcome.ran = False

    def _failed(self, error: FlowError) -> None:
        """Classify the error that prevented the command from running or from reporting its status."""
        outcome = self.outcome
        if isinstance(error, Cancelled):
            self._cancelled(signal.SIGTERM)
            return
        outcome.kind = "job" if isinstance(error, OF_THE_JOB) else "environment"
        outcome.reason, outcome.status, outcome.msg, outcome.hint = error.kind, NOT_RUN, error.message, error.hint

    def _destroy(self) -> None:
        """Delete the workspace, twice: the engine may finish a request that a signal interrupted later."""
        end = time.monotonic() + DESTROY
        spec = self.spec
        clean = 0
        begun = self.progress.elapsed
        interrupted = self.outcome.kind == "cancelled"
        while clean < (2 if interrupted else 1):
            try:
                found = self.target.find(spec)
                if found is not None:
                    self.target.delete(found, self.progress)
                    found = self.target.find(spec)
                clean = clean + 1 if found is None else 0
                problem = "it still exists"
            except FlowError as error:
                clean, problem = 0, error.message
            if time.monotonic() > end:
                self.outcome.left = spec.name
                when = time.strftime("%H:%M:%S", time.localtime(self.deadline))
                self.outcome.notes.append(
                    f"Workspace {spec.name} could not be deleted ({problem}); its TTL ends at {when}."
                )
                return
            if clean < 2 and (interrupted or not clean):
                time.sleep(0.5)
        self.progress.done("destroy", self.progress.elapsed - begun, f"{spec.name} is deleted")

    def _closed(self) -> Outcome:
        """Return the outcome after writing its last line and its record, and counting the runs of the directory."""
        outcome = self.outcome
        outcome.seconds = round(self.now() - self.started, 1)
        outcome.stages = [(name, round(seconds, 2)) for name, seconds in self.progress.stages]
        try:
            if outcome.folder:
                self._record()
            outcome.counts = count(self.job.folder)
        except OSError as error:
            outcome.notes.append(f"Cannot write the record of the run: {error.strerror}.")
        return outcome

    def _record(self) -> None:
        settings, made, repository = asdict(self.spec.settings), self.workspace, self.spec.repository
        record = {
            **{name: value for name, value in asdict(self.outcome).items() if name != "counts"},
            "repo": repository.identity if repository else "",
            **(ci_record.source(repository) if repository else {"source": "", "origin": ""}),
            "ref": self.spec.ref,
            "owner": self.spec.owner,
            "target": self.target.name,
            "image": self.spec.image,
            # Record the actual values: on a Coder server the template decides.
            "image_hash": (made and made.image_hash) or self.spec.image_hash,
            "settings": settings,
            "settings_hash": (made and made.settings_hash) or self.spec.settings.hash(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "deadline": self.deadline,
        }
        (self.folder / ci_record.FILE).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def count(folder: Path) -> dict[str, int]:
    """Count the runs recorded below ``folder`` by class."""
    counts = dict.fromkeys(CLASSES, 0)
    for path in folder.glob("*/run.json"):
        try:
            kind = json.loads(path.read_text(encoding="utf-8")).get("kind")
        except (OSError, ValueError, AttributeError):
            continue
        if kind in counts:
            counts[kind] += 1
    return counts
