# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verify that snapshots can be restored, by comparing them with the originals."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..disk.image import opened
from ..errors import FlowError, Unhealthy
from .compare import differences
from .config import Config, exclusive
from .restore import room
from .run import store
from .status import read_status, write_status
from .volumes import frozen


def verify(config: Config, clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """Read data back, then restore the volume that waited longest into a scratch directory and compare every file.

    Return ``{"ok", "started", "part", "volume", "compared", "error"}``. Raise an error if something differs.
    """
    with exclusive(config):
        status = read_status(config)
        before = status["verify"]
        part = before.get("part", 0) % config.verify_parts + 1
        result: dict[str, Any] = {"started": clock(), "ok": False, "part": part, "error": ""}
        result["volumes"] = before.get("volumes", {})
        status["verify"] = result
        try:
            config.restic().unlock()
            config.restic().check(part, config.verify_parts)
            _compare_one(config, result, clock)
            result["ok"] = True
        except (FlowError, OSError) as error:
            result["error"] = str(error)
            raise
        finally:
            result["ended"] = clock()
            write_status(config, status, clock())
    return result


def _compare_one(config: Config, result: dict[str, Any], clock: Callable[[], float]) -> None:
    volumes, _note = config.volumes()
    if not volumes:
        return
    done = result["volumes"]
    volume = min(volumes, key=lambda v: (done.get(v.name, 0.0), v.name))
    result["volume"] = volume.name
    scratch = Path(config.state) / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True)
    try:
        began = time.time()
        with opened(Path(volume.path)), frozen(volume, config.source) as (source, kind):
            record = store(config, volume, source, kind, config.restic().snapshots(), clock)
            if record["error"]:
                raise Unhealthy(f"Volume {volume.name} cannot be read completely: {record['error']}")
            room(scratch, record["size"], "verify by a scratch restore")
            config.restic().restore(record["last_id"], str(scratch))
            copy = str(scratch / os.path.basename(source))
            since = began if kind == "live" else None
            result["compared"], found = (
                differences(source, copy, since) if not config.exclude else _stored(source, copy)
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if found:
        raise Unhealthy(
            f"The restored copy of {volume.name} differs from it: {'; '.join(found[:3])}.", "", {"differences": found}
        )
    done[volume.name] = clock()


def _stored(source: str, copy: str) -> tuple[int, list[str]]:
    """Return ``differences`` without entries that are missing because of excluded patterns."""
    compared, found = differences(source, copy, limit=1_000_000)
    return compared, [line for line in found if not line.endswith((": missing", ": time of change"))]
