# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply a workspace's state: read, plan, act, wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ....module_utils._node.errors import AuthError, Conflict, FlowError, InvalidInput, NotFound, Unhealthy
from ..common import untrusted
from ..common.progress import Progress
from ..common.wait import Waiter
from ..repository.address import HOME, Repository
from ..repository.seed import _bundle, seed_archive
from .models import Result, Step, Workspace, WorkspaceSpec
from .plan import Plan, plan
from .target import Sweeper

if TYPE_CHECKING:
    from ..repository.probe import Probe
    from .target import Target

TRIES = 5
"""How often a run starts over after another client was faster."""
YOUNG = 30.0
"""Seconds after its start in which a running workspace may still be starting for another client."""
ProbeFunction = Callable[[Repository, str], "Probe"]
Prepare = Callable[[WorkspaceSpec, Progress], WorkspaceSpec]
"""Adds the values to a specification that only a new or replaced workspace needs (``preparation``)."""


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
    prepare: Prepare | None = None,
) -> Result:
    """Apply ``state`` to the owner's workspace and wait until it is usable. In check mode only return what would
    happen.

    ``wait_timeout`` is in seconds (default: the spec's), ``hours`` and ``by`` belong to ``state="kept"``. A running
    workspace costs one read, unless it was just started: then it is waited for too. Raise children of ``FlowError``;
    objects created until then stay, and the next run uses them.
    """
    waiter = waiter or Waiter(spec.settings.wait_timeout if wait_timeout is None else wait_timeout, check)
    run = _Run(target, spec, progress or Progress(), waiter, probe or _default_probe(spec), prepare)
    if not check:
        run.sweep()
    for attempt in range(TRIES):
        actual = target.find(spec)
        name = _new_name(target, spec) if actual is None and state == "started" else ""
        planned = plan(actual, spec, state, hours, create, name, now())
        run.admit(planned)
        if check:
            return Result(
                planned.changed, planned.msg, actual, planned.verbs, planned.diff, [], [*run.notes, *planned.notes]
            )
        try:
            run.joined = run.joined or (actual is not None and _unready(actual, now()))
            workspace = run.act(planned, actual, hours, by)
            if run.joined:
                # Another client was faster, or was killed; its result is only known once the workspace is ready.
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
    """Return whether a running workspace may still be starting, by its age or its target's answer."""
    return abs(now - (workspace.started or 0)) < YOUNG or any(step.state == "running" for step in workspace.steps)


def _default_probe(spec: WorkspaceSpec) -> ProbeFunction:
    def ask(repository: Repository, ref: str) -> Probe:
        from ..repository.probe import probe

        return probe(repository, ref, known_hosts=spec.settings.known_hosts)

    return ask


def _new_name(target: Target, spec: WorkspaceSpec) -> str:
    """Return the name of a new workspace:

    the slug, unless another repository has it (docs/decisions/identity-and-names.md).
    """
    if spec.name or spec.repository is None:
        return spec.name
    slug = spec.repository.slug
    taken = any(w.name.lower() == slug and w.repo != spec.repository.identity for w in target.list(spec.owner))
    return spec.repository.slug_with_suffix() if taken else slug


