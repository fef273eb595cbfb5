# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container can prove of host_kvm: a device that workspaces may open, a verdict that a virtual machine gave, and
that nothing was asked of a kernel without modules. The kinds of hosts that this machine is not are recorded trees in
tests/unit/test_host_kvm.py."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[4]
RULE = "/etc/udev/rules.d/71-spt-flow-kvm.rules"
OPEN = "import fcntl; print(fcntl.ioctl(open('/dev/kvm', 'r+b', buffering=0), 0xAE00))"  # KVM_GET_API_VERSION


def role(*words: str) -> str:
    env = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / ".ansible/collections")}
    argv = ["ansible-playbook", str(CHECKOUT / "playbooks/hosts.yml"), "-i", os.environ["MOLECULE_INVENTORY_FILE"]]
    done = subprocess.run([*argv, *words], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def device(host):  # type: ignore[no-untyped-def]
    found = host.file("/dev/kvm")
    if not found.exists:
        pytest.skip("this machine has no /dev/kvm")
    return found


def test_unprivileged_user_can_open_the_device(host, device) -> None:  # type: ignore[no-untyped-def]
    assert device.mode == 0o666
    assert host.check_output("sudo -u nobody python3 -c %s", OPEN) == "12"


def test_verdict_is_the_result_of_a_virtual_machine(host, device) -> None:  # type: ignore[no-untyped-def]
    verdict = host.ansible("spt.flow.kvm_info", check=False)["kvm"]
    assert verdict["api_version"] == 12
    assert (verdict["state"] == "works") is verdict["guest_ran"]
    rows = {row["requirement"]: row for row in host.ansible("spt.flow.acceptance_info", check=False)["rows"]}
    assert rows["virtual machines (KVM)"]["value"].startswith(verdict["state"])
    assert rows["device for workspaces"]["verdict"] == "met"


def test_host_without_the_device_is_reported(host) -> None:  # type: ignore[no-untyped-def]
    verdict = host.ansible("spt.flow.kvm_info", "device=/dev/no-such-kvm", check=False)["kvm"]
    assert verdict["state"] != "works"
    assert not verdict["guest_ran"]
    assert "/dev/no-such-kvm" in verdict["message"]


def test_udev_sets_the_mode_at_boot(host) -> None:  # type: ignore[no-untyped-def]
    assert 'KERNEL=="kvm", MODE="0666"' in host.file(RULE).content_string
    assert host.run("udevadm test --action=add /devices/virtual/misc/kvm 2>&1 | grep -i invalid").failed


@pytest.mark.parametrize("tag", ["host_kvm", "host_kvm_configure"])
def test_drift_is_detected_and_corrected(tag: str, host, device) -> None:  # type: ignore[no-untyped-def]
    host.check_output(f"chmod 0600 /dev/kvm && echo '# theirs' >{RULE}")
    checked = role("--tags", tag, "--check", "--diff")
    assert "-# theirs" in checked
    assert (device.mode, host.file(RULE).content_string) == (0o600, "# theirs\n")
    role("--tags", tag)
    assert device.mode == 0o666
    assert "MODE" in host.file(RULE).content_string
    assert "changed=0" in role("--tags", tag)


def test_no_module_is_configured_if_the_kernel_has_none(host) -> None:  # type: ignore[no-untyped-def]
    if not host.run("modinfo kvm_intel").succeeded and not host.run("modinfo kvm_amd").succeeded:
        assert not host.file("/etc/modules-load.d/spt-flow-kvm.conf").exists
