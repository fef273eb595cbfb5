# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn resolved values into engine objects: the specification of a workspace and its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ansible import constants as C

from ...module_utils._node.errors import InvalidInput, NotFound
from .._engine.settings import workspace as settings_workspace
from .._engine.workspace import kinds
from . import guard as ansible_guard
from .values import display

if TYPE_CHECKING:
    from .._engine.coder.http import CoderHttp
    from .._engine.workspace.models import Workspace, WorkspaceSpec
    from .._engine.workspace.target import Target


EXAMPLE_UP = "Create one: ansible-playbook spt.flow.up -e repo=https://host/owner/name.git"


def make_spec(values: Mapping[str, Any]) -> WorkspaceSpec:
    """The workspace that ``values``, resolved ones, describe; its author is asked for when it is created."""
    from .._engine.image import choice as image_choice
    from .._engine.image import identity as image_identity
    from .._engine.repository.address import Repository, parse_dotfiles
    from .._engine.workspace.models import WorkspaceSpec

    kind = kinds.chosen(values)
    # Nodes and servers have the image that the inventory names; this machine's engine may have another one.
    choose = image_identity.current if kind.has_server or values.get("engine") else image_choice.image_for
    image = choose(values["profile"], values["image_release"])
    repo, dotfiles, host = values["repo"], values["dotfiles"], values["default_host"]
    ansible_guard.refuse_configuration_of_repository(repo, C.CONFIG_FILE)
    return WorkspaceSpec(
        owner=kinds.owner_of(values),
        settings=replace(settings_workspace.Settings.of(values), profile=image.profile),
        name=values["workspace"],
        repository=Repository.parse(repo, host) if repo else None,
        ref=values["ref"],
        dotfiles=parse_dotfiles(dotfiles, host) if dotfiles else "",
        image=image.tag,
        image_hash=image.hash,
    )


def engine_of(node: str, task_vars: Mapping[str, Any]) -> str:
    """Return the address of the engine of an inventory's ``node``; empty without a node."""
    if not node:
        return ""
    from .._engine.controller import inventory as controller_inventory

    return controller_inventory.engine_of(node, task_vars.get("groups") or {}, task_vars.get("hostvars") or {})


def open_target(values: dict[str, Any]) -> Target:
    """Return the target that ``values`` name, without a request. Replace `auto` in ``values`` by the target's name."""
    kind = kinds.chosen(values)
    values["target"] = kind.name
    return kind.open(values, display.warning)


def coder_http(url: str = "", token: str = "", anonymous: bool = False) -> CoderHttp:
    """Return the client of a Coder server, as ``connect`` finds it; warnings go to the screen."""
    from .._engine.coder.connection import connect

    return connect(display.warning, url, token, anonymous)


def read_workspaces(values: dict[str, Any]) -> list[Workspace]:
    """Return the workspace that ``values`` name, otherwise all of the owner's, each with its outdated parts."""
    target = open_target(values)
    spec = make_spec(values)
    found = target.list(spec.owner, details=True, sizes=values["size"])
    if spec.name or spec.repository:
        identity = spec.repository.identity if spec.repository else ""
        found = [w for w in found if (w.name.lower() == spec.name if spec.name else w.repo == identity)]
        if not found:
            raise NotFound(f"Workspace {spec.title}{spec.owner_phrase} does not exist.", EXAMPLE_UP)
    found = sorted(found, key=lambda w: w.name)
    # A server with its own settings and image has already reported outdated parts.
    return [replace(w, outdated=w.differs_from(spec)) for w in found] if target.client_prepares else found


def find_one(target: Target, values: Mapping[str, Any]) -> Workspace:
    """Return the workspace that ``values`` name, or the owner's only one. Raise ``NotFound`` or ``InvalidInput``."""
    spec = make_spec(values)
    if spec.name or spec.repository:
        found = target.find(spec)
        if found is None:
            raise NotFound(
                f"Workspace {spec.title}{spec.owner_phrase} does not exist.",
                "List workspaces: ansible-playbook spt.flow.status",
            )
        return found
    mine = target.list(spec.owner)
    if not mine:
        raise NotFound(f"There is no workspace{spec.owner_phrase}.", EXAMPLE_UP)
    if len(mine) > 1:
        names = ", ".join(sorted(w.name for w in mine))
        raise InvalidInput(
            f"There are {len(mine)} workspaces{spec.owner_phrase}: {names}.", f"Name one: -e workspace={mine[0].name}"
        )
    return mine[0]
