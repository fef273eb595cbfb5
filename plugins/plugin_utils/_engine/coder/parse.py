# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn Coder's JSON into workspaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ....module_utils._node.errors import (
    InvalidInput,
)
from ..common import untrusted
from ..workspace.models import Liveness, Step, Workspace
from .client import Json, agents, app_url, moment

if TYPE_CHECKING:
    pass


CI_SUFFIX = "-ci"
"""Suffix of CI templates; their workspaces are deleted when stopped."""
APP = "ide"
FLUSH = 120.0
"""Delay in seconds with which the server reports a workspace's last use."""
STATES = {"running": "running", "stopped": "stopped", "failed": "failed", "canceled": "failed"}
"""By the status of the latest build; all others are in progress."""
ENDED_LIVES = frozenset({"start_error", "start_timeout", "shutting_down", "off", "shutdown_error", "shutdown_timeout"})
"""Final states of an agent's start script other than success."""


def from_json(found: Json, url: str, now: float, app_host: Callable[[], str] = str) -> Workspace:
    """Return a workspace from the server's description. ``url`` is the server's address, ``now`` the server's time."""
    build = found["latest_build"]
    about = metadata(found)
    state = STATES.get(build["status"], "building")
    agent = next(iter(agents(found)), None)
    ci = found["template_name"].endswith(CI_SUFFIX)
    stops = seconds(build.get("deadline"))
    ends = seconds(about.get("deadline"))
    workspace = Workspace(
        owner=found["owner_name"],
        name=found["name"],
        repo=_identity(about.get("repo", "")),
        kind="ci" if ci else "dev",
        state=state,
        target="coder",
        id=found["id"],
        created=found["created_at"],
        contract=about.get("contract", ""),
        settings_hash=about.get("settings", ""),
        image_hash=about.get("image", ""),
        deadline=int(ends) if ends else None,
        started=seconds(build["created_at"]),
        outdated=("template",) if found["outdated"] else (),
    )
    if state != "running":
        return workspace
    life = liveness_of(found, stops)
    if ci and ends:
        life = Liveness("a CI workspace lives until its deadline", workspace.started, ends)
    elif stops and is_extended(found, stops, now):
        life = replace(life, keepalive_until=stops, keepalive_by=f"{found['owner_name']} or an administrator")
    return replace(
        workspace,
        url=app_url(url, app_host, found, agent, APP) if agent else "",
        steps=(Step("ide", "running"),) if agent and agent["lifecycle_state"] in ("created", "starting") else (),
        life=life,
    )


def liveness_of(found: Json, stops: float | None) -> Liveness:
    """Return the liveness of a running workspace: the server delays its stop with use."""
    build = found["latest_build"]
    began = seconds(build["job"].get("completed_at")) or seconds(build["created_at"]) or 0.0
    if stops is None:
        return Liveness("it has no automatic stop", began)
    used = seconds(found.get("last_used_at")) or 0.0
    reason, since = ("it was used", used) if used > began + FLUSH else ("just started", began)
    return Liveness(reason, since, stops)


def is_extended(found: Json, stops: float, now: float) -> bool:
    """Return whether a user extended the stop: use alone never moves it beyond the workspace's time from now.

    Coder (v2.35.1) only tells auditors who it was.
    """
    return stops - now > (found.get("ttl_ms") or 0) / 1000 + 60


def agent_note(found: Json) -> str:
    """Return a line about an agent whose start script failed although its build succeeded."""
    agent = next(iter(agents(found)), None)
    state = agent["lifecycle_state"] if agent and found["latest_build"]["status"] == "running" else ""
    if state not in ("start_error", "start_timeout"):
        return ""
    failed = "failed" if state == "start_error" else "did not end in time"
    return (
        f"The start script of workspace {found['name']} {failed}: ansible-playbook spt.flow.logs"
        f" -e workspace={found['name']} shows why; a restart retries it."
    )


def metadata(found: Json) -> dict[str, str]:
    """Return all metadata of the latest build's resources."""
    resources: Sequence[Any] = found["latest_build"].get("resources") or []
    items = [item for resource in resources for item in resource.get("metadata") or []]
    return {str(item["key"]): untrusted.line(item["value"]) for item in items if not item.get("sensitive")}


def _identity(url: str) -> str:
    from ..repository.address import Repository

    try:
        return Repository.parse(url).identity if url else ""
    except InvalidInput:
        return url


def seconds(text: str | None) -> float | None:
    """Return epoch seconds of the API's time, or ``None`` for none, which the server also writes as the year 1."""
    if not text or text.startswith("0001-"):
        return None
    try:
        return untrusted.moment(moment(text).timestamp())
    except (ValueError, OverflowError, TypeError):
        return None  # users control a template's metadata
