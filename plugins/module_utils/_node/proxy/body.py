# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Validate the bodies that the Coder server sends to a node's engine.

Every name in a body is known, or the body is rejected. Fields that the template does not use must be empty, so a new
option of a later engine is rejected until it has been reviewed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..labels import LABEL
from .fit import KVM
from .http import Refused, canonical, strict_json

REPOSITORY = "spt-flow/workspace"
IMAGE = re.compile(rf"sha256:[0-9a-f]{{64}}|{REPOSITORY}:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}")
NAME = re.compile(r"spt-flow-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
VOLUME = re.compile(rf"({NAME.pattern})-(home|docker)")
OWNER = f"{LABEL}coder"
"""Label of all objects that the template creates: the id of the workspace on the Coder server."""
LABELS = re.compile(r"(?:spt\.flow|coder)\.[a-z_.]+")
DROPPED = frozenset({"MKNOD", "NET_RAW", "SETFCAP"})
DEVICES = frozenset({"/dev/kvm", "/dev/fuse", "/dev/net/tun"})
SYSCTLS = {"net.ipv4.ping_group_range": "0 65535"}
"""Allows ping without a capability, in the workspace's own network namespace."""
LEAST_MEMORY = 64 << 20
MOUNTS = {"home": "/home/coder:rw", "docker": "/var/lib/spt-flow-docker:rw"}
SNAPSHOTS = "spt-flow-snapshots:/var/lib/spt-flow-snapshots:ro"
TARGETS = {target.split(":")[-2] for target in (*MOUNTS.values(), SNAPSHOTS)}
HOSTS = "host.docker.internal:host-gateway"
_TMPFS = re.compile(r"/[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_OPTIONS = re.compile(r"[a-z0-9=,.%]*")
_LOG = re.compile(r"[0-9]{1,4}[kmg]?")

CONFIG_EMPTY = [
    "Domainname",
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "ExposedPorts",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "Cmd",
    "Healthcheck",
    "ArgsEscaped",
    "WorkingDir",
    "NetworkDisabled",
    "MacAddress",
    "OnBuild",
    "StopSignal",
    "Shell",
]
HOST_EMPTY = [
    "ContainerIDFile",
    "PortBindings",
    "AutoRemove",
    "VolumeDriver",
    "VolumesFrom",
    "ConsoleSize",
    "Annotations",
    "CapAdd",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "GroupAdd",
    "Cgroup",
    "Links",
    "OomScoreAdj",
    "PidMode",
    "Privileged",
    "PublishAllPorts",
    "ReadonlyRootfs",
    "StorageOpt",
    "UTSMode",
    "UsernsMode",
    "Isolation",
    "CpuShares",
    "CgroupParent",
    "BlkioWeight",
    "BlkioWeightDevice",
    "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps",
    "CpuPeriod",
    "CpuQuota",
    "CpuRealtimePeriod",
    "CpuRealtimeRuntime",
    "CpusetCpus",
    "CpusetMems",
    "DeviceCgroupRules",
    "DeviceRequests",
    "KernelMemory",
    "KernelMemoryTCP",
    "MemoryReservation",
    "MemorySwappiness",
    "OomKillDisable",
    "Ulimits",
    "CpuCount",
    "CpuPercent",
    "IOMaximumIOps",
    "IOMaximumBandwidth",
    "Mounts",
    "ShmSize",
]


@dataclass(frozen=True)
class Node:
    """What workspaces may use on this node.

    ``seccomp``: digests of the allowed profiles; ``apparmor``: the profile, empty if the node has no AppArmor; ``kvm``:
    the device whose existence says that the node has KVM.
    """

    runtime: str
    networks: tuple[str, ...]
    seccomp: frozenset[str]
    apparmor: str = ""
    kvm: str = KVM


# Not isinstance, for which True is an int.
# pylint: disable=unidiomatic-typecheck


def fingerprint(profile: bytes) -> str:
    """Return the digest of a system call filter, independent of its formatting."""
    return hashlib.sha256(canonical(strict_json(profile))).hexdigest()


def empty(value: Any) -> bool:
    """Return whether ``value`` requests nothing. An object with any name does: names are ports, networks and paths."""
    if isinstance(value, list):
        return all(type(part) is int and part == 0 for part in value)
    return value is None or value is False or value in ("", {}) or (type(value) is int and value == 0)


def blank(value: Any) -> bool:
    """Return whether ``value`` is empty, or an object of empty values. Only for values that are not passed on."""
    return all(map(blank, value.values())) if isinstance(value, dict) else empty(value)


def known(what: str, given: Any, allowed: Mapping[str, Callable[[Any], bool]], required: tuple[str, ...] = ()) -> None:
    """Raise ``Refused`` unless ``given`` is an object and ``allowed`` accepts all its values."""
    if not isinstance(given, dict):
        raise Refused(f"{what} is not an object")
    for name in required:
        if name not in given:
            raise Refused(f"{what} lacks {name}")
    for name, value in given.items():
        if name not in allowed:
            raise Refused(f"{what} has {name[:60]!r}, which the template does not use")
        if not allowed[name](value):
            raise Refused(f"{what} has a value of {name} that the template does not use")


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and "\0" not in one for one in value)


def _number(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def labels(value: Any, workspace: str) -> bool:
    """Return whether these are our labels, for the workspace with that id."""
    return (
        isinstance(value, dict)
        and all(LABELS.fullmatch(name) and isinstance(text, str) for name, text in value.items())
        and value.get(OWNER) == workspace
    )


def container(name: str, body: Any, node: Node) -> None:
    """Raise ``Refused`` unless the body of ``POST /containers/create`` is a workspace as the template creates it."""
    matched = NAME.fullmatch(name)
    if matched is None:
        raise Refused("the container's name is not spt-flow-<id of the workspace>")
    workspace = matched[1]
    config: dict[str, Callable[[Any], bool]] = dict.fromkeys(CONFIG_EMPTY, empty)
    config.update(
        Hostname=lambda value: isinstance(value, str) and len(value) <= 64,
        User=_one_of("1000:1000"),
        Env=texts,
        Entrypoint=texts,
        Volumes=lambda value: empty(value) or (isinstance(value, dict) and TARGETS.issuperset(value)),
        Image=lambda value: isinstance(value, str) and IMAGE.fullmatch(value) is not None,
        Labels=lambda value: labels(value, workspace),
        StopTimeout=lambda value: value is None or (type(value) is int and 0 <= value <= 600),
        HostConfig=lambda value: True,
        NetworkingConfig=lambda value: empty(value) or value in ({"EndpointsConfig": None}, {"EndpointsConfig": {}}),
    )
    known("the container", body, config, ("Image", "Labels", "User", "HostConfig"))
    _host(body["HostConfig"], name, node)


def _host(given: Any, name: str, node: Node) -> None:
    binds = {f"{name}-{part}:{target}" for part, target in MOUNTS.items()} | {SNAPSHOTS}
    host: dict[str, Callable[[Any], bool]] = dict.fromkeys(HOST_EMPTY, empty)
    host.update(
        Binds=lambda value: value is None or (texts(value) and binds.issuperset(value)),
        LogConfig=_log,
        NetworkMode=_one_of("", "default", "bridge", *node.networks),
        RestartPolicy=_restart,
        CapDrop=_drops,
        CgroupnsMode=_one_of("", "private"),
        IpcMode=_one_of("", "private"),
        ExtraHosts=lambda value: value is None or (texts(value) and set(value) <= {HOSTS}),
        SecurityOpt=lambda value: _security(value, node),
        Sysctls=lambda value: empty(value) or value == SYSCTLS,
        Tmpfs=_tmpfs,
        Runtime=_one_of(node.runtime),
        Memory=_number(LEAST_MEMORY),
        MemorySwap=lambda value: type(value) is int and value == given.get("Memory"),
        NanoCpus=_number(1),
        PidsLimit=lambda value: value is None or (type(value) is int and value > 0),
        Devices=lambda value: value is None or (isinstance(value, list) and all(map(_device, value))),
        # Absent means Docker's default; an empty list would expose the node's hidden files.
        MaskedPaths=_one_of(None),
        ReadonlyPaths=_one_of(None),
        Init=_one_of(None, True, False),
    )
    required = ("Runtime", "SecurityOpt", "CapDrop", "Memory", "MemorySwap", "NanoCpus", "LogConfig")
    known("HostConfig", given, host, required)


def _restart(value: Any) -> bool:
    """Never restarted by the engine: a workspace that the server has stopped must stay stopped."""
    return (
        isinstance(value, dict)
        and set(value) <= {"Name", "MaximumRetryCount"}
        and value.get("Name", "") in ("", "no")
        and empty(value.get("MaximumRetryCount"))
    )


def _drops(value: Any) -> bool:
    return texts(value) and {name[4:] if name.startswith("CAP_") else name for name in value} >= DROPPED


def _log(value: Any) -> bool:
    """Docker's default log driver with a size limit; without one it could fill the node's disk."""
    if not isinstance(value, dict) or set(value) != {"Type", "Config"} or value["Type"] != "json-file":
        return False
    config = value["Config"]
    return (
        isinstance(config, dict)
        and set(config) == {"max-size", "max-file"}
        and all(isinstance(text, str) and _LOG.fullmatch(text) for text in config.values())
    )


def _security(value: Any, node: Node) -> bool:
    """Exactly one system call filter of this node, and at most its AppArmor profile."""
    if not texts(value):
        return False
    filters = [option[len("seccomp=") :] for option in value if option.startswith("seccomp=")]
    rest = [option for option in value if not option.startswith("seccomp=")]
    if len(filters) != 1 or any(not node.apparmor or option != f"apparmor={node.apparmor}" for option in rest):
        return False
    try:
        return fingerprint(filters[0].encode("utf-8")) in node.seccomp
    except Refused:
        return False


def _tmpfs(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and all(
            _TMPFS.fullmatch(path) and ".." not in path and isinstance(options, str) and _OPTIONS.fullmatch(options)
            for path, options in value.items()
        )
    )


def _device(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"PathOnHost", "PathInContainer", "CgroupPermissions"}
        and isinstance(value["PathOnHost"], str)
        and value["PathOnHost"] in DEVICES
        and value["PathInContainer"] == value["PathOnHost"]
        and value["CgroupPermissions"] in ("rw", "r")
    )


def volume(body: Any) -> None:
    """Raise ``Refused`` unless the body of ``POST /volumes/create`` is a workspace's home or Docker data."""
    if not isinstance(body, dict) or not isinstance(body.get("Name"), str):
        raise Refused("the volume lacks a name")
    matched = VOLUME.fullmatch(body["Name"])
    if matched is None:
        raise Refused("the volume's name is not spt-flow-<id of the workspace>-home or -docker")
    allowed: dict[str, Callable[[Any], bool]] = {
        "Name": lambda value: True,
        "Driver": _one_of("", "local"),
        # A volume with driver options can be any directory of the node.
        "DriverOpts": empty,
        "Labels": lambda value: labels(value, matched[2]),
        "ClusterVolumeSpec": empty,
    }
    known("the volume", body, allowed, ("Labels",))
