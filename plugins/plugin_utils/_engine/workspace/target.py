# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The interface of a target. ``kinds`` says how targets differ before they are opened."""

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
    ``cpus`` and ``memory`` (bytes) are the machine's, ``root`` is the engine's directory there.
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
    """Result of a command inside a workspace; ``stdout`` and ``stderr`` are decoded with replacement."""

    status: int
    stdout: str
    stderr: str


class Readable(Protocol):
    """The part of a target that waiting for a workspace needs: its log."""

    log_ends_with_workspace: bool
    """Whether the log continues until the workspace stops; otherwise it is only that of the start script."""

    def logs(self, workspace: Workspace, follow: bool = False, tail: int = 0) -> Iterator[str]:
        """Yield the log's lines; with ``follow`` until it stops or the caller closes the iterator."""


class Target(Readable, Protocol):
    """The methods of a target. All raise children of ``FlowError``; none prints.

    The attributes are its capabilities. Methods of some targets only are in protocols of their own, below.
    """

    name: str
    client_prepares: bool
    """Whether the client provides settings, image and author of commits (``Preparation``); otherwise a server does."""
    same_network: bool
    """Whether workspaces can only reach the repositories that this machine can reach."""
    seed_follows: bool
    """Whether a local repository can only be copied once the workspace runs."""
    clone_path_known: bool
    """Whether the directory of a clone follows from its repository, without a request."""

    def ignored(self, names: Iterable[str]) -> str:
        """Return a sentence about the options of these names that have no effect on this target, or nothing."""

    def find(self, spec: WorkspaceSpec) -> Workspace | None:
        """Return the owner's workspace by name, otherwise by repository identity, or ``None``; one read."""

    def list(self, owner: str = "", kind: str = "", details: bool = False, sizes: bool = False) -> list[Workspace]:
        """Return workspaces by label; ``details`` adds steps and liveness (total deadline 1 s), ``sizes`` the volumes'
        sizes.
        """

    def admit(self, spec: WorkspaceSpec, fresh: bool) -> None:
        """Raise if nothing may be started or, with ``fresh``, created; never raise errors that a retry could fix."""

    def create(self, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        """Claim the identity and create missing objects, without starting. Idempotent and safe to run concurrently."""

    def start(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        """Start an existing workspace unless it runs. ``spec`` names a repository if it does not have one yet."""

    def stop(self, workspace: Workspace, progress: Progress) -> Workspace:
        """Stop cleanly within the grace time; home and volumes stay."""

    def restart(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        """Replace the container so that ``spec`` and the current image apply (docs/decisions/restart.md)."""

    def delete(self, workspace: Workspace, progress: Progress) -> None:
        """Delete all objects of the workspace, and nothing else."""

    def keepalive(self, workspace: Workspace, hours: float, by: str) -> Workspace:
        """Delay the idle stop until ``hours`` (at most 24) from now; 0 ends the delay."""

    def session(self, workspace: Workspace) -> Session:
        """Return IDE address and password, host key and the directory of the clone."""

    def exec(
        self, workspace: Workspace, argv: Sequence[str], stdin: bytes = b"", timeout: float = 60.0, user: str = ""
    ) -> ExecResult:
        """Run ``argv`` inside, by default as the workspace's user."""

    def put(self, workspace: Workspace, directory: str, tar: bytes) -> None:
        """Unpack ``tar`` below ``directory``; works on a created, not yet started workspace."""


@runtime_checkable
class Sweeper(Protocol):
    """A target whose clients delete expired CI workspaces; on others a server does it."""

    def sweep(self) -> Iterable[str]:
        """Delete CI workspaces that have expired by the engine's clock. Return their names."""


@runtime_checkable
class NeedsClient(Protocol):
    """A target whose workspaces are entered with a program of its own."""

    def ensure_client(self, progress: Progress, needed: bool) -> Sequence[str]:
        """Install the program if it is missing. Return notes. Raise an error if it is unavailable and ``needed``."""


def ensure_client(target: Target, progress: Progress, needed: bool = False) -> Sequence[str]:
    """Make sure that workspaces of ``target`` can be entered. Return notes."""
    return target.ensure_client(progress, needed) if isinstance(target, NeedsClient) else ()


@dataclass(frozen=True)
class Login:
    """A login at a Git host that a server keeps for its user. ``url`` is the page on which the user logs in."""

    url: str
    done: bool


@runtime_checkable
class KeepsLogins(Protocol):
    """A target whose server can keep a user's login at a Git host."""

    def git_login(self, spec: WorkspaceSpec) -> Login | None:
        """Return the login at the host of the repository; ``None`` if the server is not set up for the host."""


@runtime_checkable
class Drainable(Protocol):
    """A target whose machine can be drained."""

    def drained(self) -> str:
        """Return since when and by whom the machine is drained, as text, or nothing."""

    def drain(self, by: str) -> None:
        """Block new starts; running workspaces continue."""

    def undrain(self) -> None:
        """Allow new starts again."""
