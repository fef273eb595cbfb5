# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Coder server's access to a node: its SSH key as role coder_node restricts it, the proxy, the real engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container
from ansible_collections.spt.flow.tests.integration import sshd_harness

CHECKOUT = Path(__file__).resolve().parents[2]
ROLE = CHECKOUT / "roles/coder_node"


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a proxy that runs like on a node."""
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "spt_flow_node").symlink_to(CHECKOUT / "plugins/module_utils/_node")
    (folder / "seccomp").mkdir()
    (folder / "seccomp/current.json").write_bytes(docker_container.SECCOMP.read_bytes())
    settings = {"runtime": "spt-flow", "networks": ["spt-flow"], "seccomp": str(folder / "seccomp")}
    (folder / "proxy.json").write_text(json.dumps(settings))
    made = folder / "engine.sock"
    program = [sys.executable, str(ROLE / "files/spt-flow-engine-proxy"), str(folder / "proxy.json"), str(made)]
    process = subprocess.Popen(program, env={"SPT_FLOW_LIB": str(folder)})
    end = time.monotonic() + 30
    while not made.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    yield made
    process.terminate()
    assert process.wait(30) == 0


@pytest.fixture(scope="module")
def server(socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Coder server whose key is on a node; ``ssh`` uses only this key."""
    folder = tmp_path_factory.mktemp("node")
    with sshd_harness.sshd(folder) as config:
        dial = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__coder_node_dial"]
        bound = dial.replace("{{ __coder_node_socket }}", str(socket))
        key = (folder / "user.pub").read_text()
        (folder / "user.pub").write_text(f'restrict,command="{bound}" {key}')
        (folder / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F "{config}" "$@"\n')
        (folder / "ssh").chmod(0o755)
        yield {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "DOCKER_HOST": "ssh://loopback"}


def run(server: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, env=server, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )


def test_servers_key_reaches_the_engine(server: dict[str, str]) -> None:
    done = run(server, "docker", "version", "--format", "{{.Server.Version}}")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--rm", "--privileged", "--volume=/:/host", "debian", "true"),
        ("run", "--rm", "--pid=host", "debian", "true"),
        ("volume", "ls"),
        ("exec", "database", "id"),
        ("pull", "debian"),
        ("system", "prune", "--force"),
    ],
    ids=" ".join,
)
def test_servers_key_is_refused_everything_else(server: dict[str, str], words: tuple[str, ...]) -> None:
    done = run(server, "docker", *words)
    assert done.returncode != 0
    assert "spt.flow refuses " in done.stderr and "on this node" in done.stderr, done.stderr


def test_servers_key_opens_no_shell_and_no_forwarding(server: dict[str, str]) -> None:
    assert "uid=" not in run(server, "ssh", "loopback", "id").stdout
    forwarded = run(server, "ssh", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", "loopback")
    assert "forwarding failed" in forwarded.stderr


def test_leftover_container_is_replaced_and_the_workspace_fits_the_node(socket: Path) -> None:
    """A build whose Terraform state was lost left a container; the next build asks for more than the node has."""
    behind, engine = docker_http.Engine(f"unix://{socket}"), docker_http.connect()
    images = engine.get_json("/images/json", {"filters": {"reference": ["spt-flow/workspace"]}})
    body = json.loads((CHECKOUT / "tests/unit/data/engine_proxy_create.json").read_text())
    body["Image"] = next(tag for image in images for tag in image["RepoTags"] if tag.startswith("spt-flow/workspace:"))
    workspace = str(uuid.uuid4())
    name = f"spt-flow-{workspace}"
    host = body["HostConfig"]
    host.update(NanoCpus=512 * 10**9, Memory=1 << 50, MemorySwap=1 << 50, Binds=[f"{name}-home:/home/coder:rw"])
    host["SecurityOpt"] = [f"seccomp={docker_container.SECCOMP.read_text()}"]
    body["Labels"]["spt.flow.coder"] = workspace
    labels = {"spt.flow.coder": workspace, "spt.flow.part": "home"}
    info = engine.get_json("/info")
    try:
        behind.request_json("POST", "/volumes/create", body={"Name": f"{name}-home", "Labels": labels})
        first = behind.request_json("POST", "/containers/create", {"name": name}, body)["Id"]
        second = behind.request_json("POST", "/containers/create", {"name": name}, body)["Id"]
        assert first != second
        made = engine.get_json(f"/containers/{name}/json")
        assert made["Id"] == second
        assert made["HostConfig"]["NanoCpus"] == info["NCPU"] * 10**9
        assert made["HostConfig"]["Memory"] == info["MemTotal"] - (1 << 30)
        assert any("instead of 512 CPUs" in word for word in made["Config"]["Env"])
        # A stop that knows of neither container nor home creates the home again.
        behind.request_json("POST", "/volumes/create", body={"Name": f"{name}-home", "Labels": labels})
        assert engine.get_json("/containers/json", {"all": True, "filters": {"name": [name]}}) == []
        behind.request_json("POST", "/containers/create", {"name": name}, body)
        behind.request_json("DELETE", f"/volumes/{name}-home")
        assert engine.get_json("/containers/json", {"all": True, "filters": {"name": [name]}}) == []
    finally:
        subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=False)
        subprocess.run(["docker", "volume", "rm", "-f", f"{name}-home"], capture_output=True, check=False)
