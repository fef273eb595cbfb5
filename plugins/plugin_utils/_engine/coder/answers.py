# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the answers of a Coder server: bodies, error messages and the cause of a broken connection."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ....module_utils._node import clock
from ..common.wait import Waiter

if TYPE_CHECKING:
    import urllib3

MAX_ANSWER = 64 << 20


@dataclass(frozen=True)
class ErrorBody:
    """The body of an error:

    ``{"message", "detail"?, "validations"?: [{"field", "detail"}]}``, or text of another program.
    """

    text: str
    validations: tuple[tuple[str, str], ...] = ()
    json: bool = False

    @classmethod
    def of(cls, content: bytes) -> ErrorBody:
        try:
            data = json.loads(content)
            message = str(data["message"])
        except (ValueError, KeyError, TypeError):
            return cls("" if content.lstrip()[:1] == b"<" else content[:200].decode(errors="replace").strip())
        listed = data.get("validations") or []
        found = tuple((str(v.get("field", "")), str(v.get("detail", ""))) for v in listed if isinstance(v, dict))
        parts = [message, str(data.get("detail") or ""), *(f"{name}: {text}" for name, text in found)]
        return cls("; ".join(part.strip().rstrip(".") for part in parts if part.strip()), found, True)

    def details(self, status: int) -> dict[str, Any]:
        return {"status": status, "said": self.text, "fields": [name for name, _text in self.validations]}


def read_body(response: urllib3.BaseHTTPResponse, waiter: Waiter) -> bytes:
    """Return the whole body. The deadline also limits a server that sends slowly."""
    parts, size = [], 0
    while block := response.read1(1 << 16):
        parts.append(block)
        size += len(block)
        if size > MAX_ANSWER:
            raise ValueError(f"its answer is longer than {MAX_ANSWER >> 20} MiB")
        if waiter.expired:
            raise TimeoutError("the answer takes too long")
    return b"".join(parts)


def root_cause(error: BaseException) -> BaseException:
    """Return the innermost reason: urllib3 wraps the operating system's."""
    for _level in range(8):
        inner = error.__cause__ or next((part for part in error.args if isinstance(part, BaseException)), None)
        if inner is None:
            return error
        error = inner
    return error


def retry_after(text: str) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which is a number or a date."""
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    moment = clock.from_header(text)
    return None if moment is None else max(0.0, moment - time.time())
