# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Act on the real engine as a random owner, with small repositories, and check what the engine then has."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.session import container_name
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.target import DockerTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.options import GIBIBYTE
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Result, Workspace, WorkspaceSpec

COLLECTIONS = Path(__file__).resolve().parents[2] / ".ansible" / "collections"
WAIT = 120
AUTHOR = ("-c", "user.name=Tester", "-c", "user.email=tester@example.com")


def git(folder: Path, *words: str) -> str:
    argv = ["git", *AUTHOR, "-C", str(folder), *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


class Harness:
    """One owner's workspaces; ``spec`` describes one, ``up`` and ``ensure`` act on it."""

    def __init__(self, folder: Path, image: image_identity.Image) -> None:
        self.owner = f"test-{secrets.token_hex(4)}"
        self.folder = folder
        self.image = image
        self.target = DockerTarget()
        self.engine = docker_http.connect()

    def repository(self, name: str = "demo", where: str = "src", files: int = 3, size: int = 100) -> Path:
        """Create a local repository with two commits in ``where``/``name``."""
        path = self.folder / where / name
        path.mkdir(parents=True)
        git(path, "init", "-q", "-b", "main")
        for number in range(files):
            (path / f"file{number}").write_text(secrets.token_hex(size // 2 + 1))
        for title in ("first", "second"):
            (path / "README").write_text(title)
            git(path, "add", ".")
            git(path, "commit", "-q", "-m", title)
        return path

    def spec(self, repository: Path | None = None, name: str = "", **settings: Any) -> WorkspaceSpec:
        """Small limits and no Docker inside, because these tests look at workspaces from outside."""
        values = {
            "profile": "slim",
            "cpus": 1.0,
            "memory": GIBIBYTE,
            "docker": "disabled",
            "wait_timeout": WAIT,
            **settings,
        }
        return WorkspaceSpec(
            self.owner,
            Settings(**values),
            name,
            Repository.parse(str(repository)) if repository else None,
            image=self.image.tag,
            image_hash=self.image.hash,
        )

    def ensure(self, spec: WorkspaceSpec, state: str = "started") -> Result:
        return lifecycle.ensure(self.target, spec, state)

    def up(self, spec: WorkspaceSpec) -> Workspace:
        workspace = self.ensure(spec).workspace
        assert workspace is not None
        return workspace

    def up_process(
        self, repository: Path, state: str = "started", die: tuple[str, str, int] | None = None, **settings: Any
    ) -> subprocess.Popen[str]:
        """Run one ``ensure`` in its own process, which prints its result or error as one line of JSON.

        ``die`` says where it kills itself: (``before`` or ``after``, pattern of "METHOD /path", number of the match).
        """
        spec = self.spec(repository, **settings)
        words = {"owner": self.owner, "repository": str(repository), "settings": spec.settings.__dict__}
        words |= {"image": self.image.tag, "image_hash": self.image.hash, "name": spec.name, "state": state, "die": die}
        return subprocess.Popen(
            [sys.executable, "-c", _UP, json.dumps(words), str(COLLECTIONS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    # What exists

    def containers(self) -> list[str]:
        filters = {"label": [f"spt.flow.owner={self.owner}"]}
        found = self.engine.get_json("/containers/json", {"all": True, "filters": filters})
        return sorted(name.lstrip("/") for entry in found for name in entry["Names"])

    def volumes(self) -> list[str]:
        answer = self.engine.get_json("/volumes", {"filters": {"label": [f"spt.flow.owner={self.owner}"]}})
        return sorted(volume["Name"] for volume in answer["Volumes"] or [])

    def name(self, workspace: Workspace) -> str:
        return container_name(self.owner, workspace.name)

    def belongings(self, *names: str) -> tuple[list[str], list[str]]:
        """Return the (containers, volumes) of an owner with exactly the workspaces ``names``."""
        keys = [container_name(self.owner, name) for name in sorted(names)]
        return keys, sorted(f"{key}-{part}" for key in keys for part in ("home", "docker"))

    def is_exactly(self, *names: str) -> None:
        """Fail unless the owner has exactly these workspaces on the engine."""
        assert (self.containers(), self.volumes()) == self.belongings(*names)

    def inspect(self, identifier: str) -> dict[str, Any]:
        found: dict[str, Any] = self.engine.get_json(f"/containers/{identifier}/json")
        return found

    def inside(self, workspace: Workspace, script: str, *words: str, user: str = "", timeout: float = 60) -> str:
        done = self.target.exec(workspace, ["bash", "-c", script, "bash", *words], timeout=timeout, user=user)
        assert done.status == 0, (script, done)
        return done.stdout.strip()

    def kill(self, identifier: str) -> None:
        self.engine.request_json("POST", f"/containers/{identifier}/kill")

    def clean(self) -> None:
        """Remove everything with the owner's label, in any state."""
        for name in self.containers():
            subprocess.run(["docker", "rm", "-f", "-v", name], capture_output=True, timeout=120)
        for name in self.volumes():
            subprocess.run(["docker", "volume", "rm", "-f", name], capture_output=True, timeout=120)


_UP = """
import json, os, re, signal, sys
words = json.loads(sys.argv[1])
sys.path.insert(0, sys.argv[2])
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.target import DockerTarget
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
spec = WorkspaceSpec(words["owner"], Settings(**words["settings"]), words["name"],
    Repository.parse(words["repository"]), image=words["image"], image_hash=words["image_hash"])
request, seen = docker_http.Engine.request, [0]
def dying(self, method, path, *more, **named):
    when, pattern, which = words["die"]
    seen[0] += bool(re.search(pattern, f"{method} {path}"))
    mine = re.search(pattern, f"{method} {path}") and seen[0] == which
    if mine and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = request(self, method, path, *more, **named)
    if mine:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
if words["die"]:
    docker_http.Engine.request = dying
try:
    result = lifecycle.ensure(DockerTarget(), spec, words["state"])
except FlowError as error:
    print(json.dumps({"ok": False, **error.to_dict()}))
    sys.exit(error.code)
print(json.dumps({"ok": True, "changed": result.changed, "actions": result.actions,
    "id": result.workspace.id if result.workspace else "", "name": result.workspace.name if result.workspace else "",
    "clone": result.workspace.step("clone").state if result.workspace else ""}))
"""


@contextmanager
def harness(folder: Path, image: image_identity.Image) -> Iterator[Harness]:
    """A harness that removes everything of its owner afterwards."""
    made = Harness(folder, image)
    try:
        yield made
    finally:
        made.clean()
