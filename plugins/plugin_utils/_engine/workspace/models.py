# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The nouns of the engine: what is wanted, what is there, what was done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..repository.address import Repository
from ..settings.workspace import Settings

CONTRACT = "1"
"""Version of the start contract (``image/rootfs``) that this engine speaks."""
STATES = ("pending", "running", "ok", "failed", "skipped", "needs-auth")
"""States of a step."""

STEPS = ("home", "clone", "docker", "ide", "devcontainer", "dotfiles")
"""Steps of a start in display order (docs/architecture.md)."""
ENDING = frozenset({"was told to stop", "idle for too long", "the deadline has come"})
"""Reasons in the start contract's life record of a workspace that runs, but not for long any more."""


@dataclass(frozen=True)
class WorkspaceSpec:
    """A workspace as its user wants it.

    ``name`` is empty when the name comes from the repository. ``repository`` is ``None`` for verbs that only
    name an existing workspace. ``deadline`` (seconds since the epoch) is set for ``kind="ci"`` only.
    ``image`` and ``image_hash`` are the tag and the 64-hex content hash of docs/decisions/image-identity.md.
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
        """The words that messages use for the workspace."""
        return self.name or (self.repository.identity if self.repository else "")

    @property
    def owner_phrase(self) -> str:
        """`` of`` the owner, for sentences; nothing when the caller is meant (a Coder server knows who asks)."""
        return f" of {self.owner}" if self.owner != "me" else ""


@dataclass(frozen=True)
class Step:
    """One step of the start contract, times in epoch seconds.

    ``state``: pending, running, ok, failed, skipped or needs-auth.
    """

    name: str
    state: str = "pending"
    started: float | None = None
    ended: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Life:
    """What keeps a workspace alive (``reason``), since when, when it will stop (epoch seconds), who extended it."""

    reason: str = ""
    since: float | None = None
    stops_at: float | None = None
    keepalive_until: float | None = None
    keepalive_by: str = ""


@dataclass(frozen=True)
class Workspace:
    """A workspace as it is.

    ``id`` is the target's own (container id, Coder workspace id; empty when only the home is left).
    ``state``: running, stopped, failed, building or unknown. ``outdated`` lists what differs from what a new one would
    get (``settings``, ``image``). ``started`` in epoch seconds. ``url`` is the IDE's address when running, on the
    workspace's machine: ``node`` is its name in the inventory, ``engine`` its engine's address; empty for this one.
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
    life: Life = field(default_factory=Life)
    size: dict[str, int] | None = None
    last_snapshot: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.owner}-{self.name}"

    def differs_from(self, spec: WorkspaceSpec) -> tuple[str, ...]:
        """Return what a workspace of ``spec`` would get in another version: settings, image."""
        wanted = {"settings": spec.settings.hash(), "image": spec.image_hash}
        has = {"settings": self.settings_hash, "image": self.image_hash}
        return tuple(name for name, value in wanted.items() if value and has[name] and has[name] != value)

    def step(self, name: str) -> Step:
        """The step called ``name``; a pending one when it has not been reported."""
        return next((s for s in self.steps if s.name == name), Step(name))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for results and JSON (no secret is ever part of a ``Workspace``)."""
        return asdict(self)


@dataclass(frozen=True)
class Session:
    """What a client needs to enter a running workspace; read by exec, kept in memory only.

    ``clone`` and ``dotfiles`` are the states of the steps of these names; empty when they are not known, and
    ``clone_detail`` is what the clone's step reports. ``ports`` are
    those that the repository's devcontainer.json wants here, ``refused_ports`` those that are not forwarded, each with
    the reason. ``ending``: the workspace is about to stop.
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
