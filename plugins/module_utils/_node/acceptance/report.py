# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requirements of hosts as a table, JSON or JUnit XML.

A verdict is ``met``, ``failed`` or ``impossible``. A requirement that a host cannot meet (systemd in a container) is
listed as impossible and does not count as a failure.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree as etree  # written only, never read

MET, FAILED, IMPOSSIBLE = "met", "failed", "impossible"
WIDTHS = {"requirement": 34, "value": 52, "limit": 26, "verdict": 10}


@dataclass(frozen=True)
class Row:
    """One requirement of one host: the value found, the required value and the verdict."""

    requirement: str
    value: str
    limit: str
    verdict: str


Report = dict[str, list[Row]]
"""Rows by host."""


def rate(requirement: str, value: Any, limit: str, good: bool, possible: bool = True) -> Row:
    """Return a row: met if ``good``, otherwise failed, or impossible if the host cannot meet the requirement."""
    return Row(requirement, str(value), limit, MET if good else FAILED if possible else IMPOSSIBLE)


def gather(results: dict[str, dict[str, Any]]) -> Report:
    """Return rows by host from the module's results. A host without rows counts as not answering."""
    return {host: _rows(result) for host, result in results.items()}


def _rows(result: dict[str, Any]) -> list[Row]:
    if result.get("rows"):
        return [Row(**row) for row in result["rows"]]
    reason = str(result.get("msg") or "not reached, or skipped after an earlier failure").strip()
    return [rate("host answers", reason.splitlines()[0], "yes", False)]


def failures(report: Report) -> list[str]:
    """Return a sentence for each requirement that is not met."""
    return [
        f"{host}: {row.requirement}: {row.value} (needed: {row.limit})"
        for host, rows in report.items()
        for row in rows
        if row.verdict == FAILED
    ]


def lines(report: Report) -> list[str]:
    """Return the lines of the table, with wrapped cells, and a summary."""
    found = []
    for host, rows in report.items():
        found += [host, _line([name.upper() for name in WIDTHS])]
        for row in rows:
            cells = [textwrap.wrap(str(getattr(row, name)), width) or [""] for name, width in WIDTHS.items()]
            found += [_line([cell[i] if i < len(cell) else "" for cell in cells]) for i in range(max(map(len, cells)))]
        found.append("")
    every = [row.verdict for rows in report.values() for row in rows]
    count = ", ".join(f"{every.count(verdict)} {verdict}" for verdict in (MET, FAILED, IMPOSSIBLE))
    return [*found, f"{len(every)} requirements of {len(report)} hosts: {count}."]


def _line(cells: Sequence[str]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS.values(), strict=True)).rstrip()


def as_json(report: Report) -> str:
    """Return ``{"hosts": {name: [row, …]}, "failures": [sentence, …]}`` as JSON."""
    hosts = {host: [asdict(row) for row in rows] for host, rows in report.items()}
    return json.dumps({"hosts": hosts, "failures": failures(report)}, indent=2, ensure_ascii=False) + "\n"


def as_junit(report: Report) -> str:
    """Return JUnit XML: one suite per host; failed verdicts are failures, impossible ones are skipped."""
    root = etree.Element("testsuites", name="spt.flow.verify")
    for host, rows in report.items():
        verdicts = [row.verdict for row in rows]
        counts = {"failures": verdicts.count(FAILED), "skipped": verdicts.count(IMPOSSIBLE)}
        numbers = {"tests": len(rows), "errors": 0, **counts}
        suite = etree.SubElement(root, "testsuite", {"name": host, **{key: str(n) for key, n in numbers.items()}})
        for row in rows:
            case = etree.SubElement(suite, "testcase", classname=host, name=_printable(row.requirement))
            said = _printable(f"{row.value} (needed: {row.limit})")
            if row.verdict == MET:
                etree.SubElement(case, "system-out").text = said
            else:
                etree.SubElement(case, "failure" if row.verdict == FAILED else "skipped", message=said)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + etree.tostring(root, encoding="unicode") + "\n"


def _printable(text: str) -> str:
    """Return ``text`` without the control characters that XML cannot hold."""
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)
