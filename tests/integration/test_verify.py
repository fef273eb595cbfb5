# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`spt-workspace verify` in a real workspace, by the playbook, and in an image alone; broken parts are found."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.tests.integration import playbook_harness
from ansible_collections.spt.flow.tests.integration.playbook_harness import Playbooks


@pytest.fixture(scope="module")
def playbooks(tmp_path_factory: pytest.TempPathFactory, image: image_identity.Image) -> Iterator[Playbooks]:
    with playbook_harness.playbooks(tmp_path_factory.mktemp("verify")) as playbooks:
        playbooks.up()
        yield playbooks


def container(playbooks: Playbooks) -> str:
    return f"spt-flow-{playbooks.owner}-{playbooks.name}"


def test_workspace_passes_verification(playbooks: Playbooks) -> None:
    done = playbooks.run("validate")
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ("clone", "ide", "sudo", "secrets", "git"):
        assert row in done.stdout


def test_broken_part_is_named_and_fails_the_run(playbooks: Playbooks) -> None:
    rename = ["docker", "exec", "--user", "root", container(playbooks), "mv", "/usr/bin/jq", "/usr/bin/jq.aside"]
    subprocess.run(rename, check=True, timeout=60)
    result = playbooks.json("validate")
    assert not result["ok"]
    assert any("jq" in line and "fail" in line.lower() for line in result["stdout_lines"]), result["stdout_lines"]
    rename[-2:] = reversed(rename[-2:])
    subprocess.run(rename, check=True, timeout=60)


def test_image_alone_is_verified_without_a_network(image: image_identity.Image) -> None:
    command = ["docker", "run", "--rm", "--network=none", "--entrypoint=spt-workspace", image.tag]
    done = subprocess.run(
        [*command, "verify", "--format=json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    states = {row["state"] for row in json.loads(done.stdout)["checks"]}
    assert "failed" not in states and states
