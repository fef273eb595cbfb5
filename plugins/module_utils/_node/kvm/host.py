# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host needs for KVM, from /proc, /sys and the kernel's modules. Read-only.

Six kinds of host: ``intel`` and ``amd`` (kernel modules), ``builtin`` (compiled into the kernel), ``paravirtual`` (a
device without processor flags or modules), ``arm64`` (compiled into the kernel there), ``none`` (software emulation
only).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .probe import cpu_flags

VENDORS = {"vmx": ("intel", "kvm_intel"), "svm": ("amd", "kvm_amd")}


@dataclass(frozen=True)
class Host:
    """KVM state of a host.

    ``module`` is the module to load and to keep loaded, or empty. ``nested`` is its current flag: yes, no or empty.
    ``reload`` says when a changed nested flag can take effect: ``no`` (unchanged), ``now`` (no virtual machine runs),
    ``reboot`` (virtual machines run, or the module is compiled into the kernel). ``users`` counts the module's users.
    """

    kind: str
    module: str = ""
    loaded: bool = False
    nested: str = ""
    users: int = 0
    reload: str = "no"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read(root: str = "/", nested: bool = True, architecture: str = "", release: str = "") -> Host:
    """Read the state of the host below ``root``."""
    architecture = architecture or platform.machine()
    device = os.path.exists(os.path.join(root, "dev/kvm"))
    if architecture in ("aarch64", "arm64"):
        return Host("arm64" if device else "none")
    flags = cpu_flags(root)
    if not flags:
        return Host("paravirtual" if device else "none")
    kind, module = VENDORS[flags[0]]
    release = release or os.uname().release
    if module in _builtin(root, release):
        flag = _flag(root, module)
        return Host("builtin", "", True, flag, 0, "no" if flag in ("", _module_option(nested)) else "reboot")
    if not _available(root, release, module):
        return Host("builtin" if device else "none")
    loaded, users = _loaded(root, module)
    flag = _flag(root, module)
    differs = loaded and flag not in ("", _module_option(nested))
    return Host(kind, module, loaded, flag, users, ("reboot" if users else "now") if differs else "no")


def _module_option(nested: bool) -> str:
    return "yes" if nested else "no"


def _flag(root: str, module: str) -> str:
    text = _text(Path(root, "sys/module", module, "parameters/nested"))
    return ("yes" if text in ("Y", "1") else "no") if text else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _names(root: str, release: str, file: str, split: Callable[[str], str]) -> set[str]:
    lines = _text(Path(root, "lib/modules", release, file)).splitlines()
    return {split(line).rpartition("/")[2].partition(".ko")[0].replace("-", "_") for line in lines}


def _builtin(root: str, release: str) -> set[str]:
    return _names(root, release, "modules.builtin", str)


def _available(root: str, release: str, module: str) -> bool:
    if module in _names(root, release, "modules.dep", lambda line: line.partition(":")[0]):
        return True
    return _loaded(root, module)[0]


def _loaded(root: str, module: str) -> tuple[bool, int]:
    """Return whether the module is loaded, and its number of users: one per virtual machine."""
    for line in _text(Path(root, "proc/modules")).splitlines():
        words = line.split()
        if words[0] == module:
            return True, int(words[2]) if words[2].isdigit() else 0
    return False, 0
