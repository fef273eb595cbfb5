# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts whose credentials a workspace needs, by what its user and its target say about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..identity.record import Record
from .clone import LOCAL
from .models import Workspace


def record(workspace: Workspace, values: Mapping[str, Any], own: bool, inventory: Mapping[str, Any]) -> Record:
    """Return the record of a workspace that is entered with ``values``.

    The repository's identity is kept by the target, so a process inside cannot change it.
    """
    hosts = set()
    if workspace.repo and not workspace.repo.startswith(LOCAL):
        hosts.add(workspace.repo.partition("/")[0])
    if values["dotfiles"]:
        from ..repository.address import Repository

        address = values["dotfiles"].partition("#")[0]
        hosts.add(Repository.parse(address, values["default_host"], "dotfiles").identity.partition("/")[0])
    given = {name: value for name, value in inventory.items() if value is not None}
    return Record(own and workspace.kind == "dev", tuple(sorted(hosts)), given)
