# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshot retention over many calendars, ages, metrics, and refused restores."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import config as snapshots_config
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import restore as snapshots_restore
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import run as snapshots_run
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import status as snapshots_status
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots.policy import (
    Snapshot,
    days,
    expired,
    newest_good,
    orphaned,
)
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots.restic import _seconds, label_tag
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots.volumes import Volume

WEEK = 7 * 86400


def nights(start: str, zone: str, count: int, seed: int, hour: int = 2) -> list[float]:
    """Return the times of ``count`` nightly runs at local ``hour`` plus a random delay of up to an hour."""
    jitter = random.Random(seed)
    first = datetime.fromisoformat(start)
    moments = []
    for day in range(count):
        local = (first + timedelta(days=day)).replace(hour=hour, tzinfo=ZoneInfo(zone))
        moments.append(local.astimezone(UTC).timestamp() + jitter.uniform(0, 3600))
    return moments


CALENDARS = [
    (start, zone, seed)
    for seed, (start, zone) in enumerate(
        (start, zone)
        for start in (
            "2024-02-20",
            "2023-02-20",
            "2024-03-20",
            "2024-10-15",
            "2024-12-20",
            "2025-06-01",
            "2028-02-25",
            "2100-02-20",
        )
        for zone in ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia")
    )
]


def simulate(moments: list[float], good: set[int] | None = None) -> list[list[Snapshot]]:
    """Return what the policy keeps after each run."""
    kept: list[Snapshot] = []
    history = []
    for number, moment in enumerate(moments):
        kept.append(Snapshot(f"{number:08d}", "home", moment, good is None or number in good))
        gone = expired(kept, moment)
        assert newest_good(kept, moment) not in gone
        kept = [s for s in kept if s not in gone]
        history.append(list(kept))
    return history


def test_at_least_forty_calendars_are_tested() -> None:
    assert len(CALENDARS) == 40


@pytest.mark.parametrize(("start", "zone", "seed"), CALENDARS)
def test_last_week_is_kept_and_few_older_snapshots(start: str, zone: str, seed: int) -> None:
    moments = nights(start, zone, 30, seed)
    for number, kept in enumerate(simulate(moments)):
        now = moments[number]
        assert {s.time for s in kept} >= {m for m in moments[: number + 1] if now - m <= WEEK}
        assert len(kept) <= 9


@pytest.mark.parametrize(("start", "zone", "seed"), CALENDARS)
def test_missed_nights_do_not_delete_history(start: str, zone: str, seed: int) -> None:
    chance = random.Random(seed + 1000)
    moments = [m for m in nights(start, zone, 60, seed) if chance.random() < 0.4]
    for number, kept in enumerate(simulate(moments)):
        assert len(kept) >= min(number + 1, 7)


@pytest.mark.parametrize(("start", "zone", "seed"), CALENDARS)
def test_clock_jump_never_deletes_the_last_good_snapshot(start: str, zone: str, seed: int) -> None:
    chance = random.Random(seed + 2000)
    moments = nights(start, zone, 40, seed)
    for number in range(10, 40):
        jump = chance.choice([0, 0, 0, -3600, -86400 * 3, -86400 * 400, 86400 * 30, 86400 * 3650])
        moments[number] += jump
    good = {n for n in range(40) if chance.random() < 0.7} | {0}
    for number, kept in enumerate(simulate(moments, good)):
        newest = max(n for n in good if n <= number)
        assert any(s.good for s in kept)
        if moments[newest] == max(moments[: number + 1]):
            assert f"{newest:08d}" in {s.id for s in kept}


def test_old_week_is_kept_after_a_month_until_a_new_week_exists() -> None:
    old = nights("2025-01-01", "UTC", 7, 1)
    new = nights("2025-02-15", "UTC", 9, 2)
    history = simulate(old + new)
    assert len(history[7]) == 7
    assert {s.time for s in history[-1]}.isdisjoint(old)


def test_snapshots_of_one_day_count_as_one_day() -> None:
    burst = [Snapshot(str(n), "home", 1e9 + n * 60) for n in range(50)]
    assert days(burst) == 1
    week_old = Snapshot("old", "home", 1e9 - 2 * WEEK)
    assert expired([week_old, *burst], 1e9 + 4000) == []


def test_incomplete_snapshots_are_kept_only_after_a_good_one() -> None:
    good = Snapshot("good", "home", 1e9)
    bad = [Snapshot(f"bad{n}", "home", 1e9 + n * 86400, good=False) for n in range(1, 60)]
    assert good not in expired([good, *bad], 1e9 + 60 * 86400)


def test_snapshots_from_the_future_are_deleted_when_a_true_week_exists() -> None:
    wrong = Snapshot("wrong", "home", 4e9)
    few = [Snapshot(str(n), "home", 1e9 + n * 86400) for n in range(3)]
    week = [Snapshot(str(n), "home", 1e9 + n * 86400) for n in range(7)]
    assert expired([wrong, *few], 1e9 + 3 * 86400) == []
    assert expired([wrong, *week], 1e9 + 7 * 86400) == [wrong]
    assert newest_good([wrong, *few], 1e9 + 3 * 86400) == few[-1]


def test_deleted_volume_keeps_its_snapshots_for_the_configured_time() -> None:
    left = [Snapshot(str(n), "home", 1e9 + n * 86400) for n in range(5)]
    assert orphaned(left, 1e9 + 30 * 86400, 30) == []
    assert orphaned(left, 1e9 + 36 * 86400, 30) == left
    assert orphaned(left, 9e9, 0) == []


