# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role host_docker in check mode against the engine of these tests (molecule changes another one)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.tests.integration.harness import Harness

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAMS = CHECKOUT / "roles/host_docker/files"


@pytest.fixture(autouse=True)
def engine() -> None:
    if os.geteuid() != 0:
        pytest.skip("the role changes machines, so it runs as root")
    try:
        docker_http.connect().get_json("/version")
    except FlowError as error:
        pytest.skip(error.message)


def check(**variables: object) -> tuple[int, str]:
    """Return the status of a run in check mode, and its output on one line."""
    program = Path(sys.executable).parent / "ansible-playbook"
    argv = [str(program), "playbooks/engine.yml", "--check", "-e", json.dumps(variables)]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SPT_FLOW_", "ANSIBLE_"))}
    done = subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_engine_prepared_by_quickstart_is_unchanged() -> None:
    for program in ("spt-flow-engine", "spt-flow-firewall", "spt-flow-runc"):
        installed = Path("/usr/local/lib/spt-flow", program)
        if not installed.exists() or installed.read_bytes() != (PROGRAMS / program).read_bytes():
            pytest.skip(f"the running engine was not prepared by this checkout: {installed} is another")
    status, said = check()
    assert status == 0, said
    assert "changed=0" in said and "Pending" not in said


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"host_docker_source": "docker"}, "has docker.io, but host_docker_source is docker"),
        ({"host_docker_reserve_memory": "9999g"}, "host_docker_reserve_memory (9999g)"),
        ({"host_docker_reserve_cpus": 4096}, "host_docker_reserve_cpus (4096"),
        ({"host_docker_remap_size": 65536}, "host_docker_remap_size is 65536, and Docker inside workspaces"),
    ],
    ids=["source", "memory", "processors", "range"],
)
def test_impossible_configuration_is_refused_before_any_change(variables: dict[str, object], sentence: str) -> None:
    status, said = check(**variables)
    assert status == 2
    assert sentence in said
    assert "changed=0" in said and "Configure" not in said and "Traceback" not in said


def test_restart_with_running_containers_is_announced_and_postponed(harness: Harness) -> None:
    harness.up(harness.spec(harness.repository()))
    status, said = check(host_docker_log_max_file=7, flow_business_hours="00:00-24:00")
    assert status == 0, said
    assert "Pending: restart Docker on localhost" in said
