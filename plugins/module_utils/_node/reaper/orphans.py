# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Orphans: what a node still holds of workspaces that were deleted on their Coder server.

They stay when the server deletes a workspace whose Terraform state was lost, as in an outage of its database. A node
cannot know that, so it names the workspaces of its objects, and the server says which of them it has deleted. A
workspace that the server does not know is never counted: it may belong to another server.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import quote

from ..docker.http import Engine, connect
from ..errors import NotFound
from ..labels import LABEL
from . import engine as reaper
from .engine import Expired, Listed, Report

GONE = 410
"""Status that a server (v2.35.1) answers about a workspace that it has deleted; 404 is one that it does not know."""
WHY = "its workspace was deleted on the Coder server"


def workspaces(listed: Listed) -> list[str]:
    """Return the ids of the Coder workspaces of all containers and volumes."""
    entries = [*listed.containers, *listed.volumes]
    return sorted({str(found) for entry in entries if (found := (entry.get("Labels") or {}).get(f"{LABEL}coder"))})


def deleted(api: Callable[..., Any], ids: Collection[str]) -> list[str]:
    """Return those of ``ids`` that the server has deleted. Raise ``FlowError`` if it does not answer."""
    found = []
    for one in sorted(set(ids)):
        try:
            api("GET", f"/workspaces/{quote(one, safe='')}")
        except NotFound as error:
            if error.details.get("status") == GONE:
                found.append(one)
    return found


def plan(listed: Listed, gone: Collection[str]) -> tuple[list[Expired], list[str]]:
    """Return what to delete of the workspaces ``gone``, and the names of their homes, which are never deleted."""
    entries, homes = [], []
    for entry in listed.containers:
        if reaper._key(entry) in gone:
            running = entry.get("State") == "running"
            entries.append(Expired("container", str(entry["Id"]), entry["Names"][0].lstrip("/"), WHY, 0.0, running))
    for entry in listed.volumes:
        if reaper._labelled(entry) not in gone:
            continue
        name = str(entry["Name"])
        if reaper._is_part(entry, "docker"):
            # Without its time: the end of the container changes it, and no other volume ever has this name.
            entries.append(Expired("volume", f"volume {name}", name, WHY, 0.0))
        elif reaper._is_part(entry, "home"):
            homes.append(name)
    return entries, homes


def sweep(gone: Collection[str], dry: bool = False, engine: Engine | None = None) -> Report:
    """Delete the orphans of the workspaces ``gone``, containers before volumes. Raise ``FlowError``."""
    engine = engine or connect()
    report = Report()
    report.expired, report.homes = plan(reaper.read(engine), gone)
    for entry in [] if dry else report.expired:
        problem = reaper._delete(engine, entry)
        if problem:
            report.failed[entry.name] = problem
        else:
            report.reaped.append(entry.name)
    return report
