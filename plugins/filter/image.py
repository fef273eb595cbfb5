# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter `image_identity`: names of a profile's workspace image, and where it is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity_module


def image_identity(profile: str, release: str = "") -> dict[str, str]:
    """Return ``tag``, ``hash`` and ``profile`` of the image that ``release`` records, otherwise of this collection's
    own.
    """
    try:
        image = image_identity_module.current(str(profile), str(release))
    except FlowError as error:
        raise AnsibleFilterError(str(error))
    return {**asdict(image), "tag": image.tag}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"image_identity": image_identity}