def test_idle_volume_keeps_its_snapshots_as_long_after_its_deletion() -> None:
    left = [Snapshot("one", "home", 1e9)]
    asleep = 1e9 + 6 * 86400
    assert orphaned(left, asleep + 29 * 86400, 30, asleep) == []
    assert orphaned(left, asleep + 31 * 86400, 30, asleep) == left


def test_unchanged_volume_is_stored_again_within_a_week() -> None:
    record = {"mark": "m", "last_id": "aaaaaaaa00", "error": ""}
    known = [Snapshot("aaaaaaaa", "home", 1e9), Snapshot("bbbbbbbb", "other", 1e9 + 5)]
    assert snapshots_run.unchanged(record, "m", known, "home", 1e9 + 6 * 86400)
    assert not snapshots_run.unchanged(record, "m", known, "home", 1e9 + 7 * 86400)
    assert not snapshots_run.unchanged(record, "m", known, "home", 1e9 - 5), "a clock that was set back proves nothing"
    assert not snapshots_run.unchanged(record, "n", known, "home", 1e9 + 5)
    assert not snapshots_run.unchanged(record, "", known, "home", 1e9 + 5), "a volume that could not be read in full"
    assert not snapshots_run.unchanged({**record, "error": "x"}, "m", known, "home", 1e9 + 5)
    newer = Snapshot("cccccccc", "home", 1e9 + 3)
    assert not snapshots_run.unchanged(record, "m", [*known, newer], "home", 1e9 + 5), "another one is newer"
    assert not snapshots_run.unchanged(record, "m", known[1:], "home", 1e9 + 5), "it is gone from the repository"


def config(**changes: object) -> snapshots_config.Config:
    return snapshots_config.Config(repository="/nowhere", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("last", "created", "words"),
    [
        (1000 * 3600, 0, ""),
        (973 * 3600, 0, "27 h old, the limit is 26 h"),
        (None, 999 * 3600, ""),
        (None, 900 * 3600, "it does not have a snapshot and is 100 h old"),
        (1002 * 3600, 0, "dated in the future"),
    ],
)
def test_volume_without_a_recent_snapshot_is_a_problem(last: float | None, created: float, words: str) -> None:
    status = {"volumes": {"home": {"last_good": last} if last is not None else {}}, "verify": {}}
    found = snapshots_status.assess(config(), status, [Volume("home", "/x", {}, created)], 1000 * 3600)
    assert bool(found) == bool(words)
    assert words in "".join(found)


def test_metrics_report_age_and_last_result_per_volume() -> None:
    status = {
        "volumes": {
            "a": {"last_good": 100, "error": "", "size": 5},
            "b": {"error": "broken"},
            "gone": {"present": False, "last_good": 1},
        },
        "run": {"ok": True},
        "verify": {},
    }
    text = snapshots_status.metrics(status, 160)
    assert 'spt_flow_snapshot_age_seconds{volume="a"} 60\n' in text
    assert 'spt_flow_snapshot_ok{volume="b"} 0\n' in text
    assert "gone" not in text
    assert "spt_flow_snapshots_verify_ok 0\n" in text


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "", "/", "/home/coder/../x", "a\0b", ".", "/home/coder/"]
)
def test_paths_outside_the_home_are_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="is not in the home"):
        snapshots_restore.inner_path(path)


def test_paths_in_the_home_are_accepted() -> None:
    assert snapshots_restore.inner_path("/home/coder/a/./b c") == "a/b c"
    assert snapshots_restore.inner_path("x*[y]") == "x*[y]"


def test_restic_times_of_every_zone_are_parsed() -> None:
    assert _seconds("2026-11-23T18:00:00.123456789+01:00") == pytest.approx(_seconds("2026-11-23T17:00:00.123456Z"))
    assert _seconds("2026-11-23T17:00:00Z") == 1795453200


def test_label_with_a_comma_is_one_tag() -> None:
    assert "," not in label_tag("spt.flow.repo", "host/a,b")


def test_unknown_settings_are_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "c.json").write_text('{"repository": "/r", "keep_dayz": 1}')
    with pytest.raises(InvalidInput, match="keep_dayz"):
        snapshots_config.Config.load(str(tmp_path / "c.json"))


def test_coder_dashboard_shows_the_last_snapshot_of_its_workspace_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Volumes:
        def __init__(self, socket: str) -> None:
            pass

        def create(self, name: str, labels: dict[str, str]) -> Volume:
            return Volume(name, str(tmp_path))

    monkeypatch.setattr(snapshots_run, "Volumes", Volumes)
    (tmp_path / "spt-flow-gone-home").write_text("2020-01-01\n")
    volumes = {
        "spt-flow-1234-home": {"labels": {"spt.flow.coder": "1234"}, "last_good": 1_800_000_000.0},
        "spt-flow-new-home": {"labels": {"spt.flow.coder": "new"}},
        "spt-flow-alice-secret-home": {"labels": {"spt.flow.owner": "alice"}, "last_good": 1_800_000_000.0},
    }
    snapshots_run.publish(snapshots_config.Config(str(tmp_path / "repository")), {"volumes": volumes})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "spt-flow-1234-home": "2027-01-15 08:00 UTC\n"
    }
    template = Path(__file__).resolve().parents[2] / "templates/coder/spt-flow/main.tf"
    assert f'volume_name    = "{snapshots_run.MARKS}"' in template.read_text()
