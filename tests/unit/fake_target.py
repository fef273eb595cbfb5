# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A target in memory with the semantics of ``Target`` and hooks for faults; for unit tests only."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node import errors
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import models as workspace_models
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import target as workspace_target

WRITES = ("create", "start", "stop", "restart", "delete", "keepalive", "put", "sweep", "exec", "drain", "undrain")


def start_event(boot: str, started: float = 1.0) -> str:
    return json.dumps({"spt_flow": 1, "event": "start", "boot": boot, "started": started})


def step_event(step: str, state: str, started: float | None = 1.0, ended: float | None = None, detail: str = "") -> str:
    times = {"started": started, "ended": ended}
    return json.dumps({"spt_flow": 1, "event": "step", "step": step, "state": state, **times, "detail": detail})


def ready_lines(boot: str, clone: str = "ok") -> list[str]:
    """Return what a successful start prints."""
    return [
        start_event(boot),
        step_event("home", "ok", 1.0, 1.1),
        step_event("clone", "running", 1.1),
        "Cloning into 'x'...",
        step_event("ide", "ok", 1.1, 2.1),
        step_event("docker", "skipped", 1.1, 1.1),
        step_event("clone", clone, 1.1, 1.6),
        json.dumps({"spt_flow": 1, "event": "life", "reason": "just started", "since": 1.0, "stops_at": 7201.0}),
    ]


class FakeTarget:
    """Workspaces in a dictionary by (owner, name); every call is recorded in ``calls``.

    ``script(workspace, boot)`` gives the log lines of a start; ``hang`` keeps a followed log open after them.
    ``before[verb]`` runs before a call (raise there to inject a fault). ``read_only`` makes every write an error.
    """

    name = "docker"
    client_prepares = True
    same_network = True
    seed_follows = False
    clone_path_known = True
    log_ends_with_workspace = True

    def __init__(self, script: Callable[[Any, str], list[str]] | None = None, read_only: bool = False) -> None:
        self.workspaces: dict[tuple[str, str], workspace_models.Workspace] = {}
        self.log: dict[tuple[str, str], list[str]] = {}
        self.calls: list[str] = []
        self.puts: list[tuple[str, bytes]] = []
        self.before: dict[str, Callable[[], None]] = {}
        self.expired: list[str] = []
        self.mark = ""
        self.read_only = read_only
        self.hang = threading.Event()
        self.hang.set()
        self.lock = threading.RLock()
        self._script = script or (lambda workspace, boot: ready_lines(boot))
        self._boots = 0

    def _note(self, verb: str) -> None:
        if self.read_only and verb in WRITES:
            raise AssertionError(f"{verb} is a write")
        self.calls.append(verb)
        if verb in self.before:
            self.before[verb]()

    @property
    def writes(self) -> list[str]:
        return [call for call in self.calls if call in WRITES and call != "sweep"]

    def add(self, name: str, repo: str, state: str = "running", **more: Any) -> workspace_models.Workspace:
        values = {"owner": "alice", "id": "c1", "started": 1.0, **more}
        workspace = workspace_models.Workspace(name=name, repo=repo, state=state, **values)
        self.workspaces[workspace.owner, name] = workspace
        self.log.setdefault((workspace.owner, name), [])
        return workspace

    def _save(self, workspace: workspace_models.Workspace) -> workspace_models.Workspace:
        self.workspaces[workspace.owner, workspace.name] = workspace
        return workspace

    def _boot(self, workspace: workspace_models.Workspace) -> workspace_models.Workspace:
        self._boots += 1
        lines = self._script(workspace, f"boot{self._boots}")
        self.log.setdefault((workspace.owner, workspace.name), []).extend(lines)
        return self._save(replace(workspace, state="running", started=100.0, url="http://127.0.0.1:1"))

    def probe_engine(self) -> workspace_target.EngineFacts:
        raise NotImplementedError

    def ignored(self, names: Any) -> str:
        return "template has no effect on target docker." if "template" in names else ""

    def find(self, spec: Any) -> workspace_models.Workspace | None:
        self._note("find")
        if spec.name:
            return self.workspaces.get((spec.owner, spec.name))
        identity = spec.repository.identity if spec.repository else ""
        return next((w for w in self.workspaces.values() if (w.owner, w.repo) == (spec.owner, identity)), None)

    def list(self, owner: str = "", kind: str = "", details: bool = False, sizes: bool = False) -> list[Any]:
        self._note("list")
        return [w for w in self.workspaces.values() if owner in ("", w.owner)]

    def admit(self, spec: Any, fresh: bool) -> None:
        if self.mark:
            raise errors.Unhealthy(f"It was drained {self.mark}.")

    def drained(self) -> str:
        return self.mark

    def drain(self, by: str) -> None:
        self._note("drain")
        self.mark = f"now by {by}"

    def undrain(self) -> None:
        self._note("undrain")
        self.mark = ""

    def create(self, spec: Any, progress: Any) -> workspace_models.Workspace:
        self._note("create")
        with self.lock:
            present = self.find(spec)
            if present is not None and present.id:
                raise errors.Conflict("Another client created it.")
            name = spec.name or spec.repository.slug
            if not spec.name and (spec.owner, name) in self.workspaces and present is None:
                name = spec.repository.slug_with_suffix()
            identity = spec.repository.identity if spec.repository else ""
            new = workspace_models.Workspace(
                owner=spec.owner, name=name, repo=identity, state="stopped", id="c1", kind=spec.kind
            )
            return self._save(new)

    def start(self, workspace: Any, spec: Any, progress: Any) -> workspace_models.Workspace:
        self._note("start")
        return self._boot(workspace)

    def stop(self, workspace: Any, progress: Any) -> workspace_models.Workspace:
        self._note("stop")
        return self._save(replace(workspace, state="stopped"))

    def restart(self, workspace: Any, spec: Any, progress: Any) -> workspace_models.Workspace:
        self._note("restart")
        self.log[workspace.owner, workspace.name] = []
        return self._boot(replace(workspace, outdated=()))

    def delete(self, workspace: Any, progress: Any) -> None:
        self._note("delete")
        del self.workspaces[workspace.owner, workspace.name]

    def keepalive(self, workspace: Any, hours: float, by: str) -> workspace_models.Workspace:
        self._note(f"keepalive {hours:g} {by}")
        return workspace

    def session(self, workspace: Any) -> workspace_models.Session:
        raise NotImplementedError

    def logs(self, workspace: Any, follow: bool = False, tail: int = 0) -> Iterator[str]:
        self._note("logs")
        yield from list(self.log.get((workspace.owner, workspace.name), []))
        if follow:
            self.hang.wait(10)

    def exec(self, workspace: Any, argv: Any, stdin: bytes = b"", timeout: float = 60.0, user: str = "") -> Any:
        self._note("exec")
        raise NotImplementedError

    def put(self, workspace: Any, directory: str, tar: bytes) -> None:
        self._note("put")
        self.puts.append((directory, tar))

    def sweep(self) -> list[str]:
        self._note("sweep")
        return self.expired
