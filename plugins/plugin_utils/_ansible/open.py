# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn resolved values into engine objects: the specification of a workspace and the target that runs it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ansible import constants as C

from ...module_utils._node.errors import InvalidInput, NotFound
from .._engine.common.progress import Progress
from .._engine.settings import options as settings_options
from .._engine.settings import resolve as settings_resolve
from .._engine.settings import workspace as settings_workspace
from . import guard as ansible_guard
from .values import display

if TYPE_CHECKING:
    from .._engine.coder.http import CoderHttp
    from .._engine.workspace.models import Workspace, WorkspaceSpec
    from .._engine.workspace.target import Target


EXAMPLE_UP = "Create one: ansible-playbook spt.flow.up -e repo=https://host/owner/name.git"


def make_spec(values: Mapping[str, Any]) -> WorkspaceSpec:
    """The workspace that ``values``, resolved ones, describe; its author is asked for when it is created."""
    from .._engine.image import identity as image_identity
    from .._engine.repository.address import Repository, parse_dotfiles
    from .._engine.workspace.models import WorkspaceSpec

    image = image_identity.current(values["profile"], values["image_release"])
    repo, dotfiles, host = values["repo"], values["dotfiles"], values["default_host"]
    ansible_guard.refuse_configuration_of_repository(repo, C.CONFIG_FILE)
    return WorkspaceSpec(
        owner=owner_of(values),
        settings=settings_workspace.Settings.of(values),
        name=values["workspace"],
        repository=Repository.parse(repo, host) if repo else None,
        ref=values["ref"],
        dotfiles=parse_dotfiles(dotfiles, host) if dotfiles else "",
        image=image.tag,
        image_hash=image.hash,
    )


def owner_of(values: Mapping[str, Any]) -> str:
    """Return the given owner, else the login name, on Coder ``me`` (docs/decisions/identity-and-names.md)."""
    return str(values["owner"]) or ("me" if values["target"] == "coder" else settings_resolve.default_owner())


def engine_of(node: str, task_vars: Mapping[str, Any]) -> str:
    """Address of the engine of an inventory's ``node``; empty for the one that is used without a node."""
    if not node:
        return ""
    from .._engine.controller import inventory as controller_inventory

    return controller_inventory.engine_of(node, task_vars.get("groups") or {}, task_vars.get("hostvars") or {})


