# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The retention policy of snapshots, as pure functions.

A day is a step of at least ``DAY`` seconds between two snapshots, not a calendar date. So time zones, daylight saving
and leap days do not matter. Age alone never deletes a snapshot: enough good snapshots on enough later days must exist.
So a machine that was off for a month, or a clock that jumps, does not lose history.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DAY = 20 * 3600
"""Seconds between two nightly snapshots that count as two days: 24 h less one of daylight saving and three of random
delay."""


@dataclass(frozen=True)
class Snapshot:
    """One snapshot of one volume.

    ``time`` is in epoch seconds; ``good`` means that everything readable was stored without an error.
    """

    id: str
    volume: str
    time: float
    good: bool = True
    size: int = 0
    labels: tuple[tuple[str, str], ...] = ()


def newest_good(snapshots: Iterable[Snapshot], now: float) -> Snapshot | None:
    """Return the newest good snapshot.

    One dated after ``now`` has a wrong clock and only counts if there is no other.
    """
    good = [s for s in snapshots if s.good]
    past = [s for s in good if s.time <= now]
    return max(past or good, key=lambda s: s.time, default=None)


def days(snapshots: Iterable[Snapshot]) -> int:
    """Return the number of days that ``snapshots`` cover, counted back from the newest in steps of at least ``DAY``."""
    count, last = 0, float("inf")
    for moment in sorted((s.time for s in snapshots), reverse=True):
        if last - moment >= DAY:
            count, last = count + 1, moment
    return count


def expired(snapshots: Iterable[Snapshot], now: float, keep_days: int = 7) -> list[Snapshot]:
    """Return the snapshots of ONE volume to delete, oldest first.

    A snapshot is deleted if it is older than ``keep_days`` (or dated in the future) and if later good ones dated up to
    ``now`` cover ``keep_days`` days. The newest good one always stays.
    """
    everything = sorted(snapshots, key=lambda s: s.time)
    last = newest_good(everything, now)
    if last is None or keep_days < 1:
        return []
    good = [s for s in everything if s.good and s.time <= now]
    gone = []
    for snapshot in everything:
        if snapshot == last or 0 <= now - snapshot.time <= keep_days * 86400:
            continue
        later = good if snapshot.time > now else [s for s in good if s.time > snapshot.time]
        if days(later) >= keep_days:
            gone.append(snapshot)
    return gone


def orphaned(snapshots: Iterable[Snapshot], now: float, keep_days: int, seen: float = 0.0) -> list[Snapshot]:
    """Return the snapshots of a deleted volume to delete: all, ``keep_days`` after the last one, or after it was last
    ``seen`` unchanged.

    0 keeps them forever.
    """
    everything = list(snapshots)
    last = max((seen, *(s.time for s in everything))) if everything else now
    return everything if keep_days > 0 and now - last > keep_days * 86400 else []
