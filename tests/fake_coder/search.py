# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The grammar of ``q`` for workspaces."""

from __future__ import annotations

import re
from collections.abc import Callable

from .accounts import User
from .rules import Refused
from .state import State, Workspace

_WORD = re.compile(r'(?:[^\s"]|"[^"]*")+')
LISTS = ("id", "has-agent", "param")
KEYS = frozenset({
    "owner", "name", "template", "id", "status", "has-agent", "outdated", "dormant", "healthy", "organization",
    "last_used_before", "last_used_after", "param",
})  # fmt: skip
STATUSES = frozenset({
    "pending", "starting", "running", "stopping", "stopped", "failed", "canceling", "canceled", "deleted", "deleting",
})  # fmt: skip
Test = Callable[[State, Workspace, str], bool]


def _terms(query: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for word in _WORD.findall(query.lower()):
        key, colon, value = word.partition(":")
        if not colon:
            owner, slash, name = word.replace('"', "").rpartition("/")
            found += [("owner", owner), ("name", name)] if slash else [("name", name)]
            continue
        if not key or not value or (value.endswith(":") and not value.endswith('"')):
            raise Refused(
                400, "Invalid workspace search query.", q=f"Query element {word!r} cannot start or end with ':'"
            )
        found.append((key, value.replace('"', "")))
    return found


def workspaces(state: State, asker: User, query: str) -> list[Workspace]:
    """Return the matching workspaces that the caller may see, sorted like the server: running ones first, by name."""
    terms = _terms(query)
    keys = [key for key, _value in terms]
    unknown = sorted(set(keys) - KEYS)
    if unknown:
        raise Refused(400, "Invalid workspace search query.", **dict.fromkeys(unknown, "is not a valid query param"))
    twice = sorted({key for key in keys if keys.count(key) > 1 and key not in LISTS})
    if twice:
        raise Refused(400, "Invalid workspace search query.", **dict.fromkeys(twice, "provided more than once"))
    _check(terms)
    now = state.now
    seen = [
        w for w in state.workspaces.values() if w.owner == asker.id or asker.may("template-admin", "organization-admin")
    ]
    if ("status", "deleted") not in terms:
        seen = [w for w in seen if not w.deleted(now)]
    for key, value in terms:
        seen = [
            w
            for w in seen
            if _TESTS[key](state, w, asker.username.lower() if (key, value) == ("owner", "me") else value)
        ]
    return sorted(seen, key=lambda w: (w.latest.status(now) != "running", state.users[w.owner].username, w.name))


def _check(terms: list[tuple[str, str]]) -> None:
    """Check the values of one key; those of lists are separated by commas."""
    for key, value in terms:
        wrong = key == "status" and value not in STATUSES
        if key == "param":
            wrong = any(one.count("=") > 1 or one.endswith("=") for one in value.split(","))
        if wrong:
            raise Refused(400, "Invalid workspace search query.", **{key: f"{value!r} is not a valid value"})


def _agent(state: State, workspace: Workspace) -> str:
    agent = workspace.latest.agent
    return agent.status(state.now) if agent and workspace.latest.status(state.now) == "running" else ""


def _parameter(state: State, workspace: Workspace, value: str) -> bool:
    """Match any of several values separated by commas; case does not matter."""
    values = {key.lower(): text.lower() for key, text in workspace.latest.parameters.items()}
    wanted = [one.partition("=") for one in value.split(",")]
    return any(name in values and (not equals or values[name] == text) for name, equals, text in wanted)


_TESTS: dict[str, Test] = {
    "owner": lambda s, w, v: s.users[w.owner].username.lower() == v,
    "name": lambda s, w, v: v in w.name.lower(),
    "template": lambda s, w, v: s.templates[w.template].name.lower() == v,
    "id": lambda s, w, v: w.id in v.split(","),
    "status": lambda s, w, v: w.latest.status(s.now) == v,
    "has-agent": lambda s, w, v: _agent(s, w) == v,
    "outdated": lambda s, w, v: (w.latest.version != s.templates[w.template].active) == (v == "true"),
    "dormant": lambda s, w, v: v != "true" or w.dormant is not None,
    "healthy": lambda s, w, v: _agent(s, w) in (("connected",) if v == "true" else ("disconnected", "timeout")),
    "organization": lambda s, w, v: v in ("default", "coder", s.organization),
    "last_used_before": lambda s, w, v: w.used < _parse_time(v),
    "last_used_after": lambda s, w, v: w.used > _parse_time(v),
    "param": _parameter,
}


def _parse_time(text: str) -> float:
    from datetime import datetime

    try:
        return datetime.fromisoformat(text.upper()).timestamp()
    except ValueError:
        raise Refused(400, "Invalid workspace search query.", last_used="must be a valid date") from None
