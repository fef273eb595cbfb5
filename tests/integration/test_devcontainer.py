# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dev container with its own command line, and a repository's own file in a workspace, on the real engine."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.tests.integration import sshd_harness
from ansible_collections.spt.flow.tests.integration.agent_harness import docker, unavailable, wait_for
from ansible_collections.spt.flow.tests.integration.harness import Harness, git

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "runs")

CHECKOUT = Path(__file__).resolve().parents[2]
CLI = "@devcontainers/cli@0.89.0"
INTEGRITY = "sha512-LzaoOGKQ/Zql6PsiZ4hVIYVZagzWkD65aG/1ou5/Kly5Y1PtjLg1yn7qu+LZCzVoAl6DZZ/pbz8qOO4RLNlqMg=="
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spt-flow/devcontainer-cli-0.89.0"
# A file system of one program and its library, because images for Docker inside must not come from a network.
ROOTFS = "tar -C / -ch bin/dash lib64/ld-linux-x86-64.so.2 lib/x86_64-linux-gnu/libc.so.6 | docker import - tiny"


@pytest.fixture(scope="module")
def cli() -> list[str]:
    """The program, installed once outside the checkout."""
    program = CACHE / "node_modules/@devcontainers/cli/devcontainer.js"
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("node and npm are not installed")
    if not program.exists():
        new = CACHE.with_name(f"{CACHE.name}.{os.getpid()}")
        argv = [npm, "install", "--silent", "--ignore-scripts", "--prefix", str(new), "--", CLI]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"{CLI} cannot be installed: {done.stderr.strip()[-200:]}")
        lock = json.loads((new / "package-lock.json").read_text())
        assert lock["packages"]["node_modules/@devcontainers/cli"]["integrity"] == INTEGRITY
        shutil.rmtree(CACHE, ignore_errors=True)
        new.rename(CACHE)
    return [node, str(program)]


@dataclass
class Container:
    """A dev container for the folder ``folder``."""

    cli: list[str]
    folder: Path
    env: dict[str, str]

    def run(self, *words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        argv = [*self.cli, words[0], "--workspace-folder", str(self.folder), *words[1:]]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=timeout, check=False)

    def up(self) -> dict[str, Any]:
        done = self.run("up")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert answer["outcome"] == "success", done.stdout + done.stderr
        return answer

    def exec(self, script: str) -> str:
        done = self.run("exec", "bash", "-c", script)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.exec("spt-workspace status"))
        return found

    def clean(self) -> None:
        wanted = f"label=devcontainer.local_folder={self.folder}"
        for identifier in docker("ps", "-aq", "--filter", wanted).stdout.split():
            about = json.loads(docker("inspect", identifier).stdout)[0]
            docker("rm", "-f", identifier, check=False)
            for mount in about["Mounts"]:
                if mount["Type"] == "volume":
                    docker("volume", "rm", "-f", mount["Name"], check=False)


@pytest.fixture
def container(cli: list[str], tmp_path: Path, image: image_identity.Image) -> Iterator[Container]:
    folder = tmp_path / "demo"
    folder.mkdir()
    made = Container(cli, folder, {name: text for name, text in os.environ.items() if not name.startswith("SPT_FLOW_")})
    try:
        yield made
    finally:
        made.clean()


def write(container: Container, **values: str) -> str:
    """Run ``make devcontainer`` in the container's folder."""
    env = {
        **container.env,
        "SPT_FLOW_PROFILE": "slim",
        **{f"SPT_FLOW_{name.upper()}": value for name, value in values.items()},
    }
    repo = values.get("repo", "")
    argv = ["make", "--no-print-directory", "devcontainer", f"DIR={container.folder}", f"REPO={repo}"]
    done = subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_up_exec_agent_ide_and_docker_inside_work(container: Container) -> None:
    write(container, docker="required", cpus="1.5", memory="2g", pids="777", kvm="disabled")
    answer = container.up()
    assert answer["remoteUser"] == "coder"
    status = container.status()
    assert (status["steps"]["home"]["state"], status["steps"]["ide"]["state"]) == ("ok", "ok")
    assert container.exec("id -un; sudo -n id -u; cat /proc/1/comm").split() == ["coder", "0", "tini"]
    assert container.exec("curl -fsS -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/healthz") == "200"
    host = json.loads(docker("inspect", answer["containerId"]).stdout)[0]["HostConfig"]
    assert (host["CpuQuota"], host["Memory"], host["PidsLimit"]) == (150000, 2 * 1024**3, 777)
    assert [name.removeprefix("CAP_") for name in host["CapDrop"]] == [*docker_container.DROPPED]
    assert host["Privileged"] is False and host["Runtime"] == "spt-flow"
    assert "exec" in host["Tmpfs"]["/tmp"] and "size=64m" in host["Tmpfs"]["/run/spt-flow"]
    assert not any(mount.get("Source") == "/var/run/docker.sock" for mount in host.get("Mounts") or [])
    wait_for(
        lambda: container.status()["steps"]["docker"]["state"] == "ok", 60, lambda: str(container.status()["steps"])
    )
    container.exec(ROOTFS)
    assert container.exec("docker run --rm --network none tiny /bin/dash -c 'echo $((6*7))'") == "42"
    # What is written to the home survives the container.
    container.exec("echo kept > ~/note")
    docker("rm", "-f", answer["containerId"])
    container.up()
    assert container.exec("cat ~/note") == "kept"


