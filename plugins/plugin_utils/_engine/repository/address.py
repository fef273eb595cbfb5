# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse and normalise the address of a repository: URL, scp form, short form or local path."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ....module_utils._node.errors import InvalidInput
from ..common.text import redact_value
from .names import _HINT, NAME_LIMIT, slugify, validate_host, validate_ref

REPOSITORY_LIMIT = 1024
HOME = "/home/coder"
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_SEGMENT = re.compile(r"[A-Za-z0-9._~+,=@%-]+")
_COMMIT = re.compile(r"[0-9a-fA-F]{7,64}")


def ci_name(repository: Repository | None) -> str:
    """Return a unique name for a run: ``ci-<slug>-<8 hex digits>``."""
    import secrets

    digits = secrets.token_hex(4)
    slug = repository.slug[: NAME_LIMIT - len(digits) - 4].strip("-") if repository else "run"
    return f"ci-{slug}-{digits}"


@dataclass(frozen=True)
class Repository:
    """The address of a repository. ``kind``: https, ssh or local. ``port`` is only set if it is not the scheme's
    default.

    ``url`` is the address for git, without credentials. ``path`` has no leading or trailing slash unless it is local or
    an scp-like absolute path needs it. A trailing ``.git`` is kept, because some servers require it.
    """

    kind: str
    host: str
    port: int | None
    user: str
    path: str
    url: str

    @classmethod
    def parse(cls, text: str, default_host: str = "github.com", what: str = "repo") -> Repository:
        """Parse ``text``. Raise ``InvalidInput`` with a sentence that never repeats a secret."""
        text = _plain(text, what)
        if re.match(r"[A-Za-z0-9+.-]*::", text):
            raise InvalidInput(f"{what} names a transport helper of git, which can run programs.", _HINT)
        scheme, separator, rest = text.partition("://")
        if separator:
            return _from_url(scheme.lower(), rest, what)
        if text.startswith(("/", "./", "../", "~/")) or text in (".", "..", "~"):
            return _local(text)
        head, colon, path = text.partition(":")
        if colon and "/" not in head:
            return _from_scp(head, path, what)
        return _from_short(text, default_host, what)

    @property
    def identity(self) -> str:
        """``host/o/r`` for every address of a repository, without secrets (docs/decisions/identity-and-names.md)."""
        path = _without_git(self.path.strip("/"))
        if self.kind == "https" and self.port:
            return f"{self.host}:{self.port}/{path}"
        return f"{self.host}/{path}"

    @property
    def slug(self) -> str:
        """Name of its workspace."""
        from urllib.parse import unquote

        return slugify(unquote(self.identity.rpartition("/")[2]))

    def slug_with_suffix(self) -> str:
        """Name of its workspace if another repository has ``slug``."""
        import hashlib

        digits = hashlib.sha256(self.identity.encode()).hexdigest()[:4]
        return f"{self.slug[: NAME_LIMIT - 5].rstrip('-')}-{digits}"

    @property
    def directory(self) -> str:
        """Directory of the clone in a workspace named after it."""
        return f"{HOME}/{self.slug}"


def parse_dotfiles(text: str, default_host: str) -> str:
    """Return ``text``, a repository with or without ``#branch``, in the workspace agent's format."""
    address, mark, branch = text.partition("#")
    repository = Repository.parse(address, default_host, "dotfiles")
    if repository.kind == "local":
        raise InvalidInput(
            "dotfiles is a local path, which a workspace cannot reach.", "Use the address of a repository."
        )
    if mark and not branch:
        raise InvalidInput("dotfiles ends in '#' without a branch.", "Use https://host/owner/dotfiles#branch.")
    return repository.url + mark + validate_ref(branch)


def _plain(text: str, what: str) -> str:
    """Return ``text`` without surrounding blanks. Raise ``InvalidInput`` if it could be mistaken for something else."""
    if not isinstance(text, str):
        raise InvalidInput(f"{what} must be text, not {type(text).__name__}.", _HINT)
    text = text.strip(" ")
    if not text:
        raise InvalidInput(f"{what} is empty.", _HINT)
    if len(text) > REPOSITORY_LIMIT:
        raise InvalidInput(f"{what} is {len(text)} characters long, at most {REPOSITORY_LIMIT} are allowed.", _HINT)
    if not text.isprintable():
        raise InvalidInput(
            f"{what} contains control or invisible characters, or is not valid UTF-8.", "Retype it instead of pasting."
        )
    if text.startswith("-"):
        raise InvalidInput(f"{what} starts with '-', which programs read as an option.", _HINT)
    return text


def _without_git(path: str) -> str:
    return path[:-4] if path.endswith(".git") else path


