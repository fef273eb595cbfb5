# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the user's own programs that know credentials: bounded, without prompts and without a terminal."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence

from ....module_utils._node.errors import DeadlineExceeded, FlowError
from ..common import child

LIMIT = 25.0
"""Seconds for the programs of one request; with the time until they start, less than the 30 that workspaces wait."""
SILENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "SSH_ASKPASS": "",
    "SSH_ASKPASS_REQUIRE": "never",
    "GCM_INTERACTIVE": "never",
    "GH_PROMPT_DISABLED": "1",
    "NO_PROMPT": "1",
    "LC_ALL": "C",
    "LANGUAGE": "",
}


class Failed(FlowError):
    """One of the user's programs does not work."""


class Deadline:
    """The time for all programs that one request needs."""

    def __init__(self) -> None:
        self._end = time.monotonic() + LIMIT

    def run(self, argv: Sequence[str], stdin: str = "") -> tuple[int, str]:
        """Return exit status and output. Raise ``Failed``."""
        try:
            remaining = max(0.1, self._end - time.monotonic())
            status, out, _err = child.run(argv, stdin.encode(), remaining, environment())
        except DeadlineExceeded:
            raise Failed(f"On your machine, {argv[0]} did not answer within {LIMIT:g} s.") from None
        except FlowError as error:
            raise Failed(f"On your machine: {error.message}") from None
        return status, out.decode("utf-8", "replace")

    def token(self, *argv: str) -> str:
        """Return the token that a program prints as its only line; empty if it has none or is not installed."""
        if not shutil.which(argv[0]):
            return ""
        status, out = self.run(argv)
        return out.strip() if status == 0 and re.fullmatch(r"[!-~]{1,8192}", out.strip()) else ""


def environment() -> dict[str, str]:
    """Return the user's environment without prompts and without the repository that they may work in."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    return {**kept, **SILENT}
