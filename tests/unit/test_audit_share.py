# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each workspace's share of the audit trail, with a recorder instead of the kernel's rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.machine import audit_share
from ansible_collections.spt.flow.plugins.module_utils._node.machine.audit_share import Shares, Tail

MORNING = 1_795_500_000.0
NEXT_DAY = MORNING + 86_400
ALICE, BOB = 700_001, 700_002


class Kernel:
    """The kernel's current rules; when locked, it accepts no changes."""

    def __init__(self) -> None:
        self.rules: list[str] = []
        self.said: list[str] = []
        self.locked = False

    def __call__(self, words: Sequence[str]) -> bool:
        verb, rule = words[0], " ".join(words[1:])
        if verb == "-m":
            self.said.append(rule)
        elif self.locked or (verb != "-d") == (rule in self.rules):
            return False
        elif verb == "-d":
            self.rules.remove(rule)
        else:
            self.rules.append(rule)
        return True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(audit_share, "auditctl", made)
    return made


@pytest.fixture
def shares(tmp_path: Path, kernel: Kernel) -> Shares:
    (tmp_path / "registry/ids").mkdir(parents=True)
    (tmp_path / f"registry/ids/{ALICE}").write_text("alice/demo\nabc\n")
    (tmp_path / f"registry/ids/{BOB}").write_text("bob/demo\ndef\n")
    return Shares(10_000, str(tmp_path), str(tmp_path / "registry"))


def event(serial: int, auid: int, size: int = 0, syscall: int = 59) -> list[bytes]:
    head = b"msg=audit(1.000:%d):" % serial
    lines = [b"type=SYSCALL %s arch=c000003e syscall=%d success=yes auid=%d uid=0 euid=0" % (head, syscall, auid)]
    return lines + ([b'type=EXECVE %s argc=1 a0="%s"' % (head, b"x" * size)] if size else [])


def detail(number: int) -> list[str]:
    return [f"always,exclude -F auid={number} -F msgtype={kind}" for kind in audit_share.DETAILS]


def test_workspace_over_its_share_is_recorded_without_arguments(shares: Shares, kernel: Kernel, tmp_path: Path) -> None:
    shares.count([*event(1, ALICE, 11_000), *event(2, BOB, 100)])
    shares.act(MORNING)
    assert kernel.rules == detail(ALICE)
    assert "alice/demo" in kernel.said[0] and "bob" not in kernel.said[0]
    shares.count([line for serial in range(3, 8) for line in event(serial, ALICE)])
    shares.count(event(9, ALICE, syscall=117))
    shares.save()
    (lost,) = audit_share.current(str(tmp_path))
    assert (lost["owner"], lost["level"], lost["commands"]) == ("alice", 1, 5), "each command is counted, nothing else"


def test_workspace_at_twice_its_share_is_not_recorded_until_the_next_day(
    shares: Shares, kernel: Kernel, tmp_path: Path
) -> None:
    shares.count(event(1, ALICE, 11_000))
    shares.act(MORNING)
    shares.count(event(2, ALICE, 11_000))
    shares.act(MORNING + 10)
    assert kernel.rules == [f"never,exit -F auid={ALICE}"]
    shares.act(NEXT_DAY)
    assert kernel.rules == []
    assert [(gap["level"], gap["since"], gap["until"]) for gap in audit_share.gaps(str(tmp_path))] == [
        (1, MORNING, MORNING + 10),
        (2, MORNING + 10, NEXT_DAY),
    ]
    assert audit_share.gaps(str(tmp_path), since=NEXT_DAY + 1) == []
    assert "in full again" in kernel.said[-1]


def test_event_of_many_megabytes_counts_for_its_workspace(shares: Shares, kernel: Kernel) -> None:
    """Records of several events may be interleaved; each counts for the workspace that its event names."""
    mine, other = event(1, ALICE, 9_000), event(2, BOB, 9_000)
    shares.count([mine[0], other[0], mine[1], other[1], b'type=EXECVE msg=audit(1.000:1): a1="y"'])
    assert 9_000 < shares.bytes[BOB] < shares.bytes[ALICE] < 10_000
    shares.count([b"type=EXECVE msg=audit(1.000:99): unknown event", b"no record", b"\xff" * 50])
    shares.count(event(3, 1000, 50_000))
    shares.act(MORNING)
    assert kernel.rules == [], "the host's own records count for no workspace"


def test_dropped_rules_are_set_again(shares: Shares, kernel: Kernel) -> None:
    shares.count(event(1, ALICE, 11_000))
    shares.act(MORNING)
    kernel.rules.clear()
    shares.act(MORNING + audit_share.REASSERT)
    assert kernel.rules == detail(ALICE)


def test_new_watcher_resumes_where_the_killed_one_stopped(shares: Shares, kernel: Kernel, tmp_path: Path) -> None:
    shares.count(event(1, ALICE, 11_000))
    shares.act(MORNING)
    again = Shares(10_000, str(tmp_path), str(tmp_path / "registry"))
    again.act(MORNING + 1)
    assert len(kernel.said) == 1, "nothing is reported twice"
    again.act(NEXT_DAY)
    assert kernel.rules == []
    (tmp_path / "shares.json").write_text("{nonsense")
    assert Shares(10_000, str(tmp_path)).bytes == {}


def test_locked_rules_are_reported(shares: Shares, kernel: Kernel, tmp_path: Path) -> None:
    kernel.locked = True
    shares.count(event(1, ALICE, 11_000))
    shares.act(MORNING)
    assert "locked, so it is not limited" in audit_share.sentence(audit_share.current(str(tmp_path))[0])


def test_tail_follows_the_log_over_its_rotation(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    tail = Tail(str(log))
    assert tail.lines() == []
    log.write_bytes(b"one\ntw")
    assert tail.lines() == [b"one"]
    with log.open("ab") as file:
        file.write(b"o\nthree\n")
    log.rename(tmp_path / "audit.log.1")
    log.write_bytes(b"four\n")
    assert tail.lines() + tail.lines() == [b"two", b"three", b"four"]
    assert Tail(str(log)).lines() == [], "records from before the watcher are not counted"


def test_gaps_are_removed_with_the_trail(tmp_path: Path) -> None:
    old = {"owner": "a", "workspace": "b", "level": 2, "since": 1.0, "until": 2.0, "commands": 0}
    (tmp_path / "gaps").write_text(json.dumps(old) + "\nbroken\n" + json.dumps({**old, "until": MORNING}) + "\n")
    audit_share.forget(1, str(tmp_path), MORNING + 3600)
    assert [gap["until"] for gap in audit_share.gaps(str(tmp_path))] == [MORNING]


def test_missing_watcher_is_noticed(shares: Shares, tmp_path: Path) -> None:
    assert not audit_share.alive(str(tmp_path), wait=0)
    shares.act(MORNING)
    assert audit_share.alive(str(tmp_path), wait=0)
