# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the Coder server is and who asks, found as Coder's own command line finds it.

``CODER_URL`` and ``CODER_SESSION_TOKEN``, else the files ``url`` and ``session`` of the CLI's configuration directory;
a variable that is set but empty counts as unset. Names and places are those of ``coder`` v2.35.1.
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
    """A server and the caller's way to it. What is secret is in no ``repr``.

    ``url`` has no slash at its end. ``source`` says where the token comes from, in the words that messages use.
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
    """The configuration that this environment names; the token may be missing (see ``require_token``).

    Raises ``NotFound`` when no server is named, ``InvalidInput`` for what cannot be a URL, a token or a header.
    """
    environ = os.environ if environ is None else environ
    folder = config_dir(environ, platform)
    stored = _read(folder, "url", platform)
    given = environ.get("CODER_URL", "")
    if not (given or stored):
        raise NotFound(
            "No Coder server is named.", "Set CODER_URL=https://coder.example.com, or log in: coder login <url>"
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
    """Whether a server and a token are at hand: then target ``auto`` means Coder."""
    try:
        return bool(load(environ, platform).token)
    except NotFound:
        return False


def require_token(config: CoderConfig) -> CoderConfig:
    """``config`` if it has a token. Raises ``AuthError`` with the command that gets one."""
    if config.token:
        return config
    raise AuthError(
        f"There is no session token for the Coder server {config.url}.",
        f"Log in (coder login {config.url}), or set CODER_SESSION_TOKEN to what {config.url}/cli-auth shows in your"
        " browser.\nWhere the CLI keeps its token in the system's "
        'keyring (macOS, Windows): export CODER_SESSION_TOKEN="$(coder login token)"',
    )


def config_dir(environ: Mapping[str, str], platform: str) -> str:
    """The CLI's configuration directory, whether it exists or not; empty when the environment names no home."""
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
    """Content of a file of the CLI's; nothing when there is none or it cannot be read."""
    if not folder:
        return ""
    join = ntpath.join if platform == "win32" and os.name == "nt" else os.path.join
    try:
        with open(join(folder, name), encoding="utf-8") as file:
            return file.read(65536).strip()
    except (OSError, ValueError):
        return ""


def _token(environ: Mapping[str, str], folder: str, platform: str, url: str, stored: str) -> tuple[str, str]:
    """(token, where it is from). A stored token goes only to the server that it was stored for."""
    source, token = "CODER_SESSION_TOKEN", environ.get("CODER_SESSION_TOKEN", "").strip()
    if not token and stored and parse_url(stored, f"the URL stored in {folder}") == url:
        source, token = f"the CLI's session in {folder}", _read(folder, "session", platform)
    if token and not _PRINTABLE.fullmatch(token):
        raise InvalidInput(f"The token from {source} has characters that no token has.", f"Log in: coder login {url}")
    return token, source if token else ""


def parse_url(text: str, what: str = "CODER_URL") -> str:
    """The base URL, without a slash at its end; ``https`` when no scheme is given, as ``coder login`` does.

    Raises ``InvalidInput``; user names and passwords in a URL are refused.
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
        raise InvalidInput(f"{what} is no URL of a server.", "It looks like https://coder.example.com")
    if "@" in parts.netloc:
        raise InvalidInput(
            f"{what} holds a user name or a password.", "Give the plain URL; the token goes into CODER_SESSION_TOKEN."
        )
    if parts.query or parts.fragment:
        raise InvalidInput(f"{what} holds more than the server's URL.", f"Use {parts.scheme}://{parts.netloc}")
    path = re.sub(r"/api(/v2)?$", "", parts.path.rstrip("/"))
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def parse_headers(text: str) -> tuple[tuple[str, str], ...]:
    """``CODER_HEADER``: ``name=value``, several separated by commas, with quotes as in a CSV line.

    Raises ``InvalidInput``; a value is never shown.
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
    """The proxy that ``https_proxy``, ``http_proxy``, ``all_proxy`` and ``no_proxy`` name for ``url``, or nothing."""
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
    """Whether ``no_proxy`` names the host, one of its domains or everything."""
    for word in exceptions.split(","):
        name = word.strip().lower().rsplit(":", 1)[0] if word.count(":") == 1 else word.strip().lower()
        name = name.removeprefix("*").removeprefix(".") if name != "*" else name
        if name and (name == "*" or host == name or host.endswith(f".{name}")):
            return True
    return False
