# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Target coder: workspaces on a Coder server."""

from __future__ import annotations

import contextlib
import functools
import math
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ....module_utils._node.errors import (
    AuthError,
    Cancelled,
    Conflict,
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
from ..workspace.models import Session, Workspace, WorkspaceSpec
from .client import CoderClient, Json, agents, is_deprecated, search_query
from .compatibility import refuse_old_server, refuse_other_release, release_note
from .jobs import ENDED, follow, last_lines
from .parse import CI_SUFFIX, ENDED_LIVES, _identity, agent_note, from_json, metadata, seconds

if TYPE_CHECKING:
    from ..workspace.target import EngineFacts, ExecResult


Workspaces = list[Workspace]
Words = list[str]
TEMPLATE = "spt-flow"
HOME = "/home/coder"
BUILD_TIMEOUT = 1200.0
"""Seconds for which a build of Coder's is waited for; it goes on when nobody waits any more."""
DELETE_TIMEOUT = 90.0
"""Seconds that the end of a CI run waits for what stands in the way of a deletion, and then for the deletion itself."""
LEAST_EXTENSION = 1800.0
"""Seconds below which the server refuses to move a stop."""
LAST_LINES = 5
RECONNECT = 30.0
"""Seconds for which an agent is waited for that has lost its server."""
ADVICE = {
    "insufficient quota": "Your quota is used up: delete a workspace (spt.flow.status shows yours), or ask for more.",
    "no space left on device": "The node's disk is full: whoever runs it makes room there, then run the command again.",
}
"""What helps, by words of a build that failed."""


class CoderTarget:
    """Implements ``_target.Target`` on one server; ``template`` is the name of ours there.

    ``patience`` is for how many seconds each build is waited for.
    """

    name = "coder"

    def __init__(self, client: CoderClient, template: str = TEMPLATE, patience: float = BUILD_TIMEOUT) -> None:
        self._client = client
        self._template = template
        self._patience = patience
        self._read: dict[str, Json] = {}
        self._app_host = functools.cache(client.app_host)

    # Reading

    def probe_engine(self) -> EngineFacts:
        raise InvalidInput("A Coder server has no engine of its own to look at.", "Look at its nodes: spt.flow.verify")

    def find(self, spec: WorkspaceSpec) -> Workspace | None:
        if spec.name:
            return self._one(spec.name, spec.owner)
        if spec.repository is None:
            return None
        for name in (spec.repository.slug, spec.repository.slug_with_suffix()):
            found = self._one(name, spec.owner)
            if found is None or found.repo == spec.repository.identity:
                return found
        return None

    def _one(self, name: str, owner: str) -> Workspace | None:
        found = self._client.workspace(name, owner or "me")
        if found is None:
            return None
        refuse_old_server(self._client.http.server_version, self._client.http.config.url)
        workspace = self._seen(found)
        refuse_other_release(found, release())
        if not metadata(found):
            # A build that is under way, or failed, shows no resources; what it was asked for is known all the same.
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
        """Of our templates only. ``details`` and ``sizes`` are not asked for: the list holds what the server knows."""
        templates = {self._template, self._template + CI_SUFFIX}
        query = search_query(owner=owner) if owner else ""
        pages = self._client.workspaces(query)
        found = [self._shown(one) for page in pages for one in page if one.get("template_name") in templates]
        return [workspace for workspace in found if not kind or workspace.kind == kind]

    def _shown(self, found: Json) -> Workspace:
        """Return the workspace; one of unknown state when its report cannot be read, so that the others are listed."""
        try:
            return self._seen(found)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            owner, name = (untrusted.line(found.get(key), 64) or untrusted.UNKNOWN for key in ("owner_name", "name"))
            return Workspace(owner, name, "", target=self.name)

    def _fresh(self, workspace: Workspace) -> Json:
        found = self._client.workspace_by_id(workspace.id)
        if found is None:
            raise NotFound(f"Workspace {workspace.name} is not there any more.", "Run the command again.")
        self._read[workspace.id] = found
        return found

    # Places: nodes are the template's business

    def admit(self, spec: WorkspaceSpec, fresh: bool) -> None:
        """Refuse what a Coder workspace cannot be made for."""
        local = spec.repository is not None and spec.repository.kind == "local"
        if fresh and local and spec.kind != "ci" and spec.repository is not None:
            raise InvalidInput(
                f"A workspace on a Coder server cannot clone {spec.repository.path}: nobody there sees this folder.",
                "Push it somewhere that the workspace can reach, or use target=docker.",
            )

    def drained(self) -> str:
        return ""

    def drain(self, by: str) -> None:
        raise InvalidInput("A Coder server cannot be drained.", "Drain a node of its inventory: -e node=name")

    def undrain(self) -> None:
        raise InvalidInput("A Coder server cannot be drained.", "Open a node of its inventory: -e node=name")

    # Creating

    def create(self, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        template = self._open_template(spec.kind)
        refuse_old_server(self._client.http.server_version, self._client.http.config.url)
        repo = {"repo": spec.repository.url} if spec.repository and spec.repository.url else {}
        ttl = None if spec.deadline is None else max(1.0, spec.deadline - time.time())
        wanted = {**repo, **_given(spec), **self._of_a_run(spec, ttl)}
        self._refuse_unknown(template["name"], template["active_version_id"], wanted)
        name = self._free_name(spec)
        ttl_ms = None if ttl is None else math.ceil(ttl / 60) * 60_000
        try:
            made = self._client.create_workspace(
                name, template["id"], owner=spec.owner, rich_parameter_values=wanted, ttl_ms=ttl_ms
            )
        except NotFound as error:
            if spec.owner == "me":
                raise
            # The server says the same of a user who is not there and of one who is none of the caller's business.
            raise AuthError(
                f"The Coder server {self._client.http.config.url} makes no workspace of {spec.owner} for you: there is"
                " no such user, or you have no role for it.",
                "Leave owner away for one of your own, or ask an administrator of the server for the role.",
                error.details,
            ) from None
        self._built(made, made["latest_build"], progress)
        return self._seen(self._fresh(Workspace(spec.owner, name, "", id=made["id"])))

    def _of_a_run(self, spec: WorkspaceSpec, ttl: float | None) -> dict[str, str]:
        """Parameters of a CI workspace. Its end is told by the server's clock, which need not be this machine's."""
        if spec.kind != "ci":
            return {}
        values = {}
        if ttl is not None:
            ends = time.gmtime(self._client.http.server_clock + ttl)
            values["deadline"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", ends)
        if spec.repository is not None:
            values["directory"] = spec.repository.directory
            if spec.repository.kind == "local":
                values["seed"] = "true"
        return values

    def _open_template(self, kind: str) -> Json:
        name = self._template + (CI_SUFFIX if kind == "ci" else "")
        found = self._client.template(name)
        if found is None:
            raise NotFound(
                f"The Coder server {self._client.http.config.url} has no template {name}.",
                "Whoever runs the server brings it there: ansible-playbook site.yml",
            )
        reason = is_deprecated(found)
        if reason:
            raise Conflict(
                f"No workspace is made of the template {name} any more: {reason}",
                "Name another: -e template=name. Workspaces that are there go on as before.",
            )
        return found

    def _refuse_unknown(self, template: str, version: str, wanted: dict[str, str]) -> None:
        """The server drops what it does not know without a word."""
        known = {parameter["name"] for parameter in self._client.version_parameters(version)}
        unknown = sorted(set(wanted) - known)
        if unknown:
            raise InvalidInput(
                f"The template {template} takes no {' or '.join(unknown)}.",
                "Leave it away, or have the template brought up to date: ansible-playbook site.yml",
            )

    def _free_name(self, spec: WorkspaceSpec) -> str:
        if spec.name or spec.repository is None:
            return spec.name
        slug = spec.repository.slug
        taken = self._one(slug, spec.owner)
        if taken is not None and taken.repo == spec.repository.identity:
            raise Conflict(f"Somebody else has just made workspace {slug}.", "Run the command again.")
        return spec.repository.slug_with_suffix() if taken else slug

    # Running

    def start(self, workspace: Workspace) -> Workspace:
        found = self._settled(workspace)
        status = found["latest_build"]["status"]
        if status == "running":
            return self._seen(found)
        if status in ("failed", "canceled"):
            # What a failed start made stays until a stop takes it away.
            found = self._change(found, "stop")
        return self._seen(self._change(found, "start"))

    def stop(self, workspace: Workspace) -> Workspace:
        found = self._settled(workspace)
        return self._seen(found if found["latest_build"]["status"] == "stopped" else self._change(found, "stop"))

    def restart(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        """Stop, then start with what is active now; parameters stay as they are but for those that are given."""
        found = self._settled(workspace)
        active, given = found["template_active_version_id"], _given(spec)
        if given:
            self._refuse_unknown(found["template_name"], active, given)
        if found["latest_build"]["status"] != "stopped":
            found = self._change(found, "stop", progress)
        return self._seen(self._change(found, "start", progress, active, given))

    def delete(self, workspace: Workspace) -> None:
        """Also while it is being built: a build that may be cancelled is."""
        timeout = DELETE_TIMEOUT if workspace.kind == "ci" else None
        found = self._fresh(workspace)
        build = found["latest_build"]
        if build["job"]["status"] not in ENDED and build["transition"] != "delete":
            with contextlib.suppress(AuthError):
                # Without its template's leave only what nobody builds yet can be cancelled; the rest is waited for.
                self._client.cancel_build(build["id"])
        found = self._settled(workspace, timeout)
        self._built(found, self._client.create_build(found, "delete"), Progress(), timeout)

    def _settled(self, workspace: Workspace, timeout: float | None = None) -> Json:
        """The workspace once nobody builds it any more. Raises ``NotFound`` when it is deleted meanwhile."""
        found = self._fresh(workspace)
        while found["latest_build"]["job"]["status"] not in ENDED:
            self._ended(found["latest_build"], Progress(), timeout)
            found = self._fresh(workspace)
        return found

    def _change(
        self,
        found: Json,
        transition: str,
        progress: Progress | None = None,
        version: str = "",
        values: dict[str, str] | None = None,
    ) -> Json:
        build = self._client.create_build(found, transition, version, values)
        self._built(found, build, progress or Progress())
        return self._fresh(Workspace(found["owner_name"], found["name"], "", id=found["id"]))

    def _built(self, workspace: Json, build: Json, progress: Progress, timeout: float | None = None) -> None:
        """Wait for a build. Raises ``Unhealthy`` with its last lines when it failed."""
        ended = self._ended(build, progress, timeout)
        job = ended["job"]
        if job["status"] == "succeeded":
            return
        last = last_lines(self._client, self._client.build_logs(build["id"]), LAST_LINES)
        reason = untrusted.line(job.get("error") or job["status"])
        hints = [advice for words, advice in ADVICE.items() if words in "\n".join([reason, *last]).lower()]
        hints += ["The last lines of its build:", *last] if last else ["See the build on the server's dashboard."]
        raise Unhealthy(
            f"Coder could not {ended['transition']} workspace {workspace['name']}: {reason.rstrip('.')}.",
            "\n".join(hints),
            {"build": build["id"], "log": last, "matched_provisioners": ended.get("matched_provisioners")},
        )

    def _ended(self, build: Json, progress: Progress, timeout: float | None = None) -> Json:
        """The build once its job has ended; that nobody waits any more does not end it."""
        waiter = Waiter(min(self._patience, timeout or self._patience))
        what = f"{build['transition']} workspace {build['workspace_name']}"
        again = (
            f"Come back to it: ansible-playbook spt.flow.up -e workspace={build['workspace_name']}"
            if build["transition"] == "start"
            else "Run the command again to wait on."
        )
        hint = f"The server goes on with it. {again}"
        try:
            return follow(
                "build",
                waiter,
                lambda: self._client.build(build["id"]),
                lambda after: self._client.build_logs(build["id"], after),
                progress,
            )
        except DeadlineExceeded as error:
            message = f"Coder did not {what} within {waiter.timeout:g} s."
            raise DeadlineExceeded(message, f"{error.hint} {hint}".strip(), error.details) from None
        except KeyboardInterrupt:
            raise Cancelled(f"The run was interrupted while Coder was to {what}.", hint) from None

    def keepalive(self, workspace: Workspace, hours: float, by: str) -> Workspace:
        """Move the stop to ``hours`` from now; 0 gives it back to the template's own time."""
        found = self._fresh(workspace)
        seconds = hours * 3600 or max((found.get("ttl_ms") or 0) / 1000, LEAST_EXTENSION)
        if seconds < LEAST_EXTENSION:
            raise InvalidInput(
                f"Coder keeps a workspace alive for half an hour at least, not for {hours:g} hours.",
                "Use hours=0.5 or more, or stop it.",
            )
        try:
            self._client.extend(found["id"], datetime.fromtimestamp(time.time() + seconds, UTC))
        except Conflict as error:
            if "manual" not in error.message:
                raise
            return self._seen(found)  # it never stops by itself
        return self._seen(self._fresh(workspace))

    def session(self, workspace: Workspace) -> Session:
        found = self._read.get(workspace.id) or self._fresh(workspace)
        directory = untrusted.path(metadata(found).get("directory")) or f"{HOME}/{workspace.name}"
        if workspace.state != "running":
            return Session(workspace.url, "", "", directory)
        self._connected(workspace, next(iter(agents(found)), None))
        from ..workspace.readiness import Watch

        watch = Watch(Progress())
        for line in self.logs(workspace):
            watch.feed(line)
        return Session(workspace.url, "", "", directory, watch.state("clone"), dotfiles=watch.state("dotfiles"))

    def _connected(self, workspace: Workspace, agent: Json | None) -> None:
        """Wait for an agent that has lost the server, as after a restart of that; without it nobody gets in."""
        if agent is None or agent["status"] != "disconnected":
            return
        http = self._client.http
        http.say(f"The agent of workspace {workspace.name} has lost the server; waiting up to {RECONNECT:g} s for it.")
        waiter = Waiter(min(RECONNECT, self._patience))
        try:
            waiter.until(
                "the agent", lambda: (self._client.agent(agent["id"]) or {}).get("status") == "connected" or None
            )
        except DeadlineExceeded:
            raise Unhealthy(
                f"Workspace {workspace.name} cannot be entered: its agent lost {http.config.url}"
                f" ({agent.get('disconnected_at') or 'nobody knows when'}) and did not come back.",
                "Its container may have ended, or its node be away. Start it anew:"
                f" ansible-playbook spt.flow.restart -e workspace={workspace.name}",
            ) from None

    # Reaching inside

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
            # In this order, so that what an agent says before it ends is read as well.
            going = self._going(workspace, agent["id"])
            lines = self._client.agent_logs(agent["id"], after)
            for line in lines:
                yield untrusted.output(line["output"])
            if not (going or lines):
                return
            after = lines[-1]["id"] if lines else after
            time.sleep(pause)
            pause = 0.1 if lines else min(pause * 1.2, 2.0)

    def _going(self, workspace: Workspace, agent_id: str) -> bool:
        """Whether the agent may still say something. Raises ``Unhealthy`` when it never came."""
        agent = self._client.agent(agent_id)
        if agent is None or agent["lifecycle_state"] in ENDED_LIVES:
            return False
        if agent["status"] == "timeout":
            raise Unhealthy(
                f"The agent of workspace {workspace.name} has not connected to {self._client.http.config.url}.",
                "Its container cannot reach the server, or could not fetch the agent: see its log on the node "
                f"(docker logs). {agent.get('troubleshooting_url') or ''}".rstrip(),
            )
        return True

    def exec(
        self, workspace: Workspace, argv: Sequence[str], stdin: bytes = b"", timeout: float = 60.0, user: str = ""
    ) -> ExecResult:
        from ..workspace import ssh as workspace_ssh
        from ..workspace.target import ExecResult

        if user:
            raise InvalidInput("A command on a Coder workspace runs as its own user.", "Use sudo inside.")
        try:
            status, out, err = child.run(workspace_ssh.argv(workspace, shlex.join(argv)), stdin, timeout)
        except FlowError as error:
            raise FlowError(f"Cannot run a command in workspace {workspace.name}: {error.message}") from None
        return ExecResult(status, out.decode(errors="replace"), err.decode(errors="replace"))

    def ready_to_enter(self, progress: Progress, needed: bool = False) -> Words:
        """Have the program that workspaces are entered by; notes about it. After a first answer of the server."""
        from . import cli as coder_cli

        return coder_cli.ready(self._client.http, progress, needed)

    def put(self, workspace: Workspace, directory: str, tar: bytes) -> None:
        done = self.exec(workspace, ["tar", "--extract", "--directory", directory], tar, timeout=600)
        if done.status:
            raise Unhealthy(
                f"Cannot copy files into workspace {workspace.name}: {untrusted.line(done.stderr.strip()[-200:])}."
            )

    # Cleaning

    def sweep(self) -> Iterable[str]:
        """Nothing: on a server expired workspaces are the reaper's."""
        return ()


def _given(spec: WorkspaceSpec) -> dict[str, str]:
    """Parameters that a user may set again at a restart, as far as they were given."""
    return {name: value for name, value in (("ref", spec.ref), ("dotfiles", spec.dotfiles)) if value}
