# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tool update on a real Coder server: gh changes by one version while a workspace is in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.probe import Probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace, WorkspaceSpec
from ansible_collections.spt.flow.tests.integration import recipe_harness
from ansible_collections.spt.flow.tests.integration.recipe_harness import Copy
from ansible_collections.spt.flow.tests.live.conftest import LiveServer

TEMPLATE = "release"
SPEC = WorkspaceSpec(
    "me", Settings(profile="slim", wait_timeout=300), "", Repository.parse("https://git.invalid/team/release.git")
)
Release = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def recipe(live_server: LiveServer, tmp_path: Path) -> Copy:
    """The slim profile, whose layers the engine has for ``live_server``, and a script as gh."""
    made = recipe_harness.copy(tmp_path / "collections/ansible_collections/spt/flow")
    made.gh("1.0")
    recipe_harness.cache_of_its_own(tmp_path / "cache", "downloads", "ide")
    return made


@pytest.fixture
def release(live_server: LiveServer, recipe: Copy, tmp_path: Path) -> Iterator[Release]:
    """Run release.yml for the server; remove afterwards what it leaves on the engine."""
    file = tmp_path / "release/image.json"
    server = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "coder_url": live_server.url,
        "coder_template_name": TEMPLATE,
        "coder_template_kinds": ["dev"],
        "coder_template_network": "bridge",
        "coder_template_token_file": str(live_server.folder / "etc/coder.token"),
    }
    small = {"flow_cpus": 1, "flow_memory": "1g", "flow_kvm": "disabled", "flow_docker": "disabled"}
    values = {**small, "flow_image_release": str(file), "image_build_keep": -1}
    inventory = tmp_path / "inventory.json"
    servers = {"flow_servers": {"hosts": {"server1": server}}}
    inventory.write_text(json.dumps({"all": {"vars": values, "children": servers}}))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SPT_FLOW_", "ANSIBLE_", "CODER_"))}
        env |= {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        program = str(Path(sys.executable).parent / "ansible-playbook")
        argv = [program, "spt.flow.release", "-i", str(inventory), *words]
        done = subprocess.run(argv, cwd=recipe.root, env=env, capture_output=True, text=True, timeout=1200, check=False)
        assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
        return done

    yield run
    lifecycle.ensure(target(live_server), SPEC, "absent")
    for report in file.parent.glob("*.verify.json"):
        tag = f"spt-flow/workspace:{report.name.removesuffix('.verify.json')}"
        subprocess.run(["docker", "rmi", "--force", tag], capture_output=True, timeout=120, check=False)


def target(live_server: LiveServer) -> CoderTarget:
    return CoderTarget(live_server.client(live_server.token), TEMPLATE, 300)


def ensure(live_server: LiveServer, state: str = "started") -> Workspace:
    probe: Any = lambda repository, ref: Probe("needs-auth")  # noqa: E731
    found = lifecycle.ensure(target(live_server), SPEC, state, probe=probe).workspace
    assert found is not None
    return found


def gh(live_server: LiveServer, workspace: Workspace) -> str:
    environment = {**os.environ, "CODER_URL": live_server.url, "CODER_SESSION_TOKEN": live_server.token}
    argv = workspace_ssh.argv(workspace, "gh --version")
    return subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=180, check=False
    ).stdout.strip()


def container(workspace: Workspace) -> str:
    argv = ["docker", "ps", "--no-trunc", "--quiet", "--filter", f"label=spt.flow.coder={workspace.id}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def test_tool_update_leaves_a_running_coder_workspace_unchanged_until_restart(
    live_server: LiveServer, recipe: Copy, release: Release
) -> None:
    done = release()
    assert done.returncode == 0, done.stdout + done.stderr
    workspace = ensure(live_server)
    assert (gh(live_server, workspace), workspace.outdated) == ("gh version 1.0", ())
    before = container(workspace)

    recipe.gh("1.1")
    planned = release("--check")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "imported, activated" in planned.stdout
    assert ensure(live_server).outdated == ()
    applied = release()
    assert applied.returncode == 0, applied.stdout + applied.stderr
    workspace = ensure(live_server)
    assert container(workspace) == before
    assert (gh(live_server, workspace), workspace.outdated) == ("gh version 1.0", ("template",))

    recipe.gh("1.2", works=False)
    failed = release()
    assert failed.returncode != 0
    assert "failed its verification: gh: " in failed.stdout + failed.stderr
    assert "PLAY [Roll out the Coder templates]" not in failed.stdout

    workspace = ensure(live_server, "restarted")
    assert (gh(live_server, workspace), workspace.outdated) == ("gh version 1.1", ())
