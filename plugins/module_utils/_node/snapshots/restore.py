# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""List snapshots and restore a path or a whole volume."""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk.image import copy, drop, opened
from ..errors import Conflict, FlowError, InvalidInput, NotFound, Unhealthy
from .config import Config
from .policy import Snapshot, newest_good
from .run import run
from .volumes import SKIP, VOLUME_NAME, Volume, Volumes


@dataclass(frozen=True)
class Restore:
    """What to restore. ``path`` (relative to the home) empty means the whole volume; ``into`` empty chooses the target
    here.

    ``over`` and ``confirm`` (the volume's name) together allow replacing the content of an existing volume.
    """

    volume: str
    snapshot: str = "latest"
    path: str = ""
    into: str = ""
    over: bool = False
    confirm: str = ""


def listing(config: Config, volume: str = "") -> list[dict[str, Any]]:
    """Return snapshots, newest first, as plain data."""
    found = [s for s in config.restic().snapshots() if volume in ("", s.volume)]
    return [
        {"id": s.id, "volume": s.volume, "time": s.time, "good": s.good, "labels": dict(s.labels)}
        for s in sorted(found, key=lambda s: (s.volume, -s.time))
    ]


def choose(config: Config, volume: str, wanted: str, now: float) -> Snapshot:
    """Return the snapshot ``wanted`` of ``volume``: an id (8 or more characters) or ``latest``, the newest good one."""
    mine = [s for s in config.restic().snapshots() if s.volume == volume]
    if not mine:
        raise NotFound(
            f"{config.repository} does not have snapshots of volume {volume}.",
            "List them: spt-flow-snapshots list.",
        )
    found = newest_good(mine, now) if wanted == "latest" else next((s for s in mine if wanted[:8] == s.id), None)
    if found is None:
        raise NotFound(
            f"Volume {volume} does not have the snapshot {wanted}.", f"List them: spt-flow-snapshots list {volume}."
        )
    return found


def restore(config: Config, what: Restore, plan_only: bool = False) -> dict[str, Any]:
    """Restore one path or a whole volume. Return ``{"volume", "snapshot", "into", "path", "created"}``.

    Nothing is written through a name that a workspace controls: data goes into a new directory that only root can
    enter, is checked there, and is then renamed into place.
    """
    inside = inner_path(what.path) if what.path else ""
    if not VOLUME_NAME.fullmatch(what.volume) or (what.into and not VOLUME_NAME.fullmatch(what.into)):
        raise InvalidInput(f"{what.into or what.volume} is not the name of a volume.")
    volumes = Volumes(config.socket)
    snapshot = choose(config, what.volume, what.snapshot, time.time())
    if inside:
        return _restore_path(config, volumes, what, snapshot, inside, plan_only)
    into = what.into or (
        what.volume if _lookup(volumes, what.volume) is None else f"{what.volume}-restored-{snapshot.id}"
    )
    exists = _lookup(volumes, into)
    if exists is not None and not (what.over and what.confirm == into):
        raise Conflict(
            f"Volume {into} exists; replacing its content must be confirmed.",
            f"Omit the target for a new volume, or pass over=true and confirm={into}.",
        )
    _refuse_running(volumes, into, exists)
    result = {"volume": what.volume, "snapshot": snapshot.id, "into": into, "path": "", "created": exists is None}
    if not plan_only:
        _restore_volume(config, volumes, snapshot, into, exists)
    return result


def _refuse_running(volumes: Volumes, name: str, volume: Volume | None) -> None:
    users = volumes.users(name) if volume else []
    if users:
        raise Conflict(
            f"Volume {name} is in use by {', '.join(users)}.",
            "Stop the workspace first: ansible-playbook spt.flow.stop.",
        )


def _restore_volume(config: Config, volumes: Volumes, snapshot: Snapshot, into: str, exists: Volume | None) -> None:
    labels = (
        dict(snapshot.labels)
        if into == snapshot.volume
        else {"spt.flow.restored": f"{snapshot.volume}@{snapshot.id}", SKIP: "no"}
    )
    if exists is not None:
        run(config, (into,))
    volume = exists or volumes.create(into, labels)
    try:
        _swap(config, snapshot, volume)
    except (FlowError, OSError):
        if exists is None:
            volumes.remove(into)
        raise


