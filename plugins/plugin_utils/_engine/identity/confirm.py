# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the user to confirm the use of a key, as `ssh-add -c` does."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import threading

LIMIT = 60.0
_one_at_a_time = threading.Lock()


def fingerprint(key: bytes) -> str:
    """Return the fingerprint of a public key, as OpenSSH shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def confirmed(workspace: str, key: bytes) -> bool:
    """Return whether the user allows ``workspace`` to use ``key``; false if this machine cannot ask."""
    program = os.environ.get("SSH_ASKPASS") or shutil.which("ssh-askpass")
    if not program:
        return False
    text = f"Allow workspace {workspace} to use the key {fingerprint(key)}?"
    environ = {**os.environ, "SSH_ASKPASS_PROMPT": "confirm"}
    quiet = subprocess.DEVNULL
    with _one_at_a_time:
        try:
            done = subprocess.run(
                [program, text], env=environ, stdin=quiet, stdout=quiet, stderr=quiet, timeout=LIMIT, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == 0
