# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Six kinds of hosts, distinguished by their /proc, /sys and /lib/modules."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.kvm import host as kvm_host

RELEASE = "6.8.0-49-generic"


def host(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


INTEL = {
    "proc/cpuinfo": "vendor_id\t: GenuineIntel\nflags\t\t: fpu vme vmx smx est\n",
    f"lib/modules/{RELEASE}/modules.builtin": "kernel/fs/ext4/ext4.ko\n",
    f"lib/modules/{RELEASE}/modules.dep": (
        "kernel/arch/x86/kvm/kvm-intel.ko.zst: kernel/arch/x86/kvm/kvm.ko.zst\nkernel/arch/x86/kvm/kvm-amd.ko.zst: x\n"
    ),
}
AMD = {**INTEL, "proc/cpuinfo": "vendor_id\t: AuthenticAMD\nflags\t\t: fpu svm npt\n"}
LOADED = {"proc/modules": "kvm_intel 487424 0 - Live 0x0\nkvm 1421312 1 kvm_intel, Live 0x0\n", "dev/kvm": ""}
BUILT_IN = {
    **INTEL,
    f"lib/modules/{RELEASE}/modules.builtin": "kernel/arch/x86/kvm/kvm.ko\nkernel/arch/x86/kvm/kvm-intel.ko\n",
    "dev/kvm": "",
}
NESTED = "sys/module/kvm_intel/parameters/nested"


@pytest.mark.parametrize(
    ("files", "architecture", "expected"),
    [
        (INTEL, "x86_64", ("intel", "kvm_intel", False, "no")),
        ({**INTEL, **LOADED, NESTED: "Y\n"}, "x86_64", ("intel", "kvm_intel", True, "no")),
        (AMD, "x86_64", ("amd", "kvm_amd", False, "no")),
        ({**BUILT_IN, NESTED: "1"}, "x86_64", ("builtin", "", True, "no")),
        ({**BUILT_IN, NESTED: "0"}, "x86_64", ("builtin", "", True, "reboot")),
        ({"proc/cpuinfo": "flags\t\t: fpu hypervisor\n", "dev/kvm": ""}, "x86_64", ("paravirtual", "", False, "no")),
        (
            {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\n", "dev/kvm": ""},
            "aarch64",
            ("arm64", "", False, "no"),
        ),
        ({"proc/cpuinfo": "processor\t: 0\n"}, "aarch64", ("none", "", False, "no")),
        ({"proc/cpuinfo": "flags\t\t: fpu hypervisor\n"}, "x86_64", ("none", "", False, "no")),
        ({"proc/cpuinfo": INTEL["proc/cpuinfo"]}, "x86_64", ("none", "", False, "no")),
        ({"proc/cpuinfo": INTEL["proc/cpuinfo"], "dev/kvm": ""}, "x86_64", ("builtin", "", False, "no")),
    ],
)
def test_kinds_of_hosts_are_recognised(
    files: dict[str, str], architecture: str, expected: tuple[object, ...], tmp_path: Path
) -> None:
    found = kvm_host.read(host(tmp_path, files), True, architecture, RELEASE)
    assert (found.kind, found.module, found.loaded, found.reload) == expected


@pytest.mark.parametrize(
    ("flag", "users", "wish", "verdict"),
    [
        ("N", 0, True, "now"),
        ("0", 2, True, "reboot"),
        ("Y", 2, True, "no"),
        ("Y", 0, False, "now"),
        ("", 0, True, "no"),
    ],
)
def test_nested_flag_is_applied_only_while_no_machine_runs(
    flag: str, users: int, wish: bool, verdict: str, tmp_path: Path
) -> None:
    modules = f"kvm_intel 487424 {users} - Live 0x0\n"
    found = kvm_host.read(
        host(tmp_path, {**INTEL, "proc/modules": modules, NESTED: flag, "dev/kvm": ""}), wish, "x86_64", RELEASE
    )
    assert (found.reload, found.users) == (verdict, users)


def test_this_machine_is_one_of_the_six_kinds() -> None:
    assert kvm_host.read().kind in {"intel", "amd", "builtin", "paravirtual", "arm64", "none"}
