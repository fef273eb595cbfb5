# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identity of the workspace image: a hash of its inputs (docs/decisions/image-identity.md).

Apart from ``build``, because every ``up`` asks for the identity and hardly any builds. An identity is made of what its
profile uses: another profile's tool that moves leaves it alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....module_utils._node.errors import InvalidInput, NotFound
from ..common.version import COLLECTION

REPOSITORY = "spt-flow/workspace"
FOLDER = COLLECTION / "image"
_INPUTS = ("Dockerfile", "apt-sources", "ide", "install.d", "rootfs")
_COMPILED = "crate"
"""The folder that compiles crates, an input of profiles that have any."""


@dataclass(frozen=True)
class Image:
    """``tag`` is what engines call it, ``hash`` its identity (64 hex digits).

    ``reference`` (a registry's name with a digest) and ``archive`` (a file) are where a release says it can be had.
    """

    profile: str
    hash: str
    reference: str = ""
    archive: str = ""

    @property
    def tag(self) -> str:
        return f"{REPOSITORY}:{self.profile}-{self.hash[:12]}"


@dataclass(frozen=True)
class Recipe:
    """What ``image/versions.yml`` says about one profile.

    ``base`` and ``distribution`` are entries of that file; ``packages`` are the groups by name, called as on that base;
    ``tools`` go in by this order, ``absent`` ones (name: why) do not; ``elsewhere`` are those of other profiles.
    """

    profile: str
    base_name: str
    base: Mapping[str, Any]
    distribution: Mapping[str, Any]
    packages: Mapping[str, tuple[str, ...]]
    ide: Mapping[str, Any]
    tools: Mapping[str, Mapping[str, Any]]
    absent: Mapping[str, str]
    elsewhere: tuple[str, ...]

    @property
    def content(self) -> str:
        """Everything that decides what is in the image, as text: where it comes from is no part of it."""
        words = {
            "base": {name: self.base.get(name) for name in ("distribution", "suite", "snapshot", "registry")},
            "archives": self.distribution["archives"],
            "packages": {name: list(group) for name, group in self.packages.items()},
            "ide": [[name, entry["sha256"]] for name, entry in self.ide.items()],
            "tools": [[name, placed(entry)] for name, entry in self.tools.items()],
            "absent": self.absent,
        }
        return json.dumps(words, sort_keys=True)


def placed(tool: Mapping[str, Any]) -> dict[str, Any]:
    """What of a tool's entry decides which files it brings: the sums, and where their parts go."""
    files = [{name: value for name, value in file.items() if name != "url"} for file in tool["files"]]
    return {name: tool.get(name) for name in ("version", "crate", "leave", "links")} | {"files": files}


def versions(folder: Path = FOLDER) -> dict[str, Any]:
    """The content of ``image/versions.yml``; every `up` reads it, so by libyaml where that is there."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with open(folder / "versions.yml", encoding="utf-8") as handle:
        return dict(yaml.load(handle, loader))  # noqa: S506 - the safe loader either way


def recipe(profile: str = "slim", folder: Path = FOLDER) -> Recipe:
    """What goes into the image of ``profile``; refuses one that there is not."""
    known = versions(folder)
    if profile not in known["profiles"]:
        raise InvalidInput(f"There is no image profile {profile!r}.", f"One of: {', '.join(known['profiles'])}.")
    about = known["profiles"][profile]
    about = {**known["profiles"].get(about.get("like"), {}), **about}
    base = known["bases"][about["base"]]
    names = base.get("names", {})
    tools = {name: known["tools"][name] for name in about["tools"]}
    return Recipe(
        profile=profile,
        base_name=about["base"],
        base=base,
        distribution=known["distributions"][base["distribution"]],
        packages={
            group: tuple(called for name in known["packages"][group] for called in names.get(name, [name]))
            for group in about["packages"]
        },
        ide=known["ide"],
        tools={name: tool for name, tool in tools.items() if "absent" not in tool},
        absent={name: str(tool["absent"]) for name, tool in tools.items() if "absent" in tool},
        elsewhere=tuple(name for name in known["tools"] if name not in tools),
    )


def identity(profile: str = "slim", folder: Path = FOLDER) -> Image:
    """The image that this collection's ``image/`` describes; reads its files, asks nobody."""
    made = recipe(profile, folder)
    inputs = [*_INPUTS, *([_COMPILED] if any(tool.get("crate") for tool in made.tools.values()) else [])]
    return Image(profile, content_hash([profile, made.content], *(folder / name for name in inputs)))


def current(profile: str = "slim", release: str = "") -> Image:
    """The image that is to be used: the one that the file ``release`` records, without a file this collection's own."""
    if not release:
        return identity(profile)
    entry = recorded(Path(release)).get(recipe(profile).profile)
    if entry is None:
        raise NotFound(
            f"The file {release} records no image of the profile {profile}.",
            f"Release one: ansible-playbook spt.flow.image -e profile={profile} -e image_release={release}",
        )
    archive = str(Path(release).parent / entry["archive"]) if entry.get("archive") else ""
    return Image(profile, entry["hash"], str(entry.get("reference", "")), archive)


def recorded(path: Path) -> dict[str, dict[str, Any]]:
    """What the file of a release records by profile; nothing where there is none."""
    try:
        entries = {str(name): dict(entry) for name, entry in json.loads(path.read_text(encoding="utf-8")).items()}
        if not all(len(entry["hash"]) == hashlib.sha256().digest_size * 2 for entry in entries.values()):
            raise ValueError("an identity has 64 digits")
    except FileNotFoundError:
        return {}
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"The file {path} does not record images: {error}.",
            "Only spt.flow.image writes it (image_release). Bring back a whole copy, or move it away and run that.",
        ) from None
    return entries


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
