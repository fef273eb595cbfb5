# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about the target coder before it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....module_utils._node.errors import InvalidInput

if TYPE_CHECKING:
    from ..workspace.checks import Check
    from ..workspace.models import Workspace
    from .target import CoderTarget


class CoderKind:
    """Implements ``TargetKind``."""

    name = "coder"
    has_server = True
    default_owner = "me"
    """The server knows the user by the token."""
    clones_directories = False

    def available(self, values: Mapping[str, Any], server: str = "") -> bool:
        from . import config

        return not values["node"] and bool(server or config.configured())

    def open(self, values: Mapping[str, Any], say: Callable[[str], None]) -> CoderTarget:
        from .client import CoderClient
        from .connection import connect
        from .target import CoderTarget

        if values["node"]:
            raise InvalidInput(
                "A node cannot be chosen with target=coder: the server's template places workspaces.",
                "Leave node out, or use target=docker.",
            )
        return CoderTarget(CoderClient(connect(say)), values["template"], values["wait_timeout"])

    def examine(
        self, values: Mapping[str, Any], server: str, say: Callable[[str], None], fetch: bool
    ) -> Sequence[Check]:
        from . import doctor
        from .connection import connect

        return doctor.examine(
            values["template"], lambda anonymous: connect(say, server, anonymous=anonymous), fetch=fetch
        )

    def ssh_host(self, workspace: Workspace) -> str:
        from . import ssh

        return ssh.host(workspace)

    def ssh_config(self, common: Mapping[str, str], key: Path, nodes: Mapping[str, str]) -> str:
        from . import ssh

        return ssh.config(common)


KIND = CoderKind()
