# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the audit trail from recorded lines, and judge its health."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput, NotFound
from ansible_collections.spt.flow.plugins.module_utils._node.machine import audit, audit_registry
from hypothesis import given
from hypothesis import strategies as st

# Recorded on a test machine (kernel 6.18): two commands of a root shell in a remapped workspace.
RECORDED = (Path(__file__).parent / "data/audit_commands.log").read_text().splitlines()

RULES = " ".join([*audit.KEYS, audit.IDS])

EARLY = "type=SYSCALL msg=audit(1.000:7): arch=c000003e syscall=59 success=yes auid=1000 uid=0 euid=0 key="


def test_recorded_commands_are_read_with_their_arguments() -> None:
    first, second = audit.events(RECORDED)
    assert first.argv == ["/bin/echo", "hidden", "words"]
    assert (first.auid, first.text("exe"), first.cwd, first.text("key")) == (
        771206,
        "/usr/bin/echo",
        "/",
        "spt-flow-priv",
    )
    assert second.argv == ["/bin/echo", "two\nlines", "sp ace", "ü"]
    assert second.command == r"/bin/echo 'two\nlines' 'sp ace' ü"
    assert second.title.startswith("/bin/echo two\nlines")


def test_interleaved_records_of_events_are_separated() -> None:
    chance = random.Random(1)
    for _round in range(20):
        mixed = list(RECORDED)
        chance.shuffle(mixed)
        assert {event.command for event in audit.events(mixed)} == {event.command for event in audit.events(RECORDED)}


def test_enriched_and_forwarded_lines_are_understood() -> None:
    enriched = [f'node=n1 {line}\x1dARCH=x86_64 AUID="alice"' for line in RECORDED]
    assert [event.command for event in audit.events(enriched)] == [event.command for event in audit.events(RECORDED)]


def test_split_argument_is_joined_before_decoding() -> None:
    word = "ä" * 100
    text = word.encode().hex().upper()
    lines = [f'type=EXECVE msg=audit(1.0:1): argc=2 a0="x" a1_len={len(text)} a1[0]={text[:51]}']
    lines += [f"type=EXECVE msg=audit(1.0:1):  a1[{n + 1}]={text[51 + n * 100 : 151 + n * 100]}" for n in range(4)]
    (event,) = audit.events(lines)
    assert event.argv == ["x", word]


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")), min_size=1, max_size=6))
def test_hexadecimal_arguments_are_decoded(words: list[str]) -> None:
    fields = " ".join(f"a{n}={word.encode().hex().upper() or chr(34) * 2}" for n, word in enumerate(words))
    (event,) = audit.events([f"type=EXECVE msg=audit(1.0:1): argc={len(words)} {fields}"])
    assert event.argv == words
    assert "\n" not in event.command


@given(st.text())
def test_reader_accepts_any_line(line: str) -> None:
    list(audit.events([line, f"type=EXECVE msg=audit(1.0:1): {line}"]))


@pytest.mark.parametrize("text", ["700001 ", '"root"', "(null)", "", "ABC", "deadbeef"])
def test_text_that_is_not_hexadecimal_is_unchanged(text: str) -> None:
    assert audit.decode(text) == text.strip('"').replace("(null)", "")


@pytest.fixture
def node(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "registry/ids").mkdir(parents=True)
    (tmp_path / "registry/ids/771206").write_text("alice/demo\nabc\n")
    log = tmp_path / "audit.log"
    log.write_text("\n".join(RECORDED) + "\n")
    return str(log), str(tmp_path / "registry")


def test_report_names_owner_and_workspace(node: tuple[str, str]) -> None:
    rows = audit.report(log=node[0], registry_path=node[1])
    assert [(row["owner"], row["workspace"], row["ok"]) for row in rows] == [("alice", "demo", True)] * 2
    assert audit.report("bob", log=node[0], registry_path=node[1]) == []
    assert len(audit.report("alice", "demo", 1795457558.6, *node)) == 1


def test_compressed_and_rotated_logs_are_searched(node: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "audit.log").rename(tmp_path / "audit.log.1")
    (tmp_path / "audit.log").write_text("")
    assert len(audit.report(log=node[0], registry_path=node[1])) == 2
    assert audit.archive(30, node[0]) == (1, 0)
    (packed,) = (tmp_path / "archive").glob("*.gz")
    assert gzip.decompress(packed.read_bytes()).decode().splitlines() == RECORDED
    assert len(audit.report(log=node[0], registry_path=node[1])) == 2
    os.utime(packed, (1, 1))
    assert audit.archive(30, node[0]) == (0, 1)


def test_missing_log_names_the_role(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no audit log"):
        audit.report(log=str(tmp_path / "none"))


def test_commands_of_other_rules_are_ignored(node: tuple[str, str]) -> None:
    Path(node[0]).write_text(f'{EARLY}"other"\ntype=EXECVE msg=audit(1.000:7): argc=1 a0="ls"\n')
    assert audit.report(log=node[0], registry_path=node[1]) == []


def test_event_with_several_keys_is_understood(node: tuple[str, str]) -> None:
    keys = b"other\x01spt-flow-root".hex().upper()
    Path(node[0]).write_text(f'{EARLY}{keys}\ntype=EXECVE msg=audit(1.000:7): argc=1 a0="ls"\n')
    assert len(audit.report(log=node[0], registry_path=node[1])) == 1


@pytest.mark.parametrize(
    ("auid", "who"),
    [
        (771206, ("alice", "demo")),
        (700000, ("?", "700000")),
        (0, ("root", "-")),
        (audit_registry.UNSET, ("?", "-")),
        (4242424, ("4242424", "-")),
    ],
)
def test_names_are_resolved(auid: int, who: tuple[str, str]) -> None:
    assert audit_registry.name(auid, {771206: "alice/demo"}) == who


def test_times_are_parsed() -> None:
    assert audit.since_time("2h", 10_000) == 2_800
    assert audit.since_time("1795457558", 0) == 1795457558
    assert audit.since_time("2026-11-23T18:00+00:00", 0) == 1795456800
    with pytest.raises(InvalidInput, match="is not valid"):
        audit.since_time("yesterday", 0)


@pytest.mark.parametrize(
    ("status", "rules", "known", "words"),
    [
        ({"enabled": 1, "pid": 5, "lost": 3}, RULES, 3, ""),
        ({"enabled": 2, "pid": 5, "lost": 8}, RULES, 3, "5 audit records were lost"),
        ({"enabled": 0, "pid": 5, "lost": 0}, RULES, 0, "disabled"),
        ({"enabled": 1, "pid": 0, "lost": 0}, RULES, 0, "audit daemon does not run"),
        (
            {"enabled": 1, "pid": 5, "lost": 0},
            "spt-flow-priv",
            0,
            "Rules are missing: spt-flow-host, spt-flow-root, spt-flow-ids",
        ),
    ],
)
def test_health_is_judged(status: dict[str, int], rules: str, known: int, words: str, tmp_path: Path) -> None:
    found = " ".join(audit.problems(status, rules, known, str(tmp_path / "audit.log")))
    assert words in found
    assert words or "lost" not in found
