# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what is there to what is wanted (private to the collection): read, plan, act, wait.

``plan`` is pure; ``changed``, ``diff`` and ``msg`` of a result come from it, so check mode cannot differ.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ._errors import (
    AuthError,
    Conflict,
    FlowError,
    InvalidInput,
    NotFound,
    Unhealthy,
)
from ._progress import Progress
from ._repository import HOME, Repository
from ._wait import Waiter
from ._workspace import Result, Step, Workspace, WorkspaceSpec

if TYPE_CHECKING:
    from ._repository_probe import Probe
    from ._target import Target

STATES = ("started", "stopped", "restarted", "kept", "absent")
SEED = ".cache/spt-flow/seed.bundle"
"""Where below the home the bundle of a local repository waits for the first clone (decision B12)."""
TRIES = 5
"""How often a run reads again after somebody else was faster."""
YOUNG = 30.0
"""Seconds after its start in which a running workspace may still be somebody else's that is not ready yet."""

ProbeFunction = Callable[[Repository, str], "Probe"]


# Planning


@dataclass(frozen=True)
class Action:
    """One verb of the target and why it is needed."""

    verb: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What is to be done. ``before`` and ``after`` are what ``diff`` shows; equal when there is nothing to do."""

    actions: tuple[Action, ...]
    before: dict[str, Any]
    after: dict[str, Any]
    msg: str
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.actions)

    @property
    def verbs(self) -> list[str]:
        return [action.verb for action in self.actions]

    @property
    def diff(self) -> dict[str, Any]:
        return {"before": self.before, "after": self.after}


def plan(
    actual: Workspace | None, spec: WorkspaceSpec, state: str, hours: float = 0.0, create: bool = True, name: str = ""
) -> Plan:
    """What takes ``actual`` to ``state``; ``name`` is what a new workspace will be called.

    Raises ``InvalidInput`` (unknown state, hours), ``NotFound`` (nothing there that could be changed) and ``Conflict``
    (the name belongs to another repository, or the workspace is in no state for it).
    """
    if state not in STATES:
        raise InvalidInput(f"There is no state {state!r}.", f"Use one of {', '.join(STATES)}.")
    if state == "kept" and not (math.isfinite(hours) and 0 <= hours <= 24):
        raise InvalidInput(
            f"Cannot keep a workspace alive for {hours:g} hours.", "Use hours from 0 (take it back) to 24."
        )
    if actual is None:
        return _plan_nothing(spec, state, create, name)
    if spec.repository and actual.repo and spec.repository.identity != actual.repo:
        raise Conflict(
            f"Workspace {actual.name} belongs to {actual.repo}, not to {spec.repository.identity}.",
            "Choose another name, or leave the name out.",
        )
    planners = {
        "started": _plan_started,
        "stopped": _plan_stopped,
        "restarted": _plan_restarted,
        "absent": _plan_absent,
    }
    if state == "kept":
        return _plan_kept(actual, hours)
    return planners[state](actual)


def _seen(workspace: Workspace) -> dict[str, Any]:
    return {
        "name": workspace.name,
        "repo": workspace.repo,
        "state": workspace.state,
        "outdated": list(workspace.outdated),
    }


def _plan_nothing(spec: WorkspaceSpec, state: str, create: bool, name: str) -> Plan:
    title = spec.title or "for this repository"
    gone = {"state": "absent"}
    if state == "absent":
        return Plan((), gone, gone, f"There is no workspace {title} (unchanged).")
    if state == "started" and create and spec.repository is not None:
        name = name or spec.name or spec.repository.slug
        after = {"name": name, "repo": spec.repository.identity, "state": "running", "outdated": []}
        actions = (Action("create", "there is none for the repository"), Action("start", "it is new"))
        return Plan(actions, gone, after, f"Workspace {name} created for {spec.repository.identity} and started.")
    raise NotFound(
        f"There is no workspace {title}{spec.of_whom}.",
        "See what there is: ansible-playbook spt.flow.status. "
        "Create one: ansible-playbook spt.flow.up -e repo=https://host/owner/name.git",
        {"owner": spec.owner, "workspace": spec.name},
    )


def _plan_started(actual: Workspace) -> Plan:
    before = _seen(actual)
    notes = (_outdated(actual),) if actual.outdated else ()
    if actual.state == "running":
        return Plan((), before, before, f"Workspace {actual.name} is running (unchanged).", notes)
    actions = [Action("start", f"it is {actual.state}")]
    if not actual.id:
        actions.insert(0, Action("create", "only its home is left"))
    after = {**before, "state": "running"}
    return Plan(tuple(actions), before, after, f"Workspace {actual.name} started.", notes)


def _outdated(actual: Workspace) -> str:
    return (
        f"Workspace {actual.name} is outdated ({' and '.join(actual.outdated)}); a restart applies what is new: "
        f"ansible-playbook spt.flow.restart -e workspace={actual.name}"
    )


def _plan_stopped(actual: Workspace) -> Plan:
    before = _seen(actual)
    if actual.state in ("stopped", "failed"):
        return Plan((), before, before, f"Workspace {actual.name} is {actual.state} (unchanged).")
    if actual.kind == "ci":
        return Plan(
            (Action("stop", f"it is {actual.state}"),),
            before,
            {"state": "absent"},
            f"Workspace {actual.name} stopped and with that deleted, as CI workspaces are.",
        )
    after = {**before, "state": "stopped"}
    return Plan((Action("stop", f"it is {actual.state}"),), before, after, f"Workspace {actual.name} stopped.")


def _plan_restarted(actual: Workspace) -> Plan:
    before = _seen(actual)
    reason = f"its {' and '.join(actual.outdated)} changed" if actual.outdated else "a restart was asked for"
    after = {**before, "state": "running", "outdated": []}
    return Plan((Action("restart", reason),), before, after, f"Workspace {actual.name} restarted.")


def _plan_absent(actual: Workspace) -> Plan:
    return Plan(
        (Action("delete", "it is to be absent"),),
        _seen(actual),
        {"state": "absent"},
        f"Workspace {actual.name} deleted.",
    )


def _plan_kept(actual: Workspace, hours: float) -> Plan:
    if actual.kind == "ci":
        raise Conflict(
            f"Cannot keep workspace {actual.name} alive: it is a CI workspace, whose time nothing moves.",
            "Give the next run more time: ansible-playbook spt.flow.ci -e ttl=1h",
        )
    if actual.state != "running":
        raise Conflict(
            f"Cannot keep workspace {actual.name} alive: it is {actual.state}.",
            f"Start it: ansible-playbook spt.flow.up -e workspace={actual.name}",
        )
    before = _seen(actual)
    msg = (
        f"Workspace {actual.name} kept alive for {hours:g} hours."
        if hours
        else (f"Workspace {actual.name} is not kept alive any longer.")
    )
    return Plan((Action("keepalive", "it was asked for"),), before, {**before, "keepalive_hours": hours}, msg)


# Doing


def ensure(
    target: Target,
    spec: WorkspaceSpec,
    state: str = "started",
    check: bool = False,
    progress: Progress | None = None,
    wait_timeout: float | None = None,
    probe: ProbeFunction | None = None,
    now: Callable[[], float] = time.time,
    hours: float = 0.0,
    by: str = "",
    create: bool = True,
    waiter: Waiter | None = None,
) -> Result:
    """Take the owner's workspace to ``state`` and wait until it can be used; in check mode only say what would happen.

    ``wait_timeout`` is in seconds (default: the spec's), ``hours`` and ``by`` belong to ``state="kept"``. A running
    workspace costs one read, unless it was started a moment ago: then it is waited for as well. Raises children of
    ``FlowError``; what was created until then stays and is taken up by the next run.
    """
    waiter = waiter or Waiter(spec.settings.wait_timeout if wait_timeout is None else wait_timeout, check)
    run = _Run(target, spec, progress or Progress(), waiter, probe or _default_probe(spec))
    if not check:
        run.sweep()
    for attempt in range(TRIES):
        actual = target.find(spec)
        name = _new_name(target, spec) if actual is None and state == "started" else ""
        planned = plan(actual, spec, state, hours, create, name)
        run.admit(planned)
        if check:
            return Result(
                planned.changed, planned.msg, actual, planned.verbs, planned.diff, [], [*run.notes, *planned.notes]
            )
        try:
            run.joined = run.joined or (actual is not None and _unready(actual, now()))
            workspace = run.act(planned, actual, hours, by)
            if run.joined:
                # Somebody was faster, or was killed: what that left can only be told once the workspace is ready.
                run.sweep()
            return run.result(planned, workspace)
        except (Conflict, NotFound) as error:
            if attempt == TRIES - 1:
                raise
            run.joined = True
            run.progress.note(f"read again: {error.message}")
            waiter.pause(0.1 * 2**attempt)
    raise AssertionError("unreachable")


def _unready(workspace: Workspace, now: float) -> bool:
    """Whether a workspace that runs may still be starting: for it is young, or its target says so."""
    return abs(now - (workspace.started or 0)) < YOUNG or any(step.state == "running" for step in workspace.steps)


def _default_probe(spec: WorkspaceSpec) -> ProbeFunction:
    def ask(repository: Repository, ref: str) -> Probe:
        from ._repository_probe import probe

        return probe(repository, ref, known_hosts=spec.settings.known_hosts)

    return ask


def _new_name(target: Target, spec: WorkspaceSpec) -> str:
    """What a new workspace will be called (decision C7): the slug, unless another repository has it."""
    if spec.name or spec.repository is None:
        return spec.name
    slug = spec.repository.slug
    taken = any(w.name == slug and w.repo != spec.repository.identity for w in target.list(spec.owner))
    return spec.repository.slug_with_suffix() if taken else slug


class _Run:
    """One call of ``ensure``: what was learnt and done so far."""

    def __init__(
        self, target: Target, spec: WorkspaceSpec, progress: Progress, waiter: Waiter, probe: ProbeFunction
    ) -> None:
        self.target = target
        self.spec = spec
        self.progress = progress
        self.waiter = waiter
        self.probe = probe
        self.notes: list[str] = []
        self.actions: list[str] = []
        self.joined = False
        self._admitted = False
        self._bundle = b""

    def sweep(self) -> None:
        """Delete expired CI workspaces (decision A9); that it fails must not keep anybody from working."""
        try:
            gone = sorted(self.target.sweep())
        except FlowError as error:
            self.notes.append(f"Expired CI workspaces could not be deleted: {error.message}")
            return
        if gone:
            self.notes.append(f"Deleted expired CI workspaces: {', '.join(gone)}.")

    def admit(self, planned: Plan) -> None:
        """Before anything is started, ask the target; before it is created, whether the repository can be had."""
        verbs = {"create", "start", "restart"} & set(planned.verbs)
        if verbs:
            self.target.admit(self.spec, verbs != {"start"})
        repository = self.spec.repository
        new = planned.before.get("state") == "absent"
        if "create" not in planned.verbs or not new or repository is None or self._admitted:
            return
        self.progress.note(f"repository: asking {repository.host if repository.kind != 'local' else 'the folder'}")
        note = judge(self.probe(repository, self.spec.ref), repository, self.target.name)
        if note:
            self.notes.append(note)
        self._admitted = True

    def act(self, planned: Plan, actual: Workspace | None, hours: float, by: str) -> Workspace | None:
        """Carry out ``planned``; the workspace afterwards."""
        awaited = self.joined and actual is not None and actual.state == "running"
        if not planned.actions and not awaited:
            return actual
        from . import _readiness

        workspace = actual
        boots: frozenset[str] = frozenset()
        for action in planned.actions:
            if action.verb == "create":
                workspace = self._create()
            elif workspace is None:
                raise NotFound("The workspace vanished while it was being changed.", "Run the command again.")
            elif action.verb == "start":
                boots = _readiness.boots(self.target, workspace) if "create" not in planned.verbs else boots
                workspace = self._start(workspace, "create" in planned.verbs)
            elif action.verb == "stop":
                with self.progress.stage("stop", f"stopping {workspace.name}"):
                    workspace = self.target.stop(workspace)
                workspace = None if workspace.kind == "ci" else workspace
            elif action.verb == "restart":
                workspace = self._timed("restart", f"replacing {workspace.name}", self._restart, workspace)
            elif action.verb == "keepalive":
                workspace = self.target.keepalive(workspace, hours, by)
            elif action.verb == "delete":
                self._delete(workspace)
                workspace = None
            self.actions.append(action.verb)
        if workspace is not None and {"start", "restart"} & set(planned.verbs):
            workspace = _readiness.wait_ready(self.target, workspace, self.progress, self.waiter, boots)
            return self._delivered(workspace) if self.target.name == "coder" and self._bundle else workspace
        if workspace is not None and not planned.actions:
            return _readiness.wait_ready(self.target, workspace, self.progress, self.waiter, None)
        return workspace

    def _timed(
        self, name: str, doing: str, function: Callable[[Workspace], Workspace], workspace: Workspace
    ) -> Workspace:
        with self.progress.stage(name, doing):
            return function(workspace)

    def _restart(self, workspace: Workspace) -> Workspace:
        if workspace.id:
            self._seed(workspace, fresh=False)
        return self.target.restart(workspace, self.spec, self.progress)

    def _delete(self, workspace: Workspace) -> None:
        with self.progress.stage("delete", f"deleting {workspace.name}"):
            try:
                self.target.delete(workspace)
            except NotFound:
                self.progress.note(f"{workspace.name} was already gone")

    def _create(self) -> Workspace:
        """Create, and time what the target did not time itself."""
        repository = self.spec.repository
        if repository is not None and repository.kind == "local" and not self._bundle:
            with self.progress.stage("bundle", f"copying {repository.path}"):
                self._bundle = _bundle(repository, self.spec.ref)
        known = len(self.progress.stages)
        begun = self.progress.elapsed
        self.progress.note("create: creating the workspace")
        workspace = self.target.create(self.spec, self.progress)
        inner = self.progress.stages[known:]
        if "create" not in [name for name, _seconds in inner]:
            own = self.progress.elapsed - begun - sum(seconds for _name, seconds in inner)
            self.progress.done("create", max(0.0, own), workspace.name)
        return workspace

    def _seed(self, workspace: Workspace, fresh: bool) -> None:
        """Where the repository is a folder here: give the workspace what it is to clone from, unless it has cloned."""
        repository = self.spec.repository
        if repository is None or repository.kind != "local":
            return
        from ._readiness import clone_failed

        if fresh or clone_failed(self.target, workspace):
            self._bundle = self._bundle or _bundle(repository, self.spec.ref)
            self.target.put(workspace, HOME, seed_archive(self._bundle))

    def _delivered(self, workspace: Workspace) -> Workspace:
        """Where a workspace runs as soon as it is made, a repository that is a folder here follows, and is cloned."""
        with self.progress.stage("clone", "bringing the repository"):
            self._seed(workspace, fresh=True)
            done = self.target.exec(workspace, ["spt-workspace", "clone"], timeout=max(60.0, self.waiter.remaining))
        said = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        clone = Step("clone", "failed" if done.status else "ok", detail=said)
        return replace(workspace, steps=(*(step for step in workspace.steps if step.name != "clone"), clone))

    def _start(self, workspace: Workspace, created: bool) -> Workspace:
        if workspace.state != "running":
            self._seed(workspace, fresh=created or workspace.started is None)
        with self.progress.stage("start", f"starting {workspace.name}"):
            return self.target.start(workspace)

    def result(self, planned: Plan, workspace: Workspace | None) -> Result:
        notes = [*self.notes, *planned.notes]
        msg = planned.msg
        if workspace is not None:
            notes += [note for note in (*workspace.notes, *_step_notes(workspace)) if note not in notes]
            predicted = planned.after.get("name")
            if predicted and predicted != workspace.name:
                msg = msg.replace(f"Workspace {predicted} ", f"Workspace {workspace.name} ", 1)
        return Result(bool(self.actions), msg, workspace, self.actions, planned.diff, list(self.progress.stages), notes)


def _bundle(repository: Repository, ref: str) -> bytes:
    from ._repository_probe import make_bundle

    return make_bundle(repository, ref)


def judge(answer: Probe, repository: Repository, target: str) -> str:
    """A note, or nothing, where a workspace may be created after ``answer``; raises where it may not."""
    where = f"Cannot create a workspace for {repository.identity}"
    detail = f" ({answer.detail})" if answer.detail else ""
    if answer.state == "open":
        return ""
    if answer.state == "needs-auth":
        return (
            f"{repository.host} asks for credentials{detail}; the clone is finished in your session, "
            "with your SSH agent or git credential helper."
        )
    if answer.state == "unreachable" and target != "docker":
        return f"{repository.host} could not be asked from here{detail}; the workspace will try by itself."
    if answer.state == "not-found":
        raise NotFound(
            f"{where}: it was not found{detail}.", "Check the address and the branch, and that you may read it."
        )
    if answer.state == "host-key-unknown":
        raise AuthError(
            f"{where}: the SSH host key of {repository.host} is not known or has changed{detail}.",
            f"Compare it with what the server's operator publishes, then add it to ~/.ssh/known_hosts "
            f"(ssh-keyscan {'-p ' + str(repository.port) + ' ' if repository.port else ''}{repository.host}) "
            "and to the option known_hosts.",
        )
    raise Unhealthy(
        f"{where}: {repository.host} does not answer{detail}.", "Check the network, the proxy and the address."
    )


def seed_archive(bundle: bytes) -> bytes:
    """A tar, to be unpacked in the home, with ``bundle`` where the clone step looks for it."""
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        parts = SEED.split("/")
        for depth in range(1, len(parts)):
            folder = tarfile.TarInfo("/".join(parts[:depth]))
            folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, 0o755, 1000, 1000
            tar.addfile(folder)
        file = tarfile.TarInfo(SEED)
        file.size, file.mode, file.uid, file.gid = len(bundle), 0o600, 1000, 1000
        tar.addfile(file, io.BytesIO(bundle))
    return buffer.getvalue()


def _step_notes(workspace: Workspace) -> list[str]:
    """Sentences about steps that are not as they should be though the workspace can be used."""
    notes = []
    for step in workspace.steps:
        detail = f": {step.detail.rstrip('.')}" if step.detail else ""
        if step.state == "failed":
            notes.append(f"Step {step.name} failed{detail}.")
        elif step.name == "clone" and step.state == "needs-auth":
            notes.append("The clone needs your credentials; it is finished in your session: spt-workspace clone")
        elif step.name == "dotfiles" and step.state == "needs-auth":
            notes.append(
                "The dotfiles need your credentials; they are installed in your session: spt-workspace dotfiles"
            )
        elif step.name == "clone" and step.state in ("pending", "running"):
            notes.append("The clone is not finished yet; it goes on in the workspace.")
    return notes
