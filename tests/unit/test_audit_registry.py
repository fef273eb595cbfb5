# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Audit numbers: the runtime's shell program takes them, Python frees them, and both are fast."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.machine import audit, audit_registry

PROGRAM = Path(__file__).resolve().parents[2] / "roles/host_audit/files/audit-id.sh"
FIRST, LAST = audit_registry.FIRST, audit_registry.LAST
LATER = 3600.0


class Node:
    def __init__(self, place: Path) -> None:
        self.place = place
        for folder in ("ids", "containers", "keys", "bundles"):
            (place / folder).mkdir()

    def shell(self, script: str, *words: str) -> str:
        env = {**os.environ, "SPT_FLOW_AUDIT_REGISTRY": str(self.place)}
        argv = ["sh", "-c", f'. "{PROGRAM}"; {script}', "sh", *words]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=600, check=False)
        assert not done.stderr, done.stderr
        return done.stdout.strip()

    def start(self, key: str, container: str) -> int:
        (self.place / "bundles" / container).touch()
        return int(self.shell('key=$1; spt_flow_audit_register "$2" && echo $number', key, container) or 0)

    def end(self, container: str) -> None:
        (self.place / "bundles" / container).unlink()

    def free(self, in_logs: set[int] | None = None) -> int:
        return audit_registry.free(in_logs or set(), str(self.place), time.time() + LATER)

    @property
    def taken(self) -> set[int]:
        return {int(entry.name) for entry in (self.place / "ids").iterdir()}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        made = Node(Path(folder))
        monkeypatch.setattr(audit_registry, "BUNDLES", (str(made.place / "bundles"), str(tmp_path / "none")))
        yield made


def test_workspace_keeps_its_number_while_a_container_or_log_uses_it(node: Node) -> None:
    first, other = node.start("alice/demo", "c1"), node.start("bob/demo", "c2")
    assert FIRST <= first <= LAST and first != other
    assert node.free() == 0, "both run"
    node.end("c1")
    node.end("c2")
    assert node.free({first}) == 1
    assert node.taken == {first}
    assert audit_registry.Registry(str(node.place)).get(first) == "alice/demo"
    assert node.start("alice/demo", "c3") == first
    node.end("c3")
    assert node.free() == 1
    assert [list((node.place / folder).iterdir()) for folder in ("containers", "keys")] == [[], []]


def test_recently_taken_number_is_not_freed(node: Node) -> None:
    node.shell("key=alice/demo; spt_flow_audit_allocate")
    assert audit_registry.free(set(), str(node.place)) == 0
    assert node.free() == 1


def test_number_taken_while_being_freed_stays_with_its_workspace(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    number = node.start("alice/demo", "c1")
    node.end("c1")
    rename = Path.rename

    def concurrent_rename(self: Path, target: Path) -> Path:
        if self.name == str(number):
            with self.open("a") as file:
                file.write("c2\n")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", concurrent_rename)
    assert node.free() == 0
    assert node.taken == {number}


def test_start_whose_number_was_just_freed_takes_another(node: Node) -> None:
    script = (
        "key=alice/demo; spt_flow_audit_allocate; rm $spt_flow_registry/ids/$number $spt_flow_registry/keys/*;"
        " spt_flow_audit_register c1 && read -r taken <$spt_flow_registry/ids/$number && echo $taken"
    )
    assert node.shell(script) == "alice/demo"


@pytest.mark.parametrize("wrong", ["700001", "nonsense", "", "799999999"])
def test_key_with_a_wrong_number_gets_a_new_one(node: Node, wrong: str) -> None:
    node.start("bob/demo", "c1")
    (node.place / "ids/700001").write_text("carol/demo\n")
    (node.place / "keys/alice.demo").write_text(f"{wrong}\n" if wrong else "")
    number = node.start("alice/demo", "c2")
    assert (node.place / "ids" / str(number)).read_text() == "alice/demo\nc2\n"


def test_full_registry_is_refused_at_once(node: Node) -> None:
    tries = 2_000
    for number in range(FIRST, FIRST + tries):
        (node.place / "ids" / str(number)).touch()
    begun = time.monotonic()
    assert node.start("alice/demo", "c1") == 0
    assert time.monotonic() - begun < 2, "0.05 s where nothing else runs"
    assert node.start("alice/demo", "c1") == FIRST + tries, "the next start searches further"


def test_next_start_searches_where_most_numbers_are_unused(node: Node) -> None:
    for number in (FIRST, FIRST + 10, FIRST + 500, LAST):
        (node.place / "ids" / str(number)).write_text("a/b\n")
    node.shell("key=c/d; spt_flow_audit_allocate")
    assert node.free({FIRST, FIRST + 500, LAST}) == 2
    assert node.start("e/f", "c1") == FIRST + 501


@pytest.mark.parametrize("runs", [500, pytest.param(25_000, marks=pytest.mark.full)])
def test_ci_runs_leave_numbers_unused(node: Node, runs: int) -> None:
    """100,000 CI runs, four times the registry's size, each with its own key; one of 500 is in the log."""
    script = (
        "n=0; while [ $n -lt $2 ]; do n=$((n+1)); key=ci/run-$1-$n; spt_flow_audit_allocate || exit 1;"
        ' [ $((n % 500)) -ne 0 ] || echo "$number"; done'
    )
    logged: set[int] = set()
    for part in range(4):
        found = [int(word) for word in node.shell(script, str(part), str(runs)).split()]
        assert len(found) == runs // 500, "every run got a number"
        logged |= set(found)
        assert node.free(logged) == runs - runs // 500
    assert node.taken == logged and len(logged) == 4 * runs // 500
    assert node.start("ci/last", "c1")


def test_numbers_in_compressed_logs_stay_taken_without_decompressing(node: Node, tmp_path: Path) -> None:
    numbers = [node.start(f"alice/w{n}", f"c{n}") for n in range(3)]
    for n in range(3):
        node.end(f"c{n}")
    record = "type=SYSCALL msg=audit(1.0:1): auid={} uid=0\n"
    log = tmp_path / "audit.log"
    (tmp_path / "audit.log.1").write_text(record.format(numbers[0]))
    log.write_text("")
    assert audit.archive(30, str(log)) == (1, 0)
    (packed,) = (tmp_path / "archive").glob("*.gz")
    packed.write_bytes(b"no longer a packed file")
    log.write_text(record.format(numbers[1]))
    assert audit.free_numbers(str(log), str(node.place), time.time() + LATER) == 1
    assert node.taken == set(numbers[:2])
    os.utime(packed, (1, 1))
    audit.archive(30, str(log))
    assert audit.free_numbers(str(log), str(node.place), time.time() + LATER) == 1
    assert list((tmp_path / "archive").iterdir()) == []


def test_filling_registry_is_freed_within_the_day(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MANY", 3)
    monkeypatch.setattr(audit_registry, "GRACE", 0)
    log = tmp_path / "audit.log"
    log.touch()
    for part, taken in ((3, 3), (1, 0)):
        node.shell("n=0; while [ $n -lt $1 ]; do n=$((n+1)); key=a/w$1-$n; spt_flow_audit_allocate; done", str(part))
        audit.free_when_many(str(log), str(node.place))
        assert len(node.taken) == taken
