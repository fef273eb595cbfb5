# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter `image_identity`: what the workspace image of a profile is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils import _image_identity


def image_identity(profile: str) -> dict[str, str]:
    """``tag``, ``hash`` and ``profile`` of the image that this version of the collection describes."""
    image = _image_identity.identity(str(profile))
    return {**asdict(image), "tag": image.tag}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"image_identity": image_identity}
