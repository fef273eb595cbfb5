# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Record and assess the results of snapshots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import atomic
from .config import Config
from .volumes import Volume

HOUR = 3600
CLOCK_SLACK = HOUR
"""Tolerance in seconds for snapshots dated in the future, before that counts as a wrong clock."""


def read_status(config: Config) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads((Path(config.state) / "status.json").read_text())
    except (OSError, ValueError):
        status = {}
    return {"version": 1, "run": {}, "volumes": {}, "verify": {}, **status}


def assess(config: Config, status: dict[str, Any], volumes: list[Volume], now: float) -> list[str]:
    """Return problems as sentences:

    volumes without a good snapshot in the last ``max_age_hours``, or with one dated in the future.
    """
    limit, found = config.max_age_hours * HOUR, []
    for volume in volumes:
        record = status["volumes"].get(volume.name, {})
        last = record.get("last_good")
        age = now - (last if last is not None else volume.created)
        if last is not None and age < -CLOCK_SLACK:
            found.append(f"{volume.name}: its last snapshot is dated in the future; check the clock.")
        elif age > limit:
            what = "its last good snapshot is" if last is not None else "it does not have a snapshot and is"
            found.append(f"{volume.name}: {what} {age / HOUR:.0f} h old, the limit is {config.max_age_hours:g} h.")
    if status["verify"].get("ok") is False:
        found.append(f"The last verification failed: {status['verify'].get('error')}")
    return found


def report(config: Config, now: float) -> dict[str, Any]:
    """Return the status with ages and ``problems`` (sentences); without problems, every home volume is safe."""
    status = read_status(config)
    volumes, note = config.volumes()
    status["problems"] = assess(config, status, volumes, now) + ([note] if note else [])
    for volume in volumes:
        record = status["volumes"].setdefault(volume.name, {"present": True, "error": "", "labels": volume.labels})
        last = record.get("last_good")
        record["age_hours"] = round(max(0.0, now - last) / HOUR, 2) if last is not None else None
    return status


def write_status(config: Config, status: dict[str, Any], now: float) -> None:
    """Write the status for users and programs, and metrics for Prometheus; each file atomically."""
    Path(config.state).mkdir(parents=True, exist_ok=True)
    text = json.dumps(status, indent=1, sort_keys=True) + "\n"
    atomic.write(Path(config.state) / "status.json", text, 0o644, durable=True)
    if config.textfile:
        Path(config.textfile).mkdir(parents=True, exist_ok=True)
        atomic.write(Path(config.textfile) / "spt_flow_snapshots.prom", metrics(status, now), 0o644)


def metrics(status: dict[str, Any], now: float) -> str:
    """Return Prometheus text:

    per volume the last good snapshot's time, its age now and whether the last attempt succeeded.
    """
    lines = []
    present = {name: r for name, r in sorted(status["volumes"].items()) if r.get("present", True)}
    for metric, value in (
        ("last_success_timestamp_seconds", lambda r: r.get("last_good")),
        ("age_seconds", lambda r: max(0.0, now - r["last_good"]) if r.get("last_good") is not None else None),
        ("ok", lambda r: int(not r.get("error") and r.get("last_good") is not None)),
        ("size_bytes", lambda r: r.get("size")),
    ):
        lines.append(f"# TYPE spt_flow_snapshot_{metric} gauge")
        for name, record in present.items():
            if value(record) is not None:
                lines.append(f'spt_flow_snapshot_{metric}{{volume="{name}"}} {value(record):.0f}')
    lines += [
        "# TYPE spt_flow_snapshots_run_ok gauge",
        f"spt_flow_snapshots_run_ok {int(bool(status['run'].get('ok')))}",
    ]
    lines += [
        "# TYPE spt_flow_snapshots_verify_ok gauge",
        f"spt_flow_snapshots_verify_ok {int(bool(status['verify'].get('ok')))}",
    ]
    return "\n".join(lines) + "\n"
