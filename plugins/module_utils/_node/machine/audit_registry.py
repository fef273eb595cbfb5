# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Map audit numbers to workspaces, and free unused numbers.

The program ``audit-id.sh`` assigns numbers. ``ids/<number>`` begins with the workspace's key, followed by its
containers.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

FIRST, LAST = 700_000, 799_999
UNSET = 4_294_967_295
PLACE = "/var/lib/spt-flow/audit/registry"
BUNDLES = (
    "/run/containerd/io.containerd.runtime.v2.task/moby",
    "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby",
)
"""Directories with one entry for each container that runs or is starting."""
GRACE = 60
"""Seconds in which a start may still be writing the files of its number."""
_NUMBER = re.compile(rb"\bauid=(7\d{5})\b")


class Registry:
    """Keys (``owner/workspace``, or ``container/<id>``) by number, read on demand."""

    def __init__(self, path: str = PLACE) -> None:
        self.path = Path(path)
        self.known: dict[int, str | None] = {}

    def get(self, number: int, default: str = "") -> str:
        if number not in self.known:
            self.known[number] = self._read(number)
        return self.known[number] or default

    def _read(self, number: int) -> str | None:
        try:
            with open(self.path / "ids" / str(number), encoding="utf-8", errors="replace") as file:
                return file.readline().strip()
        except FileNotFoundError:
            return None


def name(auid: int, keys: Registry | Mapping[int, str]) -> tuple[str, str]:
    """Return (owner, workspace). On the host: the login name and ``-``; unknown parts are ``?``."""
    if FIRST <= auid <= LAST:
        owner, _slash, workspace = keys.get(auid, f"?/{auid}").partition("/")
        return owner, workspace
    if auid == UNSET:
        return "?", "-"
    try:
        return pwd.getpwuid(auid).pw_name, "-"
    except KeyError:
        return str(auid), "-"


def numbers(lines: Iterable[bytes]) -> set[int]:
    """Return the numbers of workspaces in the lines of a log."""
    return {int(found) for line in lines for found in _NUMBER.findall(line)}


# Freeing


def free(in_logs: set[int], path: str = PLACE, now: float | None = None) -> int:
    """Free the numbers that neither a container nor a log uses. Return how many were freed.

    A start that takes a number at the same moment notices that it is gone and takes another.
    """
    now = time.time() if now is None else now
    place = Path(path)
    held = in_logs | _of_containers(place, now)
    freed = 0
    for entry in list(os.scandir(place / "ids")):
        if not entry.name.isdigit() or int(entry.name) in held or now - entry.stat().st_mtime < GRACE:
            continue
        freed += _free(place, entry.name)
    if freed:
        _point_at_gap(place)
    return freed


def _of_containers(place: Path, now: float) -> set[int]:
    """Return the numbers of existing containers, and delete the entries of all others."""
    live = {found.name for folder in BUNDLES if os.path.isdir(folder) for found in os.scandir(folder)}
    found = set()
    for entry in list(os.scandir(place / "containers")):
        if entry.name not in live and now - entry.stat().st_mtime >= GRACE:
            os.unlink(entry.path)
            continue
        with contextlib.suppress(OSError, ValueError):
            found.add(int(Path(entry.path).read_text(encoding="utf-8")))
    return found


def _free(place: Path, number: str) -> int:
    file = place / "ids" / number
    aside = place / f".freed-{number}"
    before = file.read_bytes()
    file.rename(aside)
    if aside.read_bytes() != before:
        # A container was added in the meantime.
        aside.rename(file)
        return 0
    key = before.partition(b"\n")[0].decode("utf-8", "replace")
    known = place / "keys" / key.replace("/", ".", 1)
    with contextlib.suppress(OSError):
        if known.read_text(encoding="utf-8").strip() == number:
            known.unlink()
    aside.unlink()
    return 1


def _point_at_gap(place: Path) -> None:
    """Let the next start search in the largest range of free numbers."""
    taken = sorted(int(entry.name) for entry in os.scandir(place / "ids") if entry.name.isdigit())
    edges = [FIRST - 1, *taken, LAST + 1]
    _length, start = max((after - before, before + 1) for before, after in zip(edges, edges[1:]))
    fresh = place / ".next"
    fresh.write_text(f"{min(start, LAST)}\n", encoding="utf-8")
    fresh.replace(place / "next")
