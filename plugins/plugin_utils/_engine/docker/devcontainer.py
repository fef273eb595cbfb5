# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write ``devcontainer.json``: the same workspace for VS Code, DevPod, Codespaces and the CLI.

The file must work on any engine. ``/dev/kvm`` and Docker inside are not available everywhere, so they are only
requested with ``required``, never with ``auto``. An engine without ``/dev/kvm`` would reject the container. Docker
inside on an engine without user namespaces would make its root the machine's (docs/decisions/user-namespaces.md).
"""

from __future__ import annotations

import json
import math
import os
import shlex
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....module_utils._node import atomic
from ....module_utils._node.errors import Conflict, FlowError
from ..repository.address import Repository
from ..settings.options import MEBIBYTE
from ..settings.workspace import Settings
from ..workspace.models import CONTRACT
from . import container as docker_container

if TYPE_CHECKING:
    from ..workspace.target import EngineFacts

FOLDER = ".devcontainer"
MARK = "// Written by spt.flow (ansible-playbook spt.flow.devcontainer); changes are lost.\n"
NAMES = ("devcontainer.json", "seccomp.json", "ci.env")
VOLUME = "spt-flow-${devcontainerId}"
NAME = "devcontainer"
"""Name of a workspace without a repository of its own."""
NOTHING = "type=tmpfs,target=/workspaces,tmpfs-size=4096"
"""Mounts no directory of the client. DevPod reads an empty ``workspaceMount`` as the default, the file's directory."""
USER_ID = 1000
"""The user of the image in the container."""
ACL_USER = 2
"""Tag of an access list's entry for one user."""
NO_DOCKER = "a dev container has Docker inside where docker=required says so, on an engine with user namespaces"


def files(
    settings: Settings, image: str, repository: Repository | None = None, ref: str = "", apparmor: bool = False
) -> dict[str, str]:
    """Return the files of the directory ``.devcontainer`` by name.

    With ``repository`` the container clones it into its home; without one it uses the directory with the file.
    """
    configuration = _configuration(settings, image, repository, ref, apparmor)
    made = {"devcontainer.json": f"{MARK}{json.dumps(configuration, indent=2)}\n"}
    if _docker(settings):
        made["seccomp.json"] = docker_container.SECCOMP.read_text(encoding="utf-8")
    pipeline = settings.pipeline_environment()
    if pipeline:
        made["ci.env"] = "".join(f"{name}={value}\n" for name, value in sorted(pipeline.items()))
    return made


def template() -> dict[str, str]:
    """Return the published template (containers.dev), whose only option is the image."""
    about = {
        "id": "spt-flow",
        "version": "0.1.0",
        "name": "spt.flow workspace",
        "description": "A workspace of spt.flow with the same limits, start and tools as on every target.",
        "options": {
            "image": {
                "type": "string",
                "description": "The workspace image in your registry, best by digest.",
                "default": "registry.example.org/spt-flow/workspace:fat",
            }
        },
    }
    made = {f"{FOLDER}/{name}": text for name, text in files(Settings(), "${templateOption:image}").items()}
    return {"devcontainer-template.json": f"{json.dumps(about, indent=2)}\n", **made}


def _docker(settings: Settings) -> bool:
    return settings.docker in ("required", "unsafe")


def _configuration(
    settings: Settings, image: str, repository: Repository | None, ref: str, apparmor: bool
) -> dict[str, Any]:
    volumes = {"home": docker_container.HOME, **({"docker": docker_container.DOCKER_DATA} if _docker(settings) else {})}
    place = {"workspaceMount": NOTHING, "workspaceFolder": repository.directory} if repository else {}
    # Commands run in that directory, even before the clone exists.
    first = [f"--workdir={repository.directory}"] if repository else []
    return {
        "name": f"spt.flow: {repository.slug}" if repository else "spt.flow",
        "image": image,
        "hostRequirements": {"cpus": math.ceil(settings.cpus), "memory": f"{settings.memory // MEBIBYTE}mb"},
        **place,
        "mounts": [f"source={VOLUME}-{name},target={path},type=volume" for name, path in volumes.items()],
        # The image's own entry point is the workspace agent, with its own init and user.
        "overrideCommand": False,
        "containerUser": "coder",
        "remoteUser": "coder",
        "updateRemoteUserUID": False,
        "runArgs": [*first, *settings.devcontainer_arguments(), *_arguments(settings, apparmor)],
        "containerEnv": environment(settings, repository, ref),
        # An IDE for clients without one; its password: spt-workspace status.
        "forwardPorts": [docker_container.IDE_PORT],
        "portsAttributes": {str(docker_container.IDE_PORT): {"label": "code-server", "onAutoForward": "silent"}},
        "onCreateCommand": ["spt-workspace", "wait"],
    }


