# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text at the end of a playbook: plain lines without animation and colour."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from .models import Result, Session, Workspace

COLUMNS = ("name", "state", "repository", "outdated", "since", "kept alive by", "stops", "snapshot")
UNKNOWN = "?"
NONE = "-"


def span(seconds: float) -> str:
    """Return ``seconds`` in at most two units: ``45s``, ``12m``, ``2h 5m``, ``3d 4h``."""
    whole = max(0, int(seconds))
    for limit, unit, name, part, part_name in ((86400, 86400, "d", 3600, "h"), (3600, 3600, "h", 60, "m")):
        if whole >= limit:
            rest = whole % unit // part
            return f"{whole // unit}{name}" + (f" {rest}{part_name}" if rest else "")
    return f"{whole // 60}m" if whole >= 60 else f"{whole}s"


def clock(moment: float, now: float) -> str:
    """Return the local time of ``moment`` (epoch seconds), with the date unless it is within a day of ``now``."""
    pattern = "%H:%M" if abs(moment - now) < 86400 else "%Y-%m-%d %H:%M"
    return time.strftime(pattern, time.localtime(moment))


def size(count: float) -> str:
    """Return ``count`` bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def stops(workspace: Workspace, now: float) -> str:
    """Return when the workspace will stop, as text."""
    life = workspace.life
    if workspace.state != "running":
        return NONE
    if workspace.deadline:
        return f"{clock(workspace.deadline, now)} (deleted)"
    if life.stops_at is None:
        return "never" if life.reason else UNKNOWN
    return clock(life.stops_at, now)


def kept_alive(workspace: Workspace, now: float) -> str:
    """Return why the workspace keeps running, as text."""
    life = workspace.life
    if workspace.state != "running":
        return NONE
    if life.keepalive_until and life.keepalive_until > now:
        by = f" by {life.keepalive_by}" if life.keepalive_by else ""
        return f"keep-alive until {clock(life.keepalive_until, now)}{by}"
    return life.reason or UNKNOWN


def _cells(workspace: Workspace, now: float) -> list[str]:
    return [
        workspace.name,
        workspace.state,
        workspace.repo or NONE,
        "+".join(workspace.outdated) or "no",
        span(now - workspace.started) if workspace.started else NONE,
        kept_alive(workspace, now),
        stops(workspace, now),
        clock(workspace.last_snapshot, now) if workspace.last_snapshot else NONE,
    ]


def _sizes(workspace: Workspace) -> str:
    return ", ".join(f"{name} {size(count)}" for name, count in (workspace.size or {}).items()) or UNKNOWN


def status(workspaces: Sequence[Workspace], width: int, now: float, sizes: bool = False) -> list[str]:
    """Return a table if it fits into ``width`` columns, otherwise two lines per workspace, and problems inside."""
    if not workspaces:
        return ["No workspaces. Create one: ansible-playbook spt.flow.up -e repo=https://host/owner/name.git"]
    head = [*COLUMNS, *(["size"] if sizes else [])]
    rows = [[*_cells(w, now), *([_sizes(w)] if sizes else [])] for w in workspaces]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    if sum(widths) + 2 * (len(widths) - 1) <= width:
        lines = ["  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in (head, *rows)]
    else:
        lines = []
        for row in rows:
            lines.append("  ".join(row[:3]))
            lines.append("  " + ", ".join(f"{name} {cell}" for name, cell in zip(head[3:], row[3:], strict=True)))
    return lines + [line for workspace in workspaces for line in _problems(workspace)]


def credentials(asked: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a line for each workspace that has asked for credentials; ``asked`` has the number of each verdict."""
    return [
        f"  note: {name}: requests for credentials: {', '.join(f'{count} {word}' for word, count in counts.items())}"
        for name, counts in asked.items()
    ]


def _problems(workspace: Workspace) -> list[str]:
    """Return a line for each step that failed or waits for keys; the agent names the log if there is one."""
    return [
        f"  note: {workspace.name}: {step.name} {step.state}: {step.detail}"
        for step in workspace.steps
        if workspace.state == "running" and step.state in ("failed", "needs-auth")
    ]


def _stages(stages: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {seconds:.1f}s" for name, seconds in stages)


def closing(
    result: Result,
    session: Session | None,
    enter: str,
    host: str,
    elapsed: float,
    now: float,
    ports: Sequence[int] = (),
) -> list[str]:
    """Return the block at the end of ``up``, ``restart`` and similar playbooks.

    ``enter`` is the command that opens a shell, ``host`` the name for VS Code's Remote-SSH (both empty if the workspace
    cannot be entered), ``elapsed`` the action's duration in seconds. ``ports`` are forwarded while the shell is open.
    """
    lines = ["", result.msg]
    workspace = result.workspace
    rows: list[tuple[str, str]] = []
    if workspace is not None:
        rows.append(("workspace", f"{workspace.name} ({workspace.state})"))
        rows.append(("host", workspace.node))
        rows.append(("repository", _repository(workspace)))
    if workspace is not None and session is not None:
        rows.append(("IDE", session.url))
        rows.append(("tunnel", _tunnel(workspace, session, enter)))
        rows.append(("password", session.password))
        rows.append(("directory", session.directory))
        rows.append(("shell", enter))
        rows.append(("ports", _ports(ports)))
        rows.append(("VS Code", f"Remote-SSH to {host} (once before: ansible-playbook spt.flow.ssh_config)"))
        rows.append(("stops", _stopping(workspace, now)))
    if result.stages:
        rows.append(("took", f"{elapsed:.1f}s: {_stages(result.stages)}"))
    lines += [f"  {name:<11} {text}" for name, text in rows if text]
    lines += [f"  note: {note}" for note in result.notes]
    if session is not None and session.refused_ports:
        lines.append(f"  note: Ports that are not forwarded: {', '.join(session.refused_ports)}.")
    return lines


def _ports(ports: Sequence[int]) -> str:
    """Return the local ports that are forwarded to the workspace while the shell is open."""
    return f"{', '.join(map(str, ports))} of 127.0.0.1, while the shell is open" if ports else ""


def _tunnel(workspace: Workspace, session: Session, enter: str) -> str:
    """Return the command that forwards the IDE of another machine to this one's loopback."""
    port = session.url.rstrip("/").rpartition(":")[2]
    return f"{enter} -N -L {port}:127.0.0.1:8080 (the IDE is on {workspace.node})" if workspace.node else ""


def _repository(workspace: Workspace) -> str:
    clone = workspace.step("clone")
    if clone.state == "pending" or not workspace.repo:
        return workspace.repo
    detail = f", {clone.detail}" if clone.detail and clone.state != "ok" else ""
    return f"{workspace.repo} (clone: {clone.state}{detail})"


def _stopping(workspace: Workspace, now: float) -> str:
    when = stops(workspace, now)
    why = kept_alive(workspace, now)
    if when in (UNKNOWN, NONE):
        return ""
    return f"{when}, kept alive by: {why}" if why not in (UNKNOWN, NONE) else when
