# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""No template is activated while a node lacks its image."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml
from ansible_collections.spt.flow.tests.fake_coder import samples
from ansible_collections.spt.flow.tests.unit import coder_harness

CHECKOUT = Path(__file__).resolve().parents[2]


def play(folder: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the playbook for servers, with a node that does not answer."""
    token = folder / "coder.token"
    token.write_text(samples.USER_TOKEN)
    token.chmod(0o600)
    node = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
    server = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
    values = {"coder_url": url, "coder_template_token_file": str(token)}
    groups = {"flow_nodes": {"hosts": {"node1": node}}, "flow_servers": {"hosts": {"server1": server}, "vars": values}}
    inventory = folder / "hosts.yml"
    inventory.write_text(yaml.safe_dump(groups))
    program = Path(sys.executable).parent / "ansible-playbook"
    return subprocess.run(
        [str(program), "playbooks/servers.yml", "-i", str(inventory), *options],
        cwd=CHECKOUT,
        env={**os.environ, "HOME": str(folder), "NO_PROXY": "127.0.0.1", "ANSIBLE_TIMEOUT": "5"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_template_stays_while_a_node_does_not_answer(tmp_path: Path) -> None:
    with coder_harness.server() as fake:
        before = {template.name: template.active for template in fake.state.templates.values()}
        done = play(tmp_path, fake.url)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 2, said
        assert "Cannot update the templates of server1: node1 cannot be reached or does not have the image" in said
        assert "spt-flow/workspace:fat-" in said
        assert {template.name: template.active for template in fake.state.templates.values()} == before


def test_check_of_new_nodes_asks_for_no_image(tmp_path: Path) -> None:
    with coder_harness.server() as fake:
        done = play(tmp_path, fake.url, "--check")
    assert "Cannot update the templates" not in done.stdout + done.stderr
    assert "Configure | Publish the templates" in done.stdout, done.stdout + done.stderr
