# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter that an engine compiles from a seccomp profile, and its answer to a system call, for any processor.

libseccomp translates the profile as runc does. The filter is then interpreted here, so any processor can be tested.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

PROFILE = Path(__file__).resolve().parents[2] / "image" / "seccomp.json"
ARCHITECTURES = {
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_ARM": 0x40000028,
}
_X86 = {
    337: "recvmmsg",
    345: "sendmmsg",
    359: "socket socketpair bind connect listen accept4 getsockopt setsockopt getsockname getpeername sendto sendmsg"
    " recvfrom recvmsg shutdown",
    393: "semget semctl shmget shmctl shmat shmdt msgget msgsnd msgrcv msgctl",
}
DIRECT_X86 = {name: first + at for first, names in _X86.items() for at, name in enumerate(names.split())}
"""Calls of 32-bit x86 that libseccomp 2.5 knows only in their older form, socketcall and ipc."""
X32 = 0x40000000
"""Added to call numbers of the third ABI of x86-64 (x32)."""
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
OPERATORS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7, "SCMP_CMP_GT": 6}
"""The comparisons that the profile uses, and one that it must not use."""
EXISTS = 17


def available() -> bool:
    return ctypes.util.find_library("seccomp") is not None


class _Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _library() -> Any:
    library = ctypes.CDLL(ctypes.util.find_library("seccomp"))
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_arch_native.restype = ctypes.c_uint32
    for name in ("seccomp_arch_add", "seccomp_arch_remove"):
        getattr(library, name).argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    )
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    return library


def number(architecture: str, name: str) -> int:
    """Return the call's number on that architecture; negative if it has none."""
    if architecture == "SCMP_ARCH_X86" and name in DIRECT_X86:
        return DIRECT_X86[name]
    return int(_library().seccomp_syscall_resolve_name_arch(ARCHITECTURES[architecture], name.encode()))


class Filter:
    """The filter of ``profile`` on processors whose first ABI is ``native``."""

    def __init__(self, native: str, profile: dict[str, Any] | None = None) -> None:
        profile = profile or json.loads(PROFILE.read_text(encoding="utf-8"))
        others = {entry["architecture"]: entry["subArchitectures"] for entry in profile["archMap"]}[native]
        library = _library()
        context = library.seccomp_init(ERRNO | profile["defaultErrnoRet"])
        wanted = [ARCHITECTURES[name] for name in (native, *others)]
        for architecture in wanted:
            assert library.seccomp_arch_add(context, architecture) in (0, -EXISTS)
        if library.seccomp_arch_native() not in wanted:
            assert library.seccomp_arch_remove(context, library.seccomp_arch_native()) == 0
        for rule in profile["syscalls"]:
            self._add(library, context, rule)
        with tempfile.TemporaryFile() as file:
            assert library.seccomp_export_bpf(context, file.fileno()) == 0
            file.seek(0)
            self.program = list(struct.iter_unpack("=HBBI", file.read()))
        library.seccomp_release(context)

    @staticmethod
    def _add(library: Any, context: int, rule: dict[str, Any]) -> None:
        action = ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else ERRNO | rule["errnoRet"]
        compared = [
            _Compare(arg["index"], OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo", 0))
            for arg in rule.get("args", [])
        ]
        array = (_Compare * len(compared))(*compared)
        for name in rule["names"]:
            call = library.seccomp_syscall_resolve_name(name.encode())
            if call != -1:  # A call that this libseccomp does not know is refused by default.
                assert library.seccomp_rule_add_array(context, action, call, len(compared), array) == 0, name

    def answer(self, architecture: str, call: int, *arguments: int) -> int:
        """Return what the filter answers to a call of that ABI: ``ALLOW``, or ``ERRNO`` with the error's number."""
        words = [*arguments, *[0] * (6 - len(arguments))]
        data = struct.pack("=IIQ6Q", call, ARCHITECTURES[architecture], 0, *words)
        accumulator, at = 0, 0
        while True:
            code, yes, no, k = self.program[at]
            at += 1
            if code == 0x20:  # load a word
                (accumulator,) = struct.unpack_from("=I", data, k)
            elif code == 0x54:  # and
                accumulator &= k
            elif code == 0x05:  # jump
                at += k
            elif code == 0x06:  # return
                return int(k)
            else:
                compare = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k, 0x45: accumulator & k}
                at += yes if compare[code] else no

    def allows(self, architecture: str, call: int, *arguments: int) -> bool:
        return self.answer(architecture, call, *arguments) == ALLOW
