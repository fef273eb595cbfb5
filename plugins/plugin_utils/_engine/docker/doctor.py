# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check what a user's machine needs for the target docker."""

from __future__ import annotations

from ....module_utils._node.errors import FlowError
from ..workspace.checks import TIMEOUT, Check


def examine(engine: str, kvm: str) -> list[Check]:
    """Return the checks of the engine at ``engine``, empty for this machine's; ``kvm`` is the option."""
    return [docker(engine), *holes(engine), *protection(engine), *([] if engine else [device(kvm)])]


def docker(engine: str = "") -> Check:
    from ....module_utils._node.docker import http as docker_http

    try:
        answer = docker_http.connect(engine).get_json("/version", timeout=TIMEOUT)
    except FlowError as error:
        prepare = "Prepare one: make quickstart, or ansible-playbook spt.flow.engine"
        return Check("docker", "missing", error.message, f"{error.hint}\n{prepare}".strip())
    return Check("docker", "ok", f"Docker {answer.get('Version', '')} answers.")


def holes(engine: str = "") -> list[Check]:
    """Known holes of the engine's programs, of which an open one lets a workspace reach the host."""
    from ....module_utils._node.docker import holes as docker_holes
    from ....module_utils._node.docker import http as docker_http

    try:
        client = docker_http.connect(engine)
        options = client.get_json("/info", timeout=TIMEOUT).get("SecurityOptions") or []
        versions = client.get_json("/version", timeout=TIMEOUT)
    except FlowError:
        return []
    remapped = any(option.partition(",")[0] in ("name=userns", "name=rootless") for option in options)
    hints = {
        True: "Update it with the machine's package manager.",
        False: "Update it as soon as your distribution has the fix.",
    }
    return [
        Check(hole["program"], "missing" if hole["open"] else "note", hole["text"], hints[hole["open"]])
        for hole in docker_holes.found(versions, remapped)
    ]


def protection(engine: str = "") -> list[Check]:
    """What an engine that answers lacks of what the role host_docker sets up."""
    from . import container as docker_container
    from .target import DockerTarget

    try:
        lacking = docker_container.unprotected(DockerTarget(engine).probe_engine())
    except FlowError:
        return []
    if lacking:
        return [
            Check("protection", "note", lacking, "Prepare it: make quickstart, or ansible-playbook spt.flow.engine")
        ]
    return [Check("protection", "ok", "The role spt.flow.host_docker has prepared the engine.")]


def device(wish: str) -> Check:
    """/dev/kvm, needed only where the workspace's settings say so."""
    from ....module_utils._node.kvm import probe as kvm_probe

    if wish == "disabled":
        return Check("kvm", "ok", "Workspaces get no /dev/kvm (kvm=disabled).")
    found = kvm_probe.verdict()
    if found.works:
        return Check("kvm", "ok", "/dev/kvm works.")
    hint = "Prepare this machine: ansible-playbook spt.flow.hosts, or do without: -e kvm=disabled"
    return Check("kvm", "missing" if wish == "required" else "note", found.message, hint)
