# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan the change of a workspace to a state, as a pure function of its current state."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ....module_utils._node.errors import Conflict, InvalidInput, NotFound
from .models import Workspace, WorkspaceSpec

if TYPE_CHECKING:
    pass


SLACK = 60.0
"""Tolerance in seconds for an earlier stop, because clocks differ."""
STATES = ("started", "stopped", "restarted", "kept", "absent")


@dataclass(frozen=True)
class Action:
    """One method of the target and the reason for it."""

    verb: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The planned actions. ``before`` and ``after`` make the diff; they are equal if nothing changes.

    ``clone``: the workspace exists without a repository and gets the specification's.
    """

    actions: tuple[Action, ...]
    before: dict[str, Any]
    after: dict[str, Any]
    msg: str
    notes: tuple[str, ...] = ()
    clone: bool = False

    @property
    def changed(self) -> bool:
        return bool(self.actions)

    @property
    def verbs(self) -> list[str]:
        return [action.verb for action in self.actions]

    @property
    def diff(self) -> dict[str, Any]:
        return {"before": self.before, "after": self.after}


def plan(
    actual: Workspace | None,
    spec: WorkspaceSpec,
    state: str,
    hours: float = 0.0,
    create: bool = True,
    name: str = "",
    now: float = 0.0,
) -> Plan:
    """Return the plan from ``actual`` to ``state``; ``name`` is the name of a new workspace.

    Raise ``InvalidInput`` (unknown state, hours), ``NotFound`` (nothing to change) and ``Conflict`` (the name belongs
    to another repository, or the workspace's state does not allow it).
    """
    if state not in STATES:
        raise InvalidInput(f"Unknown state {state!r}.", f"Use one of {', '.join(STATES)}.")
    if state == "kept" and not (math.isfinite(hours) and 0 <= hours <= 24):
        raise InvalidInput(
            f"Cannot keep a workspace alive for {hours:g} hours.", "Use hours from 0 (end the delay) to 24."
        )
    if actual is None:
        return _plan_nothing(spec, state, create, name)
    if spec.repository and actual.repo and spec.repository.identity != actual.repo:
        raise Conflict(
            f"Workspace {actual.name} belongs to {actual.repo}, not to {spec.repository.identity}.",
            "Choose another name, or omit the name.",
        )
    planners = {
        "started": _plan_started,
        "stopped": _plan_stopped,
        "restarted": _plan_restarted,
        "absent": _plan_absent,
    }
    if state == "kept":
        return _plan_kept(actual, hours, now)
    planned = planners[state](actual)
    if state not in ("started", "restarted") or spec.repository is None:
        return planned
    if not actual.repo and actual.kind == "dev":
        return _with_clone(planned, actual, spec.repository.identity)
    if spec.ref and actual.kind == "dev":
        note = (
            f"ref={spec.ref} only applies to a new clone, but workspace {actual.name} already exists. Run inside: git "
            f"switch {spec.ref}"
        )
        return replace(planned, notes=(*planned.notes, note))
    return planned


def _seen(workspace: Workspace) -> dict[str, Any]:
    return {
        "name": workspace.name,
        "repo": workspace.repo,
        "state": workspace.state,
        "outdated": list(workspace.outdated),
    }


def _plan_nothing(spec: WorkspaceSpec, state: str, create: bool, name: str) -> Plan:
    title = spec.title or "for this repository"
    gone = {"state": "absent"}
    if state == "absent":
        return Plan((), gone, gone, f"Workspace {title} does not exist (unchanged).")
    if state == "started" and create and spec.repository is not None:
        name = name or spec.name or spec.repository.slug
        after = {"name": name, "repo": spec.repository.identity, "state": "running", "outdated": []}
        actions = (Action("create", "the repository does not have one"), Action("start", "it is new"))
        return Plan(actions, gone, after, f"Workspace {name} created for {spec.repository.identity} and started.")
    raise NotFound(
        f"Workspace {title}{spec.owner_phrase} does not exist.",
        "List workspaces: ansible-playbook spt.flow.status. "
        "Create one: ansible-playbook spt.flow.up -e repo=https://host/owner/name.git",
        {"owner": spec.owner, "workspace": spec.name},
    )


def _plan_started(actual: Workspace) -> Plan:
    before = _seen(actual)
    notes = (_outdated(actual),) if actual.outdated else ()
    if actual.state == "running":
        return Plan((), before, before, f"Workspace {actual.name} is running (unchanged).", notes)
    actions = [Action("start", f"it is {actual.state}")]
    if not actual.id:
        actions.insert(0, Action("create", "only its home exists"))
    after = {**before, "state": "running"}
    return Plan(tuple(actions), before, after, f"Workspace {actual.name} started.", notes)


def _with_clone(planned: Plan, actual: Workspace, identity: str) -> Plan:
    """Add the clone of a first repository; a start or restart includes it."""
    actions = planned.actions or (Action("clone", "it does not have a repository"),)
    msg = planned.msg.removesuffix(".") if planned.actions else f"Workspace {actual.name} is running"
    return replace(
        planned,
        actions=actions,
        after={**planned.after, "repo": identity},
        msg=f"{msg} with a new clone of {identity}.",
        clone=True,
    )


def _outdated(actual: Workspace) -> str:
    return (
        f"Workspace {actual.name} is outdated ({' and '.join(actual.outdated)}); restart it to update: "
        f"ansible-playbook spt.flow.restart -e workspace={actual.name}"
    )


def _plan_stopped(actual: Workspace) -> Plan:
    before = _seen(actual)
    if actual.state in ("stopped", "failed"):
        return Plan((), before, before, f"Workspace {actual.name} is {actual.state} (unchanged).")
    if actual.kind == "ci":
        return Plan(
            (Action("stop", f"it is {actual.state}"),),
            before,
            {"state": "absent"},
            f"Workspace {actual.name} stopped and deleted, like all CI workspaces.",
        )
    after = {**before, "state": "stopped"}
    return Plan((Action("stop", f"it is {actual.state}"),), before, after, f"Workspace {actual.name} stopped.")


def _plan_restarted(actual: Workspace) -> Plan:
    before = _seen(actual)
    reason = f"its {' and '.join(actual.outdated)} changed" if actual.outdated else "a restart was requested"
    after = {**before, "state": "running", "outdated": []}
    return Plan((Action("restart", reason),), before, after, f"Workspace {actual.name} restarted.")


def _plan_absent(actual: Workspace) -> Plan:
    return Plan(
        (Action("delete", "its state should be absent"),),
        _seen(actual),
        {"state": "absent"},
        f"Workspace {actual.name} deleted.",
    )


def _plan_kept(actual: Workspace, hours: float, now: float) -> Plan:
    """Move the stop, but never to an earlier time, except with ``hours=0``."""
    if actual.kind == "ci":
        raise Conflict(
            f"Cannot keep workspace {actual.name} alive: the deadline of a CI workspace cannot be changed.",
            "Raise the TTL of the next run: ansible-playbook spt.flow.ci -e ttl=1h",
        )
    if actual.state != "running":
        raise Conflict(
            f"Cannot keep workspace {actual.name} alive: it is {actual.state}.",
            f"Start it: ansible-playbook spt.flow.up -e workspace={actual.name}",
        )
    before = _seen(actual)
    life = actual.life
    if life.reason and life.stops_at is None:
        msg = f"Workspace {actual.name} has no idle stop to delay (unchanged)."
        return Plan((), before, before, msg)
    left = (life.stops_at or 0) - now
    if hours and now and left >= hours * 3600 - SLACK:
        msg = (
            f"Workspace {actual.name} already runs for {left / 3600:.1f} more hours (unchanged). hours=0 cancels that."
        )
        return Plan((), before, before, msg)
    msg = (
        f"Workspace {actual.name} kept alive for {hours:g} hours."
        if hours
        else (f"Workspace {actual.name} is no longer kept alive.")
    )
    return Plan((Action("keepalive", "it was requested"),), before, {**before, "keepalive_hours": hours}, msg)
