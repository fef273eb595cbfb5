# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `node`: drain or undrain a workspace host."""

from __future__ import annotations

from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node.errors import Cancelled, FlowError, InvalidInput, NotFound
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import open as ansible_open
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import results as ansible_results
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import kinds
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.target import Drainable

ROUNDS = 3
"""How often to look for workspaces that were starting while the host was marked."""
PARALLEL = 8
AT_REST = ("stopped", "failed")


class ActionModule(ansible_action.FlowAction):
    OWN = {"state": {"type": "str", "choices": ["drained", "open"], "required": True}}
    VALUES = ("node", "owner", "target", "confirm", "output")
    DOING = "manage the workspace host"

    def act(self) -> dict[str, Any]:
        if not self.values["node"]:
            raise InvalidInput(
                "The name of the workspace host is missing.",
                "Name it: ansible-playbook spt.flow.drain -i <inventory> -e node=name",
            )
        target = ansible_open.open_target(self.values)
        if not isinstance(target, Drainable):
            raise InvalidInput(
                f"Cannot drain target {target.name}: it does not have its own machine.",
                "Drain a host of the inventory: -e target=docker -e node=name",
            )
        self._target: Any = target
        mark = target.drained()
        if self.own["state"] == "open":
            return self._open(mark)
        running = self._running()
        changed = bool(running) or not mark
        if self._task.check_mode or (changed and not self.values["confirm"]):
            return self._ask(mark, running)
        if not mark:
            self._target.drain(kinds.owner_of(self.values))
        return self._drained(mark, self._stop(running))

    def _running(self) -> list[Workspace]:
        """Return the workspaces of all owners that are not stopped."""
        found = [workspace for workspace in self._target.list() if workspace.state not in AT_REST]
        return sorted(found, key=lambda workspace: workspace.key)

    def _open(self, mark: str) -> dict[str, Any]:
        check = bool(self._task.check_mode)
        if mark and not check:
            self._target.undrain()
        msg = f"{self.values['node']} is open for workspaces{'' if mark else ' (unchanged)'}."
        return self._answer(bool(mark), f"Check mode: {msg}" if check and mark else msg, mark, [])

    def _ask(self, mark: str, running: list[Workspace]) -> dict[str, Any]:
        """Return what draining would do, or, outside check mode, that it was not confirmed."""
        if not self._task.check_mode:
            raise Cancelled("Nothing was stopped: draining was not confirmed.", "Confirm it with -e confirm=true.")
        rows = [{**_row(n, w), "changed": True, "msg": f"{w.key} would be stopped."} for n, w in enumerate(running, 1)]
        changed = bool(running) or not mark
        names = f": {', '.join(workspace.key for workspace in running)}" if running else ""
        question = f"{self.values['node']} would be drained and {_count(len(running))} stopped{names}. Homes stay."
        msg = f"Check mode: {question}" if changed else f"{self.values['node']} is drained (unchanged)."
        ask = changed and not self.values["confirm"] and self.screen != "json"
        answer = self._answer(changed, msg, mark, rows)
        return {**answer, "confirmed": self.values["confirm"], "ask": ask, "question": question}

    def _stop(self, running: list[Workspace]) -> list[dict[str, Any]]:
        """Stop ``running`` and workspaces started in the meantime. Return a row for each."""
        from concurrent.futures import ThreadPoolExecutor

        rows: dict[str, dict[str, Any]] = {}
        for _round in range(ROUNDS):
            todo = [workspace for workspace in running if workspace.id not in rows]
            if not todo:
                break
            with ThreadPoolExecutor(PARALLEL, "spt-flow-drain") as pool:
                for workspace, row in zip(todo, pool.map(self._stop_one, todo), strict=True):
                    rows[workspace.id] = {**row, "index": len(rows) + 1}
            running = self._running()
        return list(rows.values())

    def _stop_one(self, workspace: Workspace) -> dict[str, Any]:
        row = _row(0, workspace)
        try:
            self._target.stop(workspace, self.progress)
        except NotFound:
            return {**row, "changed": False, "msg": f"{workspace.key} was already deleted."}
        except FlowError as error:
            return {**row, "changed": False, "msg": str(error), "error": error.to_dict()}
        except Exception as error:  # noqa: BLE001 - users never see a traceback
            found = ansible_results.unexpected(self.DOING, error)
            return {**row, "changed": False, "msg": str(found), "error": found.to_dict()}
        ended = "ended, and is deleted with that as CI workspaces are" if workspace.kind == "ci" else "stopped"
        return {**row, "changed": True, "msg": f"{workspace.key} {ended}."}

    def _drained(self, mark: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import fleet

        error = fleet.failure(rows)
        if error:
            return ansible_results.failed(error, changed=True, workspaces=rows)
        changed = bool(rows) or not mark
        msg = f"{self.values['node']} is drained, {_count(len(rows))} stopped." if changed else ""
        return {
            **self._answer(changed, msg or f"{self.values['node']} is drained (unchanged).", mark, rows),
            "confirmed": True,
            "ask": False,
        }

    def _answer(self, changed: bool, msg: str, mark: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        before = {"node": self.values["node"], "state": "drained" if mark else "open"}
        after = {**before, "state": self.own["state"]}
        diff = {"before": {**before, "running": [row["name"] for row in rows]}, "after": {**after, "running": []}}
        block = ["", *(f"  {row['msg']}" for row in rows), msg]
        return self.finish({"changed": changed, "msg": msg, "workspaces": rows, "diff": diff}, block)


def _row(index: int, workspace: Workspace) -> dict[str, Any]:
    return {"index": index, "name": workspace.name, "owner": workspace.owner, "kind": workspace.kind}


def _count(number: int) -> str:
    return f"{number} workspace{'' if number == 1 else 's'}"
