# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Capabilities of the target docker before it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..workspace.checks import Check
    from ..workspace.kinds import EarlyReader
    from ..workspace.models import Workspace
    from .target import DockerTarget


class DockerKind:
    """Implements ``TargetKind`` and ``ReadsEarly``."""

    name = "docker"
    has_server = False
    default_owner = ""
    clones_directories = True

    def available(self, values: Mapping[str, Any], server: str = "") -> bool:
        return True

    def open(self, values: Mapping[str, Any], say: Callable[[str], None]) -> DockerTarget:
        from .target import DockerTarget

        return DockerTarget(values["engine"], values["node"] if values["engine"] else "")

    def examine(
        self, values: Mapping[str, Any], server: str, say: Callable[[str], None], fetch: bool
    ) -> Sequence[Check]:
        from . import doctor

        return doctor.examine(values)

    def ssh_host(self, workspace: Workspace) -> str:
        from . import ssh

        return ssh.host(workspace)

    def ssh_config(self, common: Mapping[str, str], key: Path, nodes: Mapping[str, str]) -> str:
        from . import ssh

        return ssh.config(common, key, nodes)

    def early_reader(self, values: Mapping[str, Any], owner: str) -> EarlyReader | None:
        """Return a reader on this machine's engine, if connecting is cheap and the names are known."""
        if values["engine"] or not (values["workspace"] or values["repo"]):
            return None
        from ..repository.address import Repository
        from .early import SessionReader
        from .session import container_name

        name = values["workspace"] or Repository.parse(values["repo"], values["default_host"]).slug
        return SessionReader(container_name(owner, name))


KIND = DockerKind()
