# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run whole `ansible-playbook` processes for a test: with an owner of its own and a small repository."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT = 900
"""Seconds for one process; the first may have to build the image."""


def git(*argv: str, cwd: Path) -> str:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.com")
    done = subprocess.run(["git", *identity, *argv], cwd=cwd, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def make_repository(path: Path) -> Path:
    """Create a repository with one commit."""
    path.mkdir(parents=True)
    git("init", "--quiet", "--initial-branch=main", cwd=path)
    (path / "hello.txt").write_text("hello\n")
    git("add", "hello.txt", cwd=path)
    git("commit", "--quiet", "-m", "first", cwd=path)
    return path


@dataclass
class Playbooks:
    """Run playbooks for one owner. ``name`` is the name of the workspace, ``repository`` a local path."""

    owner: str
    repository: Path
    home: Path
    programs: Path = Path(sys.executable).parent
    cwd: Path = CHECKOUT
    installed: Path | None = None
    callbacks: bool = True

    @property
    def name(self) -> str:
        return self.repository.name

    def environment(self, **more: str) -> dict[str, str]:
        """Return a clean environment with its own home, so that no setting of the user applies."""
        kept = ("PATH", "LANG", "LC_ALL", "TERM", "DOCKER_HOST", "XDG_RUNTIME_DIR")
        base = {name: os.environ[name] for name in kept if name in os.environ}
        base["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        base |= {
            "HOME": str(self.home),
            "SPT_FLOW_OWNER": self.owner,
            "SPT_FLOW_PROFILE": "slim",
            "SPT_FLOW_MEMORY": "2g",
            "SPT_FLOW_CPUS": "2",
        }
        if self.installed:
            base |= {
                "ANSIBLE_COLLECTIONS_PATH": str(self.installed),
                "ANSIBLE_LOCALHOST_WARNING": "false",
                "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
            }
        if self.installed and self.callbacks:
            base |= {"ANSIBLE_STDOUT_CALLBACK": "spt.flow.output", "ANSIBLE_CALLBACKS_ENABLED": "spt.flow.connect"}
        return {**base, "PATH": f"{self.programs}:{base['PATH']}", **more}

    def argv(self, playbook: str, *more: str) -> list[str]:
        place = f"spt.flow.{playbook}" if self.installed or playbook != "up" else "up.yml"
        return [str(self.programs / "ansible-playbook"), place, *more]

    def run(
        self, playbook: str, *more: str, stdin: bytes = b"", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(playbook, *more),
            cwd=self.cwd,
            env=self.environment(**environment),
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert "Traceback" not in out + err, out + err
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def json(self, playbook: str, *more: str, **environment: str) -> dict[str, Any]:
        """Return the JSON object that a playbook prints; a failed run prints one too."""
        done = self.run(playbook, *more, SPT_FLOW_OUTPUT="json", **environment)
        try:
            result: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise AssertionError(f"no JSON: {done.stdout}\n{done.stderr}") from None
        assert result["ok"] == (done.returncode == 0), (done.returncode, result)
        return {**result, "status": done.returncode, "stderr": done.stderr}

    def up(self, **environment: str) -> dict[str, Any]:
        result = self.json("up", SPT_FLOW_REPO=str(self.repository), **environment)
        assert result["ok"], result
        return result


def docker(*argv: str) -> str:
    return subprocess.run(["docker", *argv], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def belongings(owner: str) -> list[str]:
    """Return the names of all containers and volumes with the owner's label."""
    label = f"label=spt.flow.owner={owner}"
    containers = docker("ps", "--all", "--filter", label, "--format", "{{.Names}}").split()
    volumes = docker("volume", "ls", "--filter", label, "--format", "{{.Name}}").split()
    return sorted([*containers, *volumes])


def remove(owner: str) -> None:
    """Remove all containers and volumes with the owner's label."""
    label = f"label=spt.flow.owner={owner}"
    for container in docker("ps", "--all", "--quiet", "--filter", label).split():
        subprocess.run(
            ["docker", "rm", "--force", "--volumes", container], capture_output=True, timeout=60, check=False
        )
    for volume in docker("volume", "ls", "--quiet", "--filter", label).split():
        subprocess.run(["docker", "volume", "rm", "--force", volume], capture_output=True, timeout=60, check=False)


@contextmanager
def playbooks(folder: Path, **more: Any) -> Iterator[Playbooks]:
    """Run playbooks for a random owner; remove everything of this owner afterwards."""
    owner = f"test-{secrets.token_hex(3)}"
    home = folder / "home"
    home.mkdir(parents=True)
    repository = make_repository(folder / f"repo-{secrets.token_hex(2)}")
    try:
        yield Playbooks(owner, repository, home, **more)
    finally:
        remove(owner)
