# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Git repositories as users name them (private to the collection): parse, normalise, validate, probe, bundle."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import tempfile
from dataclasses import dataclass

from ._errors import FlowError, InvalidInput, NotFound, redact

SLUG_LENGTH = 32
TEXT_LENGTH = 2048
HOME = "/home/coder"

_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_PART = re.compile(r"[A-Za-z0-9._~+-]{1,100}")
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_SHORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")
_SCP = re.compile(r"(?:(?P<user>[^@/:]+)@)?(?P<host>[^/:@]+):(?P<path>(?!//).+)")
_EXAMPLE = "Use https://host/owner/name.git, git@host:owner/name.git, ssh://git@host/owner/name.git or a local path."


def _refuse(what: str, why: str, hint: str = _EXAMPLE) -> InvalidInput:
    return InvalidInput(f"Cannot use the {what}: {why}.", hint)


def _clean(text: str, what: str) -> str:
    """``text`` when it is printable, not empty, not an option and not absurdly long."""
    if not isinstance(text, str):
        raise _refuse(what, "it is not text")
    if not text.strip():
        raise _refuse(what, "it is empty")
    if len(text) > TEXT_LENGTH:
        raise _refuse(what, f"it is longer than {TEXT_LENGTH} characters")
    if any(not c.isprintable() for c in text) or "\udc80" <= max(text) <= "\udcff":
        raise _refuse(what, "it holds control characters or is not valid UTF-8")
    if text.startswith("-"):
        raise _refuse(what, "it starts with a hyphen and would be read as an option")
    return text


def slugify(text: str, fallback: str = "workspace") -> str:
    """Lower-case letters, digits and single hyphens, at most 32 characters, starting and ending alphanumeric."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:SLUG_LENGTH].strip("-")
    return slug or fallback


def validate_name(name: str, what: str = "workspace name") -> str:
    """``name`` when it is legal for Docker and Coder alike; raises ``InvalidInput``."""
    _clean(name, what)
    if len(name) > SLUG_LENGTH or not _NAME.fullmatch(name) or name in ("new", "create"):
        raise _refuse(
            what,
            "it must be 1 to 32 lower-case letters and digits with single hyphens between them, and not 'new' or 'create'",
            f"For example: {slugify(name)}.",
        )
    return name


def validate_ref(ref: str) -> str:
    """``ref`` when git itself would accept it as a branch, tag or commit (git-check-ref-format(1)); empty is HEAD."""
    if ref == "":
        return ref
    hint = "Give a branch, a tag or a commit, for example ref=main."
    try:
        _clean(ref, "ref")
    except InvalidInput as error:
        raise InvalidInput(error.message, hint) from None
    bad = any(c in ref for c in " ~^:?*[\\") or ".." in ref or "@{" in ref or "//" in ref or ref == "@"
    parts = ref.split("/")
    if bad or ref.endswith(("/", ".")) or any(p == "" or p.startswith((".", "-")) or p.endswith(".lock") for p in parts):
        raise _refuse("ref", "git does not allow this as the name of a branch, tag or commit", hint)
    if len(ref) > 255:
        raise _refuse("ref", "it is longer than 255 characters", hint)
    return ref


@dataclass(frozen=True)
class Repository:
    """A repository: ``url`` is what git clones (never with a secret), ``identity`` is ``host/owner/name``."""

    kind: str
    host: str
    port: int | None
    user: str
    path: str
    url: str
    identity: str

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def slug(self) -> str:
        return slugify(self.name)

    @property
    def directory(self) -> str:
        """Where the workspace keeps the clone."""
        return f"{HOME}/{self.slug}"

    def slug_with_suffix(self) -> str:
        """The slug for when another repository has taken ``slug``: four hex digits of the identity are added."""
        digits = hashlib.sha256(self.identity.encode()).hexdigest()[:4]
        return f"{self.slug[: SLUG_LENGTH - 5].rstrip('-')}-{digits}"

    @classmethod
    def parse(cls, text: str, default_host: str = "github.com") -> Repository:
        """Read what a user typed; raises ``InvalidInput`` with a sentence that never repeats a secret."""
        _clean(text, "repository")
        text = text.strip()
        lower = text.lower()
        if "::" in text.split("/", 1)[0]:
            raise _refuse("repository", "remote helpers (name::address) can run programs and are not allowed")
        if lower.startswith(("https://", "ssh://")):
            return cls._from_url(text)
        if "://" in text:
            scheme = redact(lower.split("://", 1)[0])[:20]
            raise _refuse("repository", f"the protocol {scheme} is not allowed")
        if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
            return cls._local(text)
        match = _SCP.fullmatch(text)
        if match:
            return cls._remote("ssh", match["user"] or "git", match["host"], None, match["path"].lstrip("/"))
        if _SHORT.fullmatch(text):
            return cls._remote("https", "", default_host, None, text)
        raise _refuse("repository", "it is neither a URL, owner/name nor a path")

    @classmethod
    def _from_url(cls, text: str) -> Repository:
        scheme, rest = text.split("://", 1)
        authority, slash, path = rest.partition("/")
        user, at, hostport = authority.rpartition("@")
        if not slash or not path.strip("/"):
            raise _refuse("repository", "the URL names no repository")
        if at and (scheme.lower() == "https" or ":" in user):
            raise _refuse(
                "repository",
                "the URL holds credentials",
                "Leave them out: your git credential helper or SSH agent is asked for them.",
            )
        host, colon, port = hostport.partition(":")
        if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise _refuse("repository", "the port is not a number from 1 to 65535")
        if "?" in path or "#" in path:
            raise _refuse("repository", "the URL has a query or a fragment")
        return cls._remote(scheme.lower(), user or "git", host, int(port) if colon else None, path)

    @classmethod
    def _remote(cls, kind: str, user: str, host: str, port: int | None, path: str) -> Repository:
        if not host.isascii():
            raise _refuse(
                "repository",
                "the host has letters outside ASCII, which can imitate another name",
                "Write an internationalised host in its xn-- form.",
            )
        if not _HOST.fullmatch(host) or len(host) > 253:
            raise _refuse("repository", "the host is not a legal name")
        if kind == "ssh" and not _USER.fullmatch(user):
            raise _refuse("repository", "the user is not a legal name")
        path = path.strip("/")
        path = path[:-4] if path.lower().endswith(".git") else path
        parts = path.split("/")
        if any(not _PART.fullmatch(p) or p in (".", "..") or p.startswith("-") for p in parts):
            raise _refuse("repository", "its path has characters or parts that are not allowed")
        host = host.lower()
        if port == {"https": 443, "ssh": 22}[kind]:
            port = None
        at = f"{host}:{port}" if port else host
        url = f"https://{at}/{path}.git" if kind == "https" else f"ssh://{user}@{at}/{path}.git"
        identity = f"{at if kind == 'https' else host}/{path}"
        return cls(kind, host, port, user if kind == "ssh" else "", path, url, identity)

    @classmethod
    def _local(cls, text: str) -> Repository:
        path = os.path.realpath(os.path.expanduser(text))
        return cls("local", "", None, "", path, path, f"local{path}")


@dataclass(frozen=True)
class Probe:
    """What a look at the remote says: ``state`` is open, needs-auth, not-found, host-key-unknown or unreachable."""

    state: str
    detail: str = ""
    head: str = ""
