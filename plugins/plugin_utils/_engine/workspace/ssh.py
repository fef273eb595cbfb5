# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enter workspaces with OpenSSH: arguments, configuration file and unused ports."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ....module_utils._node import atomic
from ....module_utils._node.docker.ssh import runtime_folder
from ....module_utils._node.errors import FlowError
from . import kinds
from .models import Workspace

LONGEST_SOCKET = 103
"""Longest path of a Unix socket on every system, in characters."""
OWNER = Path(__file__).parents[1] / "identity" / "owner.py"
SHELL = 'exec "${SHELL:-/bin/bash}" -l'


def alias(workspace: Workspace) -> str:
    """Return the name by which OpenSSH knows the workspace."""
    return kinds.kind(workspace.target).ssh_host(workspace)


def argv(workspace: Workspace, command: str = "", terminal: bool = False, ports: Iterable[int] = ()) -> list[str]:
    """Return the command that enters, or runs ``command`` inside with the user's shell.

    ``ports`` of the workspace are forwarded to this machine's loopback while it runs.
    """
    nodes = {workspace.node: workspace.engine} if workspace.node else {}
    forwards = [word for port in ports for word in ("-L", f"127.0.0.1:{port}:127.0.0.1:{port}")]
    options = ["-F", str(prepare(nodes)), *(["-t"] if terminal else []), *forwards]
    return ["ssh", *options, *(["--", alias(workspace), command] if command else [alias(workspace)])]


def unused_ports(ports: Iterable[int]) -> list[int]:
    """Return those of ``ports`` that no program listens on here; an earlier session of the same workspace may have
    them.
    """
    import socket

    found = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found


def safe(node: str) -> str:
    """Return the name of a node in the form used in file and host names."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", node)


def inside(directory: str, command: str) -> str:
    """Return ``command`` run in ``directory``, or in the home if that does not exist yet."""
    return f"cd -- {shlex.quote(directory)} 2>/dev/null; {command}" if directory else command


def prepare(nodes: Mapping[str, str] | None = None) -> Path:
    """Return the path of the configuration for `ssh -F`, written if it differs; ``nodes`` as in ``config_text``."""
    folder = runtime_folder()
    path = folder / "".join(["ssh_config", *(f".{safe(node)}" for node in nodes or {})])
    text = f"{config_text(nodes)}Host *\n    Include ~/.ssh/config\n"
    try:
        if path.exists() and path.read_text() == text:
            return path
        atomic.write(path, text)
    except OSError as error:
        raise FlowError(f"Cannot write {path}: {error.strerror}.") from None
    return path


def config_text(nodes: Mapping[str, str] | None = None) -> str:
    """Return the blocks for workspaces of all targets. ``nodes`` are addresses of other machines' engines by name."""
    common = {
        "User": "coder",
        "UserKnownHostsFile": "/dev/null",
        "GlobalKnownHostsFile": "/dev/null",
        "UpdateHostKeys": "no",
        "CheckHostIP": "no",
        "ForwardAgent": "yes",
        "ForwardX11": "no",
        "RemoteCommand": "none",
        "ControlPath": "none",
        "SendEnv": "LANG LC_* COLORTERM TERM_PROGRAM TERM_PROGRAM_VERSION",
        "ServerAliveInterval": "60",
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",
    }
    key = runtime_folder() / "id_ed25519"
    blocks = [kind.ssh_config(common, key, nodes or {}) for kind in kinds.kinds()]
    return "# Written by spt.flow; changes are lost.\n" + "".join(blocks)


def owned(hosts: str, command: str) -> str:
    """Return the block that has a session owner start ``command``, the `ProxyCommand` of ``hosts``.

    It does not apply if Python or the owner's file has disappeared, nor to a name that is too long for the path of a
    socket: such sessions forward the user's agent and nothing else.
    """
    sockets = runtime_folder() / "s"
    longest = LONGEST_SOCKET - len(f"{sockets}/")
    program = f"{shlex.quote(sys.executable)} -IS {shlex.quote(str(OWNER))}"
    if longest < 1 or re.search(r"[\"'\\\n]", f"{sys.executable}{OWNER}"):
        return ""
    there = f"test -x {shlex.quote(sys.executable)} && test -r {shlex.quote(str(OWNER))}".replace("%", "%%")
    settings = {
        "IdentityAgent": f"{sockets}/%n",
        "ProxyCommand": f"{program.replace('%', '%%')} {sockets}/%n {command}",
    }
    return match(f'originalhost {hosts},!{"?" * longest}?* exec "{there}"', settings)


def match(condition: str, settings: Mapping[str, str]) -> str:
    """Return a `Match` block."""
    return f"Match {condition}\n" + "".join(f"    {name} {value}\n" for name, value in settings.items())
