# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proxy of the role coder_node, run as on a node."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass
class Proxied:
    """A proxy that runs like on a node; ``journal`` has its output for the journal."""

    socket: Path
    journal: Path

    def refused(self) -> list[str]:
        return [line for line in self.journal.read_text().splitlines() if "refused: " in line]

    def wanted(self, settings: Settings, name: str, kind: str = "dev", **more: str) -> coder_template.Wanted:
        """The collection's template for the engine behind the proxy."""
        nodes = {"node1": f"unix://{self.socket}"}
        return coder_template.ours(settings, kind, name, nodes, network="bridge", **more)


@contextmanager
def proxy(folder: Path, network: str = "bridge", **more: str) -> Iterator[Proxied]:
    """Run the proxy in ``folder`` for workspaces on ``network``; ``more`` are values of its configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "spt_flow_node").symlink_to(CHECKOUT / "plugins/module_utils/_node")
    (folder / "seccomp").mkdir()
    (folder / "seccomp/current.json").write_bytes(docker_container.SECCOMP.read_bytes())
    settings = {"runtime": "spt-flow", "apparmor": "spt-flow-workspace", "networks": [network], **more}
    (folder / "proxy.json").write_text(json.dumps({**settings, "seccomp": str(folder / "seccomp")}))
    made = Proxied(folder / "engine.sock", folder / "journal")
    program = CHECKOUT / "roles/coder_node/files/spt-flow-engine-proxy"
    with open(made.journal, "wb") as journal:
        process = subprocess.Popen(
            [sys.executable, str(program), str(folder / "proxy.json"), str(made.socket)],
            env={"SPT_FLOW_LIB": str(folder)},
            stderr=journal,
        )
    try:
        end = time.monotonic() + 30
        while not made.socket.exists():
            assert process.poll() is None and time.monotonic() < end, made.journal.read_text()
            time.sleep(0.1)
        yield made
    finally:
        process.terminate()
        assert process.wait(30) == 0
