# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Git's credential helper: nothing is stored here."""

from __future__ import annotations

import sys

from ..contract import Failure, Paths
from . import sessions


def git(operation: str, paths: Paths) -> int:
    """Pass the request on and the answer back, unchanged (gitcredentials(7)).

    Return 0 in any case, because git then tries its next helper.
    """
    if operation not in ("get", "store", "erase"):
        return 0
    text = sys.stdin.buffer.read(sessions.LARGEST // 2).decode(errors="replace")
    request = {"kind": "git", "operation": operation, "input": text}
    try:
        answer = sessions.ask(paths, request)
    except Failure as failure:
        if operation == "get":
            print(f"spt-workspace: {failure.sentence}", file=sys.stderr)
        return 0
    output = answer.get("output")
    if operation == "get" and isinstance(output, str):
        sys.stdout.write(output)
    return 0
