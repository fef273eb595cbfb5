# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The values that a target starts a workspace with, and the places they are kept in."""

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
    """A step or command that cannot be done: a sentence for the user, and the exit status that says which kind."""

    def __init__(self, sentence: str, status: int = 1, state: str = "failed") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status
        self.state = state


@dataclass(frozen=True)
class Paths:
    """Every place the contract touches. ``root`` is another directory in tests only."""

    root: Path = Path("/")

    @property
    def home(self) -> Path:
        return self.root / "home/coder"

    @property
    def run(self) -> Path:
        """Memory only (tmpfs): password, host key, sessions."""
        return self.root / "run/spt-flow"

    @property
    def runtime(self) -> Path:
        """``XDG_RUNTIME_DIR``."""
        return self.root / "run/user/1000"

    @property
    def state(self) -> Path:
        """What outlives a restart."""
        return self.home / ".local/state/spt-flow"

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
        """code-server touches it while a browser talks to it."""
        return self.home / ".local/share/code-server/heartbeat"


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        raise Failure(f"The start contract's {name} is not a number.", 8) from None
    if not 0 <= value < 1e12:
        raise Failure(f"The start contract's {name} is out of range.", 8)
    return value


def _moment(environ: Mapping[str, str], name: str) -> float:
    """Seconds since the epoch, also of a time such as ``2026-01-31T12:00:00Z``, which is all that Terraform can say."""
    text = environ.get(name, "").strip()
    if not text.endswith("Z"):
        return _number(environ, name, 0)
    try:
        return datetime.fromisoformat(text[:-1] + "+00:00").timestamp()
    except ValueError:
        raise Failure(f"The start contract's {name} is not a time.", 8) from None


@dataclass(frozen=True)
class Contract:
    """The start contract's values (``SPT_FLOW_*``). Times in seconds; ``deadline`` since the epoch, 0 is none.

    ``tick`` is how many contract seconds pass in a real one: everything that waits for minutes is divided by it.
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
        """Read ``SPT_FLOW_*``; raises ``Failure`` for what no workspace can start with."""

        def text(name: str) -> str:
            return environ.get(f"SPT_FLOW_{name}", "")

        version = text("CONTRACT") or CONTRACT
        if version != CONTRACT:
            raise Failure(f"This image speaks start contract {CONTRACT}, it was started with {version[:20]!r}.", 8)
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
        """For the commands: an SSH session does not inherit the container's environment."""
        write_file(paths.run / "contract.json", json.dumps(asdict(self)), 0o600)

    @classmethod
    def load(cls, paths: Paths, environ: Mapping[str, str]) -> Contract:
        """The running workspace's values, else the environment's."""
        try:
            return cls(**json.loads((paths.run / "contract.json").read_text()))
        except (OSError, ValueError, TypeError):
            return cls.from_environment(environ)


@contextmanager
def alone(lock: Path, seconds: float, busy: str) -> Iterator[None]:
    """Be the only process that holds ``lock``; raises ``Failure`` with the sentence ``busy`` after so many seconds."""
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
    """Replace ``path`` in one step, so that a reader or a kill never meets half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    os.replace(temporary, path)


def reason(error: OSError) -> str:
    """The system's words for ``error``, without Python's decoration."""
    return error.strerror or type(error).__name__