def _path(path: str, what: str) -> str:
    """Return a path on a server without surrounding slashes."""
    if "?" in path or "#" in path:
        raise InvalidInput(
            f"{what} has a '?' or '#' part, which addresses of repositories do not have.", "Remove that part."
        )
    path = path.strip("/")
    parts = path.split("/")
    if not _without_git(path) or path.endswith("/.git"):
        raise InvalidInput(f"{what} names a host without a repository.", _HINT)
    plain = [_decoded(part) for part in parts]
    if not all(_SEGMENT.fullmatch(part) for part in parts) or not all(
        p and p.isprintable() and not p.startswith("-") and p not in (".", "..") and not re.search(r"[/\\%]", p)
        for p in plain
    ):
        raise InvalidInput(
            f"The path in {what} has an empty part, '.', '..', one that starts with '-', or characters not allowed.",
            "Use letters, digits and . _ ~ + , = @ -; write others as %XX.",
        )
    return "/".join(re.sub(r"%..", lambda m: m[0].upper(), part) for part in parts)


def _decoded(part: str) -> str:
    """Return ``part`` with its %XX decoded, or nothing if they are malformed or not UTF-8."""
    if "%" not in part:
        return part
    if re.search(r"%(?![0-9A-Fa-f]{2})", part):
        return ""
    from urllib.parse import unquote

    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError:
        return ""


def _from_url(scheme: str, rest: str, what: str) -> Repository:
    if scheme == "file":
        raise InvalidInput(f"{what} is a file:// address.", "Use the path of the directory: /path/to/repository.")
    if scheme == "http":
        raise InvalidInput(f"{what} uses http://, which the network can tamper with.", "Use https://.")
    if scheme not in ("https", "ssh"):
        raise InvalidInput(f"{what} is neither https:// nor ssh://.", _HINT)
    authority, _slash, path = rest.partition("/")
    user, at, place = authority.rpartition("@")
    if scheme == "https" and (at or "@" in path.partition("/")[0]):
        raise InvalidInput(
            f"{what} contains a user name or password, which would end up in files and logs.",
            "Omit it; git's credential helper or your SSH agent is used.",
        )
    if scheme == "https":
        host, port = validate_host(place, f"the host in {what}")
        port = None if port == 443 else port
        path = _path(path, what)
        return Repository("https", host, port, "", path, f"https://{_authority(host, port)}/{path}")
    user = _ssh_user(user if at else "git", what)
    host, port = validate_host(place, f"the host in {what}")
    port = None if port == 22 else port
    path = _path(path, what)
    return Repository("ssh", host, port, user, path, f"ssh://{user}@{_authority(host, port)}/{path}")


def _authority(host: str, port: int | None) -> str:
    return f"{host}:{port}" if port else host


def _ssh_user(user: str, what: str) -> str:
    if ":" in user:
        raise InvalidInput(
            f"{what} contains a password, which would end up in files and logs.", "Omit it and use a key."
        )
    if not _USER.fullmatch(user):
        raise InvalidInput(
            f"The user name in {what} is not accepted.", "On most servers it is git: git@host:owner/name."
        )
    return user


def _from_scp(head: str, path: str, what: str) -> Repository:
    """Parse ``user@host:path``. The path is relative to the remote home unless it starts with a slash."""
    user, at, place = head.rpartition("@")
    if not at:
        if "@" in path:
            raise InvalidInput(
                f"{what} contains a password, which would end up in files and logs.", "Omit it and use a key."
            )
        raise InvalidInput(f"{what} is neither an address nor a path.", _HINT)
    user = _ssh_user(user, what)
    if path[:1] == "/" and path[:2] == "//":
        raise InvalidInput(f"The path in {what} has an empty part.", _HINT)
    host, _none = validate_host(place, f"the host in {what}")
    absolute = "/" if path.startswith("/") else ""
    path = absolute + _path(path, what)
    return Repository("ssh", host, None, user, path, f"{user}@{host}:{path}")


def _from_short(text: str, default_host: str, what: str) -> Repository:
    """Parse ``owner/name`` on the default host."""
    parts = text.rstrip("/").split("/")
    if len(parts) != 2:
        hint = (
            f"Did you mean https://{redact_value(text)}?"
            if len(parts) > 2 and "." in parts[0] and text.isascii()
            else _HINT
        )
        raise InvalidInput(
            f"{what} is neither an address nor owner/name nor a path.", hint if "@" not in text else _HINT
        )
    host, port = validate_host(default_host, "default_host")
    port = None if port == 443 else port
    path = _path("/".join(parts), what)
    return Repository("https", host, port, "", path, f"https://{_authority(host, port)}/{path}")


def _local(text: str) -> Repository:
    path = os.path.abspath(os.path.expanduser(text))
    if os.path.basename(path) == ".git":
        path = os.path.dirname(path)
    return Repository("local", "local", None, "", path, path)
