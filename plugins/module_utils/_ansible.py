# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between Ansible and the engine, the only engine file that imports Ansible (private to the collection).

Actions take from here the user's values (``user_layers``), the objects of the engine and results; callbacks take what a run is to
show and how it ended. Everything of the engine that is not needed by every run is imported where it is used:
`up` on a running workspace has about a hundred milliseconds above an empty play (decision B1).
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.splitter import parse_kv, split_args
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from . import _settings
from ._errors import Cancelled, FlowError, InvalidInput, redact
from ._progress import Progress

OUTPUT_CALLBACK = "spt.flow.output"
TEMPLATE_MARKS = ("{{", "{%", "{#")
ANSIBLE_KEYS = ("ansible_stats", "exception", "failed", "invocation", "warnings", "deprecations")
"""Keys of a task's result that are Ansible's own."""

display = Display()


# The user's values


def extra_values(loader: DataLoader | None = None) -> dict[str, Any]:
    """Extra variables as they were written, never templated (decision A5)."""
    return {str(name): _plain(value) for name, value in load_extra_vars(loader or DataLoader()).items()}


def _plain(value: Any) -> Any:
    """``value`` without Ansible's tags, so that nothing of the user's is trusted as a template later."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def refuse_templates(values: Mapping[str, Any]) -> None:
    """Refuse user values that Ansible would run as a template (decision A5)."""
    for name in _settings.OPTIONS:
        value = values.get(name)
        if isinstance(value, str) and any(mark in value for mark in TEMPLATE_MARKS):
            raise InvalidInput(
                f"The value of {name} contains {{{{, {{% or {{#, which Ansible would run as a template.",
                f"Pass it by environment, where it is taken literally: SPT_FLOW_{name.upper()}='…'.",
            )


def refuse_stray_words(texts: Iterable[Any]) -> None:
    """Refuse ``-e command=make test``, of which Ansible keeps ``make`` only (decision A6)."""
    for text in map(str, texts):
        if not text or text[0] in "@[{":
            continue
        words = [(word, *word.partition("=")[::2]) for word in split_args(text)]
        names = [name for word, name, _value in words if "=" in word and name in _settings.OPTIONS]
        stray = [word for word, _name, _value in words if "=" not in word]
        if "command" in names:
            position = [name for _word, name, _value in words].index("command")
            if words[position][2][:1] not in ("'", '"'):
                stray = words[position + 1 :] or stray
        if names and stray:
            name = "command" if "command" in names else names[0]
            raise InvalidInput(
                f"Of -e {name}=… Ansible keeps the first word only and loses the rest.",
                f"Quote the value twice, -e \"{name}='…'\", or pass it by environment: SPT_FLOW_{name.upper()}='…'.",
            )


def user_layers(args: Mapping[str, Any], task_vars: Mapping[str, Any], templar: Any, loader: Any) -> list[Mapping[str, Any]]:
    """Where values come from, the first that has one wins: task arguments, ``-e``, environment, settings file, inventory."""
    refuse_stray_words(context.CLIARGS.get("extra_vars") or ())
    extra = extra_values(loader)
    refuse_templates(extra)
    inventory = {
        name: _plain(templar.template(value))
        for name in _settings.OPTIONS
        if (value := task_vars.get(f"flow_{name}")) is not None
    }
    return [
        {name: _plain(value) for name, value in args.items() if value is not None},
        {name: value for name, value in extra.items() if name in _settings.OPTIONS},
        _settings.from_environment(os.environ),
        _settings.from_file(),
        inventory,
    ]


def screen() -> str:
    """What standard output is for: ``text``, ``json`` (one object) or ``raw`` (the bytes of a command in the workspace).

    Callbacks need it before any action has looked at the values, so a wrong value means ``text`` here and is refused there.
    """
    if C.DEFAULT_STDOUT_CALLBACK != OUTPUT_CALLBACK:
        return "text"
    try:
        layers = [extra_values(), _settings.from_environment(os.environ), _settings.from_file()]
    except (AnsibleError, FlowError):
        return "text"
    first = {name: next((layer[name] for layer in layers if layer.get(name)), "") for name in ("output", "command")}
    if str(first["output"]).strip() == "json":
        return "json"
    return "raw" if first["command"] else "text"


# What callbacks read


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
