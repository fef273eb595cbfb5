# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Validate what a CI job asks for: command, commit, artifacts and environment."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ....module_utils._node.errors import InvalidInput

if TYPE_CHECKING:
    pass


_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Job:
    """The job to run.

    ``ttl`` is in seconds; ``artifacts`` and ``junit`` are globs relative to the clone. ``env`` is sent to the command
    only, by standard input, and its values are masked in the output. ``folder`` gets one directory per run.
    """

    command: str
    commit: str = ""
    ttl: int = 1800
    artifacts: tuple[str, ...] = ()
    junit: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: Path = Path("spt-flow-ci")


def words(text: str) -> tuple[str, ...]:
    """Split ``text`` at commas and line ends."""
    return tuple(part.strip() for part in re.split(r"[,\n]", text) if part.strip())


def globs(text: str, name: str) -> tuple[str, ...]:
    """Return the globs. Raise ``InvalidInput`` for one that leaves the clone."""
    found = words(text)
    for glob in found:
        if glob.startswith(("/", "~", "-")) or ".." in glob.split("/"):
            raise InvalidInput(
                f"{name} has {glob!r}, which is outside the clone.", f"Example: {name}=dist/*,build/**/*.log"
            )
    return found


def environment(names: str, path: str, environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables for the command, and notes.

    The variables are the allowed ``names`` of ``environ``, then the content of the file, which is deleted.
    """
    chosen: dict[str, str] = {}
    notes = []
    for name in words(names):
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"env has {name.partition('=')[0]!r}, which is not a variable name.", "List names only, without values."
            )
        if name in environ:
            chosen[name] = environ[name]
        else:
            notes.append(f"{name} is not set here, so the job runs without it.")
    return {**chosen, **(_read_once(Path(path)) if path else {})}, notes


def _read_once(path: Path) -> dict[str, str]:
    """Return the NAME=value lines of ``path`` and delete it. Raise ``InvalidInput`` if other users can read it."""
    try:
        status = path.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise InvalidInput(
                f"env_file {path} is readable by other users.", f"Run chmod 600 {shlex.quote(str(path))}"
            )
        lines = path.read_text(encoding="utf-8").splitlines()
        path.unlink()
    except OSError as error:
        raise InvalidInput(f"Cannot read and delete env_file {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"env_file {path} is not valid UTF-8.") from None
    found = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = line.partition("=")
        if not line.strip() or line.startswith("#"):
            continue
        if not equals or not _NAME.fullmatch(name):
            raise InvalidInput(f"Line {number} of env_file {path} is not NAME=value.")
        found[name] = value
    return found


def check_commit(commit: str) -> str:
    if commit and not _COMMIT.fullmatch(commit):
        raise InvalidInput(
            f"commit is {commit[:70]!r}, which is not a full commit id.",
            "Give all 40 digits; for a branch or a tag, use ref.",
        )
    return commit
