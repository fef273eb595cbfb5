# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors of spt.flow.

Each error has a ``message`` (what failed and why), a ``hint`` (what to do), ``details`` for programs and a documented
``code``. Codes follow ``gh`` where it defines one (1 failed, 2 cancelled, 4 auth).
"""

from __future__ import annotations

import re
from typing import Any

_CREDENTIALS = re.compile(
    r"(?P<scheme>ssh://)[^/\s:]*:[^/\s]*@|(?P<other>(?!ssh://)\b[a-z][a-z0-9+.-]*://)[^/\s]*@", re.IGNORECASE
)


def redact(text: str) -> str:
    """Replace the user part of every URL in ``text`` with ``***``, except in ``ssh://user@host``, where it is not
    secret.
    """
    return _CREDENTIALS.sub(lambda match: f"{match['scheme'] or match['other']}***@", text)


class FlowError(Exception):
    """A failure without a more specific kind.

    ``code`` is the exit status that plugins report (docs/decisions/exit-status.md).
    """

    code = 1
    kind = "failed"

    def __init__(self, message: str, hint: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(redact(message))
        self.message = redact(message)
        self.hint = redact(hint)
        self.details = details or {}

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Return the value of ``error`` in results and JSON output."""
        return {
            "code": self.code,
            "kind": self.kind,
            "message": self.message,
            "hint": self.hint,
            "details": self.details,
        }


class InvalidInput(FlowError):
    """A value was rejected before anything was started."""

    kind = "invalid_input"


class Cancelled(FlowError):
    """The user or the calling job cancelled the run."""

    code = 2
    kind = "cancelled"


class AuthError(FlowError):
    """Credentials are missing, wrong or lack a permission."""

    code = 4
    kind = "auth"


class DeadlineExceeded(FlowError):
    """An operation did not finish within its time limit."""

    code = 5
    kind = "timeout"


class NotFound(FlowError):
    """The named object does not exist."""

    code = 6
    kind = "not_found"


class Conflict(FlowError):
    """Another user or process has the name, the port or the lock."""

    code = 7
    kind = "conflict"


class Unhealthy(FlowError):
    """The engine, the server or the workspace returns errors or does not answer."""

    code = 8
    kind = "unhealthy"


class CloneFailed(FlowError):
    """The workspace runs, but its repository is not cloned."""

    code = 9
    kind = "clone"
