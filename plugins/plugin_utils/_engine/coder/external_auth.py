# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""External authentication: a Coder server holds a user's login to a Git host, and workspaces clone with it.

Names and defaults of providers are those of Coder 2.35 (``coderd/externalauth``). The display name of each provider is
its host, because the server does not tell clients which addresses a provider is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ....module_utils._node.errors import InvalidInput
from ..common import untrusted

HOSTS = {
    "azure-devops": "dev.azure.com",
    "azure-devops-entra": "dev.azure.com",
    "bitbucket-cloud": "bitbucket.org",
    "bitbucket-server": "",
    "gitea": "gitea.com",
    "github": "github.com",
    "gitlab": "gitlab.com",
}
"""Types of providers for Git, with the host that each has by default."""
OWN_ADDRESSES: dict[str, dict[str, str]] = {
    "bitbucket-server": {"auth_url": "/rest/oauth2/latest/authorize"},
    "gitea": {"auth_url": "/login/oauth/authorize"},
    "github": {
        "auth_url": "/login/oauth/authorize",
        "token_url": "/login/oauth/access_token",
        "validate_url": "/api/v3/user",
        "device_code_url": "/login/device/code",
        "api_base_url": "/api/v3",
    },
    "gitlab": {"auth_url": "/oauth/authorize"},
}
"""Paths of a company's own server, by type; the server derives the others."""
REQUIRED = ("type", "client_id", "client_secret")
OPTIONAL = (
    "id",
    "host",
    "auth_url",
    "token_url",
    "validate_url",
    "revoke_url",
    "device_code_url",
    "api_base_url",
    "app_install_url",
    "device_flow",
    "no_refresh",
    "scopes",
)
_ID = re.compile(r"[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")


def environment(providers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return Coder's variables for ``providers``. Raise ``InvalidInput`` for an unusable one."""
    found: dict[str, str] = {}
    for number, provider in enumerate(_checked(providers)):
        for key, value in provider.items():
            found[f"CODER_EXTERNAL_AUTH_{number}_{key.upper()}"] = _text(value)
    return found


def ids(providers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of ``providers`` in their order."""
    return [provider["id"] for provider in _checked(providers)]


def variable(names: Sequence[str]) -> str:
    """Return the template's variable for providers of these ids."""
    return json.dumps(sorted(set(names)))


def refusals(entitlements: Mapping[str, Any] | None) -> list[str]:
    """Return the server's sentences about external authentication that its licence does not cover."""
    found = entitlements or {}
    words = [*(found.get("errors") or []), *(found.get("warnings") or [])]
    return [untrusted.line(text) for text in words if "external auth" in str(text).lower()]


def _checked(providers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, given in enumerate(providers):
        provider = _complete(number, given)
        if provider["id"] in [other["id"] for other in found]:
            raise InvalidInput(
                f"coder_server_external_auth has the id {provider['id']} twice.", "Give each provider an id of its own."
            )
        found.append(provider)
    return found


def _complete(number: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return one provider with its defaults, in Coder's names."""
    name = str(given.get("id") or given.get("type") or number + 1)
    where = f"Provider {name} of coder_server_external_auth"
    lacking = [key for key in REQUIRED if not given.get(key)]
    if lacking:
        raise InvalidInput(f"{where} lacks {', '.join(lacking)}.", f"Each needs {', '.join(REQUIRED)}.")
    unknown = sorted(set(given) - {*REQUIRED, *OPTIONAL})
    if unknown:
        raise InvalidInput(
            f"{where} has the unknown key {', '.join(unknown)}.", f"Other keys are {', '.join(OPTIONAL)}."
        )
    kind = str(given["type"])
    if kind not in HOSTS:
        raise InvalidInput(f"{where} has the unknown type {kind}.", f"Types are {', '.join(HOSTS)}.")
    host = str(given.get("host") or HOSTS[kind]).lower()
    if not _HOST.fullmatch(host):
        raise InvalidInput(f"{where} has the invalid host {host!r}.", "Set a host such as git.example.com.")
    if not _ID.fullmatch(name):
        raise InvalidInput(f"{where} has an invalid id.", "Use letters, digits and hyphens.")
    own = OWN_ADDRESSES.get(kind, {}) if host != HOSTS[kind] else {}
    return {
        **{key: f"https://{host}{path}" for key, path in own.items()},
        **{key: value for key, value in given.items() if key != "host"},
        "id": name,
        "display_name": host,
        "regex": rf"^(https?://)?([^/@]+@)?{re.escape(host)}(/.*)?$",
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
