# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check what a user's machine needs for workspaces, without changing it.

A check is needed when the target cannot work without it; optional programs are reported as notes. Each check that
fails says how to get what is missing.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....module_utils._node import process
from ....module_utils._node.errors import FlowError, Unhealthy
from ..workspace.checks import TIMEOUT, Check, clock_skew

if TYPE_CHECKING:
    from ..workspace.kinds import TargetKind

Say = Callable[[str], None]
WORDS = {"ok": "ok", "missing": "MISSING", "note": "note"}


def examine(values: Mapping[str, Any], kind: TargetKind, server: str, say: Say, fetch: bool = False) -> list[Check]:
    """Return everything that the target needs. ``server`` is the address of a server that the user has just given."""
    return [git(), ssh(), agent(), *clock(), *kind.examine(values, server, say, fetch)]


def missing(checks: Iterable[Check]) -> FlowError | None:
    """Return the error that names the missing requirements, or ``None``."""
    names = [check.name for check in checks if check.state == "missing"]
    if not names:
        return None
    return Unhealthy(
        f"Workspaces cannot be used from this machine. Missing: {', '.join(names)}.",
        "The lines above say how to fix it.",
    )


def lines(checks: Iterable[Check]) -> list[str]:
    """Return one line per check, and another with its fix."""
    shown = []
    for check in checks:
        shown.append(f"  {WORDS[check.state]:<8}{check.name:<12} {check.message}")
        if check.hint and check.state != "ok":
            shown += [f"  {'':<20} {line}" for line in check.hint.splitlines()]
    return shown


def git() -> Check:
    said = _first_line("git", "--version")
    if said is None:
        return Check("git", "missing", "The program git is not installed.", "Install it: sudo apt-get install git")
    return Check("git", "ok", said[1])


def ssh() -> Check:
    said = _first_line("ssh", "-V")
    if said is None:
        hint = "Install OpenSSH's client: sudo apt-get install openssh-client"
        return Check("ssh", "missing", "The program ssh is not installed.", hint)
    return Check("ssh", "ok", said[1])


def agent() -> Check:
    """Check for an SSH agent with a key: it clones repositories that need the user's key."""
    hint = 'Its keys are needed to clone private repositories: eval "$(ssh-agent)"; ssh-add'
    if not os.environ.get("SSH_AUTH_SOCK"):
        return Check("ssh agent", "note", "No SSH agent is running (SSH_AUTH_SOCK is not set).", hint)
    said = _first_line("ssh-add", "-l")
    if said is None or said[0] not in (0, 1):
        return Check("ssh agent", "note", "The SSH agent at SSH_AUTH_SOCK does not answer.", hint)
    if said[0] == 1:
        return Check("ssh agent", "note", "The SSH agent does not have a key.", "Add yours: ssh-add")
    return Check("ssh agent", "ok", "The SSH agent has a key.")


def clock() -> list[Check]:
    """Whether this machine's clock is certainly wrong: earlier than the collection's own files."""
    return clock_skew(max(0.0, Path(__file__).stat().st_mtime - time.time()), "the collection's files")


def _first_line(*argv: str) -> tuple[int, str] | None:
    """Return exit status and first line of a program; ``None`` when it is missing or does not end."""
    try:
        done = process.run(*argv, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode, next(iter((done.stdout + done.stderr).splitlines()), "")
