# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Target docker: workspaces as containers of one Docker engine.

The home volume, created first, is the record of identity; names are the lock. Requests and answers are those of the
Docker Engine API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ....module_utils._node.docker import http as docker_http
from ....module_utils._node.errors import FlowError, Unhealthy
from ....module_utils._node.labels import LABEL
from ..common import untrusted
from ..common.progress import Progress
from ..workspace.models import Session, Workspace
from . import session as docker_session
from .parse import OLD, age, from_container, with_events
from .reading import DETAILS_DEADLINE
from .session import PREFIX, container_name
from .starting import Starter

LEFTOVER_AGE = 600.0
"""Seconds after which a replaced container counts as a leftover although its successor is not ready."""


class DockerTarget(Starter):
    """Implements ``Target``, ``Sweeper`` and ``Drainable`` on one engine."""

    def delete(self, workspace: Workspace, progress: Progress) -> None:
        """Delete the container, then inner Docker's volume, then the home, which is the record of identity."""
        name = container_name(workspace.owner, workspace.name)
        for container in (name, name + OLD):
            if self._is_ours(f"/containers/{container}/json", workspace, "Config"):
                self._remove(container)
        for part in ("docker", "home"):
            volume = f"{PREFIX}{workspace.key}-{part}"
            if self._is_ours(f"/volumes/{volume}", workspace, ""):
                self._engine.request_json("DELETE", f"/volumes/{volume}", timeout=600)

    def keepalive(self, workspace: Workspace, hours: float, by: str) -> Workspace:
        done = self.exec(workspace, ["spt-workspace", "keepalive", f"{hours:g}", by])
        if done.status:
            said = untrusted.line((done.stderr or done.stdout).strip(), 200)
            raise FlowError(
                f"Cannot keep workspace {workspace.name} alive: {said}",
                "Check its log: ansible-playbook spt.flow.logs",
            )
        return self._detailed(workspace)

    def session(self, workspace: Workspace) -> Session:
        done = self.exec(workspace, docker_session.READ)
        if done.status:
            done = self.exec(workspace, ["spt-workspace", "status"])
        try:
            return docker_session.to_session(workspace.url, done.stdout)
        except docker_session.UNREADABLE:
            said = untrusted.line((done.stderr or done.stdout).strip(), 200)
            raise Unhealthy(
                f"Workspace {workspace.name} does not answer: {said}",
                f"Restart it: ansible-playbook spt.flow.restart -e workspace={workspace.name}",
            ) from None

    def put(self, workspace: Workspace, directory: str, tar: bytes) -> None:
        path = f"/containers/{workspace.id}/archive"
        try:
            self._engine.request_json("PUT", path, {"path": directory}, body=tar, timeout=600)
        except Unhealthy as error:
            if docker_http.NO_SPACE not in error.details.get("said", ""):
                raise
            raise Unhealthy(
                f"Cannot copy {len(tar) / 2**20:.0f} MiB into workspace {workspace.name}: its disk is full.",
                f"Enter without the repository (ansible-playbook spt.flow.up -e workspace={workspace.name}), "
                "free space in the home, and run the command again.",
                error.details,
            ) from None

    def sweep(self) -> Iterable[str]:
        """Delete expired CI workspaces (docs/decisions/ci-self-deletion.md), and leftovers of a killed ``restart``."""
        names = {entry["Names"][0].lstrip("/"): entry for entry in self._entries({"label": [f"{LABEL}owner"]})}
        now = self._engine.clock
        gone = []
        for name, entry in names.items():
            workspace = from_container(entry, now)
            if workspace and workspace.kind == "ci" and _expired(entry, now):
                self._remove(entry["Id"])
                gone.append(workspace.name)
            successor = names.get(name.removesuffix(OLD)) if name.endswith(OLD) else None
            if successor and successor["State"] == "running" and self._replaces(successor):
                self._remove(entry["Id"])
        return gone

    def _replaces(self, entry: Mapping[str, Any]) -> bool:
        """Return whether the container's ``-old`` predecessor can go: its IDE answers, or it had enough time."""
        if age(entry["Status"]) > LEFTOVER_AGE:
            return True
        lines = self._log_lines(entry["Id"], follow=False, tail=80, timeout=DETAILS_DEADLINE)
        return with_events(Workspace("", "", ""), lines).step("ide").state in ("ok", "skipped")


def _expired(entry: Mapping[str, Any], now: float) -> bool:
    """Return whether a CI container has expired, by its labels and its engine's clock: clients' clocks may be wrong."""
    from ....module_utils._node.reaper.engine import lifetime

    return now - float(entry.get("Created") or now) >= lifetime(entry.get("Labels") or {})
