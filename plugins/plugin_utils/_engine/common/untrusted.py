# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clean and type all values that a workspace reports.

Any process in a workspace can write any bytes to its log and files. Each value from there passes one of these functions
before it is printed, compared or stored. None of them raises for an invalid value, except ``parse`` and ``objects``,
which raise ``ValueError``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection
from typing import Any

LONGEST = 4000
"""Longest sentence that a workspace reports, in characters."""
LONGEST_LINE = 65536
"""Longest line of output, in characters."""
MOST_ITEMS = 1000
"""Maximum entries of a list or an object."""
LARGEST_JSON = 1 << 20
DEEPEST = 32
"""Nesting depth of lists and objects."""
UNKNOWN = "?"
LAST_MOMENT = 253402300799.0
"""The last second of the year 9999, which is the last one that a calendar can show."""

# A string of OSC, DCS, SOS, PM or APC ends at its terminator or at the next escape sequence.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)


def line(value: object, limit: int = LONGEST, keep: str = "") -> str:
    """Return text or bytes as one printable line of at most ``limit`` characters, or an empty one for other types.

    Escape sequences are removed. Other non-printable characters become ``?``, except those in ``keep``.
    """
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value[: limit * 4]).decode(errors="replace")
    if not isinstance(value, str):
        return ""
    cut = len(value) > limit * 4
    plain = value[: limit * 4]
    if not plain.isprintable():
        plain = "".join(_shown(char, keep) for char in _ESCAPES.sub("", plain))
    return plain if len(plain) <= limit and not cut else f"{plain[: limit - 1]}…"


def _shown(char: str, keep: str) -> str:
    if char.isprintable() or char in keep:
        return char
    return " " if char.isspace() else UNKNOWN


def output(value: object) -> str:
    """Return one line of a program's output, with its tabs."""
    return line(value, LONGEST_LINE, keep="\t")


def text(value: str) -> str:
    """Return text of several lines, each cleaned like ``output``."""
    lines = value.split("\n")
    if value.replace("\n", "").isprintable() and max(map(len, lines)) <= LONGEST_LINE:
        return value
    return "\n".join(map(output, lines))


def word(value: object, pattern: str | Collection[str], default: str = "") -> str:
    """Return ``value`` if it is text that matches ``pattern`` or is one of its words, otherwise ``default``."""
    if not isinstance(value, str) or len(value) > LONGEST:
        return default
    good = re.fullmatch(pattern, value, re.ASCII) if isinstance(pattern, str) else value in pattern
    return value if good else default


def number(value: object, low: float = -math.inf, high: float = math.inf) -> float | None:
    """Return ``value`` if it is a finite number from ``low`` to ``high``, otherwise ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def moment(value: object) -> float | None:
    """Return a time in epoch seconds that a calendar can show, otherwise ``None``."""
    return number(value, 0, LAST_MOMENT)


def digits(value: object, low: int = 0, high: int = int(LAST_MOMENT)) -> int | None:
    """Return the number written in ASCII digits, if it is from ``low`` to ``high``, otherwise ``None``."""
    found = word(value, r"\d{1,18}")
    return int(found) if found and low <= int(found) <= high else None


def record(value: object) -> dict[str, Any]:
    """Return an object of at most ``MOST_ITEMS`` entries, or an empty one for other types."""
    return value if isinstance(value, dict) and len(value) <= MOST_ITEMS else {}


def items(value: object, most: int = MOST_ITEMS) -> list[Any]:
    """Return the first ``most`` entries of a list, or an empty one for other types."""
    return value[:most] if isinstance(value, list) else []


def path(value: object) -> str:
    """Return an absolute path of printable characters, otherwise an empty text."""
    good = isinstance(value, str) and value.startswith("/") and len(value) < 4096 and value.isprintable()
    return str(value) if good else ""


# JSON


_DECODER = json.JSONDecoder()


def parse(data: str | bytes, largest: int = LARGEST_JSON) -> Any:
    """Return the value of one JSON text. The caller must still check the types of its parts.

    Raise ``ValueError`` for a text that is too large, too deep or not JSON.
    """
    found = objects(data, largest, _accept_all)
    if len(found) != 1:
        raise ValueError(f"{len(found)} values instead of one")
    return found[0]


def objects(data: str | bytes, largest: int = LARGEST_JSON, check: Callable[[Any], bool] | None = None) -> list[Any]:
    """Return the JSON objects written one after the other in ``data``. Raise ``ValueError``."""
    if len(data) > largest:
        raise ValueError(f"more than {largest} characters")
    whole = data.decode() if isinstance(data, bytes) else data
    accepted = check or (lambda value: isinstance(value, dict))
    found: list[Any] = []
    at = _skip(whole, 0)
    while at < len(whole):
        try:
            value, end = _DECODER.raw_decode(whole, at)
        except RecursionError:
            raise ValueError("too deep") from None
        if not accepted(value) or _too_deep(value) or len(found) == MOST_ITEMS:
            raise ValueError("not an object, too deep, or too many")
        found.append(value)
        at = _skip(whole, end)
    return found


def _skip(whole: str, at: int) -> int:
    """Return the position of the next character that is not white space."""
    while at < len(whole) and whole[at] in " \t\r\n":
        at += 1
    return at


def _accept_all(_value: Any) -> bool:
    return True


def _too_deep(value: Any) -> bool:
    level = [value]
    for _depth in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
        if not level:
            return False
    return True
