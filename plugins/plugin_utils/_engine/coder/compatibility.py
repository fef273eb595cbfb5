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
"""Oldest supported release of Coder, for its security fixes; role ``coder_server`` installs no older one."""
RELEASE = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?=[-+])", re.ASCII)
UPGRADE = "ansible-galaxy collection install --upgrade spt.flow"


def refuse_old_server(version: str, url: str) -> None:
    """Raise ``Unhealthy`` for a server that lacks security fixes. An unreadable version is a development build."""
    found = _numbers(version.removeprefix("v"))
    if found and found < OLDEST and "devel" not in version:
        raise Unhealthy(
            f"The Coder server {url} is {_dotted(found)}; spt.flow needs at least {_dotted(OLDEST)}, which has "
            "security fixes.",
            "Ask the server's administrator to upgrade it: ansible-playbook spt.flow.coder_server",
        )


def release_of(found: Json) -> tuple[int, ...]:
    """Return the collection's release of a workspace's template, as numbers, or nothing if the version's name does not
    contain it.

    See docs/decisions/coder-template-versions.md: ``<release>-<content>``.
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
    """Return a line if the minor release differs. Patch releases are compatible."""
    there, here = release_of(found), _numbers(ours)
    if not (there and here) or there[:2] == here[:2]:
        return ""
    newer = there[:2] > here[:2]
    words = "newer" if newer else "older"
    do = UPGRADE if newer else f"ansible-playbook spt.flow.restart -e workspace={found['name']}"
    then = "upgrade your collection" if newer else "once its server has a new template, a restart brings it up to date"
    return f"Workspace {found['name']} comes from a {words} spt.flow ({_dotted(there)}, this is {ours}); {then}: {do}"


def refuse_other_release(found: Json, ours: str) -> None:
    """Raise ``Conflict`` for a workspace of another major release.

    One with an available update may still be restarted.
    """
    there, here = release_of(found), _numbers(ours)
    if not (there and here) or there[0] == here[0] or (there[0] < here[0] and found["outdated"]):
        return
    do = UPGRADE if there[0] > here[0] else f"ansible-galaxy collection install spt.flow:=={_dotted(there)}"
    raise Unhealthy(
        f"Workspace {found['name']} comes from spt.flow {_dotted(there)}, which is not compatible with this one "
        f"({ours}).",
        f"{'Upgrade' if there[0] > here[0] else 'Install the one that matches its server'}: {do}",
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