def test_auto_runs_anywhere_and_explains_missing_docker_inside(container: Container) -> None:
    write(container, memory="2g")
    answer = container.up()
    steps = container.status()["steps"]
    assert steps["docker"]["state"] == "skipped" and "docker=required" in steps["docker"]["detail"]
    host = json.loads(docker("inspect", answer["containerId"]).stdout)[0]["HostConfig"]
    assert host["MaskedPaths"] and host["ReadonlyPaths"] and not host["Devices"]
    assert answer["remoteWorkspaceFolder"] == "/workspaces/demo"
    assert container.exec("pwd") == "/workspaces/demo"


@pytest.mark.skipif(not shutil.which("setfacl"), reason="setfacl is not installed")
def test_directory_is_writable_after_the_command_that_is_named(container: Container) -> None:
    git(container.folder, "init", "-q")
    said = write(container, memory="2g")
    (command,) = [line.partition("allow it: ")[2] for line in said.splitlines() if "cannot write to" in line]
    assert command.startswith("setfacl -R ") and command.endswith(str(container.folder))
    subprocess.run(shlex.split(command), check=True)
    assert "cannot write to" not in write(container, memory="2g")
    container.up()
    container.exec("echo inside > new && git add new && git status --short")
    assert (container.folder / "new").read_text() == "inside\n"
    assert os.access(container.folder / "new", os.W_OK)


@pytest.fixture
def git_server(image: image_identity.Image) -> Iterator[dict[str, str]]:
    with sshd_harness.open_git_server(image.tag) as served:
        yield served


def test_repository_is_cloned_before_up_ends(container: Container, git_server: dict[str, str]) -> None:
    write(container, repo=git_server["url"], known_hosts=git_server["known"], memory="2g")
    container.up()
    assert container.exec("git rev-parse HEAD; pwd").split() == [git_server["head"], "/home/coder/r"]
    assert container.status()["steps"]["clone"]["state"] == "ok"


def test_container_is_usable_when_the_clone_fails(container: Container) -> None:
    write(container, repo="https://localhost:1/o/demo.git", memory="2g")
    done = container.run("up")
    assert json.loads(done.stdout.splitlines()[-1])["outcome"] == "success", done.stdout + done.stderr
    assert "clone: failed, The server of localhost:1/o/demo cannot be reached" in done.stdout + done.stderr
    assert container.exec("pwd") == "/home/coder/demo"


# A repository's own


def test_file_of_the_repository_is_used_in_a_workspace(harness: Harness) -> None:
    source = harness.repository()
    wishes = {
        "image": "something/else",
        "forwardPorts": [3999],
        "containerEnv": {"COLOUR": "red", "NODE_ENV": "test"},
        "customizations": {"vscode": {"extensions": ["spt-flow.nowhere"]}},
        "postCreateCommand": "echo $COLOUR > ~/ran",
    }
    (source / ".devcontainer.json").write_text(f"// theirs\n{json.dumps(wishes)}")
    git(source, "add", ".")
    git(source, "commit", "-q", "-m", "devcontainer")
    workspace = harness.up(harness.spec(source))
    session = harness.target.session(workspace)
    assert session.ports == (3999,)

    def step() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(harness.inside(workspace, "spt-workspace status"))["steps"]["devcontainer"]
        return found if found["state"] in ("ok", "failed") else {}

    told = wait_for(step, 240, lambda: harness.inside(workspace, "spt-workspace status"))
    assert "ignored: image" in told["detail"] and "variables that need your consent: COLOUR," in told["detail"]
    assert "with your consent it does: spt-workspace trust" in told["detail"]
    # No extension gallery is reachable: the extension is missing, and nothing else fails.
    assert told["state"] == "failed" and "Not installed: spt-flow.nowhere" in told["detail"]
    assert harness.inside(workspace, "ls ~/ran 2>/dev/null; ls ~/.config/code-server 2>/dev/null; true") == ""
    shells = "bash -lc 'echo $NODE_ENV $COLOUR'; bash -ic 'echo $NODE_ENV $COLOUR' 2>/dev/null"
    assert harness.inside(workspace, shells).split() == ["test", "test"]
    harness.inside(workspace, "spt-workspace trust")
    assert harness.inside(workspace, shells).split() == ["test", "red", "test", "red"]
    assert harness.inside(workspace, "cat ~/ran") == "red"
    restarted = harness.ensure(harness.spec(source), "restarted").workspace
    assert (
        restarted
        and harness.inside(restarted, "tr '\\0' '\\n' < /proc/$(pgrep -of code-server)/environ | grep COLOUR")
        == "COLOUR=red"
    )
