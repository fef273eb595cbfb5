# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a repository's ``devcontainer.json`` and select the part that is safe to apply.

This module runs nothing. A variable can make other programs run something, so it needs the user's consent like the
repository's commands, except a few variables that are known to be harmless.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .contract import Failure, reason

PLACES = (".devcontainer/devcontainer.json", ".devcontainer.json")
LARGEST = 262_144
MOST = 64
"""The highest number of variables and of extensions."""
MOST_PORTS = 32
LONGEST = 4096
"""The highest number of characters of a variable."""

OURS = b"// Written by spt.flow"
"""The beginning of a file that describes the workspace itself (playbook devcontainer), and is not applied."""

_GRANTED = ("forwardPorts", "containerEnv", "customizations", "postCreateCommand")
_SILENT = ("$schema", "name")
_EXTENSION = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}\.[A-Za-z0-9][A-Za-z0-9_.-]{0,126}(@[0-9][0-9A-Za-z.+-]{0,30})?"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Many variables make programs read files or run other programs. Only these need no consent, and only with a value that
# cannot name a file.
_PLAIN = re.compile(
    r"LANG|LANGUAGE|LC_[A-Z]{1,20}|NO_COLOR|FORCE_COLOR|CLICOLOR(_FORCE)?|CI|DEBUG|LOG_LEVEL|LOGLEVEL|PORT|ENVIRONMENT|"
    r"(NODE|APP|RAILS|RACK|FLASK|MIX|GO)_ENV|(ASPNETCORE|DOTNET)_ENVIRONMENT|"
    r"FLASK_DEBUG|DJANGO_DEBUG|RUST_LOG|RUST_BACKTRACE|PYTHONUNBUFFERED|PYTHONDONTWRITEBYTECODE|PYTHONHASHSEED|PYTHONUTF8|"
    r"GOOS|GOARCH|CGO_ENABLED|DOTNET_CLI_TELEMETRY_OPTOUT|DO_NOT_TRACK|NEXT_TELEMETRY_DISABLED"
)
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_.,:=@+* -]{0,200}")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(/[A-Za-z0-9_+-]{1,32}){0,2}")
_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_COMMA = re.compile(r'"(?:\\.|[^"\\\n])*"|,(?=\s*[\]}])', re.DOTALL)


@dataclass(frozen=True)
class Wishes:
    """What a file asks for. ``commands`` come from ``postCreateCommand``; ``unset`` are variables that need consent;
    ``ignored`` lists the entries that are not applied.
    """

    ports: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    extensions: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    unset: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def find(directory: Path) -> Path | None:
    """Return the file of the clone in ``directory``; a link to a file outside does not count."""
    for name in PLACES:
        place = directory / name
        if place.is_file() and directory.resolve() in place.resolve().parents:
            return place
    return None


