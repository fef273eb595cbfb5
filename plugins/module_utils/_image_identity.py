# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the workspace image is (private to the collection): the content of its inputs (decision B10).

Apart from ``_image``, because every ``up`` asks for the identity and hardly any builds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = "spt-flow/workspace"
FOLDER = Path(__file__).resolve().parents[2] / "image"
_INPUTS = ("Dockerfile", "apt-sources", "ide", "install.d", "rootfs", "versions.yml")


@dataclass(frozen=True)
class Image:
    """``tag`` is what engines call it, ``hash`` its identity (64 hex digits)."""

    profile: str
    hash: str

    @property
    def tag(self) -> str:
        return f"{REPOSITORY}:{self.profile}-{self.hash[:12]}"


def identity(profile: str = "slim", folder: Path = FOLDER) -> Image:
    """The image that this collection's ``image/`` describes; reads its files, asks nobody."""
    return Image(profile, content_hash([profile], *(folder / name for name in _INPUTS)))


def lacks(where: str, tag: str) -> str:
    """The sentence for an engine without the image; the node's own check says the same (roles/host_images)."""
    return f"{where} does not have the image {tag}."


def bring(node: str) -> str:
    """What to type then; ``node`` is its name in the inventory, nothing where it has none."""
    limit = f" --limit {node}" if node else ""
    return f"Bring it there: ansible-playbook site.yml{limit} --tags host_images"


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir()):
            if child.name != "__pycache__":
                yield from _files(child)
    else:
        yield path


def content_hash(words: Iterable[str], *paths: Path) -> str:
    """SHA-256 over ``words`` and, for each file below ``paths``, its name, executable bit and content."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(f"{word}\0".encode())
    for root in paths:
        for path in _files(root):
            name = path.relative_to(root.parent).as_posix()
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            mode = "x" if os.access(path, os.X_OK) else "-"
            digest.update(f"{name}\0{mode}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
