# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The seccomp profile is equivalent on every ABI of a processor, including arm64 and its 32-bit ABI."""

from __future__ import annotations

import json

import pytest
from ansible_collections.spt.flow.tests.unit import seccomp_filter
from ansible_collections.spt.flow.tests.unit.seccomp_filter import ALLOW, ERRNO, X32, Filter, number

X86_64, X86, AARCH64, ARM = seccomp_filter.ARCHITECTURES
ABIS = {X86_64: (X86_64, X86), AARCH64: (AARCH64, ARM)}
FAMILIES = {1, 2, 10, 16, 17}
SPLIT = {"socket", "socketpair", "personality", "prctl"}
"""Calls whose answer depends on an argument."""
PROFILE = json.loads(seccomp_filter.PROFILE.read_text(encoding="utf-8"))
ALLOWED = {
    name
    for rule in PROFILE["syscalls"]
    for name in rule["names"]
    if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")
}

pytestmark = pytest.mark.skipif(
    not seccomp_filter.available(), reason="libseccomp is not installed (package libseccomp2)"
)
every_abi = pytest.mark.parametrize(("native", "abi"), [(native, abi) for native in ABIS for abi in ABIS[native]])


def sockets(abi: str) -> list[int]:
    return [number(abi, name) for name in ("socket", "socketpair")]


@pytest.fixture(scope="module")
def filters() -> dict[str, Filter]:
    return {native: Filter(native) for native in ABIS}


@every_abi
def test_only_listed_families_have_sockets(filters: dict[str, Filter], native: str, abi: str) -> None:
    for call, wanted in zip(sockets(abi), (FAMILIES, {1}), strict=True):
        assert {family for family in range(64) if filters[native].allows(abi, call, family)} == wanted


@every_abi
def test_bits_that_the_kernel_ignores_allow_no_family(filters: dict[str, Filter], native: str, abi: str) -> None:
    """The kernel reads 32 bits of the family; a rule with ranges would see a family beyond them."""
    for call in sockets(abi):
        for family in (38, 40):
            for high in (1 << 32, 1 << 33, 1 << 63, 0xFFFFFFFF << 32):
                assert not filters[native].allows(abi, call, high | family)


@every_abi
def test_no_command_gets_capabilities_by_its_user_id(filters: dict[str, Filter], native: str, abi: str) -> None:
    call, ambient, lift = number(abi, "prctl"), 47, 2
    for high in (0, 1 << 32, 1 << 63, 0xFFFFFFFF << 32):
        assert not filters[native].allows(abi, call, high | ambient, lift, 1)
    assert all(filters[native].allows(abi, call, ambient, action) for action in (1, 3, 4))
    every = {*range(128), 0x53564D41, 0x59616D61, 0xFFFFFFFF} - {ambient}
    assert {option for option in every if filters[native].allows(abi, call, option, lift)} == every


def test_socketcall_creates_no_socket(filters: dict[str, Filter]) -> None:
    call = number(X86, "socketcall")
    assert {filters[X86_64].answer(X86, call, which) for which in range(32)} == {ERRNO | 38}


@every_abi
def test_call_is_allowed_exactly_where_the_profile_names_it(filters: dict[str, Filter], native: str, abi: str) -> None:
    known = {name: number(abi, name) for rule in PROFILE["syscalls"] for name in rule["names"]}
    wanted = {call for name, call in known.items() if call >= 0 and name in ALLOWED}
    split = {call for name, call in known.items() if name in SPLIT}
    private = range(0xF0000, 0xF0010) if abi == ARM else ()
    found = {call for call in (*range(1024), *private) if filters[native].allows(abi, call)}
    assert found - split == wanted - split


def test_third_abi_of_x86_has_no_calls(filters: dict[str, Filter]) -> None:
    assert not any(filters[X86_64].allows(X86_64, X32 | call, family) for call in range(1024) for family in (0, 1, 40))


@pytest.mark.parametrize("native", ABIS)
def test_abis_of_other_processors_have_no_calls(filters: dict[str, Filter], native: str) -> None:
    for abi in {*seccomp_filter.ARCHITECTURES} - {*ABIS[native]}:
        assert not any(filters[native].allows(abi, call, 1) for call in range(512))


def test_filter_with_ranges_would_be_bypassed() -> None:
    """The control of the tests above: they find a hole where there is one."""
    rules = [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_GT"}],
        },
    ]
    loose = Filter(X86_64, {**PROFILE, "syscalls": rules})
    assert loose.allows(X86_64, 41, 1 << 32 | 40) and not loose.allows(X86_64, 41, 40)
    assert loose.allows(X86, number(X86, "socketcall"), 1)
    assert loose.answer(X86_64, 0) == ALLOW
