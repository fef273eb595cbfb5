# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One click with the template's real defaults (4 CPUs, 8 GiB, KVM) on nodes with less, with KVM and without."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.errors import Unhealthy
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Result, WorkspaceSpec
from ansible_collections.spt.flow.tests.integration.proxy_harness import proxy
from ansible_collections.spt.flow.tests.live.conftest import LiveServer

GIB = 1 << 30
DEFAULTS = Settings(profile="slim", wait_timeout=600)
ABSENT = {"kvm": "/dev/spt-flow-no-kvm"}


@contextmanager
def click(live_server: LiveServer, folder: Path, settings: Settings, **node: str) -> Iterator[Result]:
    """Create a workspace with nothing but a name, on a node with these values, and wait for it."""
    assert live_server.admin is not None
    client = live_server.client(live_server.token)
    with proxy(folder, **node) as proxied:
        coder_template.roll_out(live_server.admin, proxied.wanted(settings, "kvm"))
        template = client.template("kvm")
        assert template is not None
        target, spec = CoderTarget(client, "kvm"), WorkspaceSpec("me", settings, "kvm")
        client.create_workspace(spec.name, template["id"])
        try:
            yield lifecycle.ensure(target, spec, progress=Progress(print))
        finally:
            lifecycle.ensure(target, spec, "absent")


def host(result: Result) -> dict[str, Any]:
    """Return what the engine gave the workspace."""
    assert result.workspace is not None
    argv = ["docker", "inspect", f"spt-flow-{result.workspace.id}"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(shown)[0]["HostConfig"])


def devices(result: Result) -> list[str]:
    return [device["PathOnHost"] for device in host(result)["Devices"]]


def inside(result: Result, command: str) -> int:
    assert result.workspace is not None
    argv = ["docker", "exec", f"spt-flow-{result.workspace.id}", "sh", "-c", command]
    return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode


def test_defaults_are_capped_to_the_node_and_up_says_so(live_server: LiveServer, tmp_path: Path) -> None:
    assert (DEFAULTS.cpus, DEFAULTS.memory, DEFAULTS.kvm) == (4.0, 8 * GIB, "auto")
    info = docker_http.connect().get_json("/info")
    with click(live_server, tmp_path, DEFAULTS) as result:
        given = host(result)
        assert given["NanoCpus"] == min(4, info["NCPU"]) * 10**9
        assert given["Memory"] == min(8 * GIB, info["MemTotal"] - GIB)
        assert any("instead of 4 CPUs" in note for note in result.notes) is (info["NCPU"] < 4)


def test_node_with_kvm_passes_the_device_on(live_server: LiveServer, tmp_path: Path) -> None:
    """Also on a processor that shows no flag of virtualization: the device alone counts."""
    if not Path("/dev/kvm").exists():
        pytest.skip("this machine has no /dev/kvm")
    with click(live_server, tmp_path, DEFAULTS) as result:
        assert "/dev/kvm" in devices(result)
        assert inside(result, "test -r /dev/kvm -a -w /dev/kvm") == 0
        assert not any("emulation" in note for note in result.notes)


def test_node_without_kvm_falls_back_to_software_emulation_with_a_note(live_server: LiveServer, tmp_path: Path) -> None:
    with click(live_server, tmp_path, DEFAULTS, **ABSENT) as result:
        assert "/dev/kvm" not in devices(result)
        assert inside(result, "test -e /dev/kvm") != 0
        assert any("software emulation" in note for note in result.notes), result.notes


def test_node_without_kvm_refuses_a_template_that_requires_it(live_server: LiveServer, tmp_path: Path) -> None:
    required = replace(DEFAULTS, kvm="required")
    with pytest.raises(Unhealthy) as refused, click(live_server, tmp_path, required, **ABSENT):
        pass
    said = f"{refused.value.message} {refused.value.hint}"
    assert "requires KVM" in said and "flow_kvm" in said, said
