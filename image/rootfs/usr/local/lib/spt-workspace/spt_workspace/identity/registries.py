# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker's credential helper: logins of the user's own machine, and those of `docker login` in here, in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contract import Failure, Paths, alone, write_file
from . import sessions

NAME = "spt-flow"
NOT_FOUND = "credentials not found in native keychain"
"""With these words Docker goes on without a login (docker-credential-helpers)."""
PATIENCE = 15.0


def configure(paths: Paths) -> None:
    """Make Docker use the helper, unless the user has a configuration of their own. Raise ``OSError``."""
    place = paths.home / ".docker/config.json"
    if not place.exists() and not place.is_symlink():
        place.parent.mkdir(mode=0o700, exist_ok=True)
        write_file(place, json.dumps({"credsStore": NAME}, indent=1) + "\n", 0o600)


def run(operation: str, text: str, paths: Paths) -> tuple[int, str]:
    """Return the exit status and the output for one operation of the helper protocol."""
    if operation == "get":
        return _get(text.strip(), paths)
    if operation == "list":
        return 0, json.dumps({server: login["Username"] for server, login in _memory(paths).items()})
    if operation not in ("store", "erase"):
        return 1, f"unknown operation {operation[:20]!r}"
    with alone(paths.run / "registries.lock", 10, "Another process changes the logins."):
        known = _memory(paths)
        if operation == "erase":
            known.pop(text.strip(), None)
        else:
            login = json.loads(text)
            known[login["ServerURL"]] = {name: str(login[name]) for name in ("Username", "Secret")}
        write_file(paths.run / "registries.json", json.dumps(known), 0o600)
    return 0, ""


def _get(server: str, paths: Paths) -> tuple[int, str]:
    login: Mapping[str, Any] | None = _memory(paths).get(server)
    if login is None:
        try:
            answer = sessions.ask(paths, {"kind": "docker", "operation": "get", "server": server}, PATIENCE)
        except Failure as failure:
            if failure.sentence not in (sessions.NO_SESSION, sessions.ENDED):
                print(f"spt-workspace: {failure.sentence}", file=sys.stderr)
            return 1, NOT_FOUND
        login = {"Username": answer.get("username"), "Secret": answer.get("secret")}
    if not all(isinstance(value, str) for value in login.values()):
        return 1, NOT_FOUND
    return 0, json.dumps({"ServerURL": server, **login})


def _memory(paths: Paths) -> dict[str, dict[str, str]]:
    try:
        found = json.loads((paths.run / "registries.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def main() -> int:
    operation = sys.argv[1] if len(sys.argv) == 2 else ""
    try:
        status, output = run(operation, sys.stdin.read(sessions.LARGEST), Paths(Path("/")))
    except Failure as failure:
        status, output = 1, failure.sentence
    except (OSError, ValueError, KeyError, TypeError):
        status, output = 1, "the login could not be stored"
    print(output)
    return status
