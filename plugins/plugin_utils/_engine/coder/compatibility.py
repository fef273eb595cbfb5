# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare the versions of the Coder server, the template and this collection."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ....module_utils._node.errors import (
    Unhealthy,
)
from .client import Json

if TYPE_CHECKING:
    pass


OLDEST = (2, 34, 8)
"""The oldest release of Coder, for its security fixes; role ``coder_server`` installs none before it."""
RELEASE = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?=[-+])", re.ASCII)
UPGRADE = "ansible-galaxy collection install --upgrade spt.flow"


def refuse_old_server(version: str, url: str) -> None:
    """Refuse a server that lacks security fixes; one whose version does not tell is a developer's."""
    found = _numbers(version.removeprefix("v"))
    if found and found < OLDEST and "devel" not in version:
        raise Unhealthy(
            f"The Coder server {url} is {_dotted(found)}; spt.flow goes together with {_dotted(OLDEST)} and newer,"
            " which have fixes of its security.",
            "Whoever runs the server upgrades it: ansible-playbook spt.flow.coder_server",
        )


def release_of(found: Json) -> tuple[int, ...]:
    """The collection's release that a workspace's template came with, as numbers; empty when its version's name does
    not tell (docs/decisions/coder-template-versions.md: ``<release>-<content>``).
    """
    return _released(str(found["latest_build"].get("template_version_name") or ""))


def refuse_other_template(name: str, version: str, ours: str) -> None:
    """Refuse to create a workspace from a template of another major release."""
    there, here = _released(version), _numbers(ours)
    if not (there and here) or there[0] == here[0]:
        return
    newer = there[0] > here[0]
    do = (
        f"Upgrade: {UPGRADE}" if newer else "The server's administrator updates the template: ansible-playbook site.yml"
    )
    raise Unhealthy(
        f"Cannot create a workspace: template {name} comes from spt.flow {_dotted(there)}, which {ours} cannot use.",
        do,
        {"template": _dotted(there), "collection": ours},
    )


def release_note(found: Json, ours: str) -> str:
    """A line where the minor release is another one; what is patched goes together."""
    there, here = release_of(found), _numbers(ours)
    if not (there and here) or there[:2] == here[:2]:
        return ""
    newer = there[:2] > here[:2]
    words = "newer" if newer else "older"
    do = UPGRADE if newer else f"ansible-playbook spt.flow.restart -e workspace={found['name']}"
    then = "upgrade yours" if newer else "once its server has a new template, a restart brings it up to date"
    return f"Workspace {found['name']} comes from a {words} spt.flow ({_dotted(there)}, this is {ours}); {then}: {do}"


def refuse_other_release(found: Json, ours: str) -> None:
    """Refuse a workspace of another major release; one whose update is there already may still be restarted."""
    there, here = release_of(found), _numbers(ours)
    if not (there and here) or there[0] == here[0] or (there[0] < here[0] and found["outdated"]):
        return
    do = UPGRADE if there[0] > here[0] else f"ansible-galaxy collection install spt.flow:=={_dotted(there)}"
    raise Unhealthy(
        f"Workspace {found['name']} comes from spt.flow {_dotted(there)}, which this one ({ours}) does not go together"
        " with.",
        f"{'Upgrade' if there[0] > here[0] else 'Install the one that goes with its server'}: {do}",
        {"workspace": _dotted(there), "collection": ours},
    )


def _released(version_name: str) -> tuple[int, ...]:
    match = RELEASE.match(version_name)
    return tuple(map(int, match.groups())) if match else ()


def _numbers(text: str) -> tuple[int, ...]:
    match = RELEASE.match(f"{text}-")
    return tuple(map(int, match.groups())) if match else ()


def _dotted(numbers: Iterable[int]) -> str:
    return ".".join(map(str, numbers))
