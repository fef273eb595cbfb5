# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a target must be able to do.

``kinds`` says how targets differ before they are opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..common.progress import Progress
from .models import Session, Workspace, WorkspaceSpec


@dataclass(frozen=True)
class EngineFacts:
    """Capabilities of an engine, probed once per process (docs/decisions/user-namespaces.md).

    ``remap_size`` is the number of ids of the user-namespace range (0: no remapping, -1: remapped, size unknown).
    ``cpus`` and ``memory`` (bytes) are the machine's, ``root`` is the engine's folder there.
    """

    version: str
    remapped: bool
    remap_base: int
    remap_size: int
    runtime: bool
    seccomp: bool
    apparmor: bool
    cgroup_version: str
    cpus: int
    memory: int
    storage_driver: str
    log_driver: str
    local: bool
    root: str = ""


@dataclass(frozen=True)
class ExecResult:
    """Outcome of a command inside a workspace; ``stdout`` and ``stderr`` are decoded with replacement."""

    status: int
    stdout: str
    stderr: str


class Readable(Protocol):
    """What waiting for a workspace needs of a target: its log."""

    log_ends_with_workspace: bool
    """Whether the log goes on until the workspace stops; else it is that of the start script alone."""

    def logs(self, workspace: Workspace, follow: bool = False, tail: int = 0) -> Iterator[str]:
        """Lines of the workspace's log; with ``follow`` until it stops or the caller closes the iterator."""


class Target(Readable, Protocol):
    """The verbs of a target. All raise children of ``FlowError``; none prints.

    The attributes are its capabilities. What only some targets do are protocols of their own, below.
    """

    name: str
    client_prepares: bool
    """Whether settings, image and author of commits are the client's (``Preparation``); else a server has them."""
    same_network: bool
    """Whether workspaces can reach only the repositories that this machine can reach."""
    seed_follows: bool
    """Whether a local repository can be copied only once the workspace runs."""
    clone_path_known: bool
    """Whether the directory of a clone follows from its repository, without asking the workspace."""

    def ignored(self, names: Iterable[str]) -> str:
        """Return a sentence about the options of these names that have no effect here; nothing when all have one."""

    def find(self, spec: WorkspaceSpec) -> Workspace | None:
        """The owner's workspace by name, else by repository identity; one read. ``None`` when there is none."""

    def list(self, owner: str = "", kind: str = "", details: bool = False, sizes: bool = False) -> list[Workspace]:
        """Workspaces by label; ``details`` adds steps and life (total deadline 1 s), ``sizes`` the volumes' sizes."""

    def admit(self, spec: WorkspaceSpec, fresh: bool) -> None:
        """Raise where nothing may be started or, with ``fresh``, made; not with an error that is worth a second try."""

    def create(self, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        """Claim the identity and create what is missing, not started. Safe to repeat and to run concurrently."""

    def start(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        """Start what exists; an already running one is left alone. ``spec`` names a repository if it has none yet."""

    def stop(self, workspace: Workspace, progress: Progress) -> Workspace:
        """Stop cleanly within the grace time; home and volumes stay."""

    def restart(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        """Replace the container so that ``spec`` and the current image apply (docs/decisions/restart.md)."""

    def delete(self, workspace: Workspace, progress: Progress) -> None:
        """Remove everything that belongs to the workspace, and nothing else."""

    def keepalive(self, workspace: Workspace, hours: float, by: str) -> Workspace:
        """Hold off the idle stop for ``hours`` (at most 24) from now; 0 takes it back."""

    def session(self, workspace: Workspace) -> Session:
        """IDE address and password, host key, directory of the clone."""

    def exec(
        self, workspace: Workspace, argv: Sequence[str], stdin: bytes = b"", timeout: float = 60.0, user: str = ""
    ) -> ExecResult:
        """Run ``argv`` inside, as the workspace's user unless told otherwise."""

    def put(self, workspace: Workspace, directory: str, tar: bytes) -> None:
        """Unpack ``tar`` below ``directory``; works on a created, not yet started workspace."""


@runtime_checkable
class Sweeper(Protocol):
    """A target whose clients delete expired CI workspaces; on others a server does it."""

    def sweep(self) -> Iterable[str]:
        """Delete CI workspaces that have expired by the engine's clock. Return their names."""


@runtime_checkable
class NeedsClient(Protocol):
    """A target whose workspaces are entered through a program of its own."""

    def ensure_client(self, progress: Progress, needed: bool) -> Sequence[str]:
        """Install the program where it is missing. Return notes; raise when it is missing and ``needed``."""


def ensure_client(target: Target, progress: Progress, needed: bool = False) -> Sequence[str]:
    """Make sure that workspaces of ``target`` can be entered. Return notes."""
    return target.ensure_client(progress, needed) if isinstance(target, NeedsClient) else ()


@runtime_checkable
class Drainable(Protocol):
    """A target whose machine can be drained."""

    def drained(self) -> str:
        """Since when and by whom nothing may start here, in words; nothing when it may."""

    def drain(self, by: str) -> None:
        """Let nothing start here any more; what runs goes on."""

    def undrain(self) -> None:
        """Let workspaces start here again."""
