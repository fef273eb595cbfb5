# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `workspace`: apply a workspace's state, then show or open its session."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible import constants as C
from ansible_collections.spt.flow.plugins.module_utils._node.errors import Cancelled, Conflict, InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import guard as ansible_guard
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import open as ansible_open
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import prefetch as ansible_prefetch
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import results as ansible_results
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import values as settings_values
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import kinds
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import (
    Result,
    Session,
    Step,
    Workspace,
    WorkspaceSpec,
)
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.preparation import Preparation
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.target import ensure_client

if TYPE_CHECKING:
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.target import Target

STATES = ["started", "stopped", "restarted", "kept", "absent"]
CI_ONLY = ("commit", "ttl", "artifacts", "junit", "artifacts_dir", "env", "env_file")
NOT_OURS = ("size", "follow", "tail", *CI_ONLY)


class ActionModule(ansible_action.FlowAction):
    OWN = {
        "state": {"type": "str", "choices": STATES, "default": "started"},
        "create": {"type": "bool", "default": True},
    }
    VALUES = tuple(name for name in settings_options.OPTIONS if name not in NOT_OURS)
    DOING = "manage the workspace"

    def act(self) -> dict[str, Any]:
        state = self.own["state"]
        run = self._run_to_repeat(state)
        self._refuse(state)
        check = bool(self._task.check_mode)
        ahead = ansible_prefetch.SessionPrefetch(self.values) if state == "started" and not check else None
        target = ansible_open.open_target(self.values)
        spec = self._spec(target)
        unconfirmed = state == "absent" and not self.values["confirm"]
        result = self._ensure(target, spec, check or unconfirmed)
        result.notes += [*self.ignored(target), *self._small(target, spec, result)]
        if run:
            result.notes += self._differences(run, spec, result)
        if unconfirmed and result.changed and not check:
            raise Cancelled("Nothing was deleted: the deletion was not confirmed.", "Confirm it with -e confirm=true.")
        if check or state not in ("started", "restarted") or result.workspace is None:
            return self._answer(result, state, check)
        result, session = self._session(target, spec, result, None if result.actions else ahead)
        return self._enter(target, result, self._narrowed(session, spec))

    def _small(self, target: Target, spec: WorkspaceSpec, result: Result) -> list[str]:
        """Say what a new workspace lacks when this machine could not get the team's image."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import choice as image_choice

        small = self.values["profile"] == "auto" and spec.settings.profile == image_choice.SMALL
        made = {"create", "restart"} & set(result.actions)
        return [image_choice.LACKS] if small and made and target.client_prepares else []

    def _narrowed(self, session: Session, spec: WorkspaceSpec) -> Session:
        """Forward only ports that the repository requests, if it is a local directory."""
        repository = spec.repository
        if not session.ports or repository is None or repository.kind != "local" or spec.ref:
            return session
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import forwarding

        ports, refused = forwarding.chosen(list(session.ports), forwarding.requested_ports(Path(repository.path)))
        return replace(session, ports=ports, refused_ports=(*session.refused_ports, *refused))

    def _ensure(self, target: Target, spec: WorkspaceSpec, check: bool = False) -> Result:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle

        return lifecycle.ensure(
            target,
            spec,
            self.own["state"],
            check,
            self.progress,
            hours=self.values["hours"],
            by=spec.owner,
            create=self.own["create"],
            prepare=Preparation(self.values),
        )

    def _session(
        self, target: Target, spec: WorkspaceSpec, result: Result, ahead: ansible_prefetch.SessionPrefetch | None
    ) -> tuple[Result, Session]:
        """Return how to enter. A workspace that was just told to stop but still counted as running is started again."""
        workspace = result.workspace
        if workspace is None:
            raise AssertionError("workspace must be set here")
        try:
            session = (ahead.session(workspace) if ahead else None) or target.session(workspace)
            if not session.ending:
                return result, session
            from ansible_collections.spt.flow.plugins.plugin_utils._engine.common import wait as common_wait
            from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import readiness

            waiter = common_wait.Waiter(self.values["wait_timeout"])
            readiness.wait_until_ended(target, workspace, self.progress, waiter)
        except Conflict:
            self.progress.note(f"{workspace.name} has just ended")
        result = self._ensure(target, spec)
        if result.workspace is None:
            raise AssertionError("result.workspace must be set here")
        return result, target.session(result.workspace)

    def _run_to_repeat(self, state: str) -> dict[str, Any]:
        """Return the record of the CI run given by from_run, whose values apply from now on, or nothing."""
        if not self.values["from_run"]:
            return {}
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import record as ci_record

        if state != "started" or self.values["ref"]:
            raise InvalidInput(
                "from_run names commit and settings of a new workspace; it cannot be combined with ref.",
                "Omit ref: ansible-playbook spt.flow.up -e from_run=spt-flow-ci/ci-demo-0a1b2c3d",
            )
        # Ansible may have changed the current directory.
        record = ci_record.load(Path(os.environ.get("PWD") or os.getcwd()) / Path(self.values["from_run"]).expanduser())
        directories = kinds.chosen(self.values).clones_directories
        self.values.update(ci_record.values(record, self.values["repo"], directories, self.values["docker"]))
        return record

    def _differences(self, run: dict[str, Any], spec: WorkspaceSpec, result: Result) -> list[str]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import record as ci_record

        made = result.workspace
        note = ci_record.drift(
            run,
            (made and made.settings_hash) or spec.settings.hash(),
            (made and made.image_hash) or spec.image_hash,
        )
        return [note] if note else []

    def _refuse(self, state: str) -> None:
        """Reject invalid requests before any engine is contacted."""
        for source in ("the settings file", "the inventory"):
            if settings_values.as_bool(self.layers[source].get("trust", False), "trust"):
                raise InvalidInput(
                    f"trust is set in {source}, where it would apply to every repository.",
                    "Set it for one repository: ansible-playbook spt.flow.up -e repo=… -e trust=true",
                )
        if self.values["command"] and self.screen == "json":
            raise InvalidInput(
                "Cannot run a command and print one JSON object on the same standard output.",
                "Omit command or output=json; in playbooks use spt.flow.workspace_exec.",
            )
        if self.values["command"] and self.values["connect"] and state in ("started", "restarted"):
            ansible_guard.refuse_unheard_command(C.CALLBACKS_ENABLED)
        if self.values["workspace"] or self.values["repo"]:
            return
        if state == "started" and self.own["create"]:
            raise InvalidInput("The repository of the workspace is missing.", ansible_open.EXAMPLE_UP)
        if state == "absent":
            raise InvalidInput(
                "The name of the workspace to delete is missing.",
                "Name it: ansible-playbook spt.flow.delete -e workspace=name",
            )

    def _spec(self, target: Any) -> WorkspaceSpec:
        """Return the specification; a run without a name means the owner's only workspace."""
        spec = ansible_open.make_spec(self.values)
        if spec.name or spec.repository:
            return spec
        return replace(spec, name=ansible_open.find_one(target, self.values).name)

    def _answer(self, result: Result, state: str, check: bool) -> dict[str, Any]:
        """Return the result for a workspace that is not running."""
        if check and result.changed:
            result.msg = f"Check mode: {result.msg}"
        answer = self._data(result)
        if state == "absent":
            answer["confirmed"] = self.values["confirm"]
            answer["ask"] = result.changed and not self.values["confirm"] and self.screen != "json"
            if check:
                return self.finish(answer, [])
        return self.finish(answer, ["", result.msg, *(f"  note: {note}" for note in result.notes)])

    def _data(self, result: Result) -> dict[str, Any]:
        return {
            "changed": result.changed,
            "msg": result.msg,
            "workspace": result.workspace.to_dict() if result.workspace else None,
            "actions": result.actions,
            "diff": result.diff,
            "stages": [list(stage) for stage in result.stages],
            "notes": result.notes,
        }

    def _enter(self, target: Target, result: Result, session: Session) -> dict[str, Any]:
        """Return the result for a running workspace: how to enter it, and the command for the callback."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import clone as workspace_clone
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import report as workspace_report
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh

        if result.workspace is None:
            raise AssertionError("result.workspace must be set here")
        workspace = result.workspace = with_steps(result.workspace, session)
        connect, shell = self.values["connect"], self._opens_shell()
        self._remember(workspace)
        result.notes += ensure_client(target, self.progress, bool(connect and self.values["command"]))
        if not shell and workspace.step("clone").state == "needs-auth" and (self.own["create"] or not connect):
            workspace = self._finish_clone(result, workspace)
        error = workspace_clone.missing(workspace)
        answer = self._data(result) | ({"error": error.to_dict()} if error and not shell else {})
        if self.values["trust"] and not error:
            answer |= self._trust(result, workspace)
        enter = shlex.join(workspace_ssh.argv(workspace))
        answer["session"] = {
            "url": session.url,
            "password": session.password,
            "directory": session.directory,
            "ssh": enter,
        }
        ports = workspace_ssh.unused_ports(session.ports) if connect and not self.values["command"] else []
        block = workspace_report.closing(
            result, session, enter, workspace_ssh.alias(workspace), self.progress.elapsed, time.time(), ports
        )
        in_shell = shell and workspace.step("clone").state == "needs-auth"
        if error and self.own["create"] and not in_shell:
            for line in block:
                self.say(line)
            kept = {name: value for name, value in answer.items() if name not in ("msg", "error")}
            return ansible_results.failed(error, **kept)
        return self.finish(answer, block, self._connect(workspace, session, ports) if connect else None)

    def _opens_shell(self) -> bool:
        """Return whether this run ends in a shell, in which a clone can be finished with the user's keys."""
        heard = ansible_guard.CONNECT in C.CALLBACKS_ENABLED
        asked = self.values["connect"] and not self.values["command"] and self.screen == "text"
        return bool(asked and heard and ansible_action.at_terminal())

    def _connect(self, workspace: Workspace, session: Session, ports: list[int]) -> dict[str, Any]:
        """Return the command that ends the run:

        the user's command, or a shell that first finishes steps needing credentials.
        """
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh

        command = self.values["command"]
        if command:
            return {
                "argv": workspace_ssh.argv(workspace, workspace_ssh.inside(session.directory, command)),
                "env": self.session_environment(self.values),
                "always": True,
            }
        shell = workspace_ssh.inside(session.directory, workspace_ssh.SHELL)
        if any(s.name == "dotfiles" and s.state in ("pending", "running", "needs-auth") for s in workspace.steps):
            shell = f"spt-workspace dotfiles waiting; {shell}"
        if workspace.step("clone").state == "needs-auth":
            shell = f"spt-workspace clone; {shell}"
        argv = workspace_ssh.argv(workspace, shell, terminal=True, ports=ports)
        return {"argv": argv, "env": self.session_environment(self.values), "always": False}

    def _remember(self, workspace: Workspace) -> None:
        """Record what the owners of this workspace's sessions may answer (docs/identity.md)."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.identity import record as identity_record
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import identity as workspace_identity
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh

        named = any(self.layers[name].get("owner") for name in ("the task", "extra variables"))
        inventory = {name: self.layers["the inventory"].get(name) for name in identity_record.OPTIONS}
        record = workspace_identity.record(workspace, self.values, not named, inventory)
        identity_record.remember(workspace_ssh.alias(workspace), record)

    def _trust(self, result: Result, workspace: Workspace) -> dict[str, Any]:
        """Give the user's consent to the repository's commands and run them. Return the changes of the result."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh

        said: list[str] = []
        with self.progress.stage("trust", "the repository's postCreateCommand"):
            status = ansible_action.stream(workspace_ssh.argv(workspace, "spt-workspace trust"), said.append)
        result.notes += said[-1:] or ([f"spt-workspace trust ended with exit status {status}."] if status else [])
        return {"changed": result.changed or any("ran; log:" in line for line in said), "notes": result.notes}

    def _finish_clone(self, result: Result, workspace: Workspace) -> Workspace:
        """Clone in a session, which has the caller's SSH agent and credentials (docs/identity.md)."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh

        said: list[str] = []

        def tell(line: str) -> None:
            said.append(line)
            self.say(line)

        with self.progress.stage("clone", "with your credentials"):
            status = ansible_action.stream(workspace_ssh.argv(workspace, "spt-workspace clone"), tell)
        state = "needs-auth" if status else "ok"
        step = replace(workspace.step("clone"), state=state, detail="".join(said[-1:]) if status else "")
        workspace = replace(workspace, steps=(*(s for s in workspace.steps if s.name != "clone"), step))
        result.notes = [note for note in result.notes if "spt-workspace clone" not in note]
        result.changed = result.changed or state == "ok"
        result.workspace = workspace
        return workspace


def with_steps(workspace: Workspace, session: Session) -> Workspace:
    """Add the session's steps to ``workspace``, also if it was already running and its log was not read."""
    known = {name: state for name, state in (("clone", session.clone), ("dotfiles", session.dotfiles)) if state}
    details = {"clone": session.clone_detail}
    steps = [replace(step, state=known.pop(step.name, step.state)) for step in workspace.steps]
    more = (Step(name, state, detail=details.get(name, "")) for name, state in known.items())
    return replace(workspace, steps=(*steps, *more))
