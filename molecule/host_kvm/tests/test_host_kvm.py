# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container can prove of host_kvm: the device's mode where there is one, and that nothing was loaded where
there is no module."""

from __future__ import annotations


def test_the_device_is_open_to_workspaces_where_there_is_one(host) -> None:  # type: ignore[no-untyped-def]
    device = host.file("/dev/kvm")
    assert not device.exists or device.mode == 0o666
    assert 'KERNEL=="kvm", MODE="0666"' in host.file("/etc/udev/rules.d/71-spt-flow-kvm.rules").content_string


def test_no_module_is_asked_for_where_the_kernel_has_none(host) -> None:  # type: ignore[no-untyped-def]
    if not host.run("modinfo kvm_intel").succeeded and not host.run("modinfo kvm_amd").succeeded:
        assert not host.file("/etc/modules-load.d/spt-flow-kvm.conf").exists
