# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dev container with DevPod and its Docker provider, on the real engine. Needs the program ``devpod``."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import engine as image_engine
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.tests.integration import sshd_harness
from ansible_collections.spt.flow.tests.integration.agent_harness import docker, unavailable

CHECKOUT = Path(__file__).resolve().parents[2]
REASON = unavailable() or "devpod and setfacl are not both on PATH; DevPod was not tested"
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(bool(unavailable()) or not all(map(shutil.which, ("devpod", "setfacl"))), reason=REASON),
]


@pytest.fixture(scope="module")
def profile(image: image_identity.Image) -> str:
    """The team's image if this engine has it, otherwise the small one."""
    return "fat" if image_engine.present(image_identity.identity("fat")) else "slim"


@dataclass
class DevPod:
    """One dev container of DevPod for ``folder``, with a home of its own."""

    name: str
    folder: Path
    env: dict[str, str]

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            ["devpod", *words], env=self.env, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def write(self, profile: str, **values: str) -> str:
        """Run ``make devcontainer`` for the folder."""
        wanted = {"profile": profile, "memory": "2g", **values}
        env = {**os.environ, **{f"SPT_FLOW_{name.upper()}": value for name, value in wanted.items()}}
        argv = ["make", "--no-print-directory", "devcontainer", f"DIR={self.folder}", f"REPO={values.get('repo', '')}"]
        done = subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self) -> None:
        self("provider", "add", "docker")
        self("up", str(self.folder), "--provider", "docker", "--ide", "none", "--id", self.name)

    def inside(self, script: str) -> str:
        return self("ssh", self.name, "--command", script)


@pytest.fixture
def devpod(tmp_path: Path) -> Iterator[DevPod]:
    folder, home = tmp_path / "demo", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPT_FLOW_", "DEVPOD_"))}
    # Nothing leaves this machine: neither usage data nor a request for DevPod's own agent.
    quiet = {"DEVPOD_DISABLE_TELEMETRY": "true", "DEVPOD_AGENT_URL": "http://127.0.0.1:9/"}
    made = DevPod(f"test-{secrets.token_hex(3)}", folder, {**kept, "HOME": str(home), **quiet})
    before = set(volumes())
    try:
        yield made
    finally:
        subprocess.run(["devpod", "delete", made.name, "--force"], env=made.env, capture_output=True, timeout=120)
        for volume in set(volumes()) - before:
            docker("volume", "rm", "-f", volume, check=False)


def volumes() -> list[str]:
    return docker("volume", "ls", "-q", "--filter", "name=^spt-flow-default-te-").stdout.split()


def test_directory_agent_and_ide_work(devpod: DevPod, profile: str) -> None:
    subprocess.run(["git", "-C", str(devpod.folder), "init", "-q"], check=True)
    for line in devpod.write(profile).splitlines():
        if "allow it: " in line:
            subprocess.run(shlex.split(line.partition("allow it: ")[2]), check=True)
    devpod.up()
    said = devpod.inside("id -un; pwd; echo inside > new && git add new && git status --short; nproc >/dev/null")
    assert said.split()[:2] == ["coder", f"/workspaces/{devpod.name}"] and "A  new" in said, said
    assert (devpod.folder / "new").read_text() == "inside\n"
    status = json.loads(devpod.inside("spt-workspace status"))
    assert [status["steps"][name]["state"] for name in ("home", "ide")] == ["ok", "ok"]
    assert "200" in devpod.inside("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/healthz")
    if profile == "fat":
        assert "go version go" in devpod.inside("bash -lc 'go version && rustc --version && node --version'")


def test_repository_is_cloned_into_the_home_instead_of_the_directory(
    devpod: DevPod, profile: str, image: image_identity.Image
) -> None:
    with sshd_harness.open_git_server(image.tag) as served:
        devpod.write(profile, repo=served["url"], known_hosts=served["known"])
        devpod.up()
        # DevPod's own sessions start in /workspaces/<id>, or in the home; its IDEs open the directory of the clone.
        said = devpod.inside("cd ~/r && git rev-parse HEAD && touch mine && stat -c %U mine; ls -A /workspaces")
    assert said.split() == [served["head"], "coder"]
