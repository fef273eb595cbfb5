# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `workspace_info`: list an owner's workspaces, or read the log of one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import open as ansible_open
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import values as ansible_values
from ansible_collections.spt.flow.plugins.plugin_utils._engine.identity import journal as identity_journal
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import report as workspace_report
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace


class ActionModule(ansible_action.FlowAction):
    OWN = {"logs": {"type": "bool", "default": False}}
    VALUES = (
        "workspace",
        "repo",
        "owner",
        "target",
        "node",
        "template",
        "output",
        "default_host",
        "size",
        "follow",
        "tail",
    )
    DOING = "read the workspaces"

    def act(self) -> dict[str, Any]:
        return self._logs() if self.own["logs"] else self._status()

    def _status(self) -> dict[str, Any]:
        workspaces = ansible_open.read_workspaces(self.values)
        width = ansible_values.display.columns
        asked = _credentials(workspaces)
        table = workspace_report.status(workspaces, width, time.time(), self.values["size"])
        block = ["", *table, *workspace_report.credentials(asked)]
        answer = {"changed": False, "workspaces": [w.to_dict() for w in workspaces], "credentials": asked}
        return self.finish(answer, block)

    def _logs(self) -> dict[str, Any]:
        target = ansible_open.open_target(self.values)
        workspace = ansible_open.find_one(target, self.values)
        follow = self.values["follow"]
        lines = target.logs(workspace, follow=follow, tail=self.values["tail"])
        return self.finish({"changed": False, "lines": self._show(lines, keep=not follow)}, [])

    def _show(self, lines: Iterable[str], keep: bool) -> list[str]:
        """Print each line at once; return the lines unless they are followed."""
        kept = []
        for line in lines:
            self.say(line)
            if keep:
                kept.append(line)
        return kept


def _credentials(workspaces: Iterable[Workspace]) -> dict[str, dict[str, int]]:
    """Return the requests for credentials by workspace and verdict, from this machine's log (docs/identity.md)."""
    counted = identity_journal.counts()
    names = {workspace.name: workspace_ssh.alias(workspace) for workspace in workspaces}
    return {name: dict(counted[alias]) for name, alias in names.items() if alias in counted}
