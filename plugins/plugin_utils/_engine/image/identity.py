# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identity of the workspace image: a hash of its inputs (docs/decisions/image-identity.md).

Separate from ``build``, because every ``up`` needs the identity and few build. Only a profile's own inputs count: an
update of another profile's tool does not change it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ....module_utils._node.errors import InvalidInput, NotFound
from ..common.version import COLLECTION

REPOSITORY = "spt-flow/workspace"
AUTO = "auto"
"""The profile that means ``TEAM``, unless ``choice`` decides for this machine's engine."""
TEAM = "fat"
FOLDER = COLLECTION / "image"
WITHOUT = "spt.flow.without"
"""The label of an image that lacks optional tools, with their names."""
_INPUTS = ("Dockerfile", "apt-sources", "ide", "install.d", "rootfs")
_COMPILED = "crate"
"""The directory that compiles crates, an input of profiles with crates."""


@dataclass(frozen=True)
class Image:
    """``tag`` is the name on engines, ``hash`` the identity (64 hex digits).

    ``reference`` (a registry's name with a digest) and ``archive`` (a file) say where a release published it.
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
    """The entries of ``image/versions.yml`` for one profile.

    ``base`` and ``distribution`` are entries of that file; ``packages`` are the groups by name, with the package names
    of that base. ``tools`` are installed in this order, ``absent`` ones (name: why) are not. ``elsewhere`` are the
    tools of other profiles.
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
        """All inputs that determine the image's content, as text. Download addresses do not count."""
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
    """Return the parts of a tool's entry that determine its files: the digests and the destinations."""
    files = [{name: value for name, value in file.items() if name != "url"} for file in tool["files"]]
    return {name: tool.get(name) for name in ("version", "crate", "leave", "links")} | {"files": files}


def versions(folder: Path = FOLDER) -> dict[str, Any]:
    """Return the content of ``image/versions.yml``. Every `up` reads it, so libyaml is used if available."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with open(folder / "versions.yml", encoding="utf-8") as handle:
        return dict(yaml.load(handle, loader))  # noqa: S506 - both are safe loaders


def recipe(profile: str = "slim", folder: Path = FOLDER, known: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of ``profile``. ``known`` are the ``versions``, if already read. Raise ``InvalidInput`` for an
    unknown profile.
    """
    profile = TEAM if profile == AUTO else profile
    known = known or versions(folder)
    if profile not in known["profiles"]:
        raise InvalidInput(f"Unknown image profile {profile!r}.", f"Use one of: {', '.join(known['profiles'])}.")
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
    """Return the image that this collection's ``image/`` describes. Reads only its files."""
    return identities(profile, folder=folder)[0]


def identities(*profiles: str, folder: Path = FOLDER) -> list[Image]:
    """Return the images of ``profiles``. Read each file once, because every `up` does this."""
    known, read = versions(folder), cache(_content)
    found = []
    for profile in profiles:
        made = recipe(profile, folder, known)
        inputs = [*_INPUTS, *([_COMPILED] if any(tool.get("crate") for tool in made.tools.values()) else [])]
        words = [made.profile, made.content]
        found.append(Image(made.profile, content_hash(words, *(folder / name for name in inputs), read=read)))
    return found


def current(profile: str = "slim", release: str = "") -> Image:
    """Return the image to use: the one recorded in the file ``release``, or this collection's own without a file."""
    if not release:
        return identity(profile)
    profile = recipe(profile).profile
    entry = recorded(Path(release)).get(profile)
    if entry is None:
        raise NotFound(
            f"The file {release} does not record an image of the profile {profile}.",
            f"Release one: ansible-playbook spt.flow.image -e profile={profile} -e image_release={release}",
        )
    archive = str(Path(release).parent / entry["archive"]) if entry.get("archive") else ""
    return Image(profile, entry["hash"], str(entry.get("reference", "")), archive)


def recorded(path: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a release file by profile, or nothing if it does not exist."""
    try:
        entries = {str(name): dict(entry) for name, entry in json.loads(path.read_text(encoding="utf-8")).items()}
        if not all(len(entry["hash"]) == hashlib.sha256().digest_size * 2 for entry in entries.values()):
            raise ValueError("an identity has 64 digits")
    except FileNotFoundError:
        return {}
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"The file {path} does not record images: {error}.",
            "Restore a copy of it, or move it away and run spt.flow.image with image_release.",
        ) from None
    return entries


def missing(where: str, tag: str) -> str:
    """Return the sentence for an engine without the image; the node's own check uses the same (roles/host_images)."""
    return f"{where} does not have the image {tag}."


def install_hint(node: str) -> str:
    """Return the command that installs it. ``node`` is the engine's name in the inventory, or nothing."""
    limit = f" --limit {node}" if node else ""
    return f"Install it: ansible-playbook site.yml{limit} --tags host_images"


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir()):
            if child.name != "__pycache__":
                yield from _files(child)
    else:
        yield path


def _content(root: Path) -> bytes:
    """Return the name, executable bit and content of each file below ``root``."""
    parts = []
    for path in _files(root):
        name = path.relative_to(root.parent).as_posix()
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        mode = "x" if os.access(path, os.X_OK) else "-"
        parts.append(f"{name}\0{mode}\0{len(content)}\0".encode() + content)
    return b"".join(parts)


def content_hash(words: Iterable[str], *paths: Path, read: Callable[[Path], bytes] = _content) -> str:
    """Return the SHA-256 of ``words`` and, for each file below ``paths``, its name, executable bit and content."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(f"{word}\0".encode())
    for root in paths:
        digest.update(read(root))
    return digest.hexdigest()
