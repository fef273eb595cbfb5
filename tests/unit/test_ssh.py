# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The OpenSSH client configuration for entering workspaces."""

from __future__ import annotations

import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import ssh as docker_ssh
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace

DEMO = Workspace("ada", "demo", "example.com/o/demo")


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of this test, so that no key of the user is touched."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "spt-flow"


def effective(host: str) -> dict[str, str]:
    """Return how OpenSSH itself reads the configuration for ``host``."""
    argv = ["ssh", "-G", "-F", str(workspace_ssh.prepare()), host]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout
    return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)


def test_openssh_accepts_the_configuration_and_it_is_strict(runtime):
    found = effective("spt-flow-ada-demo")
    assert found["user"] == "coder"
    assert found["stricthostkeychecking"] in ("true", "yes")
    assert found["userknownhostsfile"] == "/dev/null" and found["globalknownhostsfile"] == "/dev/null"
    assert "hostkey" in found["knownhostscommand"]
    assert found["identitiesonly"] == "yes" and found["identityfile"] == str(runtime / "id_ed25519")
    assert found["forwardagent"] == "yes" and found["forwardx11"] == "no"
    assert "docker exec -i -u 1000:1000" in found["proxycommand"] and "spt-workspace session" in found["proxycommand"]
    assert found["preferredauthentications"] == "publickey"


def test_other_hosts_are_unchanged(runtime):
    found = effective("example.com")
    assert "proxycommand" not in found and found["user"] != "coder"
    assert not (runtime / "id_ed25519").exists(), "no key is created without need"


def test_key_is_created_once_and_private(runtime):
    effective("spt-flow-ada-demo")
    first = (runtime / "id_ed25519").read_bytes()
    effective("spt-flow-ada-other")
    assert (runtime / "id_ed25519").read_bytes() == first
    assert stat.S_IMODE((runtime / "id_ed25519").stat().st_mode) == 0o600
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert sorted(path.name for path in runtime.iterdir()) == ["id_ed25519", "id_ed25519.pub", "ssh_config"]


def test_parallel_runs_get_one_complete_key_pair(runtime):
    workspace_ssh.prepare()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(effective, [f"spt-flow-ada-{number}" for number in range(8)]))
    key = runtime / "id_ed25519"
    argv = ["ssh-keygen", "-y", "-f", str(key)]
    public = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.split()[:2]
    assert (runtime / "id_ed25519.pub").read_text().split()[:2] == public


def test_words_are_quoted(runtime):
    config = str(runtime / "ssh_config")
    assert workspace_ssh.argv(DEMO) == ["ssh", "-F", config, "spt-flow-ada-demo"]
    assert workspace_ssh.argv(DEMO, terminal=True)[3] == "-t"
    assert workspace_ssh.argv(DEMO, "-v; id") == ["ssh", "-F", config, "--", "spt-flow-ada-demo", "-v; id"]


def test_directory_is_quoted(tmp_path):
    strange = tmp_path / "it's $(touch x); -rf"
    strange.mkdir()
    argv = ["sh", "-c", workspace_ssh.inside(str(strange), "pwd")]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=10, cwd=tmp_path).stdout
    assert said.strip() == str(strange) and not (tmp_path / "x").exists()
    assert workspace_ssh.inside("", "true") == "true"


def test_configuration_is_written_only_if_it_differs(runtime):
    path = workspace_ssh.prepare()
    os.utime(path, (1, 1))
    assert workspace_ssh.prepare().stat().st_mtime == 1
    path.write_text("old")
    assert "Match originalhost spt-flow-*" in workspace_ssh.prepare().read_text()


@pytest.mark.parametrize("wrong", ["file", "open", "link"])
def test_folder_of_another_user_is_not_used(runtime, tmp_path, monkeypatch, wrong):
    if wrong == "file":
        runtime.write_text("")
    elif wrong == "open":
        runtime.mkdir(mode=0o777)
        runtime.chmod(0o777)
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        runtime.symlink_to(tmp_path / "elsewhere")
    second = tmp_path / "second"
    monkeypatch.setattr(docker_ssh, "_candidates", lambda: iter([runtime, second]))
    assert docker_ssh.runtime_folder() == second
    monkeypatch.setattr(docker_ssh, "_candidates", lambda: iter([runtime]))
    with pytest.raises(FlowError) as caught:
        docker_ssh.runtime_folder()
    assert str(runtime) in caught.value.hint


@pytest.mark.parametrize("strange", ["relative/x", "/with space", '/with"quote', "/with%h", "/with$(id)", ""])
def test_runtime_directories_that_a_shell_would_expand_are_skipped(monkeypatch, strange):
    monkeypatch.setenv("XDG_RUNTIME_DIR", strange)
    assert f"{strange}/spt-flow" not in [str(path) for path in docker_ssh._candidates()]
