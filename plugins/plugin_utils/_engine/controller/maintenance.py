# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide when disruptive steps may run. A pure function of time and business hours.

Business hours are one text: ``09:00-17:00 Mon-Fri Europe/Berlin``. Separate spans with ``;``. Days are ranges or lists
(``Mon-Fri``, ``Sat,Sun``); the default is every day. The default time zone is UTC. ``none`` means that there are no
business hours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from ....module_utils._node.errors import InvalidInput

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(r"(?P<a>\d{1,2}):(?P<b>\d{2})-(?P<c>\d{1,2}):(?P<d>\d{2})")
EXAMPLE = "09:00-17:00 Mon-Fri Europe/Berlin"


@dataclass(frozen=True)
class Span:
    """``begin`` and ``end`` in minutes after midnight; an ``end`` up to ``begin`` is on the next day.

    ``days``: 0 (Monday) to 6.
    """

    begin: int
    end: int
    days: frozenset[int]
    zone: tzinfo

    def covers(self, moment: datetime) -> bool:
        local = moment.astimezone(self.zone)
        minute, today = local.hour * 60 + local.minute, local.weekday()
        if self.begin < self.end:
            return today in self.days and self.begin <= minute < self.end
        return (today in self.days and minute >= self.begin) or ((today - 1) % 7 in self.days and minute < self.end)


def parse(text: str) -> list[Span]:
    """Return the spans of ``text``. Raise ``InvalidInput`` with the invalid word."""
    if text.strip().lower() in ("", "none"):
        return []
    return [_span(part) for part in text.split(";") if part.strip()]


def _span(text: str) -> Span:
    hours: tuple[int, int] | None = None
    days: frozenset[int] = frozenset(range(7))
    zone: tzinfo = UTC
    for word in text.split():
        match = _SPAN.fullmatch(word)
        if match:
            a, b, c, d = (int(match[name]) for name in "abcd")
            if max(b, d) > 59 or a * 60 + b > 1439 or c * 60 + d > 1440:
                raise _invalid(word)
            hours = (a * 60 + b, c * 60 + d)
        elif word.split(",")[0].split("-")[0].lower() in DAYS:
            days = _days(word)
        else:
            zone = _zone(word)
    if hours is None:
        raise _invalid(text.strip())
    return Span(*hours, days, zone)


def _days(word: str) -> frozenset[int]:
    found: set[int] = set()
    for part in word.lower().split(","):
        first, _dash, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise _invalid(word)
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found |= {day % 7 for day in range(begin, end + 1 + (7 if end < begin else 0))}
    return frozenset(found)


def _zone(word: str) -> tzinfo:
    if word.upper() in ("UTC", "Z"):
        return UTC
    try:
        return ZoneInfo(word)
    except (KeyError, ValueError, OSError):
        raise _invalid(word)


def _invalid(word: str) -> InvalidInput:
    return InvalidInput(f"The business hours contain {word!r}, which is not valid.", f"Write them as {EXAMPLE!r}.")


def is_open(hours: str, now: datetime) -> bool:
    """Return whether ``now`` is outside business hours, so that disruptive steps may run."""
    return not any(span.covers(now) for span in parse(hours))


def opens(hours: str, now: datetime) -> datetime | None:
    """Return the next whole minute outside business hours, or ``now``; ``None`` if there is none within eight days."""
    spans = parse(hours)
    moment = now
    for _minute in range(8 * 24 * 60):
        if not any(span.covers(moment) for span in spans):
            return moment
        moment = (moment + timedelta(minutes=1)).replace(second=0, microsecond=0)
    return None


def pending(step: str, hours: str, now: datetime) -> str:
    """Return the sentence about a step that has to wait."""
    when = opens(hours, now)
    at = f"after {when:%Y-%m-%d %H:%M} {when.tzname()}" if when else "at no time, because the business hours never end"
    return f"Pending: {step}. It disrupts users and may run {at}. To run it now: flow_maintenance_now=true."
