# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections to a Coder server: one pool, the caller's certificates and proxy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ....module_utils._node.errors import InvalidInput
from .config import CoderConfig

if TYPE_CHECKING:
    import urllib3


def connect(config: CoderConfig) -> urllib3.PoolManager:
    """Return the pool of connections to the server of ``config``; importing urllib3 takes a tenth of a second."""
    import urllib3

    options = tls(config) if config.url.startswith("https:") else {}
    if config.proxy:
        return urllib3.ProxyManager(without_user(config.proxy), maxsize=4, **options, **_proxy(config))
    return urllib3.PoolManager(maxsize=4, **options)


def _proxy(config: CoderConfig) -> dict[str, Any]:
    from urllib3 import make_headers

    parts = urlsplit(config.proxy)
    if not parts.username:
        return {}
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"proxy_headers": make_headers(proxy_basic_auth=user)}


def tls(config: CoderConfig) -> dict[str, Any]:
    import ssl

    context = ssl.create_default_context()
    try:
        if config.ca_file:
            context.load_verify_locations(os.path.expanduser(config.ca_file))
        if config.cert_file:
            context.load_cert_chain(os.path.expanduser(config.cert_file), os.path.expanduser(config.key_file) or None)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"Cannot read a certificate or key from {config.ca_file or config.cert_file} ({error}).",
            "Check CODER_CLIENT_TLS_CA_FILE, CODER_CLIENT_TLS_CERT_FILE and CODER_CLIENT_TLS_KEY_FILE.",
        ) from None
    return {"ssl_context": context}


def without_user(proxy: str) -> str:
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
