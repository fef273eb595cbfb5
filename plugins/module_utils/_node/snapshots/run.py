# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the daily snapshots of home volumes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import atomic
from ..disk.image import opened
from ..errors import FlowError, NotFound
from .config import Config, exclusive
from .policy import Snapshot, expired, newest_good, orphaned
from .restic import label_tag
from .status import HOUR, read_status, write_status
from .volumes import Volume, Volumes, fingerprint, frozen

MARKS = "spt-flow-snapshots"
"""Volume that Coder workspaces of a node can read; the template names it too."""
STORE_AFTER = 6.5 * 24 * HOUR
"""Seconds after which a volume is stored again even if nothing in it has changed."""


def run(config: Config, names: tuple[str, ...] = (), clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """Snapshot every wanted volume (or those in ``names``), delete expired snapshots, write the status. Return the
    status.

    One volume's failure does not stop the others; it is in ``run.errors`` and raised at the end.
    """
    with exclusive(config):
        status = read_status(config)
        status["run"] = {"started": clock(), "ended": None, "ok": False, "errors": []}
        errors: list[str] = status["run"]["errors"]
        try:
            _run(config, names, status, clock)
        except FlowError as error:
            errors.append(error.message)
            raise
        finally:
            status["run"].update(ended=clock(), ok=not errors)
            write_status(config, status, clock())
            publish(config, status)
    if errors:
        raise FlowError(
            f"{len(errors)} of the snapshot steps failed: {errors[0]}", "", {"errors": errors, "status": status}
        )
    return status


def _run(config: Config, names: tuple[str, ...], status: dict[str, Any], clock: Callable[[], float]) -> None:
    restic, errors = config.restic(), status["run"]["errors"]
    volumes, note = config.volumes()
    if note:
        errors.append(note)
    missing = set(names) - {v.name for v in volumes}
    if missing:
        raise NotFound(
            f"No home volume called {', '.join(sorted(missing))} on {config.node}.",
            "List volumes: spt-flow-snapshots status.",
        )
    known, stored = restic.snapshots(), False
    for volume in volumes:
        if names and volume.name not in names:
            continue
        record = status["volumes"].setdefault(volume.name, {})
        try:
            with opened(Path(volume.path)):
                stored |= _snapshot(config, volume, record, known, clock, bool(names))
        except (FlowError, OSError) as error:
            record["error"] = str(error)
        if record["error"]:
            errors.append(f"{volume.name}: {record['error']}")
    if not names:
        _tidy(config, volumes, status, clock(), restic.snapshots() if stored else known, trusted=not note)


def _snapshot(
    config: Config,
    volume: Volume,
    record: dict[str, Any],
    known: list[Snapshot],
    clock: Callable[[], float],
    asked: bool,
) -> bool:
    """Store ``volume`` if it has changed or was ``asked`` for. Return whether it was stored."""
    # Read first: later changes then change the next run's fingerprint.
    mark = fingerprint(volume, config.exclude)
    if not asked and unchanged(record, mark, known, volume.name, clock()):
        record.update(error="", last_good=clock(), added=0, seconds=0.0, present=True)
        return False
    record["mark"] = ""
    with frozen(volume, config.source) as (source, kind):
        record.update(store(config, volume, source, kind, known, clock))
    record["mark"] = "" if record["error"] else mark
    return True


def unchanged(record: dict[str, Any], mark: str, known: list[Snapshot], name: str, now: float) -> bool:
    """Return whether the newest good snapshot of volume ``name`` still matches the volume.

    ``mark`` is the volume's fingerprint, ``record`` that of its last snapshot. A snapshot older than ``STORE_AFTER`` or
    dated in the future does not match.
    """
    last = newest_good((s for s in known if s.volume == name), now)
    if last is None or not mark or record.get("error") or record.get("mark") != mark:
        return False
    return str(record.get("last_id", "")).startswith(last.id) and 0 <= now - last.time < STORE_AFTER


def store(
    config: Config, volume: Volume, source: str, kind: str, known: list[Snapshot], clock: Callable[[], float]
) -> dict[str, Any]:
    """Snapshot ``volume`` from ``source``. Return its record for the status."""
    began = time.monotonic()
    labels = [label_tag(name, value) for name, value in sorted(volume.labels.items()) if name.startswith("spt.flow.")]
    options = [f"--exclude={os.path.basename(source)}/{pattern.lstrip('/')}" for pattern in config.exclude]
    last = newest_good((s for s in known if s.volume == volume.name), clock())
    if last:
        options += ["--parent", last.id]
    if kind == "reflink":
        options += ["--ignore-inode", "--ignore-ctime"]
    summary = config.restic().backup(source, config.node, [f"volume={volume.name}", *labels], options)
    record = {"source": kind, "seconds": round(time.monotonic() - began, 1), "error": "", "path": volume.path}
    record.update(labels=volume.labels, files=summary["total_files_processed"], size=summary["total_bytes_processed"])
    record.update(added=summary["data_added"], created=volume.created, present=True)
    if summary["errors"]:
        count = len(summary["errors"])
        return {**record, "error": f"{count} entries could not be read, the first: {summary['errors'][0]}"}
    return {**record, "last_good": clock(), "last_id": summary["id"]}


def _tidy(
    config: Config, volumes: list[Volume], status: dict[str, Any], now: float, known: list[Snapshot], trusted: bool
) -> None:
    """Delete what the policy allows; snapshots of deleted volumes only if the engine itself confirmed the deletion."""
    present = {v.name for v in volumes}
    grouped: dict[str, list[Snapshot]] = {}
    for snapshot in known:
        grouped.setdefault(snapshot.volume, []).append(snapshot)
    gone: list[str] = []
    for name, snapshots in grouped.items():
        dropped = expired(snapshots, now, config.keep_days)
        if trusted and name not in present:
            seen = status["volumes"].get(name, {}).get("last_good") or 0.0
            dropped = orphaned(snapshots, now, config.orphan_days, seen) or dropped
        gone += [s.id for s in dropped]
    config.restic().forget(gone)
    status["run"]["dropped"] = len(gone)
    for name in list(status["volumes"]):
        status["volumes"][name]["present"] = name in present
        status["volumes"][name]["snapshots"] = len(grouped.get(name, ()))
        if name not in present and name not in grouped:
            del status["volumes"][name]


def publish(config: Config, status: dict[str, Any]) -> None:
    """Publish the time of the last snapshot for the dashboard of Coder workspaces.

    They see a volume of the node, which they cannot write. It has a time for each home of a Coder workspace. Their
    names do not reveal the owners, unlike those of other homes.
    """
    if not config.engine:
        return
    with suppress(FlowError, OSError):
        folder = Path(Volumes(config.socket).create(MARKS, {"spt.flow.marks": "1"}).path)
        for name, record in status["volumes"].items():
            if "spt.flow.coder" in record.get("labels", {}) and record.get("last_good"):
                stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record["last_good"]))
                atomic.write(folder / name, f"{stamp}\n", 0o644)
        for mark in folder.iterdir():
            if mark.name not in status["volumes"]:
                mark.unlink()
