# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `devcontainer`: write a dev container configuration from the settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible import constants as C
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError, InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import guard as ansible_guard
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common import text as common_text
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import workspace as settings_workspace

if TYPE_CHECKING:
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.image.identity import Image


class ActionModule(ansible_action.FlowAction):
    OWN = {
        "path": {"type": "str", "default": ""},
        "image": {"type": "str", "default": ""},
        "apparmor": {"type": "bool", "default": False},
    }
    VALUES = (
        *("repo", "ref", "output", "default_host"),
        *(option.name for option in settings_options.OPTIONS.values() if option.scope == "workspace"),
    )
    DOING = "write the dev container"

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import devcontainer as docker_devcontainer
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

        # Ansible may have changed the current directory.
        folder = (
            Path(os.environ.get("PWD") or os.getcwd())
            / Path(self.own["path"]).expanduser()
            / docker_devcontainer.FOLDER
        )
        ansible_guard.refuse_configuration_of(str(folder.parent), C.CONFIG_FILE)
        settings = settings_workspace.Settings.of(self.values)
        current = image_identity.current(settings.profile, self.values["image_release"])
        image = self.own["image"] or current.reference or current.tag
        wanted = docker_devcontainer.files(
            settings, checked(image), self._repository(), self.values["ref"], self.own["apparmor"]
        )
        changes = docker_devcontainer.changes(folder, wanted)
        if changes and not self._task.check_mode:
            docker_devcontainer.write(folder, {name: text for name, (_before, text) in changes.items()})
        msg = f"The dev container {folder / 'devcontainer.json'} is {'written' if changes else 'up to date'}."
        if self._task.check_mode and changes:
            msg = f"Check mode: {folder / 'devcontainer.json'} would be written ({', '.join(changes)})."
        diff = [
            {"before": before, "after": after, "before_header": str(folder / name), "after_header": str(folder / name)}
            for name, (before, after) in changes.items()
        ]
        notes = self._notes(folder.parent, None if self.own["image"] or current.reference else current)
        result = {
            "changed": bool(changes),
            "msg": msg,
            "notes": notes,
            "files": [str(folder / name) for name in wanted],
            "image": image,
        }
        lines = ["", msg, f"  image       {image}", *(f"  note: {note}" for note in notes)]
        return self.finish({**result, "diff": diff}, lines)

    def _notes(self, folder: Path, local: Image | None) -> list[str]:
        """Return what the container lacks on this machine's engine; without an engine, it is for another machine.

        ``local`` is the image if no registry has it.
        """
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import devcontainer as docker_devcontainer
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.target import DockerTarget
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import engine as image_engine
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

        try:
            facts = DockerTarget().probe_engine()
            absent = local is not None and not image_engine.present(local)
        except FlowError:
            return []
        notes = [] if self.values["repo"] else [docker_devcontainer.missing_access(folder, facts)]
        if local and absent:
            build = f"Build it: ansible-playbook spt.flow.image -e profile={local.profile}"
            notes.append(f"{image_identity.missing('The engine of this machine', local.tag)} {build}")
        return [note for note in notes if note]

    def _repository(self) -> Any:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository

        if not self.values["repo"]:
            return None
        repository = Repository.parse(self.values["repo"], self.values["default_host"])
        if repository.kind == "local":
            raise InvalidInput(
                "repo is a local path, which a dev container cannot clone.",
                "Omit repo: the container then uses the directory with its file.",
            )
        return repository


def checked(image: str) -> str:
    """Return ``image`` if it is a valid reference, because it becomes part of the file."""
    import re

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}", image):
        raise InvalidInput(
            f"The image {common_text.redact_value(image)!r} is not an image reference.",
            "Use one of your registry, such as registry.example.org/spt-flow/workspace@sha256:…",
        )
    return image
