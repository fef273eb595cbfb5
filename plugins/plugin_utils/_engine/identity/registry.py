# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answer for container registries with the user's own Docker credentials."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from typing import Any

from ....module_utils._node.errors import NotFound
from . import policy
from .program import Deadline, Failed

HUB = "https://index.docker.io/v1/"
LARGEST = 1 << 20


def host_of(server: str) -> str:
    """Return the canonical host of a registry's address; Docker Hub has several names. Raise ``InvalidInput``."""
    host = policy.canonical(re.sub(r"^https?://", "", server).partition("/")[0])
    return "docker.io" if host in ("index.docker.io", "registry-1.docker.io") else host


def get(server: str, deadline: Deadline) -> dict[str, str]:
    """Return ``username`` and ``secret``. Raise ``NotFound`` or ``Failed``."""
    host = host_of(server)
    config = _config()
    helper = next((name for key, name in _table(config, "credHelpers").items() if _same(key, host)), None)
    found = _ask_helper(str(helper or config.get("credsStore") or ""), server, deadline)
    found = found or next((_decoded(entry) for key, entry in _table(config, "auths").items() if _same(key, host)), {})
    if not found:
        raise NotFound(f"Your machine has no credentials for {host}.", f"Log in on your machine: docker login {host}")
    return found


def listed(allowed: policy.Policy) -> dict[str, str]:
    """Return the servers that the workspace may ask for, without user names."""
    config = _config()
    servers = {}
    for server in (*_table(config, "auths"), *_table(config, "credHelpers")):
        with contextlib.suppress(Exception):
            allowed.check(host_of(server))
            servers[server] = ""
    return servers


def _config() -> dict[str, Any]:
    folder = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            found = json.loads(file.read(LARGEST))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise Failed(f"On your machine: {folder}/config.json cannot be read.") from None
    return found if isinstance(found, dict) else {}


def _table(config: dict[str, Any], name: str) -> dict[str, Any]:
    table = config.get(name)
    return table if isinstance(table, dict) else {}


def _same(server: str, host: str) -> bool:
    with contextlib.suppress(Exception):
        return host_of(server) == host
    return False


def _ask_helper(name: str, server: str, deadline: Deadline) -> dict[str, str]:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        return {}
    wanted = HUB if host_of(server) == "docker.io" else server
    status, out = deadline.run([f"docker-credential-{name}", "get"], wanted)
    try:
        found = json.loads(out) if status == 0 else {}
        return {"username": str(found["Username"]), "secret": str(found["Secret"])}
    except (ValueError, KeyError, TypeError):
        return {}


def _decoded(entry: Any) -> dict[str, str]:
    """Return the credential of an entry of ``auths``."""
    if not isinstance(entry, dict):
        return {}
    if entry.get("identitytoken"):
        return {"username": "<token>", "secret": str(entry["identitytoken"])}
    try:
        user, mark, secret = base64.b64decode(str(entry.get("auth", ""))).decode().partition(":")
    except ValueError:
        return {}
    return {"username": user, "secret": secret} if mark else {}
