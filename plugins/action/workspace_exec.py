# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `workspace_exec`: run a command in a workspace and show its output line by line."""

from __future__ import annotations

import os
import shlex
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node.errors import Conflict, FlowError, InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import open as ansible_open
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import results as ansible_results
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Lines
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.target import ensure_client


class ActionModule(ansible_action.FlowAction):
    OWN = {"argv": {"type": "list", "elements": "str"}}
    VALUES = ("workspace", "repo", "owner", "target", "node", "template", "output", "default_host", "command")
    DOING = "run a command in the workspace"

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh

        command = self._command()
        target = ansible_open.open_target(self.values)
        workspace = ansible_open.find_one(target, self.values)
        if workspace.state != "running":
            raise Conflict(
                f"Cannot run a command in workspace {workspace.name}: it is {workspace.state}.",
                f"Start it: ansible-playbook spt.flow.up -e workspace={workspace.name}",
            )
        if self._task.check_mode:
            return self.finish({"changed": True, "msg": f"Check mode: a command would run in {workspace.name}."}, [])
        lines = Lines(self.say, batch="AWX_ISOLATED_DATA_DIR" in os.environ)
        for note in ensure_client(target, self.progress, needed=True):
            self.say(f"note: {note}")
        there = workspace_ssh.inside(target.session(workspace).directory, command)
        status = ansible_action.stream(workspace_ssh.argv(workspace, there), lines.add)
        lines.flush()
        answer = {"changed": True, "rc": status, "stdout_lines": lines.kept}
        if status:
            error = FlowError(f"The command in workspace {workspace.name} ended with status {status}.")
            return ansible_results.failed(error, **{**answer, "changed": True})
        return self.finish({**answer, "msg": f"The command in workspace {workspace.name} succeeded."}, [])

    def _command(self) -> str:
        argv, command = self.own["argv"], self.values["command"]
        given = self._task.args.get("command")
        if argv and given:
            raise InvalidInput("argv and command cannot be combined.", "Omit one of them.")
        if not argv and not command:
            raise InvalidInput("The command is missing.", "Set argv or command.")
        return shlex.join(argv) if argv else str(command)
