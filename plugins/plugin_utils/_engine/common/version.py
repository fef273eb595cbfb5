# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection's directory and its version."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

COLLECTION = Path(__file__).resolve().parents[4]


@cache
def release() -> str:
    """Return the collection's version, from a checkout or an installation."""
    built = COLLECTION / "MANIFEST.json"
    if built.exists():
        return str(json.loads(built.read_text(encoding="utf-8"))["collection_info"]["version"])
    lines = (COLLECTION / "galaxy.yml").read_text(encoding="utf-8").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("version:"))
