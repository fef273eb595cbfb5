# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Idle stop, keep-alive and deadline, with simulated samples and clock jumps (docs/decisions/idle-and-keepalive.md)."""

from __future__ import annotations

import fcntl
import json
import os

import pytest
from ansible_collections.spt.flow.tests.unit import agent_harness as harness  # noqa: F401
from spt_workspace import contract, liveness

HOUR = 3600.0


class World:
    """A simulated wall clock and monotonic clock, and a workspace that uses them."""

    def __init__(self, **values: object) -> None:
        self.boot, self.wall = 1000.0, 1_800_000_000.0
        self.life = liveness.Liveness(contract.Contract(**values), self.boot, self.wall)  # type: ignore[arg-type]
        self.seen = liveness.Seen()
        self.verdict = self.life.sample(self.boot, self.wall, self.seen)

    def pass_(self, seconds: float, step: float = 30.0, **seen: object) -> liveness.Verdict:
        """Advance the time in samples; stop early when the workspace would stop."""
        self.seen = liveness.Seen(**seen)  # type: ignore[arg-type]
        until = self.boot + seconds
        while self.boot < until and not self.verdict.stop:
            self.boot += step
            self.wall += step
            self.verdict = self.life.sample(self.boot, self.wall, self.seen)
        return self.verdict

    def jump(self, seconds: float) -> None:
        self.wall += seconds


def grant(world: World, hours: float, by: str = "me", granted: float = 0.0) -> str:
    return json.dumps({"granted_at": world.wall + granted, "until": world.wall + hours * HOUR, "by": by})


def test_unused_workspace_stops_after_two_hours():
    world = World()
    assert world.verdict.record["reason"] == "just started"
    assert world.verdict.record["stops_at"] == round(world.wall + 2 * HOUR)
    assert not world.pass_(2 * HOUR - 60).stop
    assert world.verdict.record["reason"] == "idle"
    assert world.pass_(120).stop


def test_idle_stop_can_be_disabled():
    world = World(idle_stop=0)
    assert not world.pass_(100 * HOUR, 600).stop
    assert world.verdict.record["stops_at"] is None and world.verdict.record["reason"] == "runs until it is stopped"


def test_open_session_prevents_the_idle_stop():
    world = World()
    assert not world.pass_(10 * HOUR, sessions=1).stop
    assert world.verdict.record == {
        "reason": "an SSH session is open",
        "since": world.verdict.record["since"],
        "stops_at": None,
        "keepalive_until": None,
        "keepalive_by": "",
    }
    assert not world.pass_(2 * HOUR - 60).stop
    assert world.pass_(120).stop


def test_ide_traffic_and_typing_count_only_when_they_change():
    world = World()
    beat = 1
    for _ in range(60):
        beat += 1
        assert not world.pass_(300, heartbeat=beat).stop
    assert world.verdict.record["reason"] == "the IDE is in use"
    when = 1.0
    for _ in range(60):
        when += 1
        assert not world.pass_(300, heartbeat=beat, terminals={"0": when}).stop
    assert world.verdict.record["reason"] == "a terminal is in use"
    assert world.pass_(3 * HOUR, heartbeat=beat, terminals={"0": when}).stop