def read(directory: Path, consent: bool = False) -> Wishes | None:
    """Return what the repository in ``directory`` asks for, ``None`` without a file."""
    place = find(directory)
    if place is None:
        return None
    name = place.relative_to(directory)
    try:
        with open(place, "rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise Failure(f"{name} cannot be read: {reason(error)}.") from None
    if len(raw) > LARGEST:
        raise Failure(f"{name} is larger than {LARGEST >> 10} KiB and was not read.")
    return Wishes() if raw.startswith(OURS) else wishes(parse(raw, str(name)), directory, consent)


def parse(raw: bytes, name: str = PLACES[0]) -> dict[str, Any]:
    """Parse JSON with comments and trailing commas."""
    try:
        text = _COMMENT.sub(lambda m: m[0] if m[0].startswith('"') else " ", raw.decode("utf-8-sig"))
        data = json.loads(_COMMA.sub(lambda m: m[0] if m[0].startswith('"') else "", text))
    except UnicodeDecodeError:
        raise Failure(f"{name} is not valid UTF-8 and was not read.") from None
    except (ValueError, RecursionError) as error:
        where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Failure(f"{name} is not valid JSON{where} and was not read.") from None
    if not isinstance(data, dict):
        raise Failure(f"{name} is not a JSON object and was not read.")
    return data


def wishes(data: Mapping[str, Any], directory: Path, consent: bool = False) -> Wishes:
    """Return the safe part of ``data``; with ``consent`` also variables that can run programs."""
    ignored = [name for name in sorted(data) if name not in (*_SILENT, *_GRANTED)]
    ports = _ports(data.get("forwardPorts"), ignored)
    environment, unset = _environment(data.get("containerEnv"), directory, consent, ignored)
    extensions = _extensions(data.get("customizations"), ignored)
    commands = _commands(data.get("postCreateCommand"), ignored)
    return Wishes(ports, environment, extensions, commands, tuple(unset), tuple(ignored))


def _ports(value: Any, ignored: list[str]) -> tuple[int, ...]:
    """Return the workspace's own ports; ports of other hosts and ports below 1024 are ignored."""
    found: list[int] = []
    for entry in _list(value, "forwardPorts", ignored):
        text = str(entry) if isinstance(entry, (int, str)) else ""
        match = re.fullmatch(r"(?:localhost:|127\.0\.0\.1:)?(\d{1,5})", text, re.ASCII)
        port = int(match[1]) if match else 0
        if not 1024 <= port <= 65535 or (port not in found and len(found) >= MOST_PORTS):
            ignored.append(f"forwardPorts {shown(entry)}")
        elif port not in found:
            found.append(port)
    return tuple(found)


def _environment(value: Any, directory: Path, consent: bool, ignored: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables to set, and the names of those that need consent."""
    known = {"containerWorkspaceFolder": str(directory), "containerWorkspaceFolderBasename": directory.name}
    found, unset = {}, []
    for name, given in _items(value, "containerEnv", ignored):
        text = re.sub(r"\$\{(\w+)\}", lambda m: known.get(m[1], m[0]), given) if isinstance(given, str) else "\0"
        legal = text.isprintable() and len(text) <= LONGEST and "${" not in text
        own = name.startswith(("SPT_FLOW_", "CODER_"))
        if not _NAME.fullmatch(name) or not legal or own:
            ignored.append(f"containerEnv {shown(name)}")
        elif consent or harmless(name, text):
            found[name] = text
        else:
            unset.append(name)
    return found, unset


def harmless(name: str, text: str) -> bool:
    """Return whether a variable needs no consent: a known name, and a value that cannot be a path."""
    if name == "TZ":
        return bool(_ZONE.fullmatch(text))
    return bool(_PLAIN.fullmatch(name) and _PLAIN_VALUE.fullmatch(text)) and ".." not in text


def _extensions(value: Any, ignored: list[str]) -> tuple[str, ...]:
    """Return extension ids of the gallery; files of the repository are ignored."""
    found: list[str] = []
    for tool, about in _items(value, "customizations", ignored):
        if tool != "vscode" or not isinstance(about, dict):
            ignored.append(f"customizations {shown(tool)}")
            continue
        ignored.extend(f"customizations vscode {shown(name)}" for name in sorted(about) if name != "extensions")
        for entry in _list(about.get("extensions"), "extensions", ignored):
            if isinstance(entry, str) and _EXTENSION.fullmatch(entry):
                found.append(entry.lower())
            else:
                ignored.append(f"extension {shown(entry)}")
    return tuple(dict.fromkeys(found))


def _commands(value: Any, ignored: list[str]) -> tuple[tuple[str, ...], ...]:
    """Return ``postCreateCommand`` as argument lists: a text is for a shell, an object has several commands."""
    several = list(value.values()) if isinstance(value, dict) else [] if value is None else [value]
    found = []
    for one in several[:MOST]:
        words = ["/bin/sh", "-c", one] if isinstance(one, str) else one
        if isinstance(words, list) and words and all(isinstance(word, str) and "\0" not in word for word in words):
            found.append(tuple(words))
        else:
            ignored.append("postCreateCommand")
            return ()
    return tuple(found)


def _list(value: Any, name: str, ignored: list[str]) -> Iterator[Any]:
    if value is not None and not isinstance(value, list):
        ignored.append(name)
    entries = value if isinstance(value, list) else []
    if len(entries) > MOST:
        ignored.append(f"{name} after the first {MOST}")
    yield from entries[:MOST]


def _items(value: Any, name: str, ignored: list[str]) -> Iterator[tuple[str, Any]]:
    if value is not None and not isinstance(value, dict):
        ignored.append(name)
    entries = list(value.items()) if isinstance(value, dict) else []
    if len(entries) > MOST:
        ignored.append(f"{name} after the first {MOST}")
    yield from entries[:MOST]


def shown(value: Any) -> str:
    """Return ``value`` as one short word for a sentence."""
    plain = type(value).__name__ if isinstance(value, (dict, list)) else str(value)
    text = re.sub(r"[^\w.@:/+-]", "?", plain, flags=re.ASCII)
    return text if len(text) <= 40 else f"{text[:40]}…"
