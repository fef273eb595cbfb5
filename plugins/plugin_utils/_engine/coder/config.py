# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the Coder server and the caller's token, like Coder's own command line.

Reads ``CODER_URL`` and ``CODER_SESSION_TOKEN``, then the files ``url`` and ``session`` of the CLI's configuration
directory. An empty variable counts as unset. Names and paths are those of ``coder`` v2.35.1.
"""

from __future__ import annotations

import csv
import ntpath
import os
import posixpath
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ....module_utils._node.errors import AuthError, InvalidInput, NotFound

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PRINTABLE = re.compile(r"[!-~]+")
_HEADER_VALUE = re.compile(r"[\t -~]*")


@dataclass(frozen=True)
class CoderConfig:
    """A server and the caller's access to it. Secrets are never in a ``repr``.

    ``url`` has no trailing slash. ``source`` says in messages where the token comes from.
    """

    url: str
    token: str = field(default="", repr=False)
    source: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    proxy: str = field(default="", repr=False)


def load(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> CoderConfig:
    """Return the configuration of this environment; the token may be missing (see ``require_token``).

    Raise ``NotFound`` if no server is named, ``InvalidInput`` for an invalid URL, token or header.
    """
    environ = os.environ if environ is None else environ
    folder = config_dir(environ, platform)
    stored = _read(folder, "url", platform)
    given = environ.get("CODER_URL", "")
    if not (given or stored):
        raise NotFound(
            "The address of the Coder server is missing.",
            "Set CODER_URL=https://coder.example.com, or log in: coder login <url>",
        )
    url = parse_url(given or stored, "CODER_URL" if given else f"the URL stored in {folder}")
    token, source = _token(environ, folder, platform, url, stored)
    return CoderConfig(
        url=url,
        token=token,
        source=source,
        ca_file=environ.get("CODER_CLIENT_TLS_CA_FILE", ""),
        cert_file=environ.get("CODER_CLIENT_TLS_CERT_FILE", ""),
        key_file=environ.get("CODER_CLIENT_TLS_KEY_FILE", ""),
        headers=parse_headers(environ.get("CODER_HEADER", "")),
        proxy=proxy_for(url, environ),
    )


def configured(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> bool:
    """Return whether a server and a token are configured: then target ``auto`` means Coder."""
    try:
        return bool(load(environ, platform).token)
    except NotFound:
        return False


def require_token(config: CoderConfig) -> CoderConfig:
    """Return ``config`` if it has a token. Raise ``AuthError`` with the login command otherwise."""
    if config.token:
        return config
    raise AuthError(
        f"The session token for the Coder server {config.url} is missing.",
        f"Log in (coder login {config.url}), or set CODER_SESSION_TOKEN to the token that {config.url}/cli-auth shows "
        "in your browser.\nWhere the CLI keeps its token in the system's "
        'keyring (macOS, Windows): export CODER_SESSION_TOKEN="$(coder login token)"',
    )


def config_dir(environ: Mapping[str, str], platform: str) -> str:
    """Return the CLI's configuration directory, whether it exists or not; empty if the environment names no home."""
    if environ.get("CODER_CONFIG_DIR"):
        return environ["CODER_CONFIG_DIR"]
    if platform == "win32":
        return ntpath.join(environ["APPDATA"], "coderv2") if environ.get("APPDATA") else ""
    home = environ.get("HOME", "")
    if platform == "darwin":
        return posixpath.join(home, "Library/Application Support/coderv2") if home else ""
    base = environ.get("XDG_CONFIG_HOME") or (posixpath.join(home, ".config") if home else "")
    return posixpath.join(base, "coderv2") if base else ""


def _read(folder: str, name: str, platform: str) -> str:
    """Return the content of a CLI file, or nothing if it cannot be read."""
    if not folder:
        return ""
    join = ntpath.join if platform == "win32" and os.name == "nt" else os.path.join
    try:
        with open(join(folder, name), encoding="utf-8") as file:
            return file.read(65536).strip()
    except (OSError, ValueError):
        return ""


def _token(environ: Mapping[str, str], folder: str, platform: str, url: str, stored: str) -> tuple[str, str]:
    """Return (token, its source). A stored token is only used for the server it was stored for."""
    source, token = "CODER_SESSION_TOKEN", environ.get("CODER_SESSION_TOKEN", "").strip()
    if not token and stored and parse_url(stored, f"the URL stored in {folder}") == url:
        source, token = f"the CLI's session in {folder}", _read(folder, "session", platform)
    if token and not _PRINTABLE.fullmatch(token):
        raise InvalidInput(
            f"The token from {source} has characters that tokens cannot have.", f"Log in: coder login {url}"
        )
    return token, source if token else ""


def parse_url(text: str, what: str = "CODER_URL") -> str:
    """Return the base URL without a trailing slash; ``https`` is the default scheme, as in ``coder login``.

    Raise ``InvalidInput``, also for user names and passwords in a URL.
    """
    text = text.strip()
    if "://" not in text:
        text = f"https://{text}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if not host or parts.scheme not in ("http", "https") or not _PRINTABLE.fullmatch(text) or port == 0:
        raise InvalidInput(f"{what} is not the URL of a server.", "Use the form https://coder.example.com")
    if "@" in parts.netloc:
        raise InvalidInput(
            f"{what} contains a user name or a password.", "Use the plain URL, and CODER_SESSION_TOKEN for the token."
        )
    if parts.query or parts.fragment:
        raise InvalidInput(f"{what} contains more than the server's URL.", f"Use {parts.scheme}://{parts.netloc}")
    path = re.sub(r"/api(/v2)?$", "", parts.path.rstrip("/"))
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def parse_headers(text: str) -> tuple[tuple[str, str], ...]:
    """Parse ``CODER_HEADER``: ``name=value``, several separated by commas, quoted as in CSV.

    Raise ``InvalidInput``, which never shows a value.
    """
    words = [word for line in csv.reader([text]) for word in line if word] if text else []
    found = []
    for number, word in enumerate(words, 1):
        name, equals, value = word.partition("=")
        if not (equals and _HEADER_NAME.fullmatch(name.strip()) and _HEADER_VALUE.fullmatch(value)):
            raise InvalidInput(f"Header {number} in CODER_HEADER is not of the form name=value.")
        found.append((name.strip(), value.strip()))
    return tuple(found)


def proxy_for(url: str, environ: Mapping[str, str]) -> str:
    """Return the proxy that ``https_proxy``, ``http_proxy``, ``all_proxy`` and ``no_proxy`` name for ``url``, or
    nothing.
    """
    parts = urlsplit(url)
    proxies = {
        name: environ.get(f"{name}_proxy") or (environ.get(f"{name.upper()}_PROXY", ""))
        for name in (parts.scheme, "all", "no")
    }
    proxy = proxies[parts.scheme] or proxies["all"]
    if not proxy or _bypassed(parts.hostname or "", proxies["no"]):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _bypassed(host: str, exceptions: str) -> bool:
    """Return whether ``no_proxy`` names the host, one of its domains or everything."""
    for word in exceptions.split(","):
        name = word.strip().lower().rsplit(":", 1)[0] if word.count(":") == 1 else word.strip().lower()
        name = name.removeprefix("*").removeprefix(".") if name != "*" else name
        if name and (name == "*" or host == name or host.endswith(f".{name}")):
            return True
    return False
