# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read workspaces from one Docker engine, and run commands in their containers."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ....module_utils._node.docker import http as docker_http
from ....module_utils._node.errors import Conflict, NotFound
from ....module_utils._node.labels import LABEL
from ..common import untrusted
from ..workspace.models import Workspace, WorkspaceSpec
from .parse import OLD, engine_facts, from_container, from_home, with_events
from .session import PREFIX, USER

if TYPE_CHECKING:
    from ..workspace.target import EngineFacts, ExecResult

Workspaces = list[Workspace]
Words = list[str]
Entries = list[dict[str, Any]]
DETAILS_DEADLINE = 1.0
READERS = 16


class EngineReader:
    """Workspaces of the engine that ``host`` (or ``DOCKER_HOST``) names; ``node`` is its name in the inventory."""

    name = "docker"
    client_prepares = True
    same_network = True
    seed_follows = False
    clone_path_known = True
    log_ends_with_workspace = True

    def __init__(self, host: str = "", node: str = "") -> None:
        self._engine = docker_http.connect(host)
        self._location = {"node": node, "engine": host} if node else {}
        self._facts: EngineFacts | None = None

    @property
    def place(self) -> str:
        """The machine's name in messages."""
        return self._location.get("node") or "this machine"

    def probe_engine(self) -> EngineFacts:
        if self._facts is None:
            self._facts = engine_facts(self._engine.get_json("/info"), self._engine.local)
        return self._facts

    def ignored(self, names: Iterable[str]) -> str:
        return "template has no effect on target docker." if "template" in names else ""

    def find(self, spec: WorkspaceSpec) -> Workspace | None:
        identity = spec.repository.identity if spec.repository else ""

        def wanted(workspace: Workspace) -> bool:
            return workspace.name == spec.name if spec.name else workspace.repo == identity

        found = next(filter(wanted, self._containers(spec.owner)), None)
        if found is None:
            found = next(filter(wanted, self._homes(spec.owner)), None)
        return replace(found, outdated=found.differs_from(spec)) if found and found.id else found

    def list(self, owner: str = "", kind: str = "", details: bool = False, sizes: bool = False) -> Workspaces:
        found = self._containers(owner)
        names = {workspace.key for workspace in found}
        found += [home for home in self._homes(owner) if home.key not in names]
        if kind:
            found = [workspace for workspace in found if workspace.kind == kind]
        if details:
            found = self._with_details(found)
        return self._with_sizes(found) if sizes else found

    def _containers(self, owner: str = "", key: str = "") -> Workspaces:
        """Return containers from one list request.

        A container renamed by ``restart`` only counts if nothing has replaced it.
        """
        label = f"{LABEL}owner={owner}" if owner else f"{LABEL}owner"
        filters = {"label": [label]} | ({"name": [f"^/{PREFIX}{re.escape(key)}({OLD})?$"]} if key else {})
        found: dict[str, Workspace] = {}
        for entry in sorted(self._entries(filters), key=lambda entry: entry["Names"][0].endswith(OLD)):
            workspace = from_container(entry, time.time())
            if workspace is not None:
                workspace = self._placed(workspace)
                if entry["Names"][0].endswith(OLD):
                    # In any case it must get its name back before it can be used; `start` does that.
                    workspace = replace(workspace, state="stopped", url="")
                found.setdefault(workspace.key, workspace)
        return list(found.values())

    def _entries(self, filters: Mapping[str, Any]) -> Entries:
        """Return the engine's containers, except those being removed, which no longer have a name."""
        entries = self._engine.get_json("/containers/json", {"all": True, "filters": filters})
        return [entry for entry in entries if entry.get("Names")]

    def _homes(self, owner: str) -> Workspaces:
        label = f"{LABEL}owner={owner}" if owner else f"{LABEL}owner"
        answer = self._engine.get_json("/volumes", {"filters": {"label": [label]}})
        homes = (entry for entry in answer.get("Volumes") or [] if entry["Name"].endswith("-home"))
        return [self._placed(from_home(entry)) for entry in homes]

    def _placed(self, workspace: Workspace) -> Workspace:
        """Add the location to ``workspace``, unless it is this machine."""
        here = self._location
        return replace(workspace, node=here["node"], engine=here["engine"]) if here else workspace

    def _read(self, workspace: Workspace) -> Workspace:
        found = self._containers(workspace.owner, workspace.key)
        if not found:
            raise NotFound(f"Workspace {workspace.name} no longer has a container.", "Run the command again.")
        return found[0]

    def _with_details(self, workspaces: Workspaces) -> Workspaces:
        """Add steps and liveness from the end of each running workspace's log, concurrently, with one deadline."""
        from concurrent.futures import ThreadPoolExecutor, wait

        running = [workspace for workspace in workspaces if workspace.state == "running"]
        if not running:
            return workspaces
        pool = ThreadPoolExecutor(min(READERS, len(running)))
        tasks = {workspace.id: pool.submit(self._detailed, workspace) for workspace in running}
        wait(tasks.values(), DETAILS_DEADLINE)
        pool.shutdown(wait=False, cancel_futures=True)
        done = {
            key: task.result()
            for key, task in tasks.items()
            if task.done() and not task.cancelled() and not task.exception()
        }
        return [done.get(workspace.id, workspace) for workspace in workspaces]

    def _detailed(self, workspace: Workspace) -> Workspace:
        lines = self._log_lines(workspace.id, follow=False, tail=80, timeout=DETAILS_DEADLINE)
        return with_events(workspace, lines)

    def _with_sizes(self, workspaces: Workspaces) -> Workspaces:
        volumes = self._engine.get_json("/system/df", {"type": "volume"}).get("Volumes") or []
        sizes = {volume["Name"]: int((volume.get("UsageData") or {}).get("Size", -1)) for volume in volumes}

        def measured(workspace: Workspace) -> dict[str, int]:
            parts = {part: sizes.get(f"{PREFIX}{workspace.key}-{part}", -1) for part in ("home", "docker")}
            return {part: size for part, size in parts.items() if size >= 0}

        return [replace(workspace, size=measured(workspace)) for workspace in workspaces]

    def logs(self, workspace: Workspace, follow: bool = False, tail: int = 0) -> Iterator[str]:
        return self._log_lines(workspace.id, follow, tail, None if follow else 60.0)

    def _log_lines(self, identifier: str, follow: bool, tail: int, timeout: float | None) -> Iterator[str]:
        if not identifier:
            return
        query = {"stdout": True, "stderr": True, "follow": follow, "tail": tail or "all"}
        connection, answer = self._engine.request("GET", f"/containers/{identifier}/logs", query, timeout=timeout)
        rest = b""
        try:
            for _stream, block in self._engine.frames(answer):
                *lines, rest = (rest + block).split(b"\n")
                if len(rest) > untrusted.LONGEST_LINE:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    yield untrusted.output(line.rstrip(b"\r"))
        finally:
            connection.close()
        if rest:
            yield untrusted.output(rest)

    def exec(
        self, workspace: Workspace, argv: Sequence[str], stdin: bytes = b"", timeout: float = 60.0, user: str = ""
    ) -> ExecResult:
        from ..workspace.target import ExecResult

        ran = self._engine.run(workspace.id, argv, stdin, timeout, user or USER)
        return ExecResult(ran.status, ran.stdout.decode(errors="replace"), ran.stderr.decode(errors="replace"))

    def _is_ours(self, path: str, workspace: Workspace, inner: str) -> bool:
        try:
            found = self._engine.get_json(path)
        except NotFound:
            return False
        labels = (found.get(inner) if inner else found).get("Labels") or {}
        return labels.get(f"{LABEL}owner") == workspace.owner and labels.get(f"{LABEL}workspace") == workspace.name

    def _remove(self, identifier: str) -> None:
        """Remove a container. It is no error if it is gone or being removed."""
        with contextlib.suppress(NotFound, Conflict):
            self._engine.request_json("DELETE", f"/containers/{identifier}", {"force": True}, timeout=120)
