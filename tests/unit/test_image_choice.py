# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which image `profile: auto` means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.filter import image as image_filter
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError, Unhealthy
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import inventory
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import cache as image_cache
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import choice, engine, identity


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No engine has an image, and the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine, "present", lambda image: False)


def test_auto_is_slim_until_the_engine_has_fat(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.image_for("auto", "").profile == "slim"
    monkeypatch.setattr(engine, "present", lambda image: image.profile == "fat")
    assert choice.image_for("auto", "") == identity.identity("fat")


def test_auto_is_fat_when_the_cache_has_it() -> None:
    image_cache.archive_of(identity.identity("fat")).touch()
    assert choice.image_for("auto", "").profile == "fat"


def test_auto_is_fat_when_a_release_records_it(tmp_path: Path) -> None:
    record = tmp_path / "image.json"
    record.write_text(json.dumps({"slim": {"hash": "1" * 64}}))
    assert choice.image_for("auto", str(record)).hash == "1" * 64
    record.write_text(json.dumps({"slim": {"hash": "1" * 64}, "fat": {"hash": "2" * 64}}))
    assert choice.image_for("auto", str(record)).hash == "2" * 64


def test_auto_is_slim_when_the_engine_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(image: object) -> bool:
        raise Unhealthy("The engine does not answer.")

    monkeypatch.setattr(engine, "present", refuse)
    assert choice.image_for("auto", "").profile == "slim"


def test_auto_reads_each_file_of_the_recipe_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [identity.identity(profile) for profile in ("fat", "slim")]
    read: list[Path] = []
    original = Path.read_bytes

    def count(path: Path) -> bytes:
        read.append(path)
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", count)
    assert choice.image_for("auto", "") == alone[1]
    assert len(read) == len(set(read)) > 0
    assert identity.identities("fat", "slim") == alone


@pytest.mark.parametrize("profile", ["slim", "fat", "fat-packages"])
def test_named_profile_is_used_as_it_is(profile: str) -> None:
    assert choice.image_for(profile, "").profile == profile


def test_auto_is_fat_for_nodes_templates_and_builds() -> None:
    assert identity.current("auto") == identity.identity("fat")
    assert image_filter.image_identity("auto")["profile"] == "fat"
    assert identity.identity("auto").tag.startswith("spt-flow/workspace:fat-")


def test_preflight_refuses_hosts_that_differ_in_their_profile() -> None:
    assert inventory.profiles({"one": "fat", "two": "fat"}) == []
    (sentence,) = inventory.profiles({"one": "fat", "two": "slim"})
    assert "fat for one; slim for two" in sentence
    assert FlowError(sentence).message == sentence