def _swap(config: Config, snapshot: Snapshot, volume: Volume) -> None:
    """Restore next to the volume's data, then replace the old directory with the new one."""
    home = Path(volume.path)
    fresh, old = home.parent / ".spt-flow-restore", home.parent / ".spt-flow-replaced"
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    try:
        config.restic().restore(snapshot.id, str(fresh))
        restored = fresh / home.name
        if restored.is_symlink() or not restored.is_dir():
            raise Unhealthy(f"Snapshot {snapshot.id} does not contain the directory {home.name}.")
        home.rename(old)
        restored.rename(home)
    except BaseException:
        if old.exists() and not home.exists():
            old.rename(home)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    drop(home)
    shutil.rmtree(old)


def _restore_path(
    config: Config, volumes: Volumes, what: Restore, snapshot: Snapshot, inside: str, plan_only: bool
) -> dict[str, Any]:
    """Restore one path of the snapshot into a new directory ``restored-<snapshot>`` of the volume, with the home's
    owner.
    """
    volume = _lookup(volumes, what.into or what.volume)
    if volume is None:
        raise NotFound(
            f"Cannot restore {inside}: volume {what.into or what.volume} does not exist.",
            "Restore the whole volume instead.",
        )
    name = f"restored-{snapshot.id}"
    result = {
        "volume": what.volume,
        "snapshot": snapshot.id,
        "into": volume.name,
        "path": f"{name}/{Path(inside).name}",
        "created": False,
    }
    if plan_only:
        return result
    with opened(Path(volume.path)):
        _restore_into(config, volume, snapshot, inside, name)
    return result


def _restore_into(config: Config, volume: Volume, snapshot: Snapshot, inside: str, name: str) -> None:
    """Restore ``inside`` next to the volume's data, then move it into its directory ``name``."""
    home = os.open(volume.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    staging = Path(volume.path).parent / ".spt-flow-restore"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    try:
        config.restic().restore(snapshot.id, str(staging), f"/{Path(volume.path).name}/{inside}")
        found = staging / Path(volume.path).name / inside
        if not os.path.lexists(found):
            raise NotFound(
                f"Snapshot {snapshot.id} of {snapshot.volume} does not contain {inside}.",
                "Paths are relative to the home.",
            )
        _move_into(home, name, found)
    finally:
        os.close(home)
        shutil.rmtree(staging, ignore_errors=True)


def _move_into(home: int, name: str, found: Path) -> None:
    """Move ``found`` into the directory ``name`` of the open directory ``home``; never follow or replace names."""
    owner = os.fstat(home)
    try:
        os.mkdir(name, 0o700, dir_fd=home)
    except FileExistsError:
        raise Conflict(f"The home already has {name}. Nothing was changed.", "Move it away and run it again.") from None
    target = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=home)
    try:
        _move(found, target)
        os.fchown(target, owner.st_uid, owner.st_gid)
    except OSError as error:
        # Only root can be in it: a partial restore would look complete.
        shutil.rmtree(f"/proc/self/fd/{target}/{found.name}", ignore_errors=True)
        with suppress(OSError):
            os.unlink(found.name, dir_fd=target)
        with suppress(OSError):
            os.rmdir(name, dir_fd=home)
        raise FlowError(
            f"Cannot put {found.name} into the home: {error.strerror}. Nothing was changed.", "Free space there."
        ) from error
    finally:
        os.close(target)


def _move(found: Path, target: int) -> None:
    """Move ``found`` into the open directory ``target``, or copy it if that has a file system or quota of its own."""
    try:
        os.rename(found, found.name, dst_dir_fd=target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy(str(found), Path(f"/proc/{os.getpid()}/fd/{target}"))


def inner_path(path: str) -> str:
    """Return ``path`` relative to the home.

    Absolute paths below the workspace's home are accepted; others are rejected.
    """
    text = path[len("/home/coder/") :] if path.startswith("/home/coder/") else path
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or ".." in parts or not parts or "\0" in text:
        raise InvalidInput(
            f"The path {path!r} is not in the home.", "Use a path relative to /home/coder, without `..`."
        )
    return "/".join(parts)


def _lookup(volumes: Volumes, name: str) -> Volume | None:
    try:
        return volumes.get(name)
    except NotFound:
        return None


def room(directory: Path, wanted: int, purpose: str) -> None:
    """Raise an error about ``purpose`` unless ``wanted`` bytes and a tenth are free at ``directory``."""
    free = shutil.disk_usage(directory).free
    if free < wanted * 1.1:
        raise FlowError(
            f"Cannot {purpose}: {wanted >> 20} MiB are needed at {directory}, {free >> 20} MiB are free.",
            "Free space there.",
        )
