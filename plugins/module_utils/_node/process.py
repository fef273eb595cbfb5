# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run programs of the machine: without a shell, without input, with their messages in English."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping


def run(
    *argv: str, timeout: float | None = None, cwd: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Return how the program ended. Raises ``OSError`` where it is missing, ``TimeoutExpired`` where it hangs."""
    # AnsibleModule.run_command does not exist here: this also runs in programs that are not modules.
    return subprocess.run(  # pylint: disable=ansible-bad-function
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **(env or {})},
    )


def ask(*argv: str, timeout: float = 30.0) -> tuple[int, str, str]:
    """Return exit status, output and messages; 127 and the reason where the program is missing or does not end."""
    try:
        done = run(*argv, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, "", str(error)
    return done.returncode, done.stdout, done.stderr


def succeeds(*argv: str, timeout: float = 60.0) -> bool:
    """Return whether the program is there and ends with status 0."""
    return ask(*argv, timeout=timeout)[0] == 0
