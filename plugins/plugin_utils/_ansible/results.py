# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build and read task results: errors as data, and data for the callbacks at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...module_utils._node.errors import FlowError, redact
from .._engine.common import untrusted

if TYPE_CHECKING:
    pass


ANSIBLE_KEYS = ("ansible_stats", "exception", "failed", "invocation", "warnings", "deprecations")
"""Keys of a task's result that belong to Ansible."""


def run_data(stats: Any) -> dict[str, Any] | None:
    """Return the data that the last action left for the end of the run: verb, result, block, connect, output."""
    data = stats.custom.get("_run", {}).get("spt_flow")
    return data if isinstance(data, dict) else None


def has_failed(stats: Any) -> bool:
    return any(stats.failures.values()) or any(stats.dark.values())


def failure(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a failed task's result for the JSON object; errors of other modules get the general code 1."""
    error = result.get("error")
    if is_ours(result):
        return {name: value for name, value in result.items() if not name.startswith("_") and name not in ANSIBLE_KEYS}
    message = redact(str(result.get("msg") or error or "The task failed without a message."))
    return {"changed": bool(result.get("changed")), "msg": message, "error": FlowError(message).to_dict()}


def is_ours(result: Mapping[str, Any]) -> bool:
    """Return whether a failed result was made by ``failed``."""
    error = result.get("error")
    return isinstance(error, Mapping) and {"code", "kind", "message", "hint"} <= set(error)


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of a failed result for users."""
    return [line for line in (result["error"]["message"], result["error"]["hint"]) if line]


def failed(error: FlowError, **more: Any) -> dict[str, Any]:
    """Return a failed task's result."""
    error.message, error.hint = untrusted.text(error.message), untrusted.text(error.hint)
    return {"failed": True, "changed": False, "msg": str(error), "error": error.to_dict(), **more}


def unexpected(doing: str, error: Exception) -> FlowError:
    """Return an unexpected error as a sentence; the traceback is only shown at -vvv."""
    return FlowError(
        f"Cannot {doing}: {type(error).__name__}: {error}".rstrip(": ") + ".",
        "This is a bug of spt.flow. Run it again with -vvv and report the output.",
    )


class NotYet(FlowError):
    """Check mode before a first run: the objects to check do not exist yet."""
