# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find known vulnerabilities of Docker engines and runc that let a container reach the host.

An engine names its programs in the answer to ``GET /version``, with the version of the distribution's package if the
distribution patched an older version. ``HOLES`` was last compared with the advisories of runc and moby on 2026-11-30.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Version = tuple[int, ...]


@dataclass(frozen=True)
class Hole:
    """A known vulnerability of ``program``.

    ``fixed``: the first good version of each branch. ``packages``: patterns of packages that a distribution patched,
    whose group is the revision, and the first good one. ``contained``: user namespaces keep it from the host.
    """

    cve: str
    date: str
    program: str
    fixed: tuple[Version, ...]
    packages: tuple[tuple[str, int], ...] = ()
    contained: bool = False


HOLES = (
    Hole("CVE-2022-36109", "2022-09-09", "Engine", ((20, 10, 18),)),
    Hole(
        "CVE-2024-21626",
        "2024-01-31",
        "runc",
        ((1, 1, 12),),
        ((r"1\.1\.5\+ds1-1\+deb12u(\d+)", 1), (r"1\.1\.7-0ubuntu1~22\.04\.(\d+)", 2)),
    ),
    Hole(
        "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881",
        "2025-11-05",
        "runc",
        ((1, 2, 8), (1, 3, 3), (1, 4, 0)),
        contained=True,
    ),
)


def number(text: str) -> Version:
    """Return the numbers at the start of a version, at least three, or nothing for other text."""
    found = re.match(r"v?(\d+(?:\.\d+)+)", text)
    parts = tuple(int(part) for part in found[1].split(".")) if found else ()
    return parts + (0,) * (3 - len(parts)) if parts else ()


def repaired(hole: Hole, version: str, package: str) -> bool:
    """Return whether a program of this version, or of this distribution's package, has the fix."""
    for pattern, least in hole.packages:
        found = re.match(pattern, package) or re.match(pattern, version)
        if found:
            return int(found[1]) >= least
    mine = number(version)
    if mine >= max(hole.fixed):
        return True
    return any(mine[:2] == good[:2] and mine >= good for good in hole.fixed)


def found(answer: Mapping[str, Any], remapped: bool) -> list[dict[str, Any]]:
    """Return the known vulnerabilities of the engine that gave ``answer`` to ``GET /version``, each with a sentence.

    A vulnerability is ``open`` unless remapped user namespaces keep it from the host. Programs that the engine does not
    name are not assessed.
    """
    reports = []
    for part in answer.get("Components") or []:
        name, version = str(part.get("Name", "")), str(part.get("Version", ""))
        package = str((part.get("Details") or {}).get("GitCommit", ""))
        for hole in HOLES:
            if hole.program == name and number(version) and not repaired(hole, version, package):
                shown = package if package.startswith(version) else version
                reports.append(report(hole, f"{name.lower()} {shown}", hole.contained and remapped))
    return reports


def report(hole: Hole, program: str, closed: bool) -> dict[str, Any]:
    text = f"{program} is not known to have the fix of {hole.cve} ({hole.date})"
    text += "; user namespaces keep it from the host." if closed else "."
    return {
        "cve": hole.cve,
        "program": hole.program.lower(),
        "contained": hole.contained,
        "open": not closed,
        "text": text,
    }
