# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment of checks: the image's description, a scratch folder, and commands with a timeout."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import access
from ..contract import Contract, Failure, Paths, reason
from ..processes import Children, describe
from ..record import printable

ABOUT = "usr/share/spt-flow/image.json"
PATIENCE = 180.0
"""The timeout of a command in seconds; compilers on a loaded machine are slow."""
_SCRATCH = "spt-flow-verify-"


@dataclass(frozen=True)
class Place:
    """``about`` is image.json; ``running`` is false in an image without a workspace."""

    paths: Paths
    contract: Contract
    environ: Mapping[str, str]
    about: Mapping[str, Any]
    running: bool
    scratch: Path
    children: Children = field(default_factory=Children)

    @property
    def tools(self) -> Mapping[str, Mapping[str, str]]:
        """``version``, ``state`` and, for an unavailable tool, ``reason`` by name."""
        found: Mapping[str, Mapping[str, str]] = self.about.get("tools") or {}
        return found

    @property
    def packages(self) -> tuple[str, ...]:
        return tuple(name for group in (self.about.get("packages") or {}).values() for name in group)

    def has(self, name: str) -> bool:
        """Return whether the image lists the tool or package as present."""
        tool = self.tools.get(name)
        return tool.get("state") == "present" if tool else name in self.packages

    def folder(self, name: str) -> Path:
        """Return a new folder that is removed after the run."""
        made = self.scratch / re.sub(r"[^A-Za-z0-9._-]", "-", name)
        made.mkdir()
        return made

    def run(
        self,
        argv: Sequence[str],
        cwd: Path | None = None,
        expect: str = "",
        timeout: float = PATIENCE,
        good: Callable[[int], bool] = lambda status: status == 0,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Return the output of ``argv``; raise ``Failure`` on a bad status, a timeout or output without ``expect``."""
        name = " ".join([Path(argv[0]).name, *argv[1:2]])
        if not shutil.which(argv[0], path=self.environ.get("PATH")):
            raise Failure(f"{argv[0]} is not installed, or not in the PATH.")
        outcome = self.children.run(argv, {**self.environ, **(env or {})}, timeout, cwd=str(cwd or self.scratch))
        last = printable(next((text for text in reversed(outcome.lines) if text.strip()), "it printed nothing"))
        if outcome.timed_out:
            raise Failure(f"'{name}' did not end within {timeout:.0f} s; it said last: {last}")
        if not good(outcome.status):
            raise Failure(f"'{name}' ended with {describe(outcome.status)}: {last}")
        if expect not in outcome.text:
            raise Failure(f"'{name}' did not print {expect!r} but: {last}")
        return outcome.text


def first(text: str) -> str:
    """Return the first line of ``text`` that is not empty."""
    return printable(next((found for found in text.splitlines() if found.strip()), ""))[:160]


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def about(paths: Paths) -> dict[str, Any]:
    """Return the image's description; empty if there is none."""
    try:
        found = json.loads((paths.root / ABOUT).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def place(paths: Paths, environ: Mapping[str, str]) -> Iterator[Place]:
    """Yield the environment of one run; remove leftovers of killed runs first and the scratch folder last."""
    parent = paths.root / access.CACHE.lstrip("/")
    if not os.access(parent, os.W_OK):
        parent = Path(tempfile.gettempdir())
    _sweep(parent)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-", dir=parent))
    except OSError as error:
        raise Failure(
            f"Nothing can be verified: {parent} cannot be written ({reason(error)}). Make room there.", 2
        ) from None
    contract = Contract.load(paths, environ)
    running = (paths.run / "contract.json").exists()
    try:
        made = Place(paths, contract, _environment(contract, paths, environ, scratch), about(paths), running, scratch)
        yield made
    finally:
        _remove(scratch)


def _environment(contract: Contract, paths: Paths, environ: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Return the user's environment, with caches in the scratch folder and without a network."""
    env = access.user_environment(environ, contract, paths)
    own = {
        "CARGO_HOME": "cargo",
        "CARGO_TARGET_DIR": "cargo-target",
        "GOCACHE": "go-cache",
        "GOPATH": "go",
        "GOTMPDIR": "",
        "UV_CACHE_DIR": "uv",
        "npm_config_cache": "npm",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "config",
        "XDG_DATA_HOME": "data",
        "TMPDIR": "",
    }
    kept = {name: environ[name] for name in ("GIT_CONFIG_SYSTEM",) if name in environ}
    return {
        **env,
        **kept,
        "HOME": str(paths.home),
        "LC_ALL": "C.UTF-8",
        "CARGO_NET_OFFLINE": "true",
        "GOFLAGS": "-modcacherw",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "UV_OFFLINE": "1",
        "npm_config_offline": "true",
        "npm_config_update_notifier": "false",
        **{name: str(scratch / folder) for name, folder in own.items()},
    }


def _sweep(parent: Path) -> None:
    for left in parent.glob(f"{_SCRATCH}*"):
        owner = left.name[len(_SCRATCH) :].partition("-")[0]
        if not Path("/proc", owner).exists():
            _remove(left)


def _remove(folder: Path) -> None:
    """Remove a folder, also if a tool has made parts of it read-only."""
    for place, _folders, _files in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
