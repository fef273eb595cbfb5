# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container of a workspace, as a pure function of a specification and the engine's facts.

``Plan.of`` decides what this engine can provide and explains limitations. ``container_body`` renders it as the body of
``POST /containers/create`` (Docker Engine API 1.41).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ....module_utils._node.errors import FlowError
from ....module_utils._node.labels import LABEL
from ..common.version import COLLECTION
from ..settings.workspace import Settings
from ..workspace.models import CONTRACT, WorkspaceSpec
from ..workspace.target import EngineFacts

NETWORK = "spt-flow"
RUNTIME = "spt-flow"
HOME = "/home/coder"
DOCKER_DATA = "/var/lib/spt-flow-docker"
CLONE_CACHE = "/var/cache/spt-flow-clones"
SEED = f"{HOME}/.cache/spt-flow/seed.bundle"
SECCOMP = COLLECTION / "image" / "seccomp.json"
APPARMOR = "spt-flow-workspace"
LEAST_RANGE = 262144
"""Number of ids that rootless Docker inside needs (docs/decisions/user-namespaces.md)."""
IDE_PORT = 8080
KVM = "/dev/kvm"
GRACE = 30
DROPPED = ("MKNOD", "NET_RAW", "SETFCAP")
"""Docker's default capabilities that workspaces do not get.

Files with capabilities would allow privileged runs that the audit trail cannot see. Raw sockets would let a workspace
forge packets of its neighbours.
"""
SYSCTLS = {"net.ipv4.ping_group_range": "0 65535"}
"""Allows `ping` without raw sockets."""
UNLIMITED = "disk is not limited"


@dataclass(frozen=True)
class Plan:
    """What a workspace gets on this engine. ``unmasked``: /proc without Docker's masks, only with ``docker``."""

    settings: Settings
    facts: EngineFacts
    docker: bool
    docker_reason: str
    devices: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, spec: WorkspaceSpec, facts: EngineFacts, local: bool, exists: Callable[[str], bool] = os.path.exists
    ) -> Plan:
        """Plan for this engine. Raise ``FlowError`` if a requirement is not available."""
        settings, notes = spec.settings.cap(facts.cpus, facts.memory)
        if spec.kind == "ci" and settings.clone_cache:
            # A job could write there, and the owner's next git would read it; CI workspaces have no volumes either.
            settings = replace(settings, clone_cache=False)
        docker, reason = _docker(settings.docker, facts)
        docker_reason = "" if docker else reason
        if reason:
            notes = [*notes, reason]
        devices, reason = _devices(settings.kvm, docker, local, exists)
        notes = [*notes, reason] if reason else notes
        reason = unprotected(facts, bool(settings.disk or settings.docker_disk))
        notes = [*notes, reason] if reason else notes
        return cls(settings, facts, docker, docker_reason, devices, tuple(notes))


def unprotected(facts: EngineFacts, disk: bool = True) -> str:
    """Return a sentence about missing protection by the role host_docker, or nothing.

    ``disk``: whether a disk limit is requested.
    """
    reasons = []
    if not facts.runtime:
        reasons.append("no firewall keeps workspaces from this machine's services, cloud metadata and each other")
        reasons.append("the audit trail does not name them")
    if not facts.remapped:
        reasons.append("root inside is root outside for the kernel")
    if not facts.seccomp:
        reasons.append("system calls are not filtered")
    if disk and not (facts.runtime and facts.remapped):
        reasons.append(UNLIMITED)
    if not reasons:
        return ""
    return f"The role spt.flow.host_docker has not prepared this engine: {'; '.join(reasons)}."


