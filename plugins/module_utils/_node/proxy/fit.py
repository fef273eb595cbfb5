# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fit a workspace to its node: not more processors and memory than the node has, and ``/dev/kvm`` only if it exists.

A template has one size for all nodes, and only the node knows what it has.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from .http import Refused

KVM = "/dev/kvm"
NOTE = "SPT_FLOW_NOTE"
"""Variable of the workspace with a sentence about what it got instead; its start script prints it."""
RESERVE = 1 << 30
"""Bytes of memory that stay with the node, as the setting host_reserve_memory has it by default."""
LEAST = 256 << 20
GIBIBYTE = 1 << 30
NANO = 10**9


def fit(body: Mapping[str, Any], info: Mapping[str, Any], kvm: bool) -> dict[str, Any]:
    """Return ``body``, which has passed the rules, for an engine with this ``info``.

    Raise ``Refused`` if the workspace requires KVM and the node does not have it.
    """
    fitted: dict[str, Any] = copy.deepcopy(dict(body))
    notes = [*_sizes(fitted["HostConfig"], info), *([] if kvm else _without_kvm(fitted))]
    if notes:
        fitted["Env"] = [*(fitted.get("Env") or ()), f"{NOTE}={' '.join(notes)}"]
    return fitted


def _sizes(host: dict[str, Any], info: Mapping[str, Any]) -> list[str]:
    cpus, memory = int(info.get("NCPU") or 0), int(info.get("MemTotal") or 0)
    changes, has = [], []
    if cpus and host["NanoCpus"] > cpus * NANO:
        changes.append(f"{cpus} instead of {host['NanoCpus'] / NANO:g} CPUs")
        has.append(f"{cpus} CPUs")
        host["NanoCpus"] = cpus * NANO
    room = max(memory - RESERVE, LEAST)
    if memory and host["Memory"] > room:
        changes.append(f"{room / GIBIBYTE:.1f} instead of {host['Memory'] / GIBIBYTE:.1f} GiB of memory")
        has.append(f"{memory / GIBIBYTE:.1f} GiB of memory, of which {RESERVE / GIBIBYTE:.1f} GiB are reserved")
        host["Memory"] = host["MemorySwap"] = room
    return [f"The workspace gets {' and '.join(changes)}, because the node has {' and '.join(has)}."] if changes else []


def _without_kvm(body: dict[str, Any]) -> list[str]:
    devices = body["HostConfig"].get("Devices") or []
    rest = [device for device in devices if device["PathOnHost"] != KVM]
    if len(rest) == len(devices):
        return []
    if "SPT_FLOW_KVM=required" in (body.get("Env") or ()):
        raise Refused(
            f"the workspace requires KVM and the node has no {KVM}. Switch virtualization on in the node's firmware or"
            " outer hypervisor, or set flow_kvm to auto (software emulation)"
        )
    body["HostConfig"]["Devices"] = rest
    return [f"The node has no {KVM}: virtual machines run by software emulation, which is slow."]
