# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Convert and validate single values: booleans, durations, sizes, numbers and texts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ....module_utils._node.errors import InvalidInput
from ..common.text import nearest, redact_value
from .options import DAY, GIBIBYTE, GIT_HOOKS, MANY_LINES, MEBIBYTE, TEXT_LIMIT, Option

_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s?)?", re.ASCII)
_SIZE = re.compile(r"(\d{1,15})(?:\.(\d{1,3}))?\s*([kmgt]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})
_FALSE = frozenset({"0", "false", "no", "off", "n", "f"})


def as_bool(value: Any, name: str = "value") -> bool:
    """Parse a boolean as written in Ansible, YAML and environments. Raise ``InvalidInput`` otherwise."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise InvalidInput(
        f"{name} is {redact_value(value)!r}, which is neither true nor false.", f"Use {name}=true or {name}=false."
    )


def parse_duration(value: Any, name: str = "duration") -> int:
    """Return the seconds of ``90``, ``45s``, ``10m``, ``2h``, ``1h30m``, ``1d``."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _DURATION.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None or not any(match.groups()):
        raise InvalidInput(
            f"{name} is {redact_value(value)!r}, which is not a duration.", f"Examples: {name}=45s, 10m, 2h, 1h30m."
        )
    return sum(int(part or 0) * unit for part, unit in zip(match.groups(), (DAY, 3600, 60, 1), strict=True))


def parse_size(value: Any, name: str = "size") -> int:
    """Return the bytes of ``512m``, ``8g``, ``1.5GiB``; units are binary, as in Docker."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise InvalidInput(f"{name} is {redact_value(value)!r}, which is not a size.", f"Examples: {name}=512m, 8g.")
    number = float(f"{match[1]}.{match[2] or 0}")
    return int(number * 1024 ** " kmgt".index(match[3].lower() or " "))


def _number(option: Option, value: Any) -> int | float:
    text = value if isinstance(value, str) else ("" if isinstance(value, bool) else str(value))
    pattern = r"-?\d{1,15}" if option.type == "int" else r"-?\d{1,15}(\.\d{1,9})?"
    if not re.fullmatch(pattern, text.strip(), re.ASCII):
        kind = "whole number" if option.type == "int" else "number"
        raise InvalidInput(f"{option.name} is {redact_value(value)!r}, which is not a {kind}.", _range(option))
    return int(text) if option.type == "int" else float(text)


def _range(option: Option) -> str:
    """Return a hint with the allowed range in the option's own unit."""
    if option.low is None or option.high is None:
        return ""
    if option.type == "size":
        low, high = f"{option.low / MEBIBYTE:.0f}m", f"{option.high / GIBIBYTE:.0f}g"
    elif option.type == "duration":
        low, high = f"{option.low:.0f}s", f"{option.high / 3600:.0f}h"
    else:
        low, high = f"{option.low:g}", f"{option.high:.15g}"
    zero = f", or 0 for {option.zero}" if option.zero and option.low > 0 else ""
    return f"Use {option.name} from {low} to {high}{zero}."


def _bounded(option: Option, number: float, value: Any) -> None:
    if option.low is None or option.high is None or (number == 0 and option.zero):
        return
    if not math.isfinite(number) or not option.low <= number <= option.high:
        raise InvalidInput(f"{option.name} is {redact_value(value)!r}, which is out of range.", _range(option))


def _text(option: Option, value: Any) -> str:
    """Return a string without characters that are never allowed."""
    name = option.name
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        hint = "Quote it: YAML reads the bare word as a boolean." if isinstance(value, bool) else ""
        raise InvalidInput(f"{name} must be a single value as text, not {type(value).__name__}.", hint)
    text = str(value)
    limit = MANY_LINES.get(name, TEXT_LIMIT)
    if len(text) > limit:
        raise InvalidInput(f"{name} is {len(text)} characters long, at most {limit} are allowed.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidInput(f"{name} is not valid UTF-8.", "Check the terminal's or the file's encoding.") from None
    allowed = "\n\t" if name in MANY_LINES else ""
    if any(not c.isprintable() and c not in allowed for c in text):
        raise InvalidInput(f"{name} contains control or invisible characters.", "Retype it instead of pasting.")
    return text


def _chosen(option: Option, text: str) -> str:
    if text not in option.choices:
        close = nearest(text, option.choices)
        hint = f"Use one of {', '.join(option.choices)}" + (f"; did you mean {close}?" if close else ".")
        raise InvalidInput(f"{option.name} is {redact_value(text)!r}, which is not a known value.", hint)
    return text


def convert(option: Option, value: Any) -> Any:
    """Return ``value`` in the option's resolved type. Raise ``InvalidInput`` if it is outside the bounds or choices."""
    if option.type == "bool":
        return as_bool(value, option.name)
    if option.name == "git_hooks":
        return _hooks(option, value)
    if isinstance(value, bool) and "off" in option.choices:
        # YAML reads the bare words on and off as booleans.
        return "on" if value else "off"
    if isinstance(value, str) or not isinstance(value, (int, float)):
        value = _text(option, value)
        if value == "" and option.default == "":
            return 0 if option.type in ("duration", "size") else ""
    if option.type == "str":
        text = _text(option, value)
        return _chosen(option, text) if option.choices else text
    if option.type == "duration":
        number: float = parse_duration(value, option.name)
    elif option.type == "size":
        number = parse_size(value, option.name)
    else:
        number = _number(option, value)
    _bounded(option, number, value)
    return number


def _hooks(option: Option, value: Any) -> str:
    """Return the scripts by hook as JSON in a fixed order. Raise ``InvalidInput``."""
    import json

    found = value
    if not isinstance(value, Mapping):
        text = _text(option, value)
        if not text:
            return ""
        try:
            found = json.loads(text)
        except ValueError:
            found = None
    if not isinstance(found, Mapping) or not all(isinstance(part, str) for pair in found.items() for part in pair):
        raise InvalidInput(
            "git_hooks is not a mapping of hooks to scripts.",
            "In YAML, write each hook as `pre-commit: |` with the script below it; elsewhere use JSON.",
        )
    for name, script in found.items():
        if name not in GIT_HOOKS:
            close = nearest(name, GIT_HOOKS)
            hint = f"Did you mean {close}?" if close else f"Use {', '.join(GIT_HOOKS)}."
            raise InvalidInput(f"git_hooks names {redact_value(name)!r}, which is not a hook of git clients.", hint)
        if not script.startswith("#!/"):
            raise InvalidInput(f"The script of git_hooks' {name} does not begin with #!.", "For example: #!/bin/sh")
    return _text(option, json.dumps(dict(found), sort_keys=True)) if found else ""
