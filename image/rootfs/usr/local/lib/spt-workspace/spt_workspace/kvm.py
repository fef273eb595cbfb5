# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test KVM as this user by running twelve bytes of guest code (docs/decisions/kvm-by-guest-code.md); ``kvm-ok``.

The test is a copy of the one for nodes, which code in the image cannot import. A unit test compares the two copies.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import struct
from typing import Any

from .contract import Paths

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


HINTS = {
    "absent": "start the workspace with kvm=required; its node then says why it offers no KVM",
    "denied": "the node's operator opens the device for every user (role host_kvm)",
}


def main(paths: Paths = Paths()) -> int:  # noqa: B008 - frozen
    """``kvm-ok``: say in the usual words whether KVM works; return 0 if it does, else 1."""
    state, sentence = verdict(str(paths.root / "dev/kvm"))
    print(f"INFO: /dev/kvm {'does not exist' if state == 'absent' else 'exists'}")
    if state == "works":
        print("KVM acceleration can be used")
        return 0
    if state != "absent":
        print(f"INFO: {sentence}")
    if state in HINTS:
        print(f"HINT: {HINTS[state]}")
    print("KVM acceleration can NOT be used")
    return 1


def verdict(device: str = "/dev/kvm") -> tuple[str, str]:
    """Return ``works``, ``absent``, ``denied``, ``broken`` or ``unsupported``, and a sentence."""
    state, sentence, _version = _tried(device, platform.machine())
    return state, sentence


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
