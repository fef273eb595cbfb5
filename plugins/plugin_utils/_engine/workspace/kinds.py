# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Capabilities of each target before it is opened. Other code uses these instead of a target's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..settings.resolve import default_owner
from ..settings.targets import TARGETS

if TYPE_CHECKING:
    from .checks import Check
    from .models import Session, Workspace
    from .target import Target


class TargetKind(Protocol):
    """A target's capabilities, and how to open it. Importing one must be cheap: every `up` does."""

    name: str
    has_server: bool
    """Whether users log in to a server of this target; `init` saves the choice of such a target."""
    default_owner: str
    """Owner of workspaces when the user names none; empty for the login name."""
    clones_directories: bool
    """Whether a workspace can be created from a directory of this machine."""

    def available(self, values: Mapping[str, Any], server: str = "") -> bool:
        """Return whether `target=auto` can mean this target; ``server`` is an address that the user has just given."""

    def open(self, values: Mapping[str, Any], say: Callable[[str], None]) -> Target:
        """Return the target that ``values`` describe, without a request; ``say`` shows warnings to the user."""

    def examine(
        self, values: Mapping[str, Any], server: str, say: Callable[[str], None], fetch: bool
    ) -> Sequence[Check]:
        """Return what this machine has and lacks for the target; with ``fetch``, download a missing client."""

    def ssh_host(self, workspace: Workspace) -> str:
        """Return the name by which OpenSSH knows the workspace."""

    def ssh_config(self, common: Mapping[str, str], key: Path, nodes: Mapping[str, str]) -> str:
        """Return the `Match` blocks for the target's workspaces. ``nodes`` as in ``ssh.config_text``."""


class EarlyReader(Protocol):
    """Reads how to enter a workspace before the workspace itself was looked up."""

    def read(self) -> None:
        """Read; called in a thread. Errors are ignored, because the regular code path reports them."""

    def session(self, workspace: Workspace) -> Session | None:
        """Return the session of ``workspace``, or ``None`` if another one, or nothing usable, was read."""


@runtime_checkable
class ReadsEarly(Protocol):
    """A kind of target that can tell a workspace's name from the user's values."""

    def early_reader(self, values: Mapping[str, Any], owner: str) -> EarlyReader | None:
        """Return a reader for the workspace that ``values`` name, or ``None`` if they do not name it plainly."""


def kind(name: str) -> TargetKind:
    """Return the kind of the target called ``name``."""
    found: TargetKind = import_module(f"..{TARGETS[name]}", __package__).KIND
    return found


def kinds() -> Iterator[TargetKind]:
    """Yield every kind, in the order of the registry."""
    return map(kind, TARGETS)


def chosen(values: Mapping[str, Any], server: str = "") -> TargetKind:
    """Return the kind that ``values`` name. `auto` means the first available one."""
    if values["target"] in TARGETS:
        return kind(values["target"])
    return next(found for found in kinds() if found.available(values, server))


def owner_of(values: Mapping[str, Any]) -> str:
    """Return the owner that ``values`` name, otherwise the target's default (docs/decisions/identity-and-names.md)."""
    return str(values["owner"]) or chosen(values).default_owner or default_owner()
