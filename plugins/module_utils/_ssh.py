# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entering workspaces with OpenSSH's client (private to the collection; decision C1).

One static block serves every workspace: the host is named as the container, the way in is `docker exec` with one
sshd per session, and the host key is asked for the same way. The key pair lies in memory-backed storage.
"""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ._errors import FlowError
from ._workspace import Workspace

PREFIX = "spt-flow-"
SHELL = 'exec "${SHELL:-/bin/bash}" -l'


def alias(workspace: Workspace) -> str:
    """The name by which SSH knows the workspace."""
    return f"{PREFIX}{workspace.key}"


def argv(workspace: Workspace, command: str = "", terminal: bool = False) -> list[str]:
    """The command that enters, or that runs ``command`` inside by the user's shell there."""
    options = ["-F", str(prepare()), *(["-t"] if terminal else [])]
    return ["ssh", *options, *(["--", alias(workspace), command] if command else [alias(workspace)])]


def inside(directory: str, command: str) -> str:
    """``command`` run in ``directory``, in the home while that is not there yet."""
    return f"cd -- {shlex.quote(directory)} 2>/dev/null; {command}" if directory else command


def prepare() -> Path:
    """Path of the configuration for `ssh -F`, written when it is missing or another one."""
    folder = runtime_folder()
    path = folder / "ssh_config"
    text = f"{config_text()}Host *\n    Include ~/.ssh/config\n"
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


def config_text() -> str:
    """The block for workspaces. Its `Match` makes the key pair.

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
        f'Match originalhost {PREFIX}* exec "test -e {key}.pub || {{ {folder} && {keygen}; {public}; }}"\n{lines}'
    )


def runtime_folder() -> Path:
    """A folder of the user's own that nobody else can enter, in memory where the machine offers that."""
    refused = []
    for path in _candidates():
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            status = path.lstat()
        except OSError as error:
            refused.append(f"{path}: {error.strerror}")
            continue
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return path
        refused.append(f"{path}: not the user's own")
    raise FlowError("There is no folder for the SSH key.", "Looked at " + "; ".join(refused) + ".")


def _candidates() -> Iterator[Path]:
    uid = os.getuid()
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(given) and not any(c.isspace() or c in "\"'%$`\\" for c in given):
        yield Path(given) / "spt-flow"
    yield Path(f"/run/user/{uid}/spt-flow")
    yield Path(f"/dev/shm/spt-flow-{uid}")  # noqa: S108 - owner and mode are checked
    yield Path(tempfile.gettempdir()) / f"spt-flow-{uid}"
