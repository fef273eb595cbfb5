# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `ssh_config`: write one block for plain SSH and one line that includes it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node import atomic
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import open as ansible_open


class ActionModule(ansible_action.FlowAction):
    OWN = {"state": {"type": "str", "choices": ["present", "absent"], "default": "present"}}
    VALUES = ("output",)
    DOING = "write the SSH configuration"

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import resolve as settings_resolve
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh

        present = self.own["state"] == "present"
        nodes = self._nodes() if present else {}
        block = Path(settings_resolve.user_settings_file()).with_name("ssh_config")
        main = Path("~/.ssh/config").expanduser()
        include = f'Include "{block}"'
        wanted = {
            block: workspace_ssh.config_text(nodes) if present else "",
            main: included(read(main), include) if present else excluded(read(main), include),
        }
        changes = {path: (read(path), text) for path, text in wanted.items() if read(path) != text}
        if not self._task.check_mode:
            for path, (_before, text) in changes.items():
                write(path, text)
        what = "lets plain SSH enter workspaces" if present else "leaves workspaces out"
        msg = f"The SSH configuration {what}{'' if changes else ' (unchanged)'}."
        diff = [
            {"before_header": str(path), "after_header": str(path), "before": before, "after": after}
            for path, (before, after) in changes.items()
        ]
        answer = {"changed": bool(changes), "msg": msg, "paths": [str(path) for path in wanted], "diff": diff}
        return self.finish(answer, ["", msg])

    def _nodes(self) -> dict[str, str]:
        """Return the addresses of the engines of the inventory's other machines that are reached by SSH."""
        found = {}
        for node in sorted((self.task_vars.get("groups") or {}).get("flow_nodes") or ()):
            with contextlib.suppress(FlowError):
                found[node] = ansible_open.engine_of(node, self.task_vars)
        return {node: engine for node, engine in found.items() if engine}


def read(path: Path) -> str:
    """Return the file's text, or nothing if it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise FlowError(f"Cannot read {path}: {error.strerror}.") from None


def included(text: str, line: str) -> str:
    """Return ``text`` with ``line`` first: inside a `Host` block, `Include` would only apply to that host."""
    return text if line in text.splitlines() else f"{line}\n{text}"


def excluded(text: str, line: str) -> str:
    return "".join(kept for kept in text.splitlines(keepends=True) if kept.strip() != line)


def write(path: Path, text: str) -> None:
    """Write ``text`` atomically, readable only by the user. Empty text removes the file. Links are followed."""
    path = Path(os.path.realpath(path))
    try:
        if not text:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic.write(path, text)
    except OSError as error:
        raise FlowError(f"Cannot write {path}: {error.strerror}.") from None