def _arguments(settings: Settings, apparmor: bool) -> list[str]:
    """Return the values of ``container`` for ``docker run``."""
    words = [f"--sysctl={name}={value}" for name, value in docker_container.SYSCTLS.items()]
    words += [*(f"--cap-drop={name}" for name in docker_container.DROPPED), f"--stop-timeout={docker_container.GRACE}"]
    if settings.kvm == "required":
        words.append(f"--device={docker_container.KVM}")
    if not _docker(settings):
        return words
    words += ["--device=/dev/fuse", "--device=/dev/net/tun"]
    words.append(f"--security-opt=seccomp=${{localWorkspaceFolder}}/{FOLDER}/seccomp.json")
    if apparmor:
        words.append(f"--security-opt=apparmor={docker_container.APPARMOR}")
    # The runtime refuses a container that has no user namespace.
    unsafe = settings.docker == "unsafe"
    return [*words, "--security-opt=systempaths=unconfined" if unsafe else f"--runtime={docker_container.RUNTIME}"]


def environment(settings: Settings, repository: Repository | None, ref: str) -> dict[str, str]:
    """Return the agent's variables. Owner and stop are up to the program that starts the container."""
    return {
        "SPT_FLOW_CONTRACT": CONTRACT,
        "SPT_FLOW_WORKSPACE": repository.slug if repository else NAME,
        "SPT_FLOW_KIND": "dev",
        "SPT_FLOW_REPO": repository.url if repository else "",
        "SPT_FLOW_REPO_ID": repository.identity if repository else "",
        "SPT_FLOW_REF": ref,
        "SPT_FLOW_DIRECTORY": repository.directory if repository else "${containerWorkspaceFolder}",
        **settings.environment(),
        "SPT_FLOW_IDE_BIND": "127.0.0.1",
        "SPT_FLOW_IDE_PORT": str(docker_container.IDE_PORT),
        "SPT_FLOW_IDLE_STOP": "0",
        "SPT_FLOW_DOCKER": "on" if _docker(settings) else "off",
        "SPT_FLOW_DOCKER_REASON": "" if _docker(settings) or settings.docker == "disabled" else NO_DOCKER,
    }


# What this machine's engine lacks


def missing_access(folder: Path, facts: EngineFacts) -> str:
    """Return a sentence if containers of an engine with user namespaces cannot write to ``folder``."""
    user = facts.remap_base + USER_ID
    if not facts.remap_base or _may_write(folder, user):
        return ""
    rights = f"-m u:{user}:rwX -m d:u:{user}:rwX,d:u:{os.getuid()}:rwX"
    return (
        f"The engine of this machine has user namespaces, so the container cannot write to {folder}. Clone the"
        f" repository inside the container (repo=<url>), or allow it: setfacl -R {rights} {shlex.quote(str(folder))}"
    )


def _may_write(folder: Path, user: int) -> bool:
    """Return whether ``user``, who is in no group of this machine, may write by owner, mode or access list."""
    found = folder.stat()
    if found.st_uid == user:
        return bool(found.st_mode & stat.S_IWUSR)
    try:
        entries = [*struct.iter_unpack("<HHI", os.getxattr(folder, "system.posix_acl_access")[4:])]
    except OSError:
        entries = []
    named = [rights for tag, rights, who in entries if (tag, who) == (ACL_USER, user)]
    return bool(named[0] & os.W_OK if named else found.st_mode & stat.S_IWOTH)


# On disk


def changes(folder: Path, wanted: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return (before, after) by name for all files of ``folder`` that differ from ``wanted`` or are no longer wanted.

    Raise ``Conflict`` for a ``devcontainer.json`` that spt.flow did not write.
    """
    if folder.is_symlink():
        raise Conflict(
            f"{folder} is a link, which may lead outside the repository.",
            "Move it away, or name the parent of its directory.",
        )
    found = {}
    for name, text in {**dict.fromkeys(NAMES, ""), **wanted}.items():
        try:
            before = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            before = ""
        except (OSError, UnicodeDecodeError) as error:
            raise FlowError(f"Cannot read {folder / name}: {getattr(error, 'strerror', '') or error}.") from None
        if name == "devcontainer.json" and before and not before.startswith(MARK):
            raise Conflict(
                f"{folder / name} exists and was not written by spt.flow.",
                "Move it away, or leave it: a workspace reads the safe part of a repository's own after the clone.",
            )
        if before != text:
            found[name] = (before, text)
    return found


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Replace each file atomically, ``devcontainer.json`` last, because it refers to the others."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(texts, key=lambda name: name == "devcontainer.json"):
            if not texts[name]:
                (folder / name).unlink(missing_ok=True)
                continue
            atomic.write(folder / name, texts[name], 0o644)
    except OSError as error:
        raise FlowError(f"Cannot write to {folder}: {error.strerror or error}.") from None
