# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enter workspaces by OpenSSH: arguments, configuration blocks and free ports."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from ....module_utils._node.docker.ssh import engine_argv, runtime_folder
from ....module_utils._node.errors import FlowError
from .models import Workspace

PREFIX = "spt-flow-"
CODER = ".spt-coder"
"""Ends the names of workspaces of a Coder server, which are owner--name."""
SHELL = 'exec "${SHELL:-/bin/bash}" -l'


def alias(workspace: Workspace) -> str:
    """The name by which SSH knows the workspace."""
    if workspace.target == "coder":
        return f"{workspace.owner}--{workspace.name}{CODER}"
    return f"{PREFIX}{workspace.key}{_suffix(workspace.node)}"


def _suffix(node: str) -> str:
    return "." + re.sub(r"[^A-Za-z0-9.-]", "-", node) if node else ""


def argv(workspace: Workspace, command: str = "", terminal: bool = False, ports: Iterable[int] = ()) -> list[str]:
    """The command that enters, or that runs ``command`` inside by the user's shell there.

    ``ports`` of the workspace are reached on this machine's loopback as long as it runs.
    """
    nodes = {workspace.node: workspace.engine} if workspace.node else {}
    forwards = [word for port in ports for word in ("-L", f"127.0.0.1:{port}:127.0.0.1:{port}")]
    options = ["-F", str(prepare(nodes)), *(["-t"] if terminal else []), *forwards]
    return ["ssh", *options, *(["--", alias(workspace), command] if command else [alias(workspace)])]


def unused_ports(ports: Iterable[int]) -> list[int]:
    """Those of ``ports`` that nobody listens on here; an earlier session of the same workspace has them already."""
    import socket

    found = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found


def inside(directory: str, command: str) -> str:
    """``command`` run in ``directory``, in the home while that is not there yet."""
    return f"cd -- {shlex.quote(directory)} 2>/dev/null; {command}" if directory else command


def prepare(nodes: Mapping[str, str] | None = None) -> Path:
    """Path of the configuration for `ssh -F`, written when it is missing or another one; ``nodes`` as in
    ``config_text``.
    """
    folder = runtime_folder()
    path = folder / "".join(["ssh_config", *map(_suffix, nodes or {})])
    text = f"{config_text(nodes)}Host *\n    Include ~/.ssh/config\n"
    try:
        if path.exists() and path.read_text() == text:
            return path
        descriptor, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise FlowError(f"Cannot write {path}: {error.strerror}.") from None
    return path


def config_text(nodes: Mapping[str, str] | None = None) -> str:
    """The block for workspaces. Its `Match` makes the key pair. ``nodes`` are addresses of engines by the names of
    other machines.

    Of several at once the first to link its private key wins; the public one is taken from that and appears last.
    """
    key = runtime_folder() / "id_ed25519"
    new = f"{key}.$$"
    keygen = f"ssh-keygen -q -t ed25519 -N '' -C '' -f {new} </dev/null; ln {new} {key} 2>/dev/null; rm -f {new}"
    public = f"ssh-keygen -y -f {key} </dev/null >{new}.pub && mv {new}.pub {key}.pub"
    folder = f"mkdir -p -m 0700 {key.parent}"
    execute = "docker exec {} -u 1000:1000 %n spt-workspace"
    settings = {
        "User": "coder",
        "ProxyCommand": f'{execute.format("-i")} session "$(cat {key}.pub)"',
        "KnownHostsCommand": f"/usr/bin/env {execute.format('-i')} hostkey %H",
        # Naming the one algorithm saves asking for the host key a second time.
        "HostKeyAlgorithms": "ssh-ed25519",
        "UserKnownHostsFile": "/dev/null",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "CheckHostIP": "no",
        "IdentityFile": str(key),
        "IdentitiesOnly": "yes",
        "PreferredAuthentications": "publickey",
        "ForwardAgent": "yes",
        "ForwardX11": "no",
        "RemoteCommand": "none",
        "ControlPath": "none",
        "SendEnv": "LANG LC_* COLORTERM TERM_PROGRAM TERM_PROGRAM_VERSION",
        "ServerAliveInterval": "60",
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",
    }
    lines = "".join(f"    {name} {value}\n" for name, value in settings.items())
    return (
        "# Written by spt.flow; changes are lost.\n"
        + "".join(_node_text(node, engine, f"{key}.pub") for node, engine in (nodes or {}).items())
        + _coder_text(settings)
        + f'Match originalhost {PREFIX}* exec "test -e {key}.pub || {{ {folder} && {keygen}; {public}; }}"\n{lines}'
    )


def _coder_text(settings: Mapping[str, str]) -> str:
    """The block for workspaces of a Coder server; `coder` finds server and token as it always does.

    One that was fetched from the server (``_coder_cli``) goes first.
    """
    found = 'PATH="${XDG_CACHE_HOME:-$HOME/.cache}/spt-flow/coder:$PATH"'
    differing = {
        "ProxyCommand": f"""/bin/sh -c '{found}; exec coder ssh --stdio --wait=no "$(basename "$0" {CODER})"' %n""",
        "StrictHostKeyChecking": "no",
    }
    without = ("KnownHostsCommand", "HostKeyAlgorithms", "IdentityFile", "IdentitiesOnly", "PreferredAuthentications")
    kept = {name: value for name, value in {**settings, **differing}.items() if name not in without}
    return f"Match originalhost *--*{CODER}\n" + "".join(f"    {name} {value}\n" for name, value in kept.items())


def _node_text(node: str, engine: str, public: str) -> str:
    """The two settings that differ for workspaces of another machine; the first one that SSH reads counts.

    The key is quoted twice, for the shell here and for the one there; SSH would take ${…} for a variable of its own.
    """
    suffix = _suffix(node)
    there = shlex.join(engine_argv(engine)).replace("%", "%%")
    execute = f'exec {there} docker exec -i -u 1000:1000 "$(basename "$0" {suffix})" spt-workspace'
    return (
        f"Match originalhost {PREFIX}*{suffix}\n"
        f"""    ProxyCommand /bin/sh -c '{execute} session "\\"$(cat {public})\\""' %n\n"""
        f"""    KnownHostsCommand /bin/sh -c '{execute} hostkey "$1"' %n %H\n"""
    )
