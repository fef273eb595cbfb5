# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read user values: task arguments, extra variables, environment, settings file and inventory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.splitter import parse_kv, split_args
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from ...module_utils._node.errors import FlowError, InvalidInput
from .._engine.settings import options as settings_options
from .._engine.settings import resolve as settings_resolve

if TYPE_CHECKING:
    pass


RUNNER_CALLBACK = "awx_display"
OUTPUT_CALLBACK = "spt.flow.output"
TEMPLATE_MARKS = ("{{", "{%", "{#")
display = Display()


def extra_values(loader: DataLoader | None = None) -> dict[str, Any]:
    """Return extra variables as typed, not templated (docs/decisions/values-by-environment.md)."""
    return {str(name): _plain(value) for name, value in load_extra_vars(loader or DataLoader()).items()}


def _plain(value: Any) -> Any:
    """Return ``value`` without Ansible's tags, so that user input is never trusted as a template later."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def refuse_templates(values: Mapping[str, Any]) -> None:
    """Reject user values that Ansible would run as a template (docs/decisions/values-by-environment.md)."""
    for name in settings_options.OPTIONS:
        if has_template(values.get(name)):
            raise InvalidInput(
                f"The value of {name} contains {{{{, {{% or {{#, which Ansible would run as a template.",
                f"Pass it by environment, where it is taken literally: SPT_FLOW_{name.upper()}='…'.",
            )


def has_template(value: Any) -> bool:
    """Return whether Ansible would run ``value``, or a text nested in it, as a template."""
    if isinstance(value, str):
        return any(mark in value for mark in TEMPLATE_MARKS)
    if isinstance(value, Mapping):
        return any(map(has_template, (*value, *value.values())))
    return isinstance(value, (list, tuple)) and any(map(has_template, value))


def refuse_stray_words(texts: Iterable[Any]) -> None:
    """Reject ``-e command=make test``: Ansible keeps only ``make`` (docs/decisions/values-by-environment.md)."""
    for text in map(str, texts):
        if not text or text[0] in "@[{":
            continue
        words = [(word, *word.partition("=")[::2]) for word in split_args(text)]
        names = [name for word, name, _value in words if "=" in word and name in settings_options.OPTIONS]
        stray = [word for word, _name, _value in words if "=" not in word]
        if "command" in names:
            position = [name for _word, name, _value in words].index("command")
            if words[position][2][:1] not in ("'", '"'):
                stray = words[position + 1 :] or stray
            elif parse_kv(text)["command"] not in text:
                raise InvalidInput(
                    "Ansible would change the backslashes in the command.",
                    "Pass it by environment, where it is taken literally: SPT_FLOW_COMMAND='…'.",
                )
        if names and stray:
            name = "command" if "command" in names else names[0]
            raise InvalidInput(
                f"Of -e {name}=… Ansible keeps the first word only and loses the rest.",
                f"Quote the value twice, -e \"{name}='…'\", or pass it by environment: SPT_FLOW_{name.upper()}='…'.",
            )


def user_layers(
    args: Mapping[str, Any], task_vars: Mapping[str, Any], templar: Any, loader: Any
) -> dict[str, dict[str, Any]]:
    """Return the sources of values, strongest first, in the format of ``settings.resolve``."""
    refuse_stray_words(context.CLIARGS.get("extra_vars") or ())
    extra = extra_values(loader)
    refuse_templates(extra)
    return {
        "the task": {name: _plain(value) for name, value in args.items() if value is not None},
        "extra variables": {name: value for name, value in extra.items() if name in settings_options.OPTIONS},
        "the environment": settings_resolve.from_environment(os.environ),
        "the settings file": settings_resolve.load_user_settings(),
        "the inventory": {
            name: from_inventory(templar, task_vars[f"flow_{name}"])
            for name in settings_options.OPTIONS
            if task_vars.get(f"flow_{name}") is not None
        },
    }


def from_inventory(templar: Any, value: Any) -> Any:
    """Return an inventory's ``value``, which may be a template."""
    return _plain(templar.template(value))


def screen() -> str:
    """Return the use of standard output: ``text``, ``json`` (one object) or ``raw`` (the bytes of a command).

    Callbacks need it before an action validates the values. So an invalid value means ``text`` here and is rejected by
    the action.
    """
    if C.DEFAULT_STDOUT_CALLBACK != OUTPUT_CALLBACK:
        return "text"
    try:
        layers = [extra_values(), settings_resolve.from_environment(os.environ), settings_resolve.load_user_settings()]
    except (AnsibleError, FlowError):
        return "text"
    first = {name: next((layer[name] for layer in layers if layer.get(name)), "") for name in ("output", "command")}
    if first["output"] == "json":
        return "json"
    return "raw" if first["command"] else "text"
