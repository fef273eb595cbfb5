# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check, load and prune the workspace image on a host's engine.

The small client reads images, tags and users; the `docker` program transfers the image.
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
"""Maximum duration of loading or pulling in seconds."""


@dataclass(frozen=True)
class Wanted:
    """The image by tag and content hash, and its source if the engine lacks it.

    ``archive`` is a file on this host, ``reference`` a name in a registry with its digest; without both, the image is
    only checked. ``keep`` is how many unused older images are kept; -1 keeps all. ``in_use`` are tags or content hashes
    of further images to keep, such as a template's.
    """

    tag: str
    hash: str
    archive: str = ""
    reference: str = ""
    keep: int = -1
    in_use: Sequence[str] = ()


@dataclass
class Outcome:
    """``present`` tells whether the engine has the image (in check mode: would have), ``removed`` the removed ones."""

    present: bool
    brought: bool = False
    removed: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return self.brought or bool(self.removed)


def reconcile(wanted: Wanted, check: bool = False, engine: Engine | None = None) -> Outcome:
    """Load the image if it is missing, then remove old ones. Raise ``FlowError``."""
    engine = engine or connect()
    outcome = Outcome(present(engine, wanted.tag, wanted.hash))
    if not outcome.present and (wanted.archive or wanted.reference):
        if not check:
            _install(engine, wanted)
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


def _install(engine: Engine, wanted: Wanted) -> None:
    if wanted.archive:
        docker("load", "--quiet", "--input", wanted.archive)
    else:
        if "@sha256:" not in wanted.reference:
            raise InvalidInput(f"{wanted.reference} does not have a digest.", "Use the form registry/name@sha256:…")
        docker("pull", "--quiet", wanted.reference)
        docker("tag", wanted.reference, wanted.tag)
    if present(engine, wanted.tag, wanted.hash):
        return
    source = wanted.archive or wanted.reference
    raise FlowError(
        f"Cannot use {source}: it does not contain the image {wanted.tag} that this version of spt.flow describes.",
        "Create it with the same version: ansible-playbook spt.flow.image, then docker save.",
    )


def _prune(engine: Engine, wanted: Wanted, check: bool) -> list[str]:
    """Remove unused images of ours except the wanted one and the ``keep`` newest others. Return their names.

    An image is used if a container has it, or if ``in_use`` names its tag or content hash.
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
    """Return our tags of the image, preceded by its digests if it has no other tags: they would keep it on the disk."""
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
    """Return whether the name was removed; an image that a container has just started to use stays."""
    try:
        engine.request_json("DELETE", f"/images/{name}", timeout=120)
    except (Conflict, NotFound):
        return False
    return True


def docker(*words: str) -> str:
    """Return the program's output. Raise ``FlowError`` with its last line if it fails."""
    try:
        done = process.run("docker", *words, timeout=LIMIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FlowError(f"Cannot run docker {words[0]}: {error}.") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise FlowError(
            f"docker {' '.join(words)} failed: {said[-1] if said else f'status {done.returncode}'}.",
            "Check the archive or the registry, and the free space on the engine's disk.",
        )
    return done.stdout