def _docker(wanted: str, facts: EngineFacts) -> tuple[bool, str]:
    """Return whether Docker works inside, and why not or at what risk (docs/decisions/user-namespaces.md)."""
    if wanted == "disabled":
        return False, ""
    if not facts.remapped:
        if wanted == "unsafe":
            return True, "docker=unsafe: the workspace's root can become root on this machine."
        why = (
            "Docker inside the workspace is disabled: without user-namespace remapping on this engine, a workspace's "
            "root could become root on this machine."
        )
    elif 0 <= facts.remap_size < LEAST_RANGE:
        why = (
            f"Docker inside the workspace is disabled: the engine's remapped range has {facts.remap_size} ids, but "
            f"needs {LEAST_RANGE}."
        )
    else:
        return True, ""
    if wanted == "required":
        raise FlowError(
            f"Cannot create the workspace with docker=required. {why}",
            "Use an engine prepared by the role spt.flow.host_docker, or docker=auto.",
        )
    return False, why


def _devices(kvm: str, docker: bool, local: bool, exists: Callable[[str], bool]) -> tuple[tuple[str, ...], str]:
    """Return the devices to pass on.

    Devices of a remote machine cannot be seen from here, so all are requested there.
    """
    wanted = [KVM] if kvm != "disabled" else []
    wanted += ["/dev/fuse", "/dev/net/tun"] if docker else []
    found = tuple(device for device in wanted if not local or exists(device))
    return found, "" if KVM in found or kvm == "disabled" else _no_kvm(kvm, "this machine")


def _no_kvm(kvm: str, place: str) -> str:
    """Return the sentence about a missing device. Raise ``FlowError`` if it is required."""
    if kvm == "required":
        raise FlowError(
            f"Cannot create the workspace with kvm=required: {place} does not have {KVM}.",
            "Enable virtualisation in the firmware or the outer hypervisor, or use kvm=auto (software emulation).",
        )
    return f"{KVM} is missing on {place}: virtual machines in the workspace run in software emulation."


def without_kvm(found: Mapping[str, Any], place: str) -> tuple[dict[str, Any], str]:
    """Return the body that recreates the container ``found`` (an answer to inspect) without the device, and the reason.

    Raise ``FlowError`` if the container requires the device.
    """
    environment = dict(word.partition("=")[::2] for word in found["Config"]["Env"])
    note = _no_kvm(environment.get("SPT_FLOW_KVM", "auto"), place)
    host = dict(found["HostConfig"])
    host["Devices"] = [device for device in host.get("Devices") or [] if device["PathOnHost"] != KVM]
    return {**found["Config"], "HostConfig": host}, note


def _has_quota(facts: EngineFacts) -> bool:
    return facts.storage_driver in ("btrfs", "zfs", "devicemapper")


def clone_cache_volume(owner: str) -> str:
    """Return the volume that an owner's workspaces share with ``clone_cache``; other owners never see it."""
    return f"spt-flow-{owner}-clones"


def volume_labels(spec: WorkspaceSpec, part: str) -> dict[str, str]:
    """Return the labels of a volume; the home's are the record of identity (docs/decisions/identity-and-names.md)."""
    labels = {
        f"{LABEL}owner": spec.owner,
        f"{LABEL}workspace": spec.name,
        f"{LABEL}repo": spec.repository.identity if spec.repository else "",
        f"{LABEL}kind": spec.kind,
        f"{LABEL}created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        f"{LABEL}contract": CONTRACT,
        f"{LABEL}part": part,
    }
    if part == "home" and spec.repository:
        labels |= {f"{LABEL}url": spec.repository.url, f"{LABEL}ref": spec.ref}
    return labels


def _container_labels(spec: WorkspaceSpec) -> dict[str, str]:
    labels = volume_labels(spec, "container")
    # The requested values, not those fitted to this machine, so that `outdated` means the same on all machines.
    labels |= {f"{LABEL}settings": spec.settings.hash(), f"{LABEL}image": spec.image_hash}
    if spec.deadline is not None:
        labels[f"{LABEL}deadline"] = str(spec.deadline)
    return labels


