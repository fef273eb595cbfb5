# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Git signs inside as it does on the user's machine; the keys stay there.

The newest session says how its user's git signs. What is written here is public and in memory. It stays when the last
session ends, so that a commit without a session fails instead of being unsigned.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contract import Paths, write_file
from . import relay, sessions

PROGRAM = "/usr/local/lib/spt-workspace/gpg"
"""Runs gpg with its home in memory, where the user's public keys are; the user's own ~/.gnupg is left alone."""
SECONDS = 20
_SSH_KEY = re.compile(r"(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ [A-Za-z0-9+/=]+( [ -~]*)?")
_GPG_KEY = re.compile(r"[A-Za-z0-9 <>@._+-]{1,200}!?")


def apply(answer: Mapping[str, Any], paths: Paths) -> None:
    """Write git's configuration for the answer to the query ``signing``. Raise ``OSError``."""
    form, key = answer.get("format"), answer.get("key")
    if answer.get("ok") is not True or not isinstance(key, str):
        return
    if form == "ssh" and _SSH_KEY.fullmatch(key):
        lines = _ssh(key, _text(answer, "allowed_signers"), paths)
    elif form == "openpgp" and _GPG_KEY.fullmatch(key):
        lines = _openpgp(key, _text(answer, "public_keys"), _text(answer, "ownertrust"), paths)
    elif form == "":
        paths.signing.unlink(missing_ok=True)
        return
    else:
        return
    for section, name in (("commit", "commits"), ("tag", "tags")):
        lines += [f"[{section}]", f"gpgSign = {'true' if answer.get(name) is True else 'false'}"]
    write_file(paths.signing, "\n".join(lines) + "\n")


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    return value if isinstance(value, str) else ""


def _ssh(key: str, signers: str, paths: Paths) -> list[str]:
    # A file instead of the key itself, which git before 2.35 does not take.
    public, allowed = paths.run / "signing_key.pub", paths.run / "allowed_signers"
    write_file(public, f"{key}\n")
    write_file(allowed, signers)
    return [
        *("[gpg]", "format = ssh"),
        *('[gpg "ssh"]', f"allowedSignersFile = {allowed}"),
        *("[user]", f"signingKey = {public}"),
    ]


def _openpgp(key: str, keys: str, trust: str, paths: Paths) -> list[str]:
    home = gpg_home(paths)
    for option, text in (("--import", keys), ("--import-ownertrust", trust)):
        if text:
            _run(["gpg", "--homedir", str(home), "--batch", "--quiet", option], text)
    return ["[gpg]", "format = openpgp", f"program = {PROGRAM}", "[user]", f'signingKey = "{key}"']


def gpg_home(paths: Paths) -> Path:
    """Return gpg's home in memory, created if it is missing."""
    home = paths.run / "gnupg"
    if not home.exists():
        home.mkdir(mode=0o700)
        # The agent is the user's own, behind the relay; one that gpg starts would have no keys.
        write_file(home / "gpg.conf", "no-autostart\n", 0o600)
    return home


def gpg_relay(paths: Paths) -> relay.Relay | None:
    """Return the relay to the user's gpg-agent at the path where gpg looks for one; ``None`` without gpg."""
    argv = ["gpgconf", "--homedir", str(gpg_home(paths))]
    _run([*argv, "--create-socketdir"])
    place = _run([*argv, "--list-dirs", "agent-socket"]).strip().replace("%3a", ":")
    if not place.startswith("/"):
        return None

    def connect() -> Any:
        try:
            return sessions.stream(paths, "gpg")
        except sessions.Silent:
            return None

    return relay.Relay(Path(place), connect, lambda client: None)


def _run(argv: list[str], text: str = "") -> str:
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
