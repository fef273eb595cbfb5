# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one family of errors of spt.flow.

Every error is a sentence for a person (``message``: what was attempted, on what, what happened),
what to do next (``hint``), facts for a program (``details``) and a documented ``code``.
Codes follow ``gh`` where it has one (1 failed, 2 cancelled, 4 auth).
"""

from __future__ import annotations

import re
from typing import Any

_CREDENTIALS = re.compile(
    r"(?P<scheme>ssh://)[^/\s:]*:[^/\s]*@|(?P<other>(?!ssh://)\b[a-z][a-z0-9+.-]*://)[^/\s]*@", re.IGNORECASE
)


def redact(text: str) -> str:
    """Replace the user part of every URL in ``text`` by ``***`` (the user of ``ssh://user@host`` is no secret)."""
    return _CREDENTIALS.sub(lambda match: f"{match['scheme'] or match['other']}***@", text)


class FlowError(Exception):
    """Something failed. ``code`` is the exit status that plugins report (docs/decisions/exit-status.md)."""

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
        """Shape of ``error`` in results and in JSON output."""
        return {
            "code": self.code,
            "kind": self.kind,
            "message": self.message,
            "hint": self.hint,
            "details": self.details,
        }


class InvalidInput(FlowError):
    """A value was refused before anything was started."""

    kind = "invalid_input"


class Cancelled(FlowError):
    """The user or the surrounding job ended the run."""

    code = 2
    kind = "cancelled"


class AuthError(FlowError):
    """Credentials are missing, wrong or not allowed to do this."""

    code = 4
    kind = "auth"


class DeadlineExceeded(FlowError):
    """Something did not happen in the time it was given."""

    code = 5
    kind = "timeout"


class NotFound(FlowError):
    """The named thing does not exist."""

    code = 6
    kind = "not_found"


class Conflict(FlowError):
    """Something else holds the name, the port or the lock."""

    code = 7
    kind = "conflict"


class Unhealthy(FlowError):
    """A needed service answers wrongly or not at all (engine, server, workspace)."""

    code = 8
    kind = "unhealthy"


class CloneFailed(FlowError):
    """The workspace runs, but its repository is not cloned."""

    code = 9
    kind = "clone"
