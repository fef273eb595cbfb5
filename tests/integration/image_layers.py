# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layers of images, and an image in which one tool has another version; for tests and benchmarks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import build as image_build
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import engine as image_engine
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

Layer = tuple[str, str, int]
"""The command that created it, the identity of its files, its size."""
MOVES = "gh"


def layers(tag: str) -> list[Layer]:
    engine = docker_http.connect()
    names = engine.get_json(f"/images/{tag}/json")["RootFS"]["Layers"]
    history = reversed(engine.get_json(f"/images/{tag}/history"))
    # Steps that only set metadata have no layer; a layer without files has no relevant size.
    made = [step for step in history if "#(nop)" not in step["CreatedBy"] or "in /" in step["CreatedBy"]]
    assert len(names) == len(made), (names, made)
    return [(step["CreatedBy"], name, step["Size"]) for name, step in zip(names, made, strict=True)]


def tool_layers(tag: str) -> list[str]:
    """Return the identities of the layers with one tool each."""
    return [name for made_by, name, _ in layers(tag) if "ADD file:" in made_by and " in /opt/" not in made_by]


@contextmanager
def moved(profile: str, folder: Path, progress: Progress) -> Iterator[str]:
    """Build the profile's image with another version of an often updated tool; yield its tag, then remove it."""
    copy = Path(shutil.copytree(image_identity.FOLDER, folder / "image", symlinks=True))
    known = image_identity.versions(copy)
    known["tools"][MOVES]["links"] = {"usr/local/bin/github": "/usr/local/bin/gh"}
    (copy / "versions.yml").write_text(yaml.safe_dump(known, sort_keys=False))
    other = image_identity.identity(profile, copy)
    try:
        image_build._Builder(other, {}, progress, copy)._build().tag(*other.tag.split(":"))
        yield other.tag
    finally:
        image_engine.remove(other)


def reused(before: list[Layer], after: list[Layer]) -> float:
    """Return the share of bytes of an image that an engine with another image already has."""
    there = {name for _, name, _ in before}
    return sum(size for _, name, size in after if name in there) / sum(size for _, _, size in after)
