# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the user's git signs, and the socket of the user's GnuPG agent."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from ....module_utils._node.errors import NotFound
from .program import Deadline

LARGEST = 64 * 1024
NAMES = r"^(commit\.gpgsign|tag\.gpgsign|gpg\.format|user\.signingkey|user\.email|gpg\.ssh\.allowedsignersfile)$"
TRUE = ("", "true", "yes", "on", "1")


def nothing() -> dict[str, Any]:
    """Return the facts of a user whose git does not sign."""
    texts = ("format", "key", "allowed_signers", "public_keys", "ownertrust")
    return {**dict.fromkeys(texts, ""), "commits": False, "tags": False}


def facts(deadline: Deadline) -> dict[str, Any]:
    """Return what a workspace needs to sign like the user, nothing secret. Raise ``Failed``."""
    config = _config(deadline)
    commits, tags = (config.get(f"{what}.gpgsign", "false").lower() in TRUE for what in ("commit", "tag"))
    key, form = config.get("user.signingkey", ""), config.get("gpg.format", "openpgp")
    found = {**nothing(), "commits": commits, "tags": tags}
    if not (key or commits or tags):
        return found
    if form == "ssh":
        key = _public(key)
        signers = _text(config.get("gpg.ssh.allowedsignersfile", ""))
        mine = f"{config.get('user.email') or '*'} {key}\n" if key else ""
        return {**found, "format": "ssh", "key": key, "allowed_signers": signers or mine}
    if form == "openpgp":
        wanted = key or config.get("user.email", "")
        _status, armor = deadline.run(["gpg", "--batch", "--armor", "--export", "--", wanted])
        _status, trust = deadline.run(["gpg", "--batch", "--export-ownertrust"])
        return {**found, "format": "openpgp", "key": key, "public_keys": armor, "ownertrust": trust}
    return found


def gpg_agent(deadline: Deadline) -> socket.socket:
    """Return a connection to the GnuPG agent's socket for other machines, which cannot export keys. Raise ``NotFound``.

    Only for users whose git signs with GnuPG: others would give away decryption for nothing.
    """
    if facts(deadline)["format"] != "openpgp":
        raise NotFound("Your git does not sign with GnuPG.", "On your machine: git config --global commit.gpgsign true")
    deadline.run(["gpgconf", "--launch", "gpg-agent"])
    path = deadline.run(["gpgconf", "--list-dirs", "agent-extra-socket"])[1].strip()
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise NotFound(f"Your GnuPG agent does not answer at {path}: {error.strerror}.") from None
    return connection


def _config(deadline: Deadline) -> dict[str, str]:
    # Outside of repositories: the current directory's may be another person's.
    _status, out = deadline.run(["git", "config", "--null", "--get-regexp", NAMES])
    return {key: value for key, _newline, value in (entry.partition("\n") for entry in out.split("\0")) if key}


def _public(key: str) -> str:
    """Return the public key that git's user.signingkey names: itself, or the content of its file."""
    text = key.removeprefix("key::")
    if not text.startswith(("ssh-", "ecdsa-", "sk-")):
        text = _text(text if text.endswith(".pub") else f"{text}.pub")
    words = text.split()
    return " ".join(words[:2]) if len(words) >= 2 else ""


def _text(path: str) -> str:
    with contextlib.suppress(OSError), open(os.path.expanduser(path), encoding="utf-8", errors="replace") as file:
        return file.read(LARGEST)
    return ""
