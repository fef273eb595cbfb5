# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read workspaces from a Coder server, and run commands in them."""

from __future__ import annotations

import contextlib
import functools
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ....module_utils._node.errors import (
    DeadlineExceeded,
    FlowError,
    InvalidInput,
    NotFound,
    Unhealthy,
)
from ..common import child, untrusted
from ..common.progress import Progress
from ..common.version import release
from ..common.wait import Waiter
from ..settings.options import OPTIONS
from ..workspace.models import Session, Step, Workspace, WorkspaceSpec
from .client import CoderClient, Json, agents, search_query
from .compatibility import refuse_old_server, refuse_other_release, release_note
from .parse import CI_SUFFIX, ENDED_LIVES, _identity, agent_note, from_json, metadata, seconds

if TYPE_CHECKING:
    from ..workspace.target import ExecResult

Workspaces = list[Workspace]
Words = list[str]
TEMPLATE = "spt-flow"
HOME = "/home/coder"
BUILD_TIMEOUT = 1200.0
"""Seconds to wait for a build; it continues on the server after that."""
AUTHOR = ("git_name", "git_email")
STEPS_TIMEOUT = 20.0
RECONNECT = 30.0
"""Seconds to wait for a disconnected agent."""


class CoderReader:
    """Workspaces of one server.

    ``template`` is our template; ``patience`` is the maximum duration of a build in seconds.
    """

    name = "coder"
    client_prepares = False
    same_network = False
    seed_follows = True
    clone_path_known = False
    log_ends_with_workspace = False

    def __init__(self, client: CoderClient, template: str = TEMPLATE, patience: float = BUILD_TIMEOUT) -> None:
        self._client = client
        self._template = template
        self._patience = patience
        self._read: dict[str, Json] = {}
        self._app_host = functools.cache(client.app_host)

    def ignored(self, names: Iterable[str]) -> str:
        mine = [name for name in sorted(names) if OPTIONS[name].scope in ("workspace", "image") or name in AUTHOR]
        if not mine:
            return ""
        verb = "have" if len(mine) > 1 else "has"
        return f"{', '.join(mine)} {verb} no effect on target coder: the server and its template decide."

    def find(self, spec: WorkspaceSpec) -> Workspace | None:
        if spec.name:
            return self._one(spec.name, spec.owner)
        if spec.repository is None:
            return None
        for name in (spec.repository.slug, spec.repository.slug_with_suffix()):
            found = self._one(name, spec.owner)
            if found is None:
                break
            if found.repo == spec.repository.identity:
                return found
        # A workspace that was created in the dashboard has a name of its user's choice.
        same = [w for w in self.list(spec.owner, "dev") if w.repo == spec.repository.identity]
        return min(same, key=lambda w: (w.state != "running", w.name), default=None)

    def _one(self, name: str, owner: str) -> Workspace | None:
        found = self._client.workspace(name, owner or "me")
        if found is None:
            return None
        refuse_old_server(self._client.http.server_version, self._client.http.config.url)
        workspace = self._seen(found)
        if not metadata(found):
            # An unfinished or failed build shows no resources, but its parameters are known.
            asked = self._client.build_parameters(found["latest_build"]["id"])
            ends = seconds(asked.get("deadline"))
            workspace = replace(workspace, repo=_identity(asked.get("repo", "")), deadline=int(ends) if ends else None)
        return workspace

    def _seen(self, found: Json) -> Workspace:
        self._read[found["id"]] = found
        http = self._client.http
        workspace = from_json(found, http.config.url, http.server_clock, self._app_host)
        notes = (agent_note(found), release_note(found, release()))
        return replace(workspace, notes=(*workspace.notes, *filter(None, notes)))

    def list(self, owner: str = "", kind: str = "", details: bool = False, sizes: bool = False) -> Workspaces:
        """List workspaces of our templates; ``details`` adds the steps of running ones. ``sizes`` is ignored."""
        templates = {self._template, self._template + CI_SUFFIX}
        query = search_query(owner=owner) if owner else ""
        pages = self._client.workspaces(query)
        found = [self._shown(one) for page in pages for one in page if one.get("template_name") in templates]
        wanted = [workspace for workspace in found if not kind or workspace.kind == kind]
        return [self._with_steps(workspace) if details else workspace for workspace in wanted]

    def _with_steps(self, workspace: Workspace) -> Workspace:
        """Add the steps of a running workspace; a workspace that cannot be read is listed without them."""
        if workspace.state != "running":
            return workspace
        with contextlib.suppress(FlowError):
            return replace(workspace, steps=tuple(self._steps(workspace).values()) or workspace.steps)
        return workspace

    def _steps(self, workspace: Workspace, reread: bool = False) -> dict[str, Step]:
        """Return the steps of the newest start by name; ``reread`` ignores the log where the workspace answers."""
        from ..workspace.readiness import Watch

        watch = Watch(Progress())
        for line in self.logs(workspace):
            watch.feed(line)
        return watch.steps if watch.settled and not reread else self._steps_now(workspace) or watch.steps

    def _shown(self, found: Json) -> Workspace:
        """Return the workspace, in an unknown state if its report is invalid, so that the others are still listed."""
        try:
            return self._seen(found)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            owner, name = (untrusted.line(found.get(key), 64) or untrusted.UNKNOWN for key in ("owner_name", "name"))
            return Workspace(owner, name, "", target=self.name)

    def _fresh(self, workspace: Workspace) -> Json:
        found = self._client.workspace_by_id(workspace.id)
        if found is None:
            raise NotFound(f"Workspace {workspace.name} no longer exists.", "Run the command again.")
        self._read[workspace.id] = found
        return found

    def session(self, workspace: Workspace) -> Session:
        found = self._read.get(workspace.id) or self._fresh(workspace)
        # A workspace that got its first repository while it ran is known to the server without one until it restarts.
        late = bool(workspace.repo) and not metadata(found).get("repo")
        directory = "" if late else untrusted.path(metadata(found).get("directory"))
        directory = directory or f"{HOME}/{workspace.name}"
        if workspace.state != "running":
            return Session(workspace.url, "", "", directory)
        refuse_other_release(found, release())
        self._connected(workspace, next(iter(agents(found)), None))
        steps = self._steps(workspace, reread=late)
        clone, dotfiles = (steps.get(name, Step(name)) for name in ("clone", "dotfiles"))
        return Session(
            workspace.url, "", "", directory, clone.state, dotfiles=dotfiles.state, clone_detail=clone.detail
        )

    def _steps_now(self, workspace: Workspace) -> dict[str, Step]:
        """Return the steps as the workspace records them: what a session finishes is in no log of the server's."""
        from ..workspace.readiness import step_of

        try:
            said = self.exec(workspace, ["cat", "/run/spt-flow/steps.json"], timeout=STEPS_TIMEOUT)
            steps = untrusted.record(untrusted.record(untrusted.parse(said.stdout)).get("steps"))
        except (FlowError, ValueError):
            return {}
        found = (step_of({**untrusted.record(record), "step": name}) for name, record in steps.items())
        return {step.name: step for step in found if step}

    def _connected(self, workspace: Workspace, agent: Json | None) -> None:
        """Wait for a disconnected agent, for example after a restart of the server. Users cannot enter without it."""
        if agent is None or agent["status"] != "disconnected":
            return
        http = self._client.http
        http.say(
            f"The agent of workspace {workspace.name} has lost its connection to the server; waiting up to "
            f"{RECONNECT:g} s for it."
        )
        waiter = Waiter(min(RECONNECT, self._patience))
        try:
            waiter.until(
                "the agent", lambda: (self._client.agent(agent["id"]) or {}).get("status") == "connected" or None
            )
        except DeadlineExceeded:
            raise Unhealthy(
                f"Workspace {workspace.name} cannot be entered: its agent lost the connection to {http.config.url} "
                f"({agent.get('disconnected_at') or 'time unknown'}) and did not reconnect.",
                "Its container may have ended, or its node may be down. Restart it: ansible-playbook spt.flow.restart "
                f"-e workspace={workspace.name}",
            ) from None

    def logs(self, workspace: Workspace, follow: bool = False, tail: int = 0) -> Iterator[str]:
        found = self._read.get(workspace.id) or self._fresh(workspace)
        agent = next(iter(agents(found)), None)
        if agent is None:
            return
        lines = self._client.agent_logs(agent["id"])
        for line in lines[-tail:] if tail else lines:
            yield untrusted.output(line["output"])
        after = lines[-1]["id"] if lines else 0
        pause = 0.1
        while follow:
            # In this order, to read the agent's last lines before it ends too.
            going = self._may_log_more(workspace, agent["id"])
            lines = self._client.agent_logs(agent["id"], after)
            for line in lines:
                yield untrusted.output(line["output"])
            if not (going or lines):
                return
            after = lines[-1]["id"] if lines else after
            time.sleep(pause)
            pause = 0.1 if lines else min(pause * 1.2, 2.0)

    def _may_log_more(self, workspace: Workspace, agent_id: str) -> bool:
        """Return whether the agent may log more. Raise ``Unhealthy`` if it never connected."""
        agent = self._client.agent(agent_id)
        if agent is None or agent["lifecycle_state"] in ENDED_LIVES:
            return False
        if agent["status"] == "timeout":
            raise Unhealthy(
                f"The agent of workspace {workspace.name} has not connected to {self._client.http.config.url}.",
                "Its container cannot reach the server, or could not download the agent: check its log on the node "
                f"(docker logs). {agent.get('troubleshooting_url') or ''}".rstrip(),
            )
        return True

    def exec(
        self, workspace: Workspace, argv: Sequence[str], stdin: bytes = b"", timeout: float = 60.0, user: str = ""
    ) -> ExecResult:
        from ..workspace import ssh as workspace_ssh
        from ..workspace.target import ExecResult

        if user:
            raise InvalidInput("A command in a Coder workspace always runs as its user.", "Use sudo inside.")
        try:
            status, out, err = child.run(workspace_ssh.argv(workspace, shlex.join(argv)), stdin, timeout)
        except FlowError as error:
            raise FlowError(f"Cannot run a command in workspace {workspace.name}: {error.message}") from None
        return ExecResult(status, out.decode(errors="replace"), err.decode(errors="replace"))

    def ensure_client(self, progress: Progress, needed: bool) -> Words:
        """Install the server's own `coder` where it is missing; works only after a first answer of the server."""
        from . import cli as coder_cli

        return coder_cli.ready(self._client.http, progress, needed)
