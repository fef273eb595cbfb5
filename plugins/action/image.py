# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `image`: provide the workspace image on the engine, release it, or remove it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import preparation

if TYPE_CHECKING:
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.image.identity import Image

DONE = {
    "build": "built",
    "verify": "verified",
    "describe": "described",
    "push": "pushed",
    "archive": "archived",
    "record": "recorded",
}
"""Past tense of a release's steps."""


class ActionModule(ansible_action.FlowAction):
    OWN = {
        "state": {"type": "str", "choices": ["present", "absent", "archived", "released"], "default": "present"},
        "registry": {"type": "str", "default": ""},
        "archive": {"type": "bool", "default": False},
        "keep": {"type": "int", "default": -1},
        "in_use": {"type": "list", "elements": "str", "default": []},
    }
    VALUES = (
        "output",
        "profile",
        *(option.name for option in settings_options.OPTIONS.values() if option.scope == "image"),
    )
    DOING = "manage the workspace image"

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import build as image_build
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import engine as image_engine
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

        options = preparation.image_options(self.values)
        image = image_identity.identity(self.values["profile"])
        if self.own["state"] == "released" and self.values["image_release"]:
            return self._released(image, options)
        if self.own["state"] == "archived":
            return self._archived(image, options)
        present = self.own["state"] != "absent"
        changed = image_engine.present(image) != present
        if changed and not self._task.check_mode:
            changed = image_build.ensure(image, options, self.progress) if present else image_engine.remove(image)
        state = {True: "present", False: "absent"}
        msg = f"The image {image.tag} is {state[present]}{'' if changed else ' (unchanged)'}."
        if changed and self._task.check_mode:
            msg = f"Check mode: {msg}"
        before = {"tag": image.tag, "state": state[present != changed]}
        return self.finish(
            {
                "changed": changed,
                "msg": msg,
                "image": {"tag": image.tag, "hash": image.hash, "profile": image.profile},
                "diff": {"before": before, "after": {**before, "state": state[present]}},
            },
            ["", msg],
        )

    def _archived(self, image: Image, options: dict[str, Any]) -> dict[str, Any]:
        """Create an archive for machines that load the image without a registry. Changes only the cache."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import build as image_build

        path = "" if self._task.check_mode else str(image_build.archived(image, options, self.progress))
        msg = f"The image {image.tag} is in {path}." if path else f"Check mode: the image {image.tag} is archived."
        about = {"tag": image.tag, "hash": image.hash, "profile": image.profile, "archive": path}
        return self.finish({"changed": False, "msg": msg, "image": about}, ["", msg])

    def _released(self, image: Image, options: dict[str, Any]) -> dict[str, Any]:
        """Verify, describe, publish and record the image; nodes, templates and `up` read the record."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import release as image_release

        file = Path(self.values["image_release"]).expanduser().absolute()
        order = image_release.Order(file, *(self.own[name] for name in ("registry", "archive", "keep", "in_use")))
        made = image_release.make(image, options, order, self.progress, bool(self._task.check_mode))
        what = ", ".join(DONE[step] for step in made.steps)
        mode = "Check mode: " if self._task.check_mode and (made.steps or made.removed) else ""
        msg = f"{mode}The image {image.tag} is {f'current: {what}' if what else 'current (unchanged)'}."
        if made.removed:
            removed = "would be removed" if mode else "removed"
            msg += f" {len(made.removed)} of older ones {removed}: {', '.join(made.removed)}."
        about = {"profile": image.profile, **made.after}
        headers = {"before_header": str(file), "after_header": str(file)}
        result = {
            "steps": made.steps,
            "removed": made.removed,
            "diff": {"before": made.before, "after": made.after} | headers,
        }
        return self.finish(
            {"changed": bool(made.steps or made.removed), "msg": msg, "image": about, **result}, ["", msg]
        )
