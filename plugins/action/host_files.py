# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `host_files`: run the module of this name unless earlier facts show that nothing would change.

Files of this machine's own user are written by this process.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.module_utils._node.machine import files as machine_files


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        values = dict(self._task.args)
        seen = values.pop("seen", None)
        if seen and _up_to_date(values.get("files"), seen):
            return {**result, "changed": False, "paths": [], "diff": [], "msg": "already up to date"}
        if self._connection.transport == "local" and not self._connection.become:
            return {**result, **self._here()}
        return {**result, **self._execute_module(module_args=values, task_vars=task_vars)}

    def _here(self) -> dict[str, Any]:
        _validation, values = self.validate_argument_spec(machine_files.SPEC)
        try:
            return machine_files.result(values["files"], dry=self._task.check_mode)
        except FlowError as error:
            return {"failed": True, "msg": f"{error.message} {error.hint}".strip()}


def _up_to_date(files: Any, seen: Any) -> bool:
    """Return whether all files match; also false for options that the module will reject."""
    try:
        return machine_files.up_to_date([machine_files.Entry.of(values) for values in files], seen)
    except (FlowError, AttributeError, KeyError, TypeError):
        return False
