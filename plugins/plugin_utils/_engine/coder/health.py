# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a Coder server's report of its own health: sections, severities, Coder's own codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .admin import CoderAdmin
    from .client import Json

SECTIONS = ("access_url", "database", "derp", "websocket", "workspace_proxy", "provisioner_daemons")


@dataclass(frozen=True)
class Section:
    """A part of the server. ``severity``: ``ok``, ``warning``, ``error``, or ``dismissed`` by an administrator."""

    name: str
    severity: str
    said: tuple[str, ...] = ()

    def line(self) -> str:
        return f"{self.name:<20} {self.severity:<9} {'; '.join(self.said)}".rstrip()


@dataclass(frozen=True)
class Health:
    version: str
    sections: tuple[Section, ...]

    @property
    def failing(self) -> tuple[Section, ...]:
        return tuple(one for one in self.sections if one.severity == "error")

    def lines(self) -> list[str]:
        return [f"Coder {self.version}", *(one.line() for one in self.sections)]


def of(report: Json, version: str) -> Health:
    """Create the report from the answer of ``/debug/health``. Sections that this version of Coder lacks are omitted."""
    found = [_section(name, report[name]) for name in SECTIONS if isinstance(report.get(name), dict)]
    return Health(version, tuple(found))


def _section(name: str, given: Json) -> Section:
    warnings = given.get("warnings") or []
    said = [f"{one.get('code', '')}: {one.get('message', '')}".strip(": ") for one in warnings]
    said += [str(given["error"])] if given.get("error") else []
    severity = str(given.get("severity") or ("error" if given.get("error") else "ok"))
    return Section(name, "dismissed" if given.get("dismissed") else severity, tuple(said))


def read(client: CoderAdmin, wait: float) -> Health:
    """Query health with an owner's client. A server that has just started gets the given seconds to become healthy."""
    version = str(client.buildinfo().get("version", ""))
    waiter = client.http.waiter(max(wait, 1.0))
    while True:
        found = of(client.debug_health(force=True), version)
        if not found.failing or waiter.remaining <= 2.0:
            return found
        waiter.pause(2.0)
