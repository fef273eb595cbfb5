# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start, stop and restart containers, and undo an interrupted restart."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ....module_utils._node.errors import Conflict, FlowError, NotFound, Unhealthy
from ..common.progress import Progress
from ..workspace.models import Workspace, WorkspaceSpec
from .parse import OLD
from .session import container_name

if TYPE_CHECKING:
    pass
from .creation import Creator

GRACE = 30
"""Seconds between SIGTERM and SIGKILL (docs/decisions/docker-inside-storage.md)."""
START = 3600.0
"""Maximum duration of a start in seconds: a home may first be copied to a file system of its own."""
NOT_MODIFIED = 304


class Starter(Creator):
    """A restart renames the old container and only removes it once its successor is usable."""

    def start(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        # Check again: the image may have been built, and the engine drained, since the first check.
        self._refuse_drained(workspace.name)
        return self._start(self._undo_restart(workspace))

    def _undo_restart(self, workspace: Workspace) -> Workspace:
        """Restore the old container if a killed ``restart`` renamed it and never started its successor."""
        name = container_name(workspace.owner, workspace.name)
        found = self._engine.get_json(f"/containers/{workspace.id}/json")
        old = found["Id"] if found["Name"].endswith(OLD) else ""
        if not old and found["State"]["Status"] == "created":
            with contextlib.suppress(NotFound):
                old = self._engine.get_json(f"/containers/{name}{OLD}/json")["Id"]
                self._remove(workspace.id)
        if not old:
            return workspace
        self._rename(old, name)
        return replace(workspace, id=self._under_runtime(old, name))

    def _start(self, workspace: Workspace) -> Workspace:
        try:
            connection, answer = self._engine.request("POST", f"/containers/{workspace.id}/start", timeout=START)
            connection.close()
        except FlowError as error:
            if self._lacks_kvm(error):
                return self._start_without_kvm(workspace)
            raise self._start_error(workspace, error) from None
        if answer.status == NOT_MODIFIED:
            # Another client's start, which is already in the log: wait for that one.
            raise Conflict(f"Another client has just started workspace {workspace.name}.", "Run the command again.")
        return replace(self._read(workspace), notes=workspace.notes)

    def _lacks_kvm(self, error: FlowError) -> bool:
        """Return whether a start failed because the device is missing, which is not visible on another machine
        beforehand.
        """
        from . import container as docker_container

        said = str(error.details.get("said", ""))
        return not self._engine.local and f'"{docker_container.KVM}": no such file' in said

    def _start_without_kvm(self, workspace: Workspace) -> Workspace:
        """Recreate the same container without the device."""
        from . import container as docker_container

        found = self._engine.get_json(f"/containers/{workspace.id}/json")
        body, note = docker_container.without_kvm(found, self.place)
        self._remove(workspace.id)
        query = {"name": found["Name"].lstrip("/")}
        made = self._engine.request_json("POST", "/containers/create", query, body)["Id"]
        return self._start(replace(workspace, id=made, notes=(*workspace.notes, note)))

    def _start_error(self, workspace: Workspace, error: FlowError) -> FlowError:
        said = str(error.details.get("said", error.message))
        if "address already in use" in said or "port is already allocated" in said:
            port = re.search(r":(\d+)\b", said)
            return Conflict(
                f"Cannot start workspace {workspace.name}: port {port[1] if port else ''} of this machine is in use.",
                "Free it, or use another one: -e ide_port=0, then restart.",
            )
        if isinstance(error, NotFound):
            return error
        if "status" not in error.details:
            return error
        return Unhealthy(
            f"Cannot start workspace {workspace.name}: {said}.",
            "Its home is untouched. Check `docker info`, or restart it: ansible-playbook spt.flow.restart",
        )

    def stop(self, workspace: Workspace, progress: Progress) -> Workspace:
        self._stop(workspace.id)
        if workspace.kind == "ci":
            self._wait_until_removed(workspace.id)
            return replace(workspace, state="stopped")
        return self._read(workspace)

    def _stop(self, identifier: str) -> None:
        self._engine.request_json("POST", f"/containers/{identifier}/stop", {"t": GRACE}, timeout=GRACE + 60)

    def _wait_until_removed(self, identifier: str, seconds: float = 30.0) -> None:
        """Wait until the engine has removed a container that removes itself."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self._engine.get_json(f"/containers/{identifier}/json")
            except NotFound:
                return
            time.sleep(0.1)
        self._remove(identifier)

    def restart(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        """Replace the container; a failure rolls back (docs/decisions/restart.md)."""
        from . import container as docker_container

        name = container_name(workspace.owner, workspace.name)
        spec = self._completed(workspace, spec)
        if not workspace.id:
            return self.start(self.create(spec, progress), spec, progress)
        plan = docker_container.Plan.of(spec, self.probe_engine(), self._engine.local)
        with progress.stage("stop", f"stopping {workspace.name}"):
            self._set_aside(workspace, spec)
        made = ""
        try:
            self._ensure_network()
            made = self._create_container(name, spec, plan)
            if not made:
                raise _busy(name)
            fresh = self._start(replace(workspace, id=made, notes=plan.notes))
            made = fresh.id
            fresh = self._until_usable(fresh, spec, progress)
        except BaseException:
            self._restore_previous(workspace.id, name, made)
            raise
        self._remove(workspace.id)
        return fresh

    def _set_aside(self, workspace: Workspace, spec: WorkspaceSpec) -> None:
        """Stop the container and rename it to ``-old``.

        An existing ``-old`` container belongs to another client's restart.
        """
        name = container_name(workspace.owner, workspace.name)
        if self._is_old(workspace.id):
            self._stop(workspace.id)
            return
        if self._is_ours(f"/containers/{name}{OLD}/json", workspace, "Config"):
            with contextlib.suppress(FlowError):
                self._until_usable(workspace, spec, Progress())
            self._remove(name + OLD)
        self._stop(workspace.id)
        self._rename(workspace.id, name + OLD)

    def _restore_previous(self, identifier: str, name: str, made: str) -> None:
        """Undo a restart, unless another client continues it: then the container is gone or its name is taken."""
        with contextlib.suppress(NotFound, Conflict):
            old = self._is_old(identifier)
            if made:
                self._remove(made)
            if old:
                self._rename(identifier, name)
                identifier = self._under_runtime(identifier, name)
            self._engine.request_json("POST", f"/containers/{identifier}/start", timeout=START)

    def _under_runtime(self, identifier: str, name: str) -> str:
        """Return the id of the container, recreated if it runs without the runtime ``spt-flow``.

        The restart may have moved its home to a file system of its own, which only that runtime mounts.
        """
        from . import container

        found = self._engine.get_json(f"/containers/{identifier}/json")
        facts = self.probe_engine()
        if found["HostConfig"].get("Runtime") == container.RUNTIME or not (facts.runtime and facts.remapped):
            return identifier
        body = {**found["Config"], "HostConfig": {**found["HostConfig"], "Runtime": container.RUNTIME}}
        self._remove(identifier)
        return str(self._engine.request_json("POST", "/containers/create", {"name": name}, body)["Id"])

    def _until_usable(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        from ..common.wait import Waiter
        from ..workspace.readiness import wait_ready

        return wait_ready(self, workspace, progress, Waiter(spec.settings.wait_timeout, False))

    def _completed(self, workspace: Workspace, spec: WorkspaceSpec) -> WorkspaceSpec:
        """Add to ``spec`` the values that only the first ``up`` received (repository, ref, dotfiles, author), from the
        old one.
        """
        from ..repository.address import Repository

        known: dict[str, str] = {}
        if workspace.id:
            config = self._engine.get_json(f"/containers/{workspace.id}/json")["Config"]
            known = dict(word.split("=", 1) for word in config.get("Env") or [] if "=" in word)
        url = known.get("SPT_FLOW_REPO", "")
        repository = spec.repository or (Repository.parse(url) if url else None)
        return replace(
            spec,
            name=workspace.name,
            kind=workspace.kind,
            deadline=workspace.deadline,
            repository=repository,
            ref=spec.ref or known.get("SPT_FLOW_REF", ""),
            dotfiles=spec.dotfiles or known.get("SPT_FLOW_DOTFILES", ""),
            git_name=spec.git_name or known.get("SPT_FLOW_GIT_NAME", ""),
            git_email=spec.git_email or known.get("SPT_FLOW_GIT_EMAIL", ""),
        )

    def _is_old(self, identifier: str) -> bool:
        return str(self._engine.get_json(f"/containers/{identifier}/json")["Name"]).endswith(OLD)

    def _rename(self, identifier: str, name: str) -> None:
        try:
            self._engine.request_json("POST", f"/containers/{identifier}/rename", {"name": name})
        except FlowError as error:
            if "same name" in str(error.details.get("said")):
                raise _busy(name) from None
            raise


def _busy(name: str) -> Conflict:
    return Conflict(f"Another client is restarting {name}.", "Wait until that has finished.")
