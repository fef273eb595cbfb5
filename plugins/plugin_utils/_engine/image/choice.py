# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the profile of a laptop's workspaces: the team's where it can be had at once, else the small one."""

from __future__ import annotations

from ....module_utils._node.errors import FlowError
from .identity import AUTO, TEAM, Image, current, identities

SMALL = "slim"
LACKS = (
    f"The image is {SMALL}: Go, Rust, Node.js and more are in the image {TEAM}, which is not on this engine."
    f" Get it: ansible-playbook spt.flow.image -e profile={TEAM}, then restart the workspace."
)


def image_for(profile: str, release: str) -> Image:
    """Return the image of ``profile``; `auto` means the team's if the engine or the cache has it, or a release
    records it.
    """
    if profile != AUTO:
        return current(profile, release)
    try:
        if release:
            return current(TEAM, release)
        team, small = identities(TEAM, SMALL)
        return team if _at_hand(team) else small
    except FlowError:
        # Without the engine or the record the small image is the one that is asked for.
        return current(SMALL, release)


def _at_hand(image: Image) -> bool:
    from .cache import archive_of
    from .engine import present

    return present(image) or archive_of(image).exists()