class _Run:
    """State of one call of ``ensure``."""

    def __init__(
        self,
        target: Target,
        spec: WorkspaceSpec,
        progress: Progress,
        waiter: Waiter,
        probe: ProbeFunction,
        prepare: Prepare | None,
    ) -> None:
        self.target = target
        self.spec = spec
        self.progress = progress
        self.waiter = waiter
        self.probe = probe
        self.prepare = prepare
        self.notes: list[str] = []
        self.actions: list[str] = []
        self.joined = False
        self._admitted = False
        self._bundle = b""

    def sweep(self) -> None:
        """Delete expired CI workspaces; failures do not stop the run (docs/decisions/ci-self-deletion.md)."""
        if not isinstance(self.target, Sweeper):
            return
        try:
            gone = sorted(self.target.sweep())
        except FlowError as error:
            self.notes.append(f"Cannot delete expired CI workspaces: {error.message}")
            return
        if gone:
            self.notes.append(f"Deleted expired CI workspaces: {', '.join(gone)}.")

    def admit(self, planned: Plan) -> None:
        """Check with the target before anything is started, and probe the repository before a workspace is created."""
        verbs = {"create", "start", "restart"} & set(planned.verbs)
        if verbs or planned.clone:
            self.target.admit(self.spec, verbs != {"start"} or planned.clone)
        repository = self.spec.repository
        new = "create" in verbs and planned.before.get("state") == "absent"
        if not (new or planned.clone) or repository is None or self._admitted:
            return
        if new and self.spec.name:
            self._note_same_repository(repository)
        self.progress.note(f"repository: checking {repository.host if repository.kind != 'local' else 'the directory'}")
        answer = self.probe(repository, self.spec.ref)
        note = assess_probe(answer, repository, self.target.same_network)
        if answer.state == "needs-auth":
            from .login import logged_in

            if logged_in(self.target, self.spec, self.progress, self.waiter):
                note = f"{repository.host} asks for credentials; the workspace clones with your login on the server."
        if note:
            self.notes.append(note)
        self._admitted = True

    def _note_same_repository(self, repository: Repository) -> None:
        """Note other workspaces of the same repository: the user may have meant one of them."""
        if self.spec.kind != "dev":
            return
        found = self.target.list(self.spec.owner, "dev")
        names = sorted(w.name for w in found if w.repo == repository.identity and w.name != self.spec.name)
        if names:
            self.notes.append(f"{repository.identity} already has workspace {', '.join(names)}.")

    def act(self, planned: Plan, actual: Workspace | None, hours: float, by: str) -> Workspace | None:
        """Carry out ``planned``. Return the workspace afterwards."""
        awaited = self.joined and actual is not None and actual.state == "running"
        if not planned.actions and not awaited:
            return actual
        from . import readiness

        workspace = actual
        boots: frozenset[str] = frozenset()
        for action in planned.actions:
            if action.verb == "create":
                workspace = self._create()
            elif workspace is None:
                raise NotFound("The workspace was deleted while it was being changed.", "Run the command again.")
            elif action.verb == "start":
                boots = readiness.boots(self.target, workspace) if "create" not in planned.verbs else boots
                workspace = self._start(workspace, "create" in planned.verbs)
            elif action.verb == "stop":
                workspace = self._stop(workspace)
            elif action.verb == "restart":
                workspace = self._timed("restart", f"replacing {workspace.name}", self._restart, workspace)
            elif action.verb == "clone":
                workspace = self._clone(workspace)
                continue
            elif action.verb == "keepalive":
                workspace = self.target.keepalive(workspace, hours, by)
            elif action.verb == "delete":
                self._delete(workspace)
                workspace = None
            self.actions.append(action.verb)
        return None if workspace is None else self._awaited(planned, workspace, boots)

    def _awaited(self, planned: Plan, workspace: Workspace, boots: frozenset[str]) -> Workspace:
        """Wait for a workspace that was just started by this run or another one."""
        from . import readiness

        if not planned.actions:
            return readiness.wait_ready(self.target, workspace, self.progress, self.waiter, None)
        if not {"start", "restart"} & set(planned.verbs):
            return workspace
        if not readiness.complete(workspace):
            workspace = readiness.wait_ready(self.target, workspace, self.progress, self.waiter, boots)
        return self._delivered(workspace) if self.target.seed_follows and self._bundle else workspace

    def _timed(
        self, name: str, doing: str, function: Callable[[Workspace], Workspace], workspace: Workspace
    ) -> Workspace:
        with self.progress.stage(name, doing):
            return function(workspace)

    def _restart(self, workspace: Workspace) -> Workspace:
        if workspace.id:
            self._seed(workspace, fresh=False)
        return self.target.restart(workspace, self._prepared(), self.progress)

    def _prepared(self) -> WorkspaceSpec:
        if self.prepare is None or not self.target.client_prepares:
            return self.spec
        known = len(self.progress.stages)
        prepared = self.prepare(self.spec, self.progress)
        # An image build is not part of waiting for the IDE.
        self.waiter.extend(sum(seconds for name, seconds in self.progress.stages[known:] if name == "image"))
        return prepared

    def _stop(self, workspace: Workspace) -> Workspace | None:
        with self.progress.stage("stop", f"stopping {workspace.name}"):
            stopped = self.target.stop(workspace, self.progress)
        return None if stopped.kind == "ci" else stopped

    def _delete(self, workspace: Workspace) -> None:
        with self.progress.stage("delete", f"deleting {workspace.name}"):
            try:
                self.target.delete(workspace, self.progress)
            except NotFound:
                self.progress.note(f"{workspace.name} was already deleted")
        from ..identity import record
        from . import ssh

        record.forget(ssh.alias(workspace))

    def _create(self) -> Workspace:
        """Create the workspace, and time the steps that the target does not time itself."""
        repository = self.spec.repository
        if repository is not None and repository.kind == "local" and not self._bundle:
            with self.progress.stage("bundle", f"copying {repository.path}"):
                self._bundle = _bundle(repository, self.spec.ref)
        known = len(self.progress.stages)
        begun = self.progress.elapsed
        self.progress.note("create: creating the workspace")
        workspace = self.target.create(self._prepared(), self.progress)
        inner = self.progress.stages[known:]
        if "create" not in [name for name, _seconds in inner]:
            own = self.progress.elapsed - begun - sum(seconds for _name, seconds in inner)
            self.progress.done("create", max(0.0, own), workspace.name)
        return workspace

    def _seed(self, workspace: Workspace, fresh: bool) -> None:
        """Upload the seed bundle of a local repository, unless the workspace already has a clone."""
        repository = self.spec.repository
        if repository is None or repository.kind != "local":
            return
        from .readiness import clone_failed

        if fresh or clone_failed(self.target, workspace):
            self._bundle = self._bundle or _bundle(repository, self.spec.ref)
            self.target.put(workspace, HOME, seed_archive(self._bundle))

    def _delivered(self, workspace: Workspace) -> Workspace:
        """Upload and clone a local repository on targets that start workspaces when creating them."""
        with self.progress.stage("clone", "uploading the repository"):
            self._seed(workspace, fresh=True)
            return self._finish_clone(workspace)

    def _clone(self, workspace: Workspace) -> Workspace:
        """Clone into a running workspace that does not have a repository yet."""
        repository = self.spec.repository
        if repository is None or not repository.url:
            raise InvalidInput(
                f"Workspace {workspace.name} cannot clone a directory of this machine.",
                "Push it to a server and use its address.",
            )
        workspace = replace(workspace, repo=repository.identity)
        there = f"{HOME}/{workspace.name}/.git"
        if self.target.exec(workspace, ["test", "-e", there]).status == 0:
            return replace(workspace, steps=(*workspace.steps, Step("clone", "ok")))
        self.actions.append("clone")
        with self.progress.stage("clone", f"cloning {repository.identity}"):
            return self._finish_clone(workspace, repository.url, *([self.spec.ref] if self.spec.ref else []))

    def _finish_clone(self, workspace: Workspace, *words: str) -> Workspace:
        command = ["spt-workspace", "clone", *words]
        done = self.target.exec(workspace, command, timeout=max(60.0, self.waiter.remaining))
        said = untrusted.line((done.stderr or done.stdout).strip().rpartition("\n")[2])
        state = {0: "ok", AuthError.code: "needs-auth"}.get(done.status, "failed")
        steps = (step for step in workspace.steps if step.name != "clone")
        return replace(workspace, steps=(*steps, Step("clone", state, detail=said)))

    def _start(self, workspace: Workspace, created: bool) -> Workspace:
        if workspace.state != "running":
            self._seed(workspace, fresh=created or workspace.started is None)
        with self.progress.stage("start", f"starting {workspace.name}"):
            return self.target.start(workspace, self.spec, self.progress)

    def result(self, planned: Plan, workspace: Workspace | None) -> Result:
        notes = [*self.notes, *planned.notes]
        msg = planned.msg
        if workspace is not None:
            notes += [note for note in (*workspace.notes, *_step_notes(workspace)) if note not in notes]
            predicted = planned.after.get("name")
            if predicted and predicted != workspace.name:
                msg = msg.replace(f"Workspace {predicted} ", f"Workspace {workspace.name} ", 1)
        return Result(bool(self.actions), msg, workspace, self.actions, planned.diff, list(self.progress.stages), notes)