def environment(spec: WorkspaceSpec, plan: Plan) -> dict[str, str]:
    """Return the environment of the workspace agent; the names are the same on every target."""
    settings, repository = plan.settings, spec.repository
    return {
        "SPT_FLOW_CONTRACT": CONTRACT,
        "SPT_FLOW_OWNER": spec.owner,
        "SPT_FLOW_WORKSPACE": spec.name,
        "SPT_FLOW_KIND": spec.kind,
        "SPT_FLOW_REPO": repository.url if repository else "",
        "SPT_FLOW_REPO_ID": repository.identity if repository else "",
        "SPT_FLOW_REF": spec.ref,
        "SPT_FLOW_DIRECTORY": repository.directory if repository else HOME,
        "SPT_FLOW_SEED": SEED if repository and repository.kind == "local" else "",
        **settings.environment(),
        "SPT_FLOW_CLONE_CACHE": CLONE_CACHE if settings.clone_cache else "",
        "SPT_FLOW_DOTFILES": spec.dotfiles,
        "SPT_FLOW_GIT_NAME": spec.git_name,
        "SPT_FLOW_GIT_EMAIL": spec.git_email,
        "SPT_FLOW_IDE_BIND": "0.0.0.0",  # noqa: S104  (published on the host's loopback only, docs/decisions/ide-network.md)
        "SPT_FLOW_IDE_PORT": str(IDE_PORT),
        "SPT_FLOW_IDLE_STOP": str(settings.idle_stop),
        "SPT_FLOW_DEADLINE": str(spec.deadline or ""),
        "SPT_FLOW_DOCKER": "on" if plan.docker else "off",
        "SPT_FLOW_DOCKER_REASON": plan.docker_reason,
    }


def container_body(spec: WorkspaceSpec, plan: Plan) -> dict[str, Any]:
    """Return the body of ``POST /containers/create``."""
    dev = spec.kind == "dev"
    key = f"spt-flow-{spec.owner}-{spec.name}"
    volumes = {f"{key}-home": HOME, f"{key}-docker": DOCKER_DATA} if dev else {}
    if plan.settings.clone_cache:
        volumes[clone_cache_volume(spec.owner)] = CLONE_CACHE
    host = {
        **plan.settings.docker_arguments(),
        "NetworkMode": NETWORK,
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": not dev,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "5m", "max-file": "2"}},
        "CapDrop": list(DROPPED),
        "Sysctls": dict(SYSCTLS),
        "SecurityOpt": _security(plan),
        "Devices": [{"PathOnHost": d, "PathInContainer": d, "CgroupPermissions": "rw"} for d in plan.devices],
        "Mounts": [{"Type": "volume", "Source": name, "Target": path} for name, path in volumes.items()],
        **_masks(plan),
    }
    if plan.settings.disk and _has_quota(plan.facts):
        host["StorageOpt"] = {"size": str(plan.settings.disk)}
    return {
        "Image": spec.image,
        "Hostname": spec.name,
        "User": "1000:1000",
        "Env": [f"{name}={value}" for name, value in environment(spec, plan).items()],
        "Labels": _container_labels(spec),
        "ExposedPorts": {f"{IDE_PORT}/tcp": {}},
        "StopTimeout": GRACE,
        "HostConfig": host,
    }


def _security(plan: Plan) -> list[str]:
    """Return the seccomp profile, and the AppArmor profile if the engine has it (docs/decisions:

    seccomp.md, apparmor.md).
    """
    options = []
    if plan.facts.seccomp:
        options.append(f"seccomp={json.dumps(json.loads(SECCOMP.read_text(encoding='utf-8')), separators=(',', ':'))}")
    # The role that installs the runtime also loads the profile; an engine rejects unknown profiles.
    if plan.facts.apparmor and (plan.docker or plan.facts.runtime):
        options.append(f"apparmor={APPARMOR}")
    return options


def _masks(plan: Plan) -> dict[str, Any]:
    """Use our runtime if it works: it sets the audit number, and unmasks /proc only with Docker inside.

    Docker inside mounts its own /proc. The kernel only allows that if nothing of the outer /proc is hidden.
    """
    if plan.facts.runtime and plan.facts.remapped:
        return {"Runtime": RUNTIME}
    return {"MaskedPaths": [], "ReadonlyPaths": []} if plan.docker else {}
