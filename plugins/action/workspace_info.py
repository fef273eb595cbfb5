# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `workspace_info`: what an owner's workspaces are like, or what one has written."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils import _ansible, _report


class ActionModule(_ansible.FlowAction):
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
        workspaces = _ansible.read_workspaces(self.values)
        width = _ansible.display.columns
        block = ["", *_report.status(workspaces, width, time.time(), self.values["size"])]
        return self.finish({"changed": False, "workspaces": [w.to_dict() for w in workspaces]}, block)

    def _logs(self) -> dict[str, Any]:
        target = _ansible.open_target(self.values)
        workspace = _ansible.find_one(target, self.values)
        follow = self.values["follow"]
        lines = target.logs(workspace, follow=follow, tail=self.values["tail"])
        return self.finish({"changed": False, "lines": self._show(lines, keep=not follow)}, [])

    def _show(self, lines: Iterable[str], keep: bool) -> list[str]:
        """Each line as it comes; a list of them when they are to be kept."""
        kept = []
        for line in lines:
            self.say(line)
            if keep:
                kept.append(line)
        return kept
