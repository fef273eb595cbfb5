# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the server refuses, and with which messages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from .hcl import Source

NAME = re.compile(r"[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*")
VERSION_NAME = re.compile(r"[a-zA-Z0-9]+(?:[_.-]{1}[a-zA-Z0-9]+)*")
TTL_RANGE = (60_000, 2_592_000_000)
NO_SUCH = "Resource not found or you do not have access to this resource"


class Refused(Exception):
    """A refusal of the server: a status and the parts of its body."""

    def __init__(self, status: int, message: str, detail: str = "", /, **fields: str) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {"message": message}
        if detail:
            self.body["detail"] = detail
        if fields:
            self.body["validations"] = [{"field": name, "detail": text} for name, text in fields.items()]


def invalid(**fields: str) -> Refused:
    return Refused(400, "Validation failed.", **fields)


def check_name(name: str, field_name: str = "name") -> None:
    if len(name) > 32 or not NAME.fullmatch(name) or name in ("new", "create"):
        raise invalid(**{field_name: f'Validation failed for tag "{field_name}" with value: "{name}"'})


def resolve_parameters(
    source: Source, sent: list[dict[str, str]], previous: Mapping[str, str] | None
) -> dict[str, str]:
    """Return the request's value, otherwise the last build's, otherwise the default; unknown names are ignored."""
    given = {entry["name"]: entry.get("value", "") for entry in sent}
    values: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for parameter in source.parameters:
        name = parameter["name"]
        kept = None if previous is None or parameter["ephemeral"] else previous.get(name)
        value = given.get(name, kept if kept is not None else parameter["default_value"])
        if name not in given and kept is None and parameter["required"]:
            wrong[name] = "Required parameter not provided"
        elif kept is not None and not parameter["mutable"] and value != kept:
            wrong[name] = "Immutable parameter changed"
        elif problem := _unfit(parameter, value):
            wrong[name] = problem
        values[name] = value
    if wrong:
        raise Refused(400, "Unable to validate parameters", **wrong)
    return values


def _unfit(parameter: Mapping[str, Any], value: str) -> str:
    if parameter["type"] == "bool" and value not in ("true", "false", ""):
        return f'"{value}" is not a bool'
    if parameter["type"] == "number" and value and not re.fullmatch(r"-?\d+(\.\d+)?", value):
        return f'"{value}" is not a number'
    options = [option["value"] for option in parameter["options"]]
    return f'"{value}" is not one of the options' if options and value not in options else ""


def check_ttl(ttl_ms: int | None) -> int | None:
    """Whole minutes, or none."""
    if not ttl_ms:
        return None
    if not TTL_RANGE[0] <= ttl_ms <= TTL_RANGE[1]:
        raise invalid(ttl_ms="time until shutdown must be between one minute and 30 days")
    return ttl_ms - ttl_ms % 60_000


def check_schedule(schedule: str | None) -> None:
    if schedule and not re.fullmatch(r"(CRON_TZ=[\w/+-]+ )?[\d*/,-]+ [\d*/,-]+ \* \* [\w*/,-]+", schedule):
        raise invalid(schedule="expected schedule to consist of 5 fields with an optional CRON_TZ=<timezone> prefix")


def check_durations(given: Mapping[str, Any]) -> None:
    """Validated even where the value is then ignored because a licence is missing."""
    wrong = {}
    for name in ("default_ttl_ms", "activity_bump_ms", "failure_ttl_ms"):
        if (given.get(name) or 0) < 0:
            wrong[name] = "Must be a positive integer."
    for name in (
        "failure_ttl_ms", "time_til_dormant_ms", "time_til_dormant_autodelete_ms", "time_til_autostop_notify_ms"
    ):  # fmt: skip
        if 0 < (given.get(name) or 0) < 60_000:
            wrong[name] = "Value must be at least one minute."
    if wrong:
        raise Refused(400, "Invalid request to update template settings!", **wrong)


def check_password(password: str) -> None:
    """Require 52 bits, by the size of the alphabets used, and at most 64 characters."""
    sizes = ((r"[a-z]", 26), (r"[A-Z]", 26), (r"\d", 10), (r"[!@$&*]", 5), (r"[_\-., ]", 5), (r"[^\w!@$&*\-., ]", 22))
    alphabet = sum(size for pattern, size in sizes if re.search(pattern, password))
    short = re.sub(r"(.)\1{2,}", r"\1\1", password)
    if len(password) > 64 or not alphabet or len(short) * math.log2(alphabet) < 52:
        raise Refused(400, "Password not strong enough!", password="insecure password, try including more characters")
