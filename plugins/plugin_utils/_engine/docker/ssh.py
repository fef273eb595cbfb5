# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enter containers with OpenSSH: `docker exec` carries the connection (docs/decisions/entering-by-ssh.md)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from ....module_utils._node.docker.ssh import engine_argv
from ..workspace.models import Workspace
from ..workspace.ssh import match, owned, safe
from .session import PREFIX


def host(workspace: Workspace) -> str:
    return f"{PREFIX}{workspace.key}" + (f".{safe(workspace.node)}" if workspace.node else "")


def config(common: Mapping[str, str], key: Path, nodes: Mapping[str, str]) -> str:
    """Return the blocks for workspaces of this machine and of ``nodes``.

    Evaluating its `Match` creates the key pair. If several clients do so at once, the first to link its private key
    wins. The public key is derived from that key and appears last.
    """
    new = f"{key}.$$"
    keygen = f"ssh-keygen -q -t ed25519 -N '' -C '' -f {new} </dev/null; ln {new} {key} 2>/dev/null; rm -f {new}"
    public = f"ssh-keygen -y -f {key} </dev/null >{new}.pub && mv {new}.pub {key}.pub"
    folder = f"mkdir -p -m 0700 {key.parent}"
    execute = "docker exec {} -u 1000:1000 %n spt-workspace"
    proxy = f'{execute.format("-i")} session "$(cat {key}.pub)"'
    settings = {
        **common,
        "ProxyCommand": proxy,
        "KnownHostsCommand": f"/usr/bin/env {execute.format('-i')} hostkey %H",
        # Naming the one algorithm avoids a second request for the host key.
        "HostKeyAlgorithms": "ssh-ed25519",
        "StrictHostKeyChecking": "yes",
        "IdentityFile": str(key),
        "IdentitiesOnly": "yes",
        "PreferredAuthentications": "publickey",
    }
    condition = f'originalhost {PREFIX}* exec "test -e {key}.pub || {{ {folder} && {keygen}; {public}; }}"'
    there = "".join(_node(node, engine, f"{key}.pub") for node, engine in nodes.items())
    return there + owned(f"{PREFIX}*", proxy) + match(condition, settings)


def _node(node: str, engine: str, public: str) -> str:
    """Return the two settings that differ for workspaces of another machine; OpenSSH uses the first value it reads.

    The key is quoted twice, for the local and the remote shell. OpenSSH would expand ${…} itself.
    """
    end = f".{safe(node)}"
    there = shlex.join(engine_argv(engine)).replace("%", "%%")
    execute = f'exec {there} docker exec -i -u 1000:1000 "$(basename "$0" {end})" spt-workspace'
    proxy = f"""/bin/sh -c '{execute} session "\\"$(cat {public})\\""' %n"""
    settings = {
        "ProxyCommand": proxy,
        "KnownHostsCommand": f"""/bin/sh -c '{execute} hostkey "$1"' %n %H""",
    }
    return owned(f"{PREFIX}*{end}", proxy) + match(f"originalhost {PREFIX}*{end}", settings)
