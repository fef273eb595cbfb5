# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give gh a token of the user for one command, in the environment of that process only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ..contract import Failure, Paths
from . import sessions

PROGRAM = "/usr/local/libexec/gh"
PUBLIC = "github.com"
PATIENCE = 10.0
TOKENS = ("GH_TOKEN", "GITHUB_TOKEN", "GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN")
LOGIN = ("auth login", "auth logout", "auth refresh", "auth switch")
"""Commands that gh refuses with a token in the environment."""
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")


def run(arguments: Sequence[str], paths: Paths, environ: Mapping[str, str], program: str = PROGRAM) -> NoReturn:
    """Become gh. Without a token it runs too, and says itself how to log in."""
    env = dict(environ)
    wanted = host(arguments, env)
    own = " ".join(arguments[:2]) in LOGIN or any(env.get(name) for name in TOKENS) or _logged_in(wanted, paths)
    if not own:
        env.update(_token(wanted, paths))
    os.execve(program, ["gh", *arguments], env)  # noqa: S606 - gh with the caller's own arguments


def _token(wanted: str, paths: Paths) -> dict[str, str]:
    try:
        token = sessions.ask(paths, {"kind": "token", "host": wanted}, PATIENCE).get("token")
    except Failure as failure:
        if failure.sentence not in (sessions.NO_SESSION, sessions.ENDED):
            print(f"spt-workspace: {failure.sentence}", file=sys.stderr)
        return {}
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]{1,4096}", token):
        return {}
    if wanted == PUBLIC or wanted.endswith(".ghe.com"):
        return {"GH_TOKEN": token}
    return {"GH_ENTERPRISE_TOKEN": token, "GH_HOST": wanted}


def _logged_in(wanted: str, paths: Paths) -> bool:
    """Return whether the user has logged in with gh inside this workspace."""
    try:
        text = (paths.home / ".config/gh/hosts.yml").read_text()
    except OSError:
        return False
    return bool(re.search(rf"^{re.escape(wanted)}:", text, re.MULTILINE))


def host(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return the host that gh will talk to: named by the caller, else that of the repository, else github.com."""
    words = " ".join(arguments)
    named = (
        environ.get("GH_HOST"),
        _first(r"(?:^| )--hostname[ =](\S+)", words),
        _first(r"(?:^| )(?:-R|--repo)[ =]?(?:https://)?([^/ ]+)/[^/ ]+/[^/ ]+", words),
        _first(r"^(?:[a-z+]+://)?(?:[^@/]*@)?([^:/]+)", _origin()),
    )
    found = next((name for name in named if name and _HOST.fullmatch(name)), PUBLIC)
    return found.lower()


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _origin() -> str:
    argv = ["git", "config", "--get", "remote.origin.url"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def main() -> NoReturn:
    run(sys.argv[1:], Paths(Path("/")), os.environ)
