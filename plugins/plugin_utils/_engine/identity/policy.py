# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a workspace may use of its user's identity."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....module_utils._node.errors import FlowError, InvalidInput
from ..settings import resolve as settings_resolve
from ..settings.options import OPTIONS
from ..settings.values import convert
from . import record


class Refused(FlowError):
    """The user's settings do not allow what the workspace asked for."""

    kind = "refused"


@dataclass(frozen=True)
class Policy:
    """``hosts`` as ``resolve.parse_hosts`` returns them; ``ssh_agent``: on, off or ask."""

    workspace: str
    credentials: bool
    ssh_agent: str
    hosts: frozenset[str]

    def check(self, host: str = "") -> None:
        """Raise ``Refused`` unless the workspace may use credentials, and those of ``host`` (in ``canonical`` form)."""
        if not self.credentials:
            raise Refused(
                f"Workspace {self.workspace} may not use your credentials.",
                "To allow it, enter it with: SPT_FLOW_CREDENTIALS=on",
            )
        if host and host not in self.hosts and "*" not in self.hosts:
            raise Refused(
                f"Workspace {self.workspace} may not use your credentials for {host}.",
                f"To allow it, add the host to credential_hosts on your machine: "
                f"credential_hosts: {host} in {settings_resolve.user_settings_file()}, "
                f"or SPT_FLOW_CREDENTIAL_HOSTS={host}",
            )


def read(workspace: str) -> Policy:
    """Return the policy of ``workspace`` from the same sources as all settings. Raise ``FlowError``.

    The run that opened the session passes its own values by environment. CI workspaces, workspaces of other owners and
    unknown ones get credentials only if this session's environment says so.
    """
    known = record.read(workspace)
    environment = settings_resolve.from_environment(os.environ)
    values = _values([environment, _settings_file(), known.inventory])
    hosts = settings_resolve.parse_hosts(values["credential_hosts"]) | set(known.hosts)
    asked = known.own or "credentials" in environment
    return Policy(workspace, values["credentials"] and asked, values["ssh_agent"], hosts)


def canonical(host: str) -> str:
    """Return ``host`` or ``host:port`` in lower case and without the default port. Raise ``InvalidInput``."""
    from ..repository.names import validate_host

    name, port = validate_host(host, "the host of the request")
    return name if port in (None, 443) else f"{name}:{port}"


def _values(layers: list[Mapping[str, Any]]) -> dict[str, Any]:
    values = {}
    for name in record.OPTIONS:
        given = [layer[name] for layer in layers if layer.get(name) is not None]
        values[name] = [convert(OPTIONS[name], value) for value in (*given, OPTIONS[name].default)][0]
    return values


def _settings_file() -> dict[str, Any]:
    if not os.path.exists(settings_resolve.user_settings_file()):
        return {}
    import site

    # Owners start without the packages of the environment; reading YAML needs one.
    site.main()
    try:
        return settings_resolve.load_user_settings()
    except ImportError:
        raise InvalidInput("Cannot read the settings file: PyYAML is missing.") from None
