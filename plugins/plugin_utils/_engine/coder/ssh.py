# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enter workspaces of a Coder server by OpenSSH: `coder ssh --stdio` carries the connection."""

from __future__ import annotations

from collections.abc import Mapping

from ..workspace.models import Workspace
from ..workspace.ssh import match, owned

SUFFIX = ".spt-coder"
"""Ends the names of workspaces, which begin with owner--name."""


def host(workspace: Workspace) -> str:
    return f"{workspace.owner}--{workspace.name}{SUFFIX}"


def config(common: Mapping[str, str]) -> str:
    """Return the block for workspaces. A `coder` that was downloaded from the server is preferred (``cli``)."""
    found = 'PATH="${XDG_CACHE_HOME:-$HOME/.cache}/spt-flow/coder:$PATH"'
    command = f"""/bin/sh -c '{found}; exec coder ssh --stdio --wait=no "$(basename "$0" {SUFFIX})"' %n"""
    hosts = f"*--*{SUFFIX}"
    settings = {**common, "ProxyCommand": command, "StrictHostKeyChecking": "no"}
    return owned(hosts, command) + match(f"originalhost {hosts}", settings)
