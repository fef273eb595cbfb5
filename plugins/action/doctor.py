# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `doctor`: what is missing on the user's machine and how to get it; `init` keeps the answers as well."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.plugins.action import ssh_config
from ansible_collections.spt.flow.plugins.module_utils import _ansible, _fleet, _settings
from ansible_collections.spt.flow.plugins.module_utils._errors import FlowError

LASTING = tuple(
    option.name
    for option in _settings.OPTIONS.values()
    if option.name not in (*_fleet.OF_A_RUN, *_fleet.OF_AN_ENTRY) and not option.secret
)
"""What may be kept for later runs; a token is no option at all."""


class ActionModule(_ansible.FlowAction):
    OWN = {"write": {"type": "bool", "default": False}}
    VALUES = ("output", *LASTING)
    DOING = "look at this machine"

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.module_utils import _doctor

        checks, target = [], self.values["target"]
        try:
            target = _ansible.target_name(self.values)
            checks = _doctor.examine(
                target, self.values["kvm"], self.values["template"], self.values["engine"], _ansible.coder_http
            )
        except FlowError as error:
            checks.append(_doctor.Check("server", "missing", error.message, error.hint))
        lacking = _doctor.missing(checks)
        written = self._keep("" if lacking else target) if self.own["write"] else {"changed": False}
        rows = [check.to_dict() for check in checks]
        block = [f"Target {target}:", *_doctor.lines(checks)]
        if self.own["write"]:
            block.append(str(written["msg"]))
        answer = {**written, "target": target, "checks": rows}
        if lacking:
            for line in block:
                self.say(line)
            return _ansible.failed(lacking, **answer)
        return self.finish({**answer, "msg": f"Everything that target {target} needs is there."}, ["", *block])

    def _keep(self, found: str) -> dict[str, Any]:
        """Write what the user answered, and a Coder server that was found to work; the rest of the file stays."""
        given = {**self.layers["the environment"], **self.layers["extra variables"], **self.layers["the task"]}
        answers = {name: value for name, value in given.items() if name in LASTING}
        if found == "coder":
            answers.setdefault("target", found)
        path = Path(_settings.user_settings_file())
        before = ssh_config.read(path)
        after = merged(before, answers)
        changed = after != before
        if changed and not self._task.check_mode:
            ssh_config.write(path, after)
        what = "would keep" if self._task.check_mode else "keeps"
        names = ", ".join(sorted(answers)) or "nothing new"
        msg = f"{path} {what} {names}." if changed else f"{path} stays as it is (unchanged)."
        header = str(path)
        diff = {"before": before, "after": after, "before_header": header, "after_header": header}
        return {"changed": changed, "msg": msg, "path": str(path), "diff": diff}


def merged(text: str, answers: Mapping[str, Any]) -> str:
    """The settings file ``text`` with ``answers``: a line that gives one is replaced, comments stay."""
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
