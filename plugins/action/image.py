# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `image`: have the workspace image on the engine, or take it away."""

from __future__ import annotations

from typing import Any

from ansible_collections.spt.flow.plugins.module_utils import _ansible, _settings


class ActionModule(_ansible.FlowAction):
    OWN = {"state": {"type": "str", "choices": ["present", "absent", "archived"], "default": "present"}}
    VALUES = ("output", "profile", *(option.name for option in _settings.OPTIONS.values() if option.scope == "image"))
    DOING = "look after the workspace image"

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.module_utils import _image, _image_identity

        options = _ansible.image_options(self.values)
        image = _image_identity.identity(self.values["profile"])
        if self.own["state"] == "archived":
            return self._archived(image, options)
        present = self.own["state"] == "present"
        changed = _image.present(image) != present
        if changed and not self._task.check_mode:
            changed = _image.ensure(image, options, self.progress) if present else _image.remove(image)
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

    def _archived(self, image: Any, options: dict[str, Any]) -> dict[str, Any]:
        """An archive for machines that get the image without a registry; changes nothing but the cache."""
        from ansible_collections.spt.flow.plugins.module_utils import _image

        path = "" if self._task.check_mode else str(_image.archived(image, options, self.progress))
        msg = f"The image {image.tag} lies in {path}." if path else f"Check mode: the image {image.tag} is archived."
        about = {"tag": image.tag, "hash": image.hash, "profile": image.profile, "archive": path}
        return self.finish({"changed": False, "msg": msg, "image": about}, ["", msg])
