# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install the operator's git hooks at every start, before the first git command of a user."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .contract import Contract, Failure, Paths, write_file

WRAPPER = Path(__file__).resolve().parent.parent / "hook"
NAMES = (
    "applypatch-msg",
    "commit-msg",
    "post-applypatch",
    "post-checkout",
    "post-commit",
    "post-merge",
    "post-rewrite",
    "pre-applypatch",
    "pre-auto-gc",
    "pre-commit",
    "pre-merge-commit",
    "pre-push",
    "pre-rebase",
    "prepare-commit-msg",
)
"""Hooks of users' commands, except those that git calls many times in one command."""


def listed(contract: Contract) -> dict[str, str]:
    """Return the scripts by hook."""
    if not contract.git_hooks:
        return {}
    try:
        found = json.loads(contract.git_hooks)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise Failure("The operator's git hooks (SPT_FLOW_GIT_HOOKS) are not scripts by name. None were installed.")
    unknown = sorted(set(found) - set(NAMES))
    if unknown:
        raise Failure(f"git runs no hook {unknown[0]!r} on a user's command; none of the operator's were installed.")
    return found


def folder(paths: Paths) -> Path:
    """Return the folder of the hooks; it is in the home because tmpfs is mounted noexec."""
    return paths.state / "hooks"


def install(contract: Contract, paths: Paths) -> None:
    """Link every hook to the wrapper, which runs the operator's hook and then the clone's own."""
    scripts = listed(contract)
    place = folder(paths)
    if not scripts:
        shutil.rmtree(place, ignore_errors=True)
        return
    (place / "operator").mkdir(parents=True, exist_ok=True)
    for left in (place / "operator").iterdir():
        if left.name not in scripts:
            left.unlink()
    for name, text in scripts.items():
        write_file(place / "operator" / name, text, 0o755)
    for name in NAMES:
        fresh = place / f".{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(WRAPPER)
        fresh.replace(place / name)