def test_open_tab_without_use_is_not_activity():
    """Rates as measured: two connections with 35 bytes a second each; the heartbeat file changes every minute."""
    world, sent = World(), 160_000
    while not world.verdict.stop and world.boot < 9 * HOUR:
        sent += 35 * 30
        world.pass_(30, heartbeat=int(world.boot // 60), traffic={"a": sent, "b": sent // 3})
    assert world.boot - 1000 < 2 * HOUR + 120


def test_ide_use_between_two_samples_is_activity():
    world, sent = World(), 160_000
    for _ in range(600):
        sent += 35 * 30 + 900
        world.pass_(3, 1, traffic={"a": sent - 100})
        world.pass_(27, 27, traffic={"a": sent})
    assert not world.verdict.stop and world.verdict.record["reason"] == "the IDE is in use"
    assert world.pass_(2 * HOUR + 60, traffic={"a": sent}).stop


def test_traffic_is_read_from_the_kernel(tmp_path):
    import shutil
    import socket

    if not shutil.which("ss"):
        pytest.skip("this machine has no ss")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, address = server.accept()
        client.sendall(b"x" * 5000)
        assert len(peer.recv(5000, socket.MSG_WAITALL)) == 5000
        seen = liveness.ide_traffic(server.getsockname()[1])
        assert seen == {f"127.0.0.1:{address[1]}": 5000}
        peer.close()


def test_leftover_heartbeat_and_terminals_are_not_activity():
    world = World()
    world.life = liveness.Liveness(contract.Contract(), world.boot, world.wall)
    world.verdict = world.life.sample(world.boot, world.wall, liveness.Seen(heartbeat=77, terminals={"3": 5.0}))
    assert world.pass_(2 * HOUR + 60, heartbeat=77, terminals={"3": 5.0}).stop


def test_closing_terminal_is_not_activity():
    world = World()
    world.pass_(HOUR, terminals={"0": 1.0, "1": 1.0})
    began = world.boot
    world.pass_(3 * HOUR, terminals={"0": 1.0})
    assert world.boot - began < HOUR + 120


@pytest.mark.parametrize("jump", [-10 * 365 * 24 * HOUR, -HOUR, HOUR, 10 * 365 * 24 * HOUR])
def test_clock_jumps_change_nothing(jump):
    world = World()
    world.pass_(HOUR)
    world.jump(jump)
    assert not world.pass_(HOUR - 60).stop
    assert abs(world.verdict.record["stops_at"] - world.wall - 60) < 31
    assert world.pass_(120).stop


@pytest.mark.parametrize("jump", [-100 * HOUR, -HOUR, HOUR, 100 * HOUR])
def test_keepalive_lasts_as_granted_despite_clock_jumps(jump):
    world = World()
    text = grant(world, 10)
    world.pass_(HOUR, keepalive=text)
    assert world.verdict.record["reason"] == "kept alive" and world.verdict.record["keepalive_by"] == "me"
    world.jump(jump)
    assert not world.pass_(9 * HOUR - 60, keepalive=text).stop
    assert world.pass_(120, keepalive=text).stop


def test_end_of_keepalive_does_not_shorten_the_idle_time():
    world = World()
    text = grant(world, 1)
    assert not world.pass_(2 * HOUR - 60, keepalive=text).stop
    assert world.pass_(120, keepalive=text).stop


def test_withdrawn_keepalive_applies_at_once():
    world = World()
    text = grant(world, 20)
    world.pass_(5 * HOUR, keepalive=text)
    assert not world.verdict.stop
    assert world.pass_(30).stop


@pytest.mark.parametrize(
    ("hours", "granted"),
    [(25, 0), (-1, -HOUR), (10, HOUR), (24 * 365, 0)],
    ids=["longer than a day", "past", "granted in the future", "a year"],
)
def test_impossible_keepalive_is_ignored(hours, granted):
    world = World()
    assert world.pass_(3 * HOUR, keepalive=grant(world, hours, granted=granted)).stop


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"until": 1}', '{"until": "x", "granted_at": 0}', "\x00"])
def test_damaged_keepalive_is_ignored(text):
    assert liveness.valid_keepalive(text, 0, 24 * HOUR) is None
    assert World().pass_(3 * HOUR, keepalive=text).stop


def test_deadline_is_absolute_despite_use_and_keepalive():
    world = World(idle_stop=0, deadline=1_800_000_000.0 + HOUR, kind="ci")
    assert world.verdict.record["stops_at"] == 1_800_000_000 + 3600
    assert not world.pass_(HOUR - 60, sessions=1, keepalive=grant(world, 20)).stop
    assert world.verdict.record["stops_at"] is not None
    assert world.pass_(120, sessions=1).stop == "The deadline has come."


def test_clock_set_back_does_not_extend_a_deadline():
    world = World(idle_stop=0, deadline=1_800_000_000.0 + HOUR)
    world.pass_(HOUR / 2)
    world.jump(-10 * HOUR)
    assert world.pass_(HOUR / 2 + 60).stop


def test_tick_speeds_up_all_times():
    world = World(tick=60.0)
    assert world.verdict.wait == 0.5
    assert not world.pass_(115, 1).stop
    assert world.pass_(10, 1).stop
    world = World(tick=60.0)
    assert world.pass_(300, 1, keepalive=grant(world, 23)).stop, "23 real hours are 57 days on this clock"


def test_next_sample_is_in_time_for_the_stop():
    world = World(idle_stop=45)
    world.pass_(30)
    assert world.verdict.wait <= 15


def test_records_that_differ_only_by_rounding_are_not_repeated():
    world = World()
    first = world.verdict.record
    assert not liveness.Liveness.changed(first, {**first, "stops_at": first["stops_at"] + 1})
    assert liveness.Liveness.changed(first, {**first, "stops_at": first["stops_at"] + 60})
    assert liveness.Liveness.changed(first, {**first, "reason": "idle"}) and liveness.Liveness.changed({}, first)


def test_quiet_day_writes_few_records():
    """Every status reads the log, so that it must stay small."""
    world, told = World(), 0
    record: dict = {}
    for minute in range(600):
        verdict = world.pass_(60, heartbeat=minute + 1)
        told += liveness.Liveness.changed(record, verdict.record)
        record = verdict.record
    assert told <= 3


def test_live_sessions_hold_their_lock_and_dead_ones_are_removed(tmp_path):
    paths = contract.Paths(tmp_path)
    for name in ("live", "dead"):
        (paths.sessions / name).mkdir(parents=True)
        (paths.sessions / name / "lock").touch()
    held = os.open(paths.sessions / "live/lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    pts = tmp_path / "pts"
    pts.mkdir()
    (pts / "0").touch()
    (pts / "ptmx").touch()
    seen = liveness.look(paths, pts)
    assert seen.sessions == 1 and list(seen.terminals) == ["0"]
    assert [p.name for p in paths.sessions.iterdir()] == ["live"]
    os.close(held)
    assert liveness.look(paths, pts).sessions == 0
