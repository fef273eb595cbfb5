# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Record what workspaces asked for: one line of JSON per request, without secrets."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter

from . import record

LARGEST = 4 << 20
"""Size in bytes at which the log is moved aside; one older log is kept."""
GIVEN, REFUSED, MISSING, FAILED = "given", "refused", "missing", "failed"
"""Verdicts."""


def path() -> str:
    return os.path.join(record.state_folder(), "credentials.log")


def write(workspace: str, kind: str, subject: str, verdict: str) -> None:
    """Append a line. ``subject`` is the host or the fingerprint of a key."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"time": now, "workspace": workspace, "session": os.getpid(), "kind": kind[:40], "subject": subject[:255]}
    data = json.dumps({**line, "verdict": verdict}).encode() + b"\n"
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path()), mode=0o700, exist_ok=True)
        descriptor = os.open(path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, data)
            full = os.fstat(descriptor).st_size > LARGEST
        finally:
            os.close(descriptor)
        if full:
            os.replace(path(), f"{path()}.1")


def counts() -> dict[str, Counter[str]]:
    """Return how many requests have which verdict, by workspace."""
    found: dict[str, Counter[str]] = {}
    for name in (f"{path()}.1", path()):
        with contextlib.suppress(OSError), open(name, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    found.setdefault(str(entry["workspace"]), Counter())[str(entry["verdict"])] += 1
    return found
