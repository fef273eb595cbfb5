# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all parts of the benchmark share: samples by name, parts and the rows of the table."""

from __future__ import annotations

import statistics
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Samples = dict[str, list[float]]
"""Seconds, bytes or counts by name."""
Row = tuple[str, str, str, str]
"""What was measured, the figure, its bound, and whether the figure is within the bound."""


class Failed(Exception):
    """A measured command failed or did something other than what is to be measured."""


def note(samples: Samples, name: str, value: float) -> None:
    samples.setdefault(name, []).append(value)


def median(samples: Samples, name: str) -> float:
    return statistics.median(samples[name])


def ratio(samples: Samples, above: str, below: str) -> float:
    """Return the median of the ratios of neighbours in time, which noise moves less than a ratio of medians."""
    return statistics.median(a / b for a, b in zip(samples[above], samples[below], strict=True))


def verdict(holds: bool) -> str:
    return "yes" if holds else "**no**"


@dataclass(frozen=True)
class Part:
    """A group of rows. ``measure`` fills samples and returns a remark for the page; ``rows`` reads the samples."""

    name: str
    measure: Callable[[], str]
    rows: Callable[[], Iterable[Row]]


@dataclass
class Table:
    """Rows in the order of measurement. Each is printed at once, because the next part may take minutes."""

    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.rows.append(row)
            print(line(row), flush=True)

    def measure(self, part: Part) -> None:
        """Measure one part. Its failure becomes a row and a message on standard error; the other parts still run."""
        try:
            remark = part.measure()
            rows = list(part.rows())
        except (Exception, SystemExit) as error:  # noqa: BLE001 - one broken part must not lose the rows of the others
            expected = isinstance(error, (Failed, SystemExit))
            print(error if expected else traceback.format_exc(), file=sys.stderr, flush=True)
            self.failures.append(part.name)
            self.add([(part.name, "failed", "", verdict(False))])
            return
        if remark:
            self.remarks.append(remark)
        self.add(rows)


def line(row: Row) -> str:
    return f"| {' | '.join(row)} |"
