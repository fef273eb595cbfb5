# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.kvm import probe as kvm_probe


def test_missing_device_is_absent(tmp_path):
    verdict = kvm_probe.verdict(str(tmp_path / "kvm"), str(tmp_path))
    assert (verdict.state, verdict.works, verdict.guest_ran) == ("absent", False, False)
    assert f"{tmp_path / 'kvm'} does not exist" in verdict.message


def test_device_that_is_not_kvm_is_rejected():
    verdict = kvm_probe.verdict("/dev/null")
    assert verdict.state == "broken"
    assert "asking the API version" in verdict.message


def test_device_of_other_users_is_denied(monkeypatch, tmp_path):
    device = tmp_path / "kvm"
    device.touch(0o600)

    def refuse(path, flags):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(kvm_probe.os, "open", refuse)
    verdict = kvm_probe.verdict(str(device), str(tmp_path))
    assert verdict.state == "denied"
    assert "mode 0600" in verdict.message


def test_other_api_version_is_rejected(monkeypatch):
    monkeypatch.setattr(kvm_probe.fcntl, "ioctl", lambda *arguments: 11)
    verdict = kvm_probe.verdict("/dev/null")
    assert verdict.state == "broken" and "version 11, not 12" in verdict.message


def test_other_architectures_are_not_claimed_to_work(monkeypatch):
    monkeypatch.setattr(kvm_probe.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(kvm_probe.fcntl, "ioctl", lambda fd, request, *rest: 12 if request == 0xAE00 else os.dup(fd))
    verdict = kvm_probe.verdict("/dev/null")
    assert verdict.state == "unsupported" and "aarch64" in verdict.message and not verdict.works


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm that this user may open")
@pytest.mark.skipif(kvm_probe.platform.machine() != "x86_64", reason="guest code is x86-64's")
def test_guest_code_runs_and_leaves_nothing_open():
    before = os.listdir("/proc/self/fd")
    verdict = kvm_probe.verdict()
    assert verdict.works, verdict.message
    assert verdict.api_version == 12 and verdict.guest_ran
    assert os.listdir("/proc/self/fd") == before
    assert verdict.to_dict()["works"] is True


def test_external_verdicts_are_reported(tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "kvm-ok"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'INFO: Your CPU does not support KVM extensions'\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    for path, text in {
        "proc/cpuinfo": "processor : 0\nflags : fpu hypervisor vmx sse\n",
        "sys/module/kvm_intel/parameters/nested": "Y\n",
        "sys/class/dmi/id/sys_vendor": "QEMU\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    verdict = kvm_probe.verdict(str(tmp_path / "kvm"), str(tmp_path))
    assert verdict.kvm_ok == "INFO: Your CPU does not support KVM extensions"
    assert (verdict.cpu_flags, verdict.nested, verdict.virtualization) == (("vmx",), "yes", "qemu")


@pytest.mark.parametrize(
    ("flags", "kind"),
    [("", "unknown"), ("flags : fpu hypervisor\n", "vm-other"), ("flags : fpu\n", "none")],
)
def test_virtualization_is_read_from_cpu_flags(tmp_path, flags, kind):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(flags)
    assert kvm_probe.virtualization(str(tmp_path)) == kind
