# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `doctor`: check the user's machine and say how to fix it; `init` also saves answers."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.plugins.action import ssh_config
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError, NotFound
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import results as ansible_results
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import values as ansible_values
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.config import config_dir, parse_url
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.author import git_identity
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import resolve as settings_resolve
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import fleet, kinds
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.checks import Check

LASTING = tuple(
    option.name
    for option in settings_options.OPTIONS.values()
    if option.name not in (*fleet.OF_A_RUN, *fleet.OF_AN_ENTRY) and not option.secret
)
"""Options that init may save; a token is not an option."""
QUESTIONS = {
    "target": "Target on which workspaces run: docker, coder (a server), or auto (coder if you are logged in)",
    "server": "Address of your team's Coder server, empty for none",
    "default_host": "Host of repositories given as owner/name",
    "dotfiles": "Your dotfiles repository, empty for none",
    "git_name": "Your name in commits",
    "git_email": "Your e-mail address in commits",
}
"""Questions of `init` at a terminal, in this order."""


class ActionModule(ansible_action.FlowAction):
    OWN = {
        "write": {"type": "bool", "default": False},
        "questions": {"type": "bool", "default": False},
        "answers": {"type": "dict", "default": {}},
    }
    VALUES = ("output", *LASTING)
    DOING = "check this machine"

    def given(self) -> dict[str, Any]:
        """Merge answers into the task's options; an empty answer keeps the current value."""
        said = {str(name): str(value).strip() for name, value in (self.own["answers"] or {}).items()}
        self.server = parse_url(said["server"], "The address of the server") if said.get("server") else ""
        return {**super().given(), **{name: text for name, text in said.items() if text and name in LASTING}}

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import doctor

        if self.own["questions"]:
            return {"changed": False, "questions": self._questions()}
        checks, target = [], self.values["target"]
        write = self.own["write"] and not self._task.check_mode
        try:
            kind = kinds.chosen(self.values, self.server)
            target = kind.name
            checks = doctor.examine(self.values, kind, self.server, ansible_values.display.warning, write)
        except FlowError as error:
            checks.append(Check("server", "missing", error.message, error.hint))
        lacking = doctor.missing(checks)
        written = self._keep("" if lacking else target) if self.own["write"] else {"changed": False}
        rows = [check.to_dict() for check in checks]
        block = [f"Target {target}:", *doctor.lines(checks)]
        if self.own["write"]:
            block.append(str(written["msg"]))
        answer = {**written, "target": target, "checks": rows}
        if lacking:
            for line in block:
                self.say(line)
            return ansible_results.failed(lacking, **answer)
        return self.finish({**answer, "msg": f"Target {target} has everything it needs."}, ["", *block])

    def _questions(self) -> list[dict[str, str]]:
        """Return questions for missing values if there is a terminal; never for secrets."""
        if self.values["output"] == "json" or not ansible_action.at_terminal():
            return []
        said = {**self.layers["the environment"], **self.layers["extra variables"], **self.layers["the task"]}
        author = git_identity(self.values)
        asked = {name: text for name, text in QUESTIONS.items() if not said.get(name)}
        asked = {name: text for name, text in asked.items() if not author.get(name.removeprefix("git_"))}
        if has_server():
            asked.pop("server")
        return [{"name": name, "prompt": f"{text} [{self.values.get(name, '')}]"} for name, text in asked.items()]

    def _keep(self, found: str) -> dict[str, Any]:
        """Save the answers, and the target of a working Coder server. The rest of the file does not change."""
        given = {**self.layers["the environment"], **self.layers["extra variables"], **self.layers["the task"]}
        answers = {name: value for name, value in given.items() if name in LASTING}
        if found and kinds.kind(found).has_server:
            answers.setdefault("target", found)
        server = self._keep_server()
        path = Path(settings_resolve.user_settings_file())
        before = ssh_config.read(path)
        after = merged(before, answers)
        changed = after != before
        if changed and not self._task.check_mode:
            ssh_config.write(path, after)
        what = "would save" if self._task.check_mode else "keeps"
        names = ", ".join(sorted(answers)) or "nothing new"
        msg = f"{path} {what} {names}." if changed else f"{path} is up to date (unchanged)."
        header = str(path)
        diff = {"before": before, "after": after, "before_header": header, "after_header": header}
        msg = f"{msg} {server}".rstrip()
        return {"changed": changed or bool(server), "msg": msg, "path": str(path), "diff": diff}

    def _keep_server(self) -> str:
        """Save the server where Coder's own command line saves it, as `coder login` does before it asks for a token."""
        if not self.server:
            return ""
        folder = config_dir(os.environ, sys.platform)
        path = Path(folder) / "url"
        if not folder or ssh_config.read(path).strip() == self.server:
            return ""
        if not self._task.check_mode:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            ssh_config.write(path, self.server)
        return f"{path} {'would name' if self._task.check_mode else 'names'} {self.server}."


def has_server() -> bool:
    """Return whether a Coder server is already configured."""
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import config as coder_config

    try:
        return bool(coder_config.load().url)
    except NotFound:
        return False


def merged(text: str, answers: Mapping[str, Any]) -> str:
    """Merge ``answers`` into the settings file ``text``: their lines are replaced, comments stay."""
    import yaml

    known = yaml.safe_load(text) or {}
    wanted = {**known, **answers}
    if wanted == known:
        return text
    for name, value in answers.items():
        line = yaml.safe_dump({name: value}, allow_unicode=True, width=10**6)
        pattern = re.compile(rf"^{re.escape(name)}[ \t]*:.*\n?", re.MULTILINE)
        head = text if not text or text.endswith("\n") else f"{text}\n"
        there = pattern.search(text)
        text = f"{text[: there.start()]}{line}{text[there.end() :]}" if there else head + line
    try:
        whole = yaml.safe_load(text) == wanted
    except yaml.YAMLError:
        whole = False
    return text if whole else str(yaml.safe_dump(wanted, allow_unicode=True, width=10**6))
