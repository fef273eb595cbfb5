# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The workspace image on a host's engine: is it there, bring it, and which old ones may go.

Presence, tags and users are asked by the small client; what moves gigabytes is the `docker` program's work.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import process
from ..errors import Conflict, FlowError, InvalidInput, NotFound
from ..labels import IMAGE
from .http import Engine, connect

LIMIT = 3600.0
"""Seconds that loading or pulling may take."""


@dataclass(frozen=True)
class Wanted:
    """The image by its tag and content hash, and where it comes from when the engine lacks it.

    ``archive`` is a file on this host, ``reference`` a name in a registry with its digest; without both it is only
    looked for. ``keep`` is how many older images stay although nothing uses them; -1 leaves all. ``in_use`` are tags or
    content hashes that something besides this engine's containers refers to, such as a template.
    """

    tag: str
    hash: str
    archive: str = ""
    reference: str = ""
    keep: int = -1
    in_use: Sequence[str] = ()


@dataclass
class Outcome:
    """``present`` tells whether the engine has the image (in check mode: would have), ``removed`` which went."""

    present: bool
    brought: bool = False
    removed: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return self.brought or bool(self.removed)


def reconcile(wanted: Wanted, check: bool = False, engine: Engine | None = None) -> Outcome:
    """Bring the image where it is missing, then drop old ones. Raises ``FlowError``."""
    engine = engine or connect()
    outcome = Outcome(present(engine, wanted.tag, wanted.hash))
    if not outcome.present and (wanted.archive or wanted.reference):
        if not check:
            _bring(engine, wanted)
        outcome.present = outcome.brought = True
    if outcome.present and wanted.keep >= 0:
        outcome.removed = _prune(engine, wanted, check)
    return outcome


def present(engine: Engine, tag: str, content: str) -> bool:
    """Return whether the engine has an image with the tag and, where ``content`` is given, with that content hash."""
    try:
        found = engine.get_json(f"/images/{tag}/json")
    except NotFound:
        return False
    labels = (found.get("Config") or {}).get("Labels") or {}
    return not content or labels.get(IMAGE) == content


def _bring(engine: Engine, wanted: Wanted) -> None:
    if wanted.archive:
        docker("load", "--quiet", "--input", wanted.archive)
    else:
        if "@sha256:" not in wanted.reference:
            raise InvalidInput(f"{wanted.reference} has no digest.", "Name the image as registry/name@sha256:…")
        docker("pull", "--quiet", wanted.reference)
        docker("tag", wanted.reference, wanted.tag)
    if present(engine, wanted.tag, wanted.hash):
        return
    source = wanted.archive or wanted.reference
    raise FlowError(
        f"Cannot use {source}: it does not hold the image {wanted.tag} that this version of spt.flow describes.",
        "Make it with the same version: ansible-playbook spt.flow.image, then docker save.",
    )


def _prune(engine: Engine, wanted: Wanted, check: bool) -> list[str]:
    """Drop images of ours that nothing uses, but the wanted one and the ``keep`` newest others; their names.

    Used is what a container has, and what ``in_use`` names by tag or content hash.
    """
    repository = wanted.tag.rpartition(":")[0]
    images = engine.get_json("/images/json", {"filters": {"reference": [repository]}})
    used = {entry["ImageID"] for entry in engine.get_json("/containers/json", {"all": True})}
    spared = {wanted.tag, *wanted.in_use}
    old = [
        image
        for image in images
        if image["Id"] not in used and not spared & {*_tags(image), (image.get("Labels") or {}).get(IMAGE)}
    ]
    newest = sorted(old, key=lambda image: image["Created"], reverse=True)
    names = [name for image in newest[wanted.keep :] for name in _names(engine, image["Id"], repository)]
    return [name for name in names if check or _dropped(engine, name)]


def _names(engine: Engine, identifier: str, repository: str) -> list[str]:
    """Our tags of the image, and where it has no others its digests first: after a pull these keep it on the disk."""
    try:
        image = engine.get_json(f"/images/{identifier}/json")
    except NotFound:
        return []
    ours = [tag for tag in _tags(image) if tag.startswith(f"{repository}:")]
    digests = image.get("RepoDigests") or [] if ours == _tags(image) else []
    return [*map(str, digests), *ours]


def _tags(image: dict[str, Any]) -> list[str]:
    return [str(tag) for tag in image.get("RepoTags") or []]


def _dropped(engine: Engine, name: str) -> bool:
    """Whether the name went; a container that has come to use the image meanwhile keeps it."""
    try:
        engine.request_json("DELETE", f"/images/{name}", timeout=120)
    except (Conflict, NotFound):
        return False
    return True


def docker(*words: str) -> str:
    """What the program prints. Raises ``FlowError`` with its last line where it fails."""
    try:
        done = process.run("docker", *words, timeout=LIMIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FlowError(f"Cannot run docker {words[0]}: {error}.") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise FlowError(
            f"docker {' '.join(words)} failed: {said[-1] if said else f'status {done.returncode}'}.",
            "Check the archive or the registry, and the room on the engine's disk.",
        )
    return done.stdout
