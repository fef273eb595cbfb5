# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of the collection with a small recipe for tests that release images: gh is a script whose version can change.

As a program (used by molecule) it creates FOLDER/seed.tar: ``recipe_harness.py FOLDER``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
DOCKERFILE = """# SPDX-License-Identifier: GPL-3.0-or-later
ARG BASE
FROM ${BASE}
# tools
COPY rootfs/ /
COPY image.json /usr/share/spt-flow/image.json
ARG IMAGE_HASH
ARG PROFILE
LABEL spt.flow.image="${IMAGE_HASH}" spt.flow.profile="${PROFILE}"
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/spt-workspace", "run"]
"""
VERIFY = """#!/bin/sh
# Stands for the command of a whole image: proves gh alone.
[ "$1" = verify ] || exit 2
if said=$(gh --version); then state=passed status=0; else state=failed status=1; fi
echo "gh $state" >&2
printf '{"checks": [{"name": "gh", "state": "%s", "detail": "%s"}]}\\n' "$state" "$said"
exit $status
"""
"""The workspace agent in the image of the small recipe."""


@dataclass
class Copy:
    """The collection at ``root``; ``place`` is its location while it builds."""

    root: Path
    place: Path

    @property
    def versions(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((self.root / "image/versions.yml").read_text())
        return found

    def write(self, versions: dict[str, Any]) -> None:
        (self.root / "image/versions.yml").write_text(yaml.safe_dump(versions, sort_keys=False))

    def gh(self, version: str, works: bool = True) -> None:
        """Update gh in versions.yml, as `make image-update` does; a broken one reports its version nevertheless."""
        name = f"gh-{version}.zip"
        with zipfile.ZipFile(self.root / "image" / name, "w") as archive:
            archive.writestr("gh", f"#!/bin/sh\necho gh version {version}\nexit {0 if works else 1}\n")
        digest = hashlib.sha256((self.root / "image" / name).read_bytes()).hexdigest()
        file = {"url": f"file://{self.place}/image/{name}", "sha256": digest, "take": {"gh": "usr/local/bin/gh"}}
        versions = self.versions
        versions["tools"]["gh"] = {"version": version, "files": [file]}
        versions["profiles"]["slim"]["tools"] = ["gh"]
        self.write(versions)

    def tiny(self) -> None:
        """Reduce the image to a base system and gh: enough for a profile's identity and a verification, in seconds."""
        image = self.root / "image"
        versions = self.versions
        versions["profiles"]["slim"]["packages"] = []
        self.write(versions)
        (image / "Dockerfile").write_text(DOCKERFILE)
        shutil.rmtree(image / "rootfs")
        program = image / "rootfs/usr/local/bin/spt-workspace"
        program.parent.mkdir(parents=True)
        program.write_text(VERIFY)
        program.chmod(0o755)

    def spare_the_ide(self, cache: Path) -> None:
        """Put an empty archive where the builder looks for a compiled code-server."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

        made = image_identity.recipe("slim", self.root / "image")
        words = [made.base["suite"], *(made.ide[name]["sha256"] for name in ("node", "code-server"))]
        key = image_identity.content_hash(words, self.root / "image/ide")[:16]
        (cache / "spt-flow/ide").mkdir(parents=True)
        with tarfile.open(cache / f"spt-flow/ide/{key}.tar.gz", "w:gz"):
            pass


def copy(root: Path, place: Path | None = None) -> Copy:
    """Copy the checkout's files, committed or not, below ``root``."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in names:
        if name and (CHECKOUT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, root / name)
    return Copy(root, place or root)


def cache_of_its_own(folder: Path, *shared: str) -> Path:
    """Create a cache that shares slow downloads with the user's but no images."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spt-flow"
    (folder / "spt-flow").mkdir(parents=True)
    for name in ("base", *shared):
        (users / name).mkdir(parents=True, exist_ok=True)
        (folder / "spt-flow" / name).symlink_to(users / name)
    return folder


def main(folder: str) -> None:
    """Create what the scenario image_build copies to its machine: /srv/flow.git, and a cache of slow downloads."""
    root = Path(folder)
    shutil.rmtree(root, ignore_errors=True)
    made = copy(root / "checkout", Path("/var/lib/spt-flow/image-build"))
    made.tiny()
    git = ["git", "-c", "user.name=Tester", "-c", "user.email=tester@example.com", "-C", str(made.root)]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    for branch, version, works in (("broken", "1.2", False), ("moved", "1.1", True), ("first", "1.0", True)):
        made.gh(version, works)
        for words in (["add", "--all"], ["commit", "-q", "-m", version], ["branch", "--force", branch]):
            subprocess.run([*git, *words], check=True)
    files = root / "files"
    subprocess.run(["git", "clone", "-q", "--mirror", str(made.root), str(files / "srv/flow.git")], check=True)
    made.spare_the_ide(files / "var/cache")
    suite = made.versions["bases"]["debian-12"]["suite"]
    for path in cache_of_its_own(root / "shared").glob(f"spt-flow/base/{suite}-*.tar"):
        (files / "var/cache/spt-flow/base").mkdir(exist_ok=True)
        shutil.copyfile(path, files / "var/cache/spt-flow/base" / path.name)
    with tarfile.open(root / "seed.tar.new", "w") as tar:
        tar.add(files, ".")
    (root / "seed.tar.new").rename(root / "seed.tar")


if __name__ == "__main__":
    sys.path.insert(0, str(CHECKOUT / ".ansible/collections"))
    main(*sys.argv[1:])
