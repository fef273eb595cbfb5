# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find secrets on disk by known patterns. Findings name path and kind, never the secret."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

LARGEST = 4 << 20
PATTERNS = {
    "a private key": rb"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY( BLOCK)?-----\r?\n[A-Za-z0-9+/=:, \r\n-]{60}",
    "a token of GitHub": rb"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{60,}",
    "a token of GitLab": rb"\bglpat-[A-Za-z0-9_-]{20,}",
    "a key of AWS": rb"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a key of Google": rb"\bAIza[A-Za-z0-9_-]{35}\b",
    "a token of Slack": rb"\bxox[abprs]-[A-Za-z0-9-]{20,}",
    "a token of npm": rb"\bnpm_[A-Za-z0-9]{36}\b|:_authToken *= *[A-Za-z0-9_=+/-]{16,}",
    "a token of PyPI": rb"\bpypi-AgE[A-Za-z0-9_-]{40,}",
    "a key of a language model": rb"\bsk-(ant-|proj-)?[A-Za-z0-9_-]{40,}",
    "an OAuth token": rb"oauth_token: *[A-Za-z0-9_-]{20,}",
}
IN_FILES = {
    "a password in an address": (
        re.compile(r"\.git-credentials|config|\.gitconfig|\.npmrc|pip\.conf|credentials"),
        rb"\b[a-z]+://[^/\s:@]{1,64}:[^/\s:@]{3,}@[A-Za-z0-9]",
    ),
    "a login of .netrc": (re.compile(r"\.netrc"), rb"\bpassword\s+\S{3,}"),
    "a login of a registry": (re.compile(r"config\.json"), rb'"auth" *: *"[A-Za-z0-9+/=]{8,}"'),
    "a session of Coder": (re.compile(r"session"), rb"\A[A-Za-z0-9]{10}-[A-Za-z0-9]{22}\s*\Z"),
    "a host key": (re.compile(r"ssh_host_[a-z0-9]+_key"), rb"\A"),
}
"""Kinds that are searched only in files with these names."""
OF_OTHERS = {"node_modules", "site-packages", "registry", "testdata", "toolchains", ".cache", "CachedExtensionVSIXs"}
"""Folders of package managers, which contain examples and test keys."""
_EVERYWHERE = re.compile(b"|".join(b"(?P<k%d>%s)" % item for item in enumerate(PATTERNS.values())))


@dataclass
class Search:
    """Findings as (path, kind), and how many files were searched."""

    found: list[tuple[str, str]] = field(default_factory=list)
    files: int = 0
    unread: int = 0
    in_time: bool = True


def search(
    places: Iterable[str], without: Iterable[str] = (), words: Iterable[str] = (), seconds: float = 120
) -> Search:
    """Search below ``places`` but not below ``without``; ``words`` are current secrets to find as well."""
    result, until = Search(), time.monotonic() + seconds
    secrets = [word.encode() for word in words if len(word) >= 8]
    for path in _files(places, set(without)):
        if time.monotonic() > until:
            result.in_time = False
            break
        try:
            with open(path, "rb", opener=_unfollowed) as file:
                content = file.read(LARGEST)
        except OSError:
            result.unread += 1
            content = b""
        result.files += 1
        kind = _kind(os.path.basename(path), content, secrets)
        if kind:
            result.found.append((path, kind))
    return result


def _unfollowed(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _files(places: Iterable[str], without: set[str]) -> Iterator[str]:
    """Yield regular files, on the file system of each place only."""
    for place in places:
        if not os.path.isdir(place):
            continue
        device = os.stat(place).st_dev
        for folder, folders, files in os.walk(place):
            folders[:] = [
                name
                for name in folders
                if name not in OF_OTHERS
                and os.path.join(folder, name) not in without
                and _device(os.path.join(folder, name)) == device
            ]
            yield from (path for path in (os.path.join(folder, name) for name in files) if _regular(path))


def _device(path: str) -> int:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return -1


def _regular(path: str) -> bool:
    return os.path.isfile(path) and not os.path.islink(path)


def _kind(name: str, content: bytes, secrets: Iterable[bytes]) -> str:
    """Return the kind of secret in ``content``, or an empty text."""
    if any(secret in content for secret in secrets):
        return "a secret of this start"
    match = _EVERYWHERE.search(content)
    if match:
        group = next(key for key, value in match.groupdict().items() if value is not None)
        return list(PATTERNS)[int(group[1:])]
    for kind, (names, pattern) in IN_FILES.items():
        if names.fullmatch(name) and re.search(pattern, content):
            return kind
    return ""