def assess_probe(answer: Probe, repository: Repository, same_network: bool) -> str:
    """Return a note, or nothing, if a workspace may be created after ``answer``. Raise an error otherwise."""
    where = f"Cannot create a workspace for {repository.identity}"
    detail = f" ({answer.detail})" if answer.detail else ""
    if answer.state == "open":
        return f"Your machine reads {repository.identity} {answer.identity}." if answer.identity else ""
    if answer.state == "needs-auth":
        return (
            f"{repository.host} asks for credentials{detail}; the clone is finished in your session. "
            f"{_login(repository)}"
        )
    if answer.state == "unreachable" and not same_network:
        return f"{repository.host} cannot be reached from here{detail}; the workspace will try it."
    if answer.state == "not-found":
        raise NotFound(
            f"{where}: it was not found{detail}.", "Check the address and the branch, and that you may read it."
        )
    if answer.state == "unreadable":
        raise InvalidInput(f"{where}: {answer.detail}.", "Use the top directory of a complete clone that has a commit.")
    if answer.state == "host-key-unknown":
        raise AuthError(
            f"{where}: the SSH host key of {repository.host} is not known or has changed{detail}.",
            f"Compare it with the key that the server's operator publishes, then add it to ~/.ssh/known_hosts "
            f"(ssh-keyscan {'-p ' + str(repository.port) + ' ' if repository.port else ''}{repository.host}) "
            "and to the option known_hosts.",
        )
    raise Unhealthy(
        f"{where}: {repository.host} does not answer{detail}.", "Check the network, the proxy and the address."
    )


def _login(repository: Repository) -> str:
    """Return the one command that gives this machine access."""
    if repository.kind == "ssh":
        return "Load your key into your SSH agent: ssh-add"
    from ..identity.git import login_hint

    return login_hint(f"{repository.host}:{repository.port}" if repository.port else repository.host)


def _step_notes(workspace: Workspace) -> list[str]:
    """Return sentences about failed or unfinished steps of a usable workspace."""
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
            notes.append("The clone is not finished yet; it continues in the workspace.")
    return notes
