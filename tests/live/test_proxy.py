# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real server and Terraform's real provider behind the proxy of role coder_node: what works, what is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
from ansible_collections.spt.flow.tests.integration.proxy_harness import Proxied, proxy
from ansible_collections.spt.flow.tests.live.conftest import LiveServer

SETTINGS = Settings(profile="slim", cpus=1.0, memory=1 << 30, kvm="disabled", wait_timeout=600)
SENTENCE = "spt.flow refuses POST /containers/create on this node"


@pytest.fixture(scope="module")
def proxied(live_server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxy(tmp_path_factory.mktemp("proxy")) as made:
        yield made


def wanted(proxied: Proxied, settings: Settings, name: str, old: str = "", new: str = "") -> coder_template.Wanted:
    """The collection's template behind the proxy, with ``old`` replaced by ``new``."""
    made = proxied.wanted(settings, name)
    if not old:
        return made
    files = {path.name: path.read_bytes() for path in coder_template.FOLDER.iterdir() if path.is_file()}
    text = files["main.tf"].decode()
    assert text.count(old) == 1
    files["main.tf"] = text.replace(old, new).encode()
    files["seccomp.json"] = docker_container.SECCOMP.read_bytes()
    return replace(made, archive=coder_template.pack(coder_template.FOLDER, files))


def target(live_server: LiveServer, template: str) -> CoderTarget:
    return CoderTarget(live_server.client(live_server.token), template)


def containers(workspace_id: str) -> list[str]:
    argv = ["docker", "ps", "--all", "--quiet", "--filter", f"label=spt.flow.coder={workspace_id}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


def test_whole_life_of_a_workspace_passes_the_proxy(live_server: LiveServer, proxied: Proxied) -> None:
    """Create, stop, start, update and delete with the real provider; the proxy refuses nothing of it."""
    assert live_server.admin is not None
    coder_template.roll_out(live_server.admin, wanted(proxied, SETTINGS, "proxied"))
    spec, reached = WorkspaceSpec("me", SETTINGS, "behind"), target(live_server, "proxied")
    made = reached.create(spec, Progress())
    try:
        assert made.state == "running" and len(containers(made.id)) == 1
        assert reached.stop(made, Progress()).state == "stopped" and containers(made.id) == []
        assert reached.start(made, spec, Progress()).state == "running" and len(containers(made.id)) == 1
        larger = replace(SETTINGS, memory=1536 << 20)
        coder_template.roll_out(live_server.admin, wanted(proxied, larger, "proxied"))
        updated = reached.restart(made, spec, Progress())
        assert (updated.outdated, updated.settings_hash) == ((), larger.hash())
    finally:
        reached.delete(made, Progress())
    assert containers(made.id) == []
    assert proxied.refused() == []


IMAGE = "  image    = data.docker_image.workspace.id\n"
VOLUME = '  volumes {\n    volume_name    = "spt-flow-snapshots"\n'
NETWORK = "  networks_advanced {\n    name = var.network\n  }\n"
SOCKET = "/var/run/docker.sock"
HOSTILE = {
    "privileged": (IMAGE, f"{IMAGE}  privileged = true\n", "Privileged"),
    "root of the node": (
        VOLUME,
        f'  volumes {{\n    host_path = "/"\n    container_path = "/host"\n  }}\n{VOLUME}',
        "Volumes",
    ),
    "mount of the root": (
        VOLUME,
        f'  mounts {{\n    type = "bind"\n    source = "/"\n    target = "/host"\n  }}\n{VOLUME}',
        "Mounts",
    ),
    "socket of the engine": (
        VOLUME,
        f'  mounts {{\n    type = "bind"\n    source = "{SOCKET}"\n    target = "/d.sock"\n  }}\n{VOLUME}',
        "Mounts",
    ),
    "processes of the node": (IMAGE, f'{IMAGE}  pid_mode = "host"\n', "PidMode"),
    "network of the node": (NETWORK, '  network_mode = "host"\n', "NetworkMode"),
    "no user namespace": (IMAGE, f'{IMAGE}  userns_mode = "host"\n', "UsernsMode"),
    "other runtime": ("  runtime  = var.runtime\n", '  runtime  = "runc"\n', "Runtime"),
    "other image": (IMAGE, '  image    = "spt-flow/base:bookworm"\n', "Image"),
    "capability": ('    drop = ["CAP_MKNOD"', '    add  = ["CAP_SYS_ADMIN"]\n    drop = ["CAP_MKNOD"', "CapAdd"),
}


@pytest.mark.parametrize(("old", "new", "named"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_template_is_refused_with_a_sentence(
    old: str, new: str, named: str, live_server: LiveServer, proxied: Proxied
) -> None:
    """The user reads the reason in the build's log, the journal has one line, and the engine has no container."""
    assert live_server.admin is not None
    before = proxied.refused()
    name = f"hostile-{named.lower()}-{len(before)}"
    coder_template.roll_out(live_server.admin, wanted(proxied, SETTINGS, "hostile", old, new))
    try:
        with pytest.raises(FlowError) as caught:
            target(live_server, "hostile").create(WorkspaceSpec("me", SETTINGS, name), Progress())
        said = f"{caught.value.message}\n{caught.value.hint}"
        if named != "Image":
            # The provider pulls an image before it requests a container.
            assert SENTENCE in said and named in said, said
        else:
            assert "spt.flow refuses" in said, said
        assert len(proxied.refused()) == len(before) + 1, proxied.refused()
        found = live_server.client(live_server.token).workspace(name)
        assert found is not None and containers(found["id"]) == []
    finally:
        client = live_server.client(live_server.token)
        left = client.workspace(name)
        if left is not None:
            client.create_build(left, "delete")
