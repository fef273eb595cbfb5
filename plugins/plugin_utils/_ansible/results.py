# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build and read task results: errors as data, and what a run leaves for its callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...module_utils._node.errors import FlowError, redact
from .._engine.common import untrusted

if TYPE_CHECKING:
    pass


ANSIBLE_KEYS = ("ansible_stats", "exception", "failed", "invocation", "warnings", "deprecations")
"""Keys of a task's result that are Ansible's own."""


def run_data(stats: Any) -> dict[str, Any] | None:
    """What the last action of a run left for its end: verb, result, block, connect, output."""
    data = stats.custom.get("_run", {}).get("spt_flow")
    return data if isinstance(data, dict) else None


def has_failed(stats: Any) -> bool:
    return any(stats.failures.values()) or any(stats.dark.values())


def failure(result: Mapping[str, Any]) -> dict[str, Any]:
    """A failed task's result as the JSON object shows it; what other modules report gets the general code 1."""
    error = result.get("error")
    if is_ours(result):
        return {name: value for name, value in result.items() if not name.startswith("_") and name not in ANSIBLE_KEYS}
    message = redact(str(result.get("msg") or error or "The task failed without a message."))
    return {"changed": bool(result.get("changed")), "msg": message, "error": FlowError(message).to_dict()}


def is_ours(result: Mapping[str, Any]) -> bool:
    """Whether a failed result is one of ``failed``'s."""
    error = result.get("error")
    return isinstance(error, Mapping) and {"code", "kind", "message", "hint"} <= set(error)


def sentences(result: Mapping[str, Any]) -> list[str]:
    """The lines that tell a person about a failed result of ours."""
    return [line for line in (result["error"]["message"], result["error"]["hint"]) if line]


def failed(error: FlowError, **more: Any) -> dict[str, Any]:
    """A failed task's result."""
    error.message, error.hint = untrusted.text(error.message), untrusted.text(error.hint)
    return {"failed": True, "changed": False, "msg": str(error), "error": error.to_dict(), **more}


def unexpected(doing: str, error: Exception) -> FlowError:
    """What nobody foresaw, as a sentence; the traceback is shown at -vvv only."""
    return FlowError(
        f"Cannot {doing}: {type(error).__name__}: {error}".rstrip(": ") + ".",
        "This is a fault of spt.flow. Run again with -vvv and report what it prints.",
    )


class NotYet(FlowError):
    """Check mode before a first run: what would be asked is not there."""
