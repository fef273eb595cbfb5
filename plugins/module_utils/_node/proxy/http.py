# pylint: disable=unused-import; pylint takes this file for the standard library's http
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and write HTTP for the engine's proxy, with the standard library only.

One strict parser reads each request completely. Its bytes are never passed on: the proxy makes its own request to the
engine. So the proxy and the engine cannot interpret the same bytes differently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

LONGEST_LINE = 8192
MOST_HEADERS = 40
LARGEST_BODY = 1 << 20
MOST_VALUES = 16
_REQUEST = re.compile(rb"([A-Z]{3,8}) (/[!-~]*) HTTP/1\.1")
_HEADER = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([\t -~]*?)[ \t]*")
_PATH = re.compile(r"(?:/v1\.([1-9]\d{1,2}))?((?:/[A-Za-z0-9_][A-Za-z0-9_.:@-]*)+)")
_LENGTH = re.compile(r"0|[1-9]\d{0,7}")
PASSED_BACK = ("api-version", "docker-experimental", "ostype", "server", "content-type")
"""Headers of the engine's answer that clients need."""


class Refused(Exception):
    """A request that is not passed to the engine. The text is the reason, without a full stop."""


class Malformed(Exception):
    """Bytes that are not exactly one request.

    The connection is closed, because the start of the next request is unknown.
    """


@dataclass(frozen=True)
class Request:
    """One request. ``version`` is the minor API version in the path, 0 if the path has none."""

    method: str
    path: str
    version: int = 0
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    last: bool = False
    """Whether the client closes the connection after the answer."""


def read_request(stream: BinaryIO) -> Request | None:
    """Return the next request, or ``None`` at the end.

    Raise ``Malformed``, or ``Refused`` for a path or query that the template never uses.
    """
    line = _line(stream, first=True)
    if line is None:
        return None
    matched = _REQUEST.fullmatch(line)
    if matched is None:
        raise Malformed("the request line is not METHOD /path HTTP/1.1")
    headers = dict(_headers(stream))
    for name in ("transfer-encoding", "upgrade", "expect", "trailer"):
        if name in headers:
            raise Malformed(f"the header {name} is not supported")
    body = _body(stream, headers.get("content-length", "0"))
    path, version, query = _target(matched[2].decode("ascii"))
    last = headers.get("connection", "").lower() == "close"
    return Request(matched[1].decode("ascii"), path, version, query, body, last)


def _line(stream: BinaryIO, first: bool = False) -> bytes | None:
    line = stream.readline(LONGEST_LINE + 2)
    if not line and first:
        return None
    if not line.endswith(b"\r\n"):
        raise Malformed("a line is too long, or does not end with CR LF")
    return line[:-2]


def _headers(stream: BinaryIO) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    while line := _line(stream):
        matched = _HEADER.fullmatch(line)
        if matched is None:
            raise Malformed("a header is not NAME: VALUE")
        name = matched[1].decode("ascii").lower()
        if name in seen or len(seen) >= MOST_HEADERS:
            raise Malformed(f"the header {name} occurs twice, or there are too many headers")
        seen.add(name)
        yield name, matched[2].decode("ascii")


def _body(stream: BinaryIO, length: str) -> bytes:
    if not _LENGTH.fullmatch(length) or int(length) > LARGEST_BODY:
        raise Malformed(f"the body's length is not a number up to {LARGEST_BODY}")
    body = stream.read(int(length))
    if len(body) != int(length):
        raise Malformed("the body is shorter than its length")
    return body


def _target(target: str) -> tuple[str, int, dict[str, str]]:
    whole, _mark, words = target.partition("?")
    matched = _PATH.fullmatch(whole)
    if matched is None or ".." in whole:
        raise Refused("the path has characters that the template never uses")
    try:
        pairs = parse_qsl(
            words, keep_blank_values=True, strict_parsing=True, max_num_fields=MOST_VALUES, errors="strict"
        )
    except ValueError:
        if words:
            raise Refused("the query cannot be read") from None
        pairs = []
    query = dict(pairs)
    if len(query) != len(pairs):
        raise Refused("the query has a name twice")
    return matched[2], int(matched[1] or 0), query


def strict_json(data: bytes) -> Any:
    """Parse JSON that has only one interpretation. Raise ``Refused`` otherwise.

    Rejects repeated names, fractions, numbers outside JSON, and text that is not Unicode.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            raise ValueError("a name occurs twice")
        return made

    def other(text: str) -> Any:
        raise ValueError(f"{text} is not a whole number")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_float=other, parse_constant=other)
        canonical(value)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not unambiguous JSON ({str(error)[:80]})") from None
    return value


def canonical(value: Any) -> bytes:
    """Return ``value`` as JSON: the same bytes for the same content."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def answer_head(status: int, reason: str, headers: Mapping[str, str], last: bool) -> bytes:
    """Return the status line and headers of an answer."""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    if last:
        lines.append("Connection: close")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")
