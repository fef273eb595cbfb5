# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real workspaces on the real engine, created like target docker does, for tests of the workspace agent."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.target import DockerTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import build as image_build
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.options import GIBIBYTE
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace, WorkspaceSpec

ENDED = ("ok", "failed", "skipped", "needs-auth")


def unavailable() -> str:
    """Return why these tests cannot run here, or an empty string."""
    missing = [name for name in ("docker", "ssh", "ssh-keygen", "git") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} missing"
    try:
        docker_http.connect().get_json("/version")
    except FlowError as error:
        return error.message
    return ""


def docker(*words: str, check: bool = True, timeout: float = 90, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=check, timeout=timeout, **more)


def wait_for(what: Callable[[], Any], seconds: float = 30.0, message: Callable[[], str] | str = "") -> Any:
    """Return the first true answer of ``what``."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answer = what()
        if answer:
            return answer
        time.sleep(0.1)
    raise AssertionError((message() if callable(message) else message) or f"nothing within {seconds} s")


class Inside:
    """One workspace and ways to look into it."""

    def __init__(self, owner: str, name: str, folder: Path) -> None:
        self.workspace: Workspace | None = None
        self.owner, self.name = owner, name
        self.container = f"spt-flow-{owner}-{name}"
        self.folder = folder
        self.starts = 1
        self.config = folder / f"ssh-{name}"
        key = folder / "key"
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=30)
        program = f"docker exec -i -u 1000:1000 {self.container} spt-workspace"
        self.config.write_text(
            f"Host *\n User coder\n IdentityFile {key}\n IdentitiesOnly yes\n IdentityAgent none\n LogLevel ERROR\n"
            f' ProxyCommand {program} session "$(cat {key}.pub)"\n'
            f" KnownHostsCommand {shutil.which('docker')} exec -u 1000:1000 {self.container} spt-workspace hostkey %H\n"
            " UserKnownHostsFile /dev/null\n GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n"
        )

    def exec(self, *words: str, check: bool = True, user: str = "1000:1000", stdin: str = "") -> str:
        done = docker("exec", "-i", "-u", user, self.container, *words, check=False, input=stdin)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sh(self, text: str, **more: Any) -> str:
        """Run a line in a login shell."""
        return self.exec("bash", "-lc", text, **more)

    def ssh_argv(self, *words: str, options: tuple[str, ...] = ()) -> list[str]:
        return ["ssh", "-F", str(self.config), *options, self.container, *words]

    def ssh(self, *words: str, options: tuple[str, ...] = (), **more: Any) -> subprocess.CompletedProcess[str]:
        argv = self.ssh_argv(*words, options=options)
        return subprocess.run(argv, capture_output=True, text=True, timeout=90, **more)

    def status(self) -> dict[str, Any]:
        return json.loads(self.exec("spt-workspace", "status"))

    def wait(self, step: str, *states: str, seconds: float = 60.0) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            found = self.step(step)
            return found if found.get("state") in (states or ENDED) else None

        return wait_for(ended, seconds, lambda: f"{step} is {self.step(step)}\n{self.log()[-3000:]}")

    def step(self, name: str) -> dict[str, Any]:
        """Return the newest state of a step in the newest start, from the log."""
        found: dict[str, Any] = {}
        starts = 0
        for event in self.events():
            starts += event["event"] == "start"
            found = event if starts == self.starts and event.get("step") == name else found
        return found

    def again(self, verb: str) -> None:
        """Run ``docker start`` or ``restart``; afterwards only steps of the new start count."""
        self.starts += 1
        docker(verb, self.container)

    def log(self) -> str:
        done = docker("logs", self.container, check=False)
        return done.stdout + done.stderr

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log().splitlines() if line.startswith('{"spt_flow"')]

    def state(self) -> tuple[bool, int]:
        """Return (running, exit status), or (False, -1) when the container is gone."""
        done = docker("inspect", "-f", "{{.State.Running}} {{.State.ExitCode}}", self.container, check=False)
        words = done.stdout.split()
        return (words[0] == "true", int(words[1])) if words else (False, -1)

    def ide_port(self) -> int:
        return int(docker("port", self.container, "8080/tcp").stdout.split(":")[-1])


@contextmanager
def workspace(
    folder: Path,
    name: str = "demo",
    before_start: Callable[[Inside], object] = lambda inside: None,
    environment: dict[str, str] | None = None,
    kind: str = "dev",
    deadline: int | None = None,
    **settings: Any,
) -> Iterator[Inside]:
    """A running workspace; ``environment`` replaces values of the workspace agent that no setting controls."""
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container

    target = DockerTarget()
    image = image_identity.identity()
    image_build.ensure(image, {}, Progress(print))
    owner = f"agent{secrets.token_hex(3)}"
    resolved = Settings(**{"profile": "slim", "cpus": 2.0, "memory": 2 * GIBIBYTE, "docker": "disabled", **settings})
    spec = WorkspaceSpec(
        owner, resolved, name, kind=kind, deadline=deadline, image=image.tag, image_hash=image.hash
    )  # fmt: skip
    original = docker_container.environment
    docker_container.environment = lambda spec, plan: {**original(spec, plan), **(environment or {})}
    inside = Inside(owner, name, folder)
    try:
        inside.workspace = target.create(spec, Progress())
        before_start(inside)
        inside.workspace = target.start(inside.workspace, spec, Progress())
        yield inside
    finally:
        docker_container.environment = original
        if os.environ.get("SPT_FLOW_KEEP") != "1":
            docker("rm", "-f", inside.container, check=False)
            for part in ("home", "docker"):
                docker("volume", "rm", "-f", f"{inside.container}-{part}", check=False)