def git_identity(values: Mapping[str, Any]) -> dict[str, str]:
    """``name`` and ``email`` for commits: the user's values, else what the caller's git says outside repositories."""
    wanted = {"name": str(values["git_name"]), "email": str(values["git_email"])}
    if all(wanted.values()):
        return wanted
    argv = ["git", "config", "--null", "--get-regexp", r"^user\.(name|email)$"]
    # Not in the current directory, whose repository may be somebody else's.
    environ = {name: text for name, text in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    place: dict[str, Any] = {"cwd": "/", "env": environ, "stdin": subprocess.DEVNULL}
    try:
        said = subprocess.run(argv, capture_output=True, timeout=10, check=False, **place).stdout
    except (OSError, subprocess.TimeoutExpired):
        return wanted
    for entry in said.decode(errors="replace").split("\0"):
        key, _newline, value = entry.partition("\n")
        part = key.removeprefix("user.")
        if part in wanted and not str(values[f"git_{part}"]):
            wanted[part] = value
    return wanted


def open_target(values: dict[str, Any]) -> Target:
    """The target that ``values`` name, which name it plainly from then on; nothing is asked yet."""
    values["target"] = target_name(values)
    if values["target"] == "coder":
        return _open_coder(values)
    from .._engine.docker.target import DockerTarget

    return DockerTarget(values["engine"], values["node"] if values["engine"] else "")


def target_name(values: Mapping[str, Any]) -> str:
    """``auto`` means Coder where a server and a token are at hand, unless a node is named."""
    if values["target"] != "auto":
        return str(values["target"])
    from .._engine.coder import config as coder_config

    return "coder" if not values["node"] and coder_config.configured() else "docker"


def coder_http(url: str = "", token: str = "", anonymous: bool = False) -> CoderHttp:
    """The way to a Coder server: what is given, else what the environment and the CLI's configuration say.

    ``anonymous``: without a token, for what a server tells everybody and for signing in.
    """
    from .._engine.coder import config as coder_config
    from .._engine.coder.http import CoderHttp

    given = {"CODER_URL": url, "CODER_SESSION_TOKEN": token}
    config = coder_config.load({**os.environ, **{name: value for name, value in given.items() if value}})
    if anonymous:
        return CoderHttp(replace(config, token="", source=""), say=display.warning)
    return CoderHttp(coder_config.require_token(config), say=display.warning)


def _open_coder(values: Mapping[str, Any]) -> Target:
    from .._engine.coder.client import CoderClient
    from .._engine.coder.target import CoderTarget

    if values["node"]:
        raise InvalidInput(
            "A node is of no use with target=coder: the server's template places workspaces.",
            "Leave node away, or use target=docker.",
        )
    return CoderTarget(CoderClient(coder_http()), values["template"], values["wait_timeout"])


class PreparedTarget:
    """A target that sees to what only a created or restarted workspace needs: the image, and who writes its commits."""

    def __init__(self, target: Target, values: Mapping[str, Any]) -> None:
        self._target = target
        self._values = values

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def create(self, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        return self._target.create(self._furnish(spec, progress), progress)

    def restart(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        return self._target.restart(workspace, self._furnish(spec, progress), progress)

    def prepare(self, progress: Progress) -> None:
        """Have the image where that is our business: on Coder and on other machines it has been brought before."""
        from .._engine.image import build as image_build
        from .._engine.image import identity as image_identity

        if not self._target.client_prepares or self._values.get("engine"):
            return
        image = image_identity.current(self._values["profile"], self._values["image_release"])
        if self._values["image_release"]:
            from .._engine.image import release as image_release

            if image_release.taken(image, progress):
                return
        image_build.ensure(image, image_options(self._values), progress)

    def _furnish(self, spec: WorkspaceSpec, progress: Progress) -> WorkspaceSpec:
        if not self._target.client_prepares:
            return spec
        self.prepare(progress)
        author = git_identity(self._values)
        return replace(spec, git_name=author["name"], git_email=author["email"])


def image_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that say how an image is built."""
    return {o.name: values[o.name] for o in settings_options.OPTIONS.values() if o.scope == "image"}


def read_workspaces(values: dict[str, Any]) -> list[Workspace]:
    """The workspace that ``values`` name, else all of the owner's, each with what is outdated about it."""
    target = open_target(values)
    spec = make_spec(values)
    found = target.list(spec.owner, details=True, sizes=values["size"])
    if spec.name or spec.repository:
        identity = spec.repository.identity if spec.repository else ""
        found = [w for w in found if (w.name == spec.name if spec.name else w.repo == identity)]
        if not found:
            raise NotFound(f"There is no workspace {spec.title}{spec.owner_phrase}.", EXAMPLE_UP)
    wanted = {"settings": spec.settings.hash(), "image": spec.image_hash}
    return [replace(w, outdated=differing(w, wanted)) for w in sorted(found, key=lambda w: w.name)]


def differing(workspace: Workspace, wanted: Mapping[str, str]) -> tuple[str, ...]:
    """What is outdated: which of the hashes that a workspace was created with are not the ``wanted`` ones.

    On a Coder server it is the template that decides, not what this client would ask for.
    """
    if workspace.target == "coder":
        return workspace.outdated
    has = {"settings": workspace.settings_hash, "image": workspace.image_hash}
    return tuple(name for name, value in wanted.items() if value and has[name] and has[name] != value)


def find_one(target: Target, values: Mapping[str, Any]) -> Workspace:
    """The workspace that ``values`` name, or the owner's only one; raises ``NotFound`` or ``InvalidInput``."""
    spec = make_spec(values)
    if spec.name or spec.repository:
        found = target.find(spec)
        if found is None:
            raise NotFound(
                f"There is no workspace {spec.title}{spec.owner_phrase}.",
                "See what there is: ansible-playbook spt.flow.status",
            )
        return found
    mine = target.list(spec.owner)
    if not mine:
        raise NotFound(f"There is no workspace{spec.owner_phrase}.", EXAMPLE_UP)
    if len(mine) > 1:
        names = ", ".join(sorted(w.name for w in mine))
        raise InvalidInput(
            f"There are {len(mine)} workspaces{spec.owner_phrase}: {names}.", f"Say which: -e workspace={mine[0].name}"
        )
    return mine[0]
