# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `workspaces`: apply a list of workspaces, several at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node.errors import Cancelled, FlowError, InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import open as ansible_open
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import results as ansible_results
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import values as ansible_values
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import kinds
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.preparation import Preparation

VARIABLE = "flow_workspaces"
MOST = 32


class ActionModule(ansible_action.FlowAction):
    OWN = {"workspaces": {"type": "list", "elements": "raw"}, "parallel": {"type": "int", "default": 4}}
    VALUES = ("confirm", "output")
    DOING = "manage the workspaces"

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import fleet

        if not 1 <= self.own["parallel"] <= MOST:
            raise InvalidInput(f"parallel is {self.own['parallel']}, which is out of range.", f"Use 1 to {MOST}.")
        entries = fleet.read(self._entries(), self.layers, self.complete)
        self._lock = threading.Lock()
        self._targets: dict[tuple[str, ...], Any] = {}
        for entry in entries:
            target = ansible_open.open_target(entry.values)
            self._targets.setdefault(place(entry.values), target)
        rows = fleet.each(entries, self._row, self.own["parallel"])
        answer = {
            "changed": any(row["changed"] for row in rows),
            "workspaces": rows,
            "diff": [row.pop("diff") for row in rows if "diff" in row],
        }
        error = fleet.failure(rows)
        if error:
            for line in fleet.lines(rows):
                self.say(line)
            return ansible_results.failed(error, **answer)
        block = fleet.lines(rows)
        return self.finish({**answer, "msg": block[-1]}, ["", *block])

    def _entries(self) -> Any:
        """Return the list of the task, otherwise of the inventory."""
        given = self.own["workspaces"]
        if given is None and self.task_vars.get(VARIABLE) is not None:
            if ansible_values.has_template(ansible_values.extra_values(self._loader).get(VARIABLE)):
                raise InvalidInput(
                    f"The extra variable {VARIABLE} contains {{{{, {{% or {{#, which Ansible would run as a template.",
                    "Set the list in the inventory, where templates are allowed.",
                )
            given = ansible_values.from_inventory(self._templar, self.task_vars[VARIABLE])
        if given is None:
            raise InvalidInput(
                f"The list of workspaces is missing: {VARIABLE} is not set.",
                "Set it in your inventory's group_vars/all (see inventories/example), and name the inventory with -i.",
            )
        return given

    def _row(self, entry: Any) -> dict[str, Any]:
        """Return the result of one entry. Errors are data, so that the others continue."""
        row = {
            "index": entry.index,
            "name": entry.title,
            "owner": kinds.owner_of(entry.values),
            "node": entry.values["node"],
            "state": entry.state,
            "changed": False,
        }
        try:
            return {**row, **self._ensure(entry)}
        except FlowError as error:
            found = error
        except Exception as error:  # noqa: BLE001 - users never see a traceback
            found = ansible_results.unexpected(self.DOING, error)
        return {**row, "msg": str(found), "error": found.to_dict()}

    def _ensure(self, entry: Any) -> Mapping[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import clone as workspace_clone
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle

        check = bool(self._task.check_mode)
        unconfirmed = entry.state == "absent" and not self.values["confirm"]
        target = self._targets[place(entry.values)]
        spec = ansible_open.make_spec(entry.values)
        result = lifecycle.ensure(
            target,
            spec,
            entry.state,
            check or unconfirmed,
            Progress(lambda line: self._say(f"{entry.title} {line}")),
            prepare=Preparation(entry.values),
        )
        if unconfirmed and result.changed and not check:
            raise Cancelled(
                f"Workspace {entry.title} was not deleted: the deletion was not confirmed.", "Use -e confirm=true."
            )
        made = result.workspace
        error = workspace_clone.missing(made) if made and made.step("clone").state == "failed" else None
        return {
            "name": made.name if made else entry.title,
            "changed": result.changed,
            "msg": str(error) if error else f"Check mode: {result.msg}" if check and result.changed else result.msg,
            "workspace": made.to_dict() if made else None,
            "actions": result.actions,
            "notes": result.notes,
            "diff": result.diff,
            **({"error": error.to_dict()} if error else {}),
        }

    def _say(self, line: str) -> None:
        with self._lock:
            self.say(line)


def place(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the key by which entries share a target; ``values`` name their target plainly."""
    return values["target"], values["engine"], values["template"]
