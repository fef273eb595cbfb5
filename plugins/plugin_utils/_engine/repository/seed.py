# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack a local repository as a seed bundle for a new workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .address import Repository

if TYPE_CHECKING:
    pass


SEED = ".cache/spt-flow/seed.bundle"
"""Path of the seed bundle below the home (docs/decisions/local-repositories.md)."""


def _bundle(repository: Repository, ref: str) -> bytes:
    from .probe import make_bundle

    return make_bundle(repository, ref)


def seed_archive(bundle: bytes) -> bytes:
    """Return a tar to unpack in the home, with ``bundle`` where the clone step expects it."""
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        parts = SEED.split("/")
        for depth in range(1, len(parts)):
            folder = tarfile.TarInfo("/".join(parts[:depth]))
            folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, 0o755, 1000, 1000
            tar.addfile(folder)
        file = tarfile.TarInfo(SEED)
        file.size, file.mode, file.uid, file.gid = len(bundle), 0o600, 1000, 1000
        tar.addfile(file, io.BytesIO(bundle))
    return buffer.getvalue()
