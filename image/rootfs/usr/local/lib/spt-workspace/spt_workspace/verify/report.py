# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The results, as a table, JSON or JUnit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree as etree  # written only, never read

PASSED, FAILED, UNAVAILABLE, SKIPPED = STATES = ("passed", "failed", "unavailable", "skipped")


@dataclass(frozen=True)
class Row:
    """One check. ``unavailable``: the image lacks the tool; ``skipped``: the check cannot run here."""

    name: str
    state: str
    detail: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Subject:
    """The subject of the run: a running workspace, or an image in its own container."""

    where: str
    profile: str
    image: str


def counts(rows: Sequence[Row]) -> dict[str, int]:
    return {state: sum(row.state == state for row in rows) for state in STATES}


def line(row: Row) -> str:
    """Return a row of the table."""
    return f"{row.name:<16} {row.state:<11} {row.seconds:6.1f} s  {row.detail}".rstrip()


def closing(rows: Sequence[Row], subject: Subject) -> str:
    """Return the last line of the table."""
    said = ", ".join(f"{number} {state}" for state, number in counts(rows).items())
    return f"{len(rows)} checks of the {subject.where} (profile {subject.profile}): {said}."


def as_table(rows: Sequence[Row], subject: Subject) -> str:
    return "".join(f"{text}\n" for text in (*map(line, rows), closing(rows, subject)))


def as_json(rows: Sequence[Row], subject: Subject) -> str:
    """Return one JSON object on one line, like every command of the agent."""
    found: dict[str, Any] = {"spt_flow": 1, "ok": not counts(rows)[FAILED], **asdict(subject), "counts": counts(rows)}
    return json.dumps({**found, "checks": [asdict(row) for row in rows]}) + "\n"


def as_junit(rows: Sequence[Row], subject: Subject) -> str:
    """Return one test suite; unavailable tools count as skipped."""
    number = counts(rows)
    skipped = number[UNAVAILABLE] + number[SKIPPED]
    total = {"tests": len(rows), "failures": number[FAILED], "errors": 0, "skipped": skipped}
    words = {key: str(value) for key, value in total.items()}
    root = etree.Element("testsuites", {"name": "spt-workspace verify", **words})
    suite = etree.SubElement(root, "testsuite", {"name": f"{subject.where} {subject.profile}", **words})
    for row in rows:
        where = f"spt-workspace.{subject.where}"
        case = etree.SubElement(suite, "testcase", classname=where, name=row.name, time=f"{row.seconds:.3f}")
        if row.state == PASSED:
            etree.SubElement(case, "system-out").text = row.detail
        else:
            message = f"{row.state}: {row.detail}" if row.state == UNAVAILABLE else row.detail
            etree.SubElement(case, "failure" if row.state == FAILED else "skipped", message=message)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + etree.tostring(root, encoding="unicode") + "\n"


FORMS = {"table": as_table, "json": as_json, "junit": as_junit}
