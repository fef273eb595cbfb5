# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show user input in messages safely, and suggest the nearest known name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def redact_value(value: Any, limit: int = 60) -> str:
    """Return ``value`` for a message: without credentials and control characters, and shortened."""
    text = value if isinstance(value, str) else repr(value)
    if "@" in text:
        text = "***@" + text.rpartition("@")[2]
    text = re.sub(r"[?#].*", "?***", text, flags=re.DOTALL)
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= limit else text[:limit] + "…"


def nearest(word: str, words: Iterable[str]) -> str:
    """Return the entry of ``words`` that ``word`` was probably meant to be, or nothing."""
    import difflib

    return next(iter(difflib.get_close_matches(word.lower().replace("-", "_"), list(words), 1, 0.6)), "")
