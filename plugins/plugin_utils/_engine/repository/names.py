# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Validate names: workspaces, branches and hosts."""

from __future__ import annotations

import re

from ....module_utils._node.errors import InvalidInput
from ..common.text import redact_value

NAME_LIMIT = 32
REF_LIMIT = 250
_NAME = re.compile(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_REF = re.compile(r"[\w./+#@=,%!&(){}'-]+")
_HINT = "Use https://host/owner/name, git@host:owner/name, ssh://git@host/owner/name or the path of a directory."


def slugify(text: str, fallback: str = "repository") -> str:
    """Return ``text`` as a name for Docker and Coder: at most 32 lower-case letters, digits and single hyphens."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:NAME_LIMIT].strip("-") or fallback
    if slug.endswith("-old"):
        # `restart` renames the replaced container with this suffix (docs/decisions/restart.md).
        slug = slug[: NAME_LIMIT - 5].rstrip("-") + "-repo"
    return slug


def validate_name(name: str, what: str = "workspace") -> str:
    """Return ``name`` if it can be the name of a workspace or an owner. Raise ``InvalidInput`` otherwise."""
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"The name of the {what} is empty.", f"Set {what}=my-name.")
    if len(name) > NAME_LIMIT or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"The name {redact_value(name)!r} is not accepted for the {what}.",
            f"A name has at most {NAME_LIMIT} letters, digits and single hyphens, none at its ends.",
        )
    if name.lower().endswith("-old"):
        raise InvalidInput(
            f"The name {name!r} ends in -old, which is reserved for replaced workspaces.", "Choose another name."
        )
    return name


def validate_ref(ref: str) -> str:
    """Return ``ref`` if it can be a branch, a tag or a commit and is harmless everywhere; empty means the default."""
    if not isinstance(ref, str):
        raise InvalidInput(f"ref must be text, not {type(ref).__name__}.", "Quote it.")
    if ref == "":
        return ref
    parts = ref.split("/")
    legal = (
        len(ref) <= REF_LIMIT
        and _REF.fullmatch(ref)
        and not ref.startswith("-")
        and not ref.endswith(".")
        and ref != "@"
        and ".." not in ref
        and "@{" not in ref
        and all(part and not part.startswith((".", "-")) and not part.endswith(".lock") for part in parts)
    )
    if not legal:
        raise InvalidInput(
            f"The ref {redact_value(ref)!r} is not accepted as a branch, tag or commit.",
            "Use letters, digits and ./_+#@=,%!&(){}'-; without '..', "
            "'@{', empty parts, and parts that start with . or -.",
        )
    return ref


def validate_host(text: str, what: str = "the host") -> tuple[str, int | None]:
    """Return host in lower case and port of ``host``, ``host:port`` or ``[v6]:port``."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/@]+)(?::(\d{1,5}))?", text, re.ASCII)
    host = match[1].lower() if match else ""
    port = int(match[2]) if match and match[2] else None
    if not text.isascii() or any(label.startswith("xn--") for label in host.split(".")):
        raise InvalidInput(
            f"The host's name has characters beyond ASCII, which can look like another host's ({what}).",
            "Use its plain ASCII name or add an alias for it in ~/.ssh/config.",
        )
    if not match or len(host) > 253 or not _is_host(host) or host == "local":
        raise InvalidInput(f"The name {redact_value(text)!r} is not a host name ({what}).", _HINT)
    if port is not None and not 1 <= port <= 65535:
        raise InvalidInput(f"Port {port} of {host} is out of range.", "Use a port from 1 to 65535.")
    return host, port


def _is_host(host: str) -> bool:
    labels = host.split(".")
    if host.startswith("[") or re.fullmatch(r"0x[0-9a-f]*|[0-9]*", labels[-1]):
        import ipaddress

        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return False
        return True
    return all(_LABEL.fullmatch(label) for label in labels)
