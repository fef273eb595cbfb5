# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of snapshots on a node, and exclusive access to it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from .. import atomic
from ..errors import AuthError, Conflict, InvalidInput
from .restic import Restic
from .volumes import Volume, Volumes, by_name, discover

CONFIG = "/etc/spt-flow/snapshots.json"


@dataclass
class Config:
    """Settings of a node, written by the role ``host_snapshots``. Sizes in bytes, ages in hours or days as named."""

    repository: str
    password_file: str = "/etc/spt-flow/snapshots.password"  # noqa: S105
    state: str = "/var/lib/spt-flow/snapshots"
    lock: str = "/run/lock/spt-flow-snapshots.lock"
    data_root: str = "/var/lib/docker"
    socket: str = "/var/run/docker.sock"
    engine: bool = True
    node: str = field(default_factory=lambda: os.uname().nodename)
    source: str = "auto"
    keep_days: int = 7
    orphan_days: int = 30
    max_age_hours: float = 26
    verify_parts: int = 4
    exclude: tuple[str, ...] = ()
    textfile: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    cache: str = "/var/cache/spt-flow/restic"

    @classmethod
    def load(cls, path: str = CONFIG) -> Config:
        """Load ``path``. Raise ``FlowError`` for an unreadable file and unknown keys."""
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"Cannot read the settings {path}: {error}.", "Run the role host_snapshots on this node."
            ) from error
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise InvalidInput(
                f"Unknown settings in {path}: {', '.join(unknown)}.", "Run the role host_snapshots on this node."
            )
        return cls(**data)

    def restic(self) -> Restic:
        return Restic(self.repository, self.password_file, self.cache, environment=self.environment)

    def volumes(self) -> tuple[list[Volume], str]:
        if not self.engine:
            return by_name(self.data_root), ""
        return discover(Volumes(self.socket), self.data_root)


def set_password(config: Config, given: str = "") -> bool:
    """Set the password file to ``given``, or to a new random password if it does not exist. Return whether it changed.

    A password that does not open an existing repository is rejected: the only key to all snapshots would be lost.
    """
    path = Path(config.password_file)
    current = path.read_text().rstrip("\n") if path.exists() else ""
    if current and given in ("", current):
        path.chmod(0o600)
        return False
    fresh = path.with_name(path.name + ".new")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(fresh, (given or secrets.token_urlsafe(32)) + "\n", 0o600, durable=True)
    try:
        if (
            current
            and Restic(config.repository, config.password_file, config.cache, environment=config.environment).exists()
        ):
            Restic(config.repository, str(fresh), config.cache, environment=config.environment).exists()
        fresh.replace(path)
    except AuthError as error:
        raise Conflict(
            f"The new password does not open the repository {config.repository}; the old one was kept.",
            f"Add it first: restic -r {config.repository} -p {config.password_file} key add.",
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
    return True


def init(config: Config) -> bool:
    """Create the repository if it does not exist. Return whether it was created."""
    restic = config.restic()
    if restic.exists():
        return False
    restic.init()
    return True


@contextmanager
def exclusive(config: Config) -> Iterator[None]:
    """Allow one run or verification at a time. The kernel releases the lock of a killed one."""
    Path(config.lock).parent.mkdir(parents=True, exist_ok=True)
    with Path(config.lock).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(
                "Another snapshot run is in progress on this node.",
                "Wait until it has finished: systemctl status spt-flow-snapshots.",
            ) from None
        yield
