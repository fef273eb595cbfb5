# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data types of the engine: specifications, workspaces, sessions and results."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..repository.address import Repository
from ..settings.workspace import Settings

CONTRACT = "1"
"""Version of the interface with the workspace agent (``image/rootfs``)."""
STATES = ("pending", "running", "ok", "failed", "skipped", "needs-auth")
"""States of a step."""

STEPS = ("home", "clone", "docker", "ide", "devcontainer", "dotfiles")
"""Steps of a start in display order (docs/architecture.md)."""
ENDING = frozenset({"was told to stop", "idle for too long", "the deadline has come"})
"""Reasons in the agent's liveness record of a workspace that runs but is about to stop."""


@dataclass(frozen=True)
class WorkspaceSpec:
    """The workspace that a user requests. ``name`` is empty if it comes from the repository.

    ``repository`` is ``None`` if only an existing workspace is named. ``deadline`` (seconds since the epoch) is only
    set for ``kind="ci"``. ``image`` and ``image_hash`` are the tag and the 64-hex content hash of
    docs/decisions/image-identity.md.
    """

    owner: str
    settings: Settings
    name: str = ""
    repository: Repository | None = None
    ref: str = ""
    kind: str = "dev"
    dotfiles: str = ""
    git_name: str = ""
    git_email: str = ""
    deadline: int | None = None
    image: str = ""
    image_hash: str = ""

    @property
    def title(self) -> str:
        """The workspace's name in messages."""
        return self.name or (self.repository.identity if self.repository else "")

    @property
    def owner_phrase(self) -> str:
        """Return `` of`` the owner for messages, or nothing for the caller (a Coder server knows the caller)."""
        return f" of {self.owner}" if self.owner != "me" else ""


@dataclass(frozen=True)
class Step:
    """One step of the agent, times in epoch seconds. ``state``: pending, running, ok, failed, skipped or needs-auth."""

    name: str
    state: str = "pending"
    started: float | None = None
    ended: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Liveness:
    """Liveness:

    why a workspace is still running (``reason``), since when, when it stops (epoch seconds), who extended it.
    """

    reason: str = ""
    since: float | None = None
    stops_at: float | None = None
    keepalive_until: float | None = None
    keepalive_by: str = ""


@dataclass(frozen=True)
class Workspace:
    """An existing workspace. ``id`` is the target's own (container id, Coder workspace id; empty if only the home
    exists).

    ``state``: running, stopped, failed, building or unknown. ``outdated`` lists the differences from a new one
    (``settings``, ``image``). ``started`` is in epoch seconds. ``url`` is the IDE's address on the workspace's machine,
    if it runs: ``node`` is the machine's name in the inventory, ``engine`` its engine's address; both are empty for
    this machine.
    """

    owner: str
    name: str
    repo: str
    kind: str = "dev"
    state: str = "unknown"
    target: str = "docker"
    node: str = ""
    engine: str = ""
    id: str = ""
    created: str = ""
    contract: str = ""
    settings_hash: str = ""
    image_hash: str = ""
    deadline: int | None = None
    started: float | None = None
    exit_code: int | None = None
    url: str = ""
    outdated: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    life: Liveness = field(default_factory=Liveness)
    size: dict[str, int] | None = None
    last_snapshot: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.owner}-{self.name}"

    def differs_from(self, spec: WorkspaceSpec) -> tuple[str, ...]:
        """Return which parts differ from ``spec``: settings, image."""
        wanted = {"settings": spec.settings.hash(), "image": spec.image_hash}
        has = {"settings": self.settings_hash, "image": self.image_hash}
        return tuple(name for name, value in wanted.items() if value and has[name] and has[name] != value)

    def step(self, name: str) -> Step:
        """Return the step called ``name``, or a pending one if it has not been reported."""
        return next((s for s in self.steps if s.name == name), Step(name))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for results and JSON. A ``Workspace`` never contains secrets."""
        return asdict(self)


@dataclass(frozen=True)
class Session:
    """How to enter a running workspace; only kept in memory.

    ``clone`` and ``dotfiles`` are the states of these steps, empty if unknown; ``clone_detail`` is the clone's report.
    ``ports`` are those that the repository's devcontainer.json requests, ``refused_ports`` those that are not
    forwarded, with reasons. ``ending``: the workspace is about to stop.
    """

    url: str
    password: str
    host_key: str
    directory: str
    clone: str = ""
    ending: bool = False
    dotfiles: str = ""
    ports: tuple[int, ...] = ()
    refused_ports: tuple[str, ...] = ()
    clone_detail: str = ""


@dataclass
class Result:
    """What ``ensure`` did or, in check mode, would do. ``stages`` are (name, seconds)."""

    changed: bool
    msg: str
    workspace: Workspace | None
    actions: list[str] = field(default_factory=list)
    diff: dict[str, Any] = field(default_factory=dict)
    stages: list[tuple[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
