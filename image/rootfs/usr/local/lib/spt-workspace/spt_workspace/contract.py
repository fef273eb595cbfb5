# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings that a target passes to the workspace agent, and the paths that the agent uses."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

CONTRACT = "1"
STEPS = ("home", "clone", "docker", "ide", "devcontainer", "dotfiles")


class Failure(Exception):
    """A step or command failed: a sentence for the user, and an exit status by kind."""

    def __init__(self, sentence: str, status: int = 1, state: str = "failed") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status
        self.state = state


@dataclass(frozen=True)
class Paths:
    """The paths that the agent uses. ``root`` differs in tests only."""

    root: Path = Path("/")

    @property
    def home(self) -> Path:
        return self.root / "home/coder"

    @property
    def run(self) -> Path:
        """In memory (tmpfs): password, host key, sessions."""
        return self.root / "run/spt-flow"

    @property
    def runtime(self) -> Path:
        """``XDG_RUNTIME_DIR``."""
        return self.root / "run/user/1000"

    @property
    def state(self) -> Path:
        """State that survives a restart."""
        return self.home / ".local/state/spt-flow"

    @property
    def agent(self) -> Path:
        """The SSH agent of the newest live session."""
        return self.run / "agent.sock"

    @property
    def signing(self) -> Path:
        """Git's configuration for signatures, as the newest session wants them."""
        return self.run / "gitconfig.signing"

    @property
    def sessions(self) -> Path:
        return self.run / "sessions"

    @property
    def docker_data(self) -> Path:
        return self.root / "var/lib/spt-flow-docker"

    @property
    def docker_socket(self) -> Path:
        return self.runtime / "docker.sock"

    @property
    def keepalive(self) -> Path:
        return self.state / "keepalive.json"

    @property
    def heartbeat(self) -> Path:
        """code-server updates its time while a browser is connected."""
        return self.home / ".local/share/code-server/heartbeat"


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        raise Failure(f"The workspace agent's setting {name} is not a number.", 8) from None
    if not 0 <= value < 1e12:
        raise Failure(f"The workspace agent's setting {name} is out of range.", 8)
    return value


def _moment(environ: Mapping[str, str], name: str) -> float:
    """Return seconds since the epoch; also reads ``2026-01-31T12:00:00Z``, the only form that Terraform can write."""
    text = environ.get(name, "").strip()
    if not text.endswith("Z"):
        return _number(environ, name, 0)
    try:
        return datetime.fromisoformat(text[:-1] + "+00:00").timestamp()
    except ValueError:
        raise Failure(f"The workspace agent's setting {name} is not a time.", 8) from None


@dataclass(frozen=True)
class Contract:
    """The agent's settings (``SPT_FLOW_*``). Times are in seconds; ``deadline`` is since the epoch, 0 means none.

    ``tick`` is the number of seconds of the agent's clock per real second, so that tests need not wait for minutes.
    """

    workspace: str = ""
    kind: str = "dev"
    repo: str = ""
    repo_id: str = ""
    ref: str = ""
    directory: str = ""
    seed: str = ""
    depth: int = 0
    submodules: bool = False
    lfs: bool = True
    clone_cache: str = ""
    dotfiles: str = ""
    git_name: str = ""
    git_email: str = ""
    ide_bind: str = "127.0.0.1"
    ide_port: int = 8080
    ide_auth: str = "password"
    idle_stop: float = 7200.0
    deadline: float = 0.0
    docker: bool = False
    docker_reason: str = ""
    kvm: str = "auto"
    known_hosts: str = ""
    git_hooks: str = ""
    tick: float = 1.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Contract:
        """Read ``SPT_FLOW_*``; raise ``Failure`` for values with which no workspace can start."""

        def text(name: str) -> str:
            return environ.get(f"SPT_FLOW_{name}", "")

        version = text("CONTRACT") or CONTRACT
        if version != CONTRACT:
            raise Failure(
                f"The image's workspace agent has protocol {CONTRACT}, the client {version[:20]!r}. Update the image.",
                8,
            )
        return cls(
            workspace=text("WORKSPACE"),
            kind=text("KIND") or "dev",
            repo=text("REPO"),
            repo_id=text("REPO_ID"),
            ref=text("REF"),
            directory=text("DIRECTORY"),
            seed=text("SEED"),
            depth=int(_number(environ, "SPT_FLOW_DEPTH", 0)),
            submodules=text("SUBMODULES") == "1",
            lfs=text("LFS") != "0",
            clone_cache=text("CLONE_CACHE"),
            dotfiles=text("DOTFILES"),
            git_name=text("GIT_NAME"),
            git_email=text("GIT_EMAIL"),
            ide_bind=text("IDE_BIND") or "127.0.0.1",
            ide_auth="none" if text("IDE_AUTH") == "none" else "password",
            ide_port=int(_number(environ, "SPT_FLOW_IDE_PORT", 8080)),
            idle_stop=_number(environ, "SPT_FLOW_IDLE_STOP", 7200),
            deadline=_moment(environ, "SPT_FLOW_DEADLINE"),
            docker=text("DOCKER") == "on",
            docker_reason=text("DOCKER_REASON"),
            kvm=text("KVM") or "auto",
            known_hosts=text("KNOWN_HOSTS"),
            git_hooks=text("GIT_HOOKS"),
            tick=max(0.01, _number(environ, "SPT_FLOW_TICK", 1)),
        )

    def save(self, paths: Paths) -> None:
        """Store the settings for the commands, because SSH sessions do not inherit the container's environment."""
        write_file(paths.run / "contract.json", json.dumps(asdict(self)), 0o600)

    @classmethod
    def load(cls, paths: Paths, environ: Mapping[str, str]) -> Contract:
        """Return the settings of the running workspace, else those of the environment."""
        try:
            return cls(**json.loads((paths.run / "contract.json").read_text()))
        except (OSError, ValueError, TypeError):
            return cls.from_environment(environ)


@contextmanager
def alone(lock: Path, seconds: float, busy: str) -> Iterator[None]:
    """Hold ``lock`` exclusively; raise ``Failure`` with the sentence ``busy`` after ``seconds``."""
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
    until = time.monotonic() + seconds
    try:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > until:
                raise Failure(busy, 7)
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace ``path`` atomically, so that readers never see half of it, even after a kill."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    os.replace(temporary, path)


def reason(error: OSError) -> str:
    """Return the system's message for ``error``, without Python's prefix."""
    return error.strerror or type(error).__name__
