# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of workspaces: validation before any change, and what runs in parallel."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import fleet

REPO = "https://example.com/o/demo"


def read(given: Any, **layer: Any) -> list[fleet.Entry]:
    return fleet.read(given, {"the inventory": layer})


def mistakes(given: Any) -> list[str]:
    with pytest.raises(InvalidInput) as refused:
        read(given)
    found: list[str] = refused.value.details["entries"]
    assert all(sentence in refused.value.hint for sentence in found)
    return found


def test_all_mistakes_are_reported_at_once_with_their_place() -> None:
    told = mistakes(
        [
            {"repo": REPO},
            {"repo": REPO, "memroy": "8g"},
            "demo",
            {"repo": REPO, "owner": "bob", "state": "stoped"},
            {"owner": "bob"},
            {"repo": REPO, "owner": "carol", "memory": "lots"},
            {"repo": REPO, "command": "make"},
            {"repo": REPO},
        ]
    )
    assert [sentence.partition(":")[0].partition(" (")[0] for sentence in told] == [f"Entry {n}" for n in range(2, 9)]
    for sentence, words in zip(
        told,
        [
            "Did you mean memory?",
            "mapping",
            "did you mean stopped?",
            "not name a workspace",
            "memory is",
            "whole run",
            "entry 1",
        ],
        strict=True,
    ):
        assert words in sentence, sentence


@pytest.mark.parametrize("given", ["demo", {"repo": REPO}, 3])
def test_invalid_list_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInput, match="not a list"):
        read(given)


def test_mistake_shows_no_credentials() -> None:
    (told,) = mistakes([{"repo": "https://user:secret@example.com/o/demo"}])
    assert "secret" not in told


def test_entry_overrides_defaults_and_alone_names_its_workspace() -> None:
    (first, second) = read(
        [{"repo": REPO, "memory": "1g"}, {"workspace": "mine"}], memory="2g", cpus=2, repo="o/x", ref="y", workspace="z"
    )
    assert (first.values["memory"], second.values["memory"]) == (1 << 30, 2 << 30)
    assert (first.values["workspace"], first.values["ref"], second.values["repo"]) == ("", "", "")
    assert first.values["cpus"] == 2 and (first.title, second.title) == ("demo", "mine")


def test_equal_names_of_two_owners_are_two_workspaces() -> None:
    assert len(read([{"repo": REPO, "owner": owner} for owner in ("alice", "bob")])) == 2


def test_limited_number_runs_in_parallel_and_rows_keep_their_order() -> None:
    entries = read([{"repo": f"https://example.com/o/r{n}"} for n in range(9)])
    lock, running, most = threading.Lock(), [0], [0]

    def work(entry: fleet.Entry) -> dict[str, Any]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02 * (10 - entry.index) / 10)
        with lock:
            running[0] -= 1
        return {"index": entry.index}

    assert [row["index"] for row in fleet.each(entries, work, 3)] == list(range(1, 10))
    assert most[0] == 3


def test_entries_that_may_compete_for_a_name_run_one_after_another() -> None:
    entries = read([{"repo": f"https://example.com/{owner}/demo"} for owner in "abc"])
    order: list[int] = []

    def work(entry: fleet.Entry) -> dict[str, Any]:
        time.sleep(0.02 / entry.index)
        order.append(entry.index)
        return {"index": entry.index}

    fleet.each(entries, work, 4)
    assert order == [1, 2, 3]
