# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying a local folder runs none of its programs and reads no other repository."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import record as ci_record
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import address as repository_address
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import probe as repository_probe
from ansible_collections.spt.flow.tests import hostile

SPRUNG = [trap for trap in hostile.EXECUTING if trap.spring]


def identity(trap: hostile.Trap) -> str:
    return trap.name + ("" if trap.held else "-new")


@pytest.mark.parametrize("trap", hostile.TRAPS, ids=identity)
def test_no_trap_works(tmp_path: Path, trap: hostile.Trap) -> None:
    place = hostile.Place.make(tmp_path)
    secret = place.secret
    trap.set(place)
    repository = repository_address.Repository.parse(str(place.folder))
    place.canary.unlink(missing_ok=True)
    begun = time.monotonic()
    repository_probe.probe(repository)
    try:
        bundle = repository_probe.make_bundle(repository, timeout=20)
    except FlowError:
        bundle = b""
    address = ci_record.source(repository)["origin"]
    assert not place.canary.exists(), place.canary.read_text()
    assert "private" not in address
    assert time.monotonic() - begun < 15
    (tmp_path / "seed.bundle").write_bytes(bundle)
    if bundle:
        hostile.git(tmp_path, "clone", "-q", "--bare", "seed.bundle", "copy")
        copied = hostile.git(tmp_path / "copy", "rev-list", "--all")
        assert copied and secret not in copied


@pytest.mark.parametrize("trap", SPRUNG, ids=identity)
def test_trap_works_on_plain_git(tmp_path: Path, trap: hostile.Trap) -> None:
    """Plain git in the folder runs the trap, which proves that the test above is meaningful."""
    place = hostile.Place.make(tmp_path)
    trap.set(place)
    hostile.git(place.folder, *trap.spring, check=False, stdin=trap.stdin)
    assert place.canary.exists()


def test_at_least_the_expected_number_of_traps() -> None:
    assert len(SPRUNG) >= 25 and len({trap.name for trap in hostile.TRAPS}) == len(hostile.TRAPS)
