# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Business hours: when they are open, in every time zone and through daylight saving."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import maintenance

WEEKDAYS = "09:00-17:00 Mon-Fri"


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


@pytest.mark.parametrize(
    ("hours", "moment", "may"),
    [
        (WEEKDAYS, at("2026-11-23T08:59:59"), True),
        (WEEKDAYS, at("2026-11-23T09:00"), False),
        (WEEKDAYS, at("2026-11-23T16:59:59"), False),
        (WEEKDAYS, at("2026-11-23T17:00"), True),
        (WEEKDAYS, at("2026-11-22T12:00"), True),
        (f"{WEEKDAYS} Europe/Berlin", at("2026-11-23T08:30"), False),
        (f"{WEEKDAYS} Europe/Berlin", at("2026-07-20T07:30"), False),
        (f"{WEEKDAYS} Europe/Berlin", at("2026-11-23T07:30"), True),
        ("22:00-06:00 Fri", at("2026-11-28T05:59"), False),
        ("22:00-06:00 Fri", at("2026-11-27T05:59"), True),
        ("08:00-12:00 Sat,Sun; 09:00-17:00 Mon-Fri", at("2026-11-22T09:00"), False),
        ("00:00-24:00 Fri-Mon", at("2026-11-24T09:00"), True),
        ("00:00-24:00 Fri-Mon", at("2026-11-23T23:59"), False),
        ("none", at("2026-11-23T12:00"), True),
    ],
)
def test_hours_are_evaluated(hours: str, moment: datetime, may: bool) -> None:
    assert maintenance.is_open(hours, moment) is may


@pytest.mark.parametrize(
    "hours", ["9-17", "09:00-17:00 Mo-Fr", "25:00-26:00", "Mon-Fri", "09:00-17:00 Europe/Atlantis", "09:00-17:60"]
)
def test_invalid_hours_are_named(hours: str) -> None:
    with pytest.raises(InvalidInput, match="is not valid"):
        maintenance.parse(hours)


def test_pending_step_reports_when_it_may_run() -> None:
    assert "2026-11-23 17:00 UTC" in maintenance.pending("restart the engine", WEEKDAYS, at("2026-11-23T11:11"))
    assert "at no time" in maintenance.pending("restart the engine", "00:00-24:00", at("2026-11-23T11:11"))


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
@pytest.mark.parametrize("start", ["2026-03-01", "2026-10-01", "2028-02-27"])
def test_eight_hours_of_every_working_day_are_closed_in_any_time_zone(zone: str, start: str) -> None:
    first = at(f"{start}T00:00", zone)
    closed: dict[object, int] = {}
    for step in range(40 * 24 * 2):
        moment = first.astimezone(UTC) + timedelta(minutes=30 * step)
        if not maintenance.is_open(f"{WEEKDAYS} {zone}", moment):
            closed[moment.astimezone(ZoneInfo(zone)).date()] = (
                closed.get(moment.astimezone(ZoneInfo(zone)).date(), 0) + 1
            )
    assert set(closed.values()) == {16}
    assert all(day.weekday() < 5 for day in closed)  # type: ignore[attr-defined]
