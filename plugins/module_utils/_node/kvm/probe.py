# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test KVM by running guest code (docs/decisions/kvm-by-guest-code.md).

Opens the device as the current user, checks the API version, creates a virtual machine and a processor, and runs twelve
bytes of guest code that add two numbers, write the sum to a port and halt. CPU flags, ``kvm-ok`` and modules are
reported too, but do not decide the result: a para-virtual KVM has none of them. Standard library only, Python 3.9; runs
on hosts.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import re
import shutil
import struct
from dataclasses import asdict, dataclass
from typing import Any

from .. import process

# linux/kvm.h, x86-64
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_TSS_ADDR = 0xAE47
KVM_RUN = 0xAE80
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
EXIT_IO = 2
EXIT_HLT = 5
API_VERSION = 12
SREGS_SIZE = 312

GUEST_ADDRESS = 0x1000
GUEST_PORT = 0x3F8
GUEST_CODE = bytes.fromhex("baf803 00d8 0430 ee b00a ee f4")
"""mov dx,3f8h; add al,bl; add al,'0'; out dx,al; mov al,10; out dx,al; hlt"""
GUEST_SAYS = b"4\n"
MOST_EXITS = 16
TOOL_TIMEOUT = 5.0


@dataclass(frozen=True)
class Verdict:
    """Result of the test.

    ``state``: works, absent (no device), denied (to this user), broken or unsupported (this architecture). ``message``
    names the step that failed. ``guest_ran`` tells whether the guest code reached its halt. ``kvm_ok`` is the first
    line of that tool (empty: not installed), ``cpu_flags`` is vmx or svm, ``nested`` is the module's parameter (empty:
    no module), ``virtualization`` is what this machine itself runs in (none, kvm, docker, unknown …).
    """

    state: str
    message: str
    device: str
    architecture: str
    api_version: int = 0
    guest_ran: bool = False
    kvm_ok: str = ""
    cpu_flags: tuple[str, ...] = ()
    nested: str = ""
    virtualization: str = "unknown"

    @property
    def works(self) -> bool:
        return self.state == "works"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with ``works``."""
        return {**asdict(self), "cpu_flags": list(self.cpu_flags), "works": self.works}


def verdict(device: str = "/dev/kvm", root: str = "/") -> Verdict:
    """Test KVM through ``device``; ``root`` is where /proc and /sys are read.

    Failures are results, never exceptions.
    """
    architecture = platform.machine()
    state, message, version = _tried(device, architecture)
    return Verdict(
        state=state,
        message=message,
        device=device,
        architecture=architecture,
        api_version=version,
        guest_ran=state == "works",
        kvm_ok=_said("kvm-ok"),
        cpu_flags=cpu_flags(root),
        nested=nested(root),
        virtualization=virtualization(root),
    )


class _Failed(Exception):
    """A step of the test failed; the text completes "KVM does not work: …"."""


def _tried(device: str, architecture: str) -> tuple[str, str, int]:
    """Return state, sentence and API version."""
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return "absent", f"KVM does not work: {device} does not exist.", 0
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            who = _owner(device)
            return "denied", f"KVM does not work for this user: {device} cannot be opened{who}.", 0
        return "broken", f"KVM does not work: opening {device} failed with {_errno(error)}.", 0
    version = 0
    try:
        version = _call("asking the API version", descriptor, KVM_GET_API_VERSION)
        if version != API_VERSION:
            raise _Failed(f"{device} has API version {version}, not {API_VERSION}")
        if architecture not in ("x86_64", "AMD64"):
            os.close(_call("creating a virtual machine", descriptor, KVM_CREATE_VM))
            text = f"{device} creates virtual machines, but guest code is only tested on x86-64, not on {architecture}."
            return "unsupported", text, version
        said = _run_guest(descriptor)
        if said != GUEST_SAYS:
            raise _Failed(f"guest code computed {said!r} instead of {GUEST_SAYS!r}")
    except _Failed as error:
        return "broken", f"KVM does not work: {error}.", version
    finally:
        os.close(descriptor)
    return "works", f"KVM works: guest code ran through {device}.", version


def _owner(device: str) -> str:
    try:
        status = os.stat(device)
    except OSError:
        return ""
    return f" (mode {status.st_mode & 0o777:04o}, owner {status.st_uid}:{status.st_gid})"


def _errno(error: OSError) -> str:
    return f"{errno.errorcode.get(error.errno or 0, 'an error')} ({error.strerror})"


def _call(doing: str, descriptor: int, request: int, argument: Any = 0) -> Any:
    try:
        return fcntl.ioctl(descriptor, request, argument)
    except OSError as error:
        raise _Failed(f"{doing} failed with {_errno(error)}") from None


def _run_guest(kvm: int) -> bytes:
    """Run the guest and return what it wrote to its port before it halted."""
    machine = _call("creating a virtual machine", kvm, KVM_CREATE_VM)
    processor = -1
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    try:
        memory[: len(GUEST_CODE)] = GUEST_CODE
        anchor = ctypes.c_char.from_buffer(memory)
        region = struct.pack("=IIQQQ", 0, 0, GUEST_ADDRESS, mmap.PAGESIZE, ctypes.addressof(anchor))
        # Intel processors without unrestricted guest mode need three spare pages for real mode.
        _call("setting the task segment", machine, KVM_SET_TSS_ADDR, 0x7FFB0000)
        _call("adding memory", machine, KVM_SET_USER_MEMORY_REGION, region)
        processor = _call("creating a processor", machine, KVM_CREATE_VCPU)
        _prepare(processor)
        return _followed(processor, _call("mapping the run area", kvm, KVM_GET_VCPU_MMAP_SIZE))
    finally:
        for descriptor in (processor, machine):
            if descriptor >= 0:
                os.close(descriptor)
        del anchor
        memory.close()


def _prepare(processor: int) -> None:
    """Set real mode, code segment 0, the two numbers in AX and BX, and the address of the first instruction."""
    special = bytearray(_call("reading the segments", processor, KVM_GET_SREGS, bytes(SREGS_SIZE)))
    struct.pack_into("=Q", special, 0, 0)
    struct.pack_into("=H", special, 12, 0)
    _call("setting the segments", processor, KVM_SET_SREGS, bytes(special))
    general = [0] * 18
    general[0], general[1], general[16], general[17] = 2, 2, GUEST_ADDRESS, 2
    _call("setting the registers", processor, KVM_SET_REGS, struct.pack("=18Q", *general))


def _followed(processor: int, size: int) -> bytes:
    """Run until the halt. Return the bytes written to the port."""
    said = bytearray()
    with mmap.mmap(processor, size) as area:
        for _exit in range(MOST_EXITS):
            _call("running guest code", processor, KVM_RUN)
            reason = struct.unpack_from("=I", area, 8)[0]
            if reason == EXIT_HLT:
                return bytes(said)
            if reason != EXIT_IO:
                raise _Failed(f"running guest code ended with exit reason {reason} instead of a halt")
            _direction, width, port, count, offset = struct.unpack_from("=BBHIQ", area, 32)
            if port == GUEST_PORT:
                said += area[offset : offset + width * count]
    raise _Failed(f"guest code did not halt within {MOST_EXITS} exits")


# Other sources


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536).strip()
    except OSError:
        return ""


def _said(*argv: str) -> str:
    """Return the first line that a tool prints, or nothing if it is not installed or does not answer."""
    tool = shutil.which(argv[0], path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if not tool:
        return ""
    lines = process.ask(tool, *argv[1:], timeout=TOOL_TIMEOUT)[1].split("\n")
    return next((line.strip() for line in lines if line.strip()), "")


def cpu_flags(root: str = "/") -> tuple[str, ...]:
    """Return ``vmx`` or ``svm`` from /proc/cpuinfo."""
    found = set(re.findall(r"\b(vmx|svm)\b", _read(os.path.join(root, "proc/cpuinfo"))))
    return tuple(sorted(found))


def nested(root: str = "/") -> str:
    """Return the parameter ``nested`` of the vendor's module, or nothing if none is loaded."""
    for module in ("kvm_intel", "kvm_amd", "kvm"):
        value = _read(os.path.join(root, f"sys/module/{module}/parameters/nested"))
        if value:
            return "yes" if value in ("Y", "1") else "no"
    return ""


def virtualization(root: str = "/") -> str:
    """Return what this machine runs in, from systemd if it is installed, otherwise from the firmware and the flags."""
    said = _said("systemd-detect-virt") if root == "/" else ""
    if said:
        return said
    vendor = " ".join(
        _read(os.path.join(root, f"sys/class/dmi/id/{name}")) for name in ("sys_vendor", "product_name")
    ).lower()
    signs = {
        "kvm": "kvm",
        "qemu": "qemu",
        "vmware": "vmware",
        "virtualbox": "oracle",
        "microsoft corporation virtual": "microsoft",
        "amazon ec2": "amazon",
        "google": "google",
        "xen": "xen",
    }
    for sign, kind in signs.items():
        if sign in vendor:
            return kind
    kind = _read(os.path.join(root, "sys/hypervisor/type"))
    if kind:
        return kind
    flags = _read(os.path.join(root, "proc/cpuinfo"))
    if not flags:
        return "unknown"
    return "vm-other" if re.search(r"^flags\s*:.*\bhypervisor\b", flags, re.MULTILINE) else "none"
