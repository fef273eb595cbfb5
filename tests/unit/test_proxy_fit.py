# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A workspace with the template's default size on nodes that have less."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.proxy.fit import KVM, NOTE, fit
from ansible_collections.spt.flow.plugins.module_utils._node.proxy.http import Refused

GIB = 1 << 30
CREATE: dict[str, Any] = json.loads((Path(__file__).parent / "data/engine_proxy_create.json").read_text())
LARGE = {"NCPU": 16, "MemTotal": 64 * GIB}
SMALL = {"NCPU": 2, "MemTotal": 4 * GIB}


def body(kvm: str = "auto") -> dict[str, Any]:
    made = copy.deepcopy(CREATE)
    made["Env"] = [f"SPT_FLOW_KVM={kvm}"]
    devices = [] if kvm == "disabled" else [KVM]
    made["HostConfig"].update(
        NanoCpus=4 * 10**9,
        Memory=8 * GIB,
        MemorySwap=8 * GIB,
        Devices=[
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"} for path in (*devices, "/dev/fuse")
        ],
    )
    return made


def note(found: dict[str, Any]) -> str:
    (text,) = [text for text in found["Env"] if text.startswith(f"{NOTE}=")]
    return str(text)


def devices(found: dict[str, Any]) -> list[str]:
    return [device["PathOnHost"] for device in found["HostConfig"]["Devices"]]


@pytest.mark.parametrize("kvm", ["auto", "required", "disabled"])
def test_node_that_has_everything_changes_nothing(kvm: str) -> None:
    assert fit(body(kvm), LARGE, kvm=True) == body(kvm)


def test_processors_and_memory_are_capped_with_a_note() -> None:
    asked = body()
    found = fit(asked, SMALL, kvm=True)
    host = found["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (2 * 10**9, 3 * GIB, 3 * GIB)
    assert "2 instead of 4 CPUs and 3.0 instead of 8.0 GiB of memory" in note(found)
    assert asked == body()


def test_auto_falls_back_to_software_emulation_with_a_note() -> None:
    found = fit(body(), LARGE, kvm=False)
    assert devices(found) == ["/dev/fuse"]
    assert "software emulation" in note(found)


def test_required_is_refused_with_a_sentence_that_says_what_to_do() -> None:
    with pytest.raises(Refused, match=r"requires KVM and the node has no /dev/kvm.*firmware.*flow_kvm"):
        fit(body("required"), LARGE, kvm=False)


def test_disabled_needs_no_note() -> None:
    assert fit(body("disabled"), LARGE, kvm=False) == body("disabled")


def test_engine_that_does_not_say_what_it_has_caps_nothing() -> None:
    assert fit(body(), {}, kvm=True) == body()
