# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `ci`: run a job in a temporary workspace."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError, InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import guard as ansible_guard
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import open as ansible_open
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import results as ansible_results
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import values as ansible_values
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Lines
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.preparation import Preparation

NOT_OURS = ("size", "follow", "tail", "hours", "confirm", "connect", "dotfiles", "trust", "workspace", "from_run")
KEPT = (
    "ansible-runner has written {} to its directory (artifacts/*/command). Pass secrets in SPT_FLOW_ENV_FILE, and the "
    "token of a Coder server in files below CODER_CONFIG_DIR."
)


class ActionModule(ansible_action.FlowAction):
    VALUES = tuple(name for name in settings_options.OPTIONS if name not in NOT_OURS)
    DOING = "run the CI job"
    FAILED = {"exit_status": 125}  # `_ci.NOT_RUN`, before there is a run
    parent = 0

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self.parent = os.getppid()
        return super().run(tmp, task_vars)

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import run as ci_run

        # After a lost connection the callback would end the main process, and so this one; here it is an ordinary
        # error.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        values = self.values
        job, notes = self._job()
        target = ansible_open.open_target(values)
        spec = replace(ansible_open.make_spec(values), name="")
        if self._task.check_mode:
            return self.finish({"changed": True, "msg": "Check mode: the job would run in a temporary workspace."}, [])
        if target.client_prepares:
            # Before the TTL begins, because building a missing image may take minutes.
            spec = Preparation(values)(spec, self.progress)
        runner = "AWX_ISOLATED_DATA_DIR" in os.environ
        lines = Lines(self._show, batch=runner, size=65536, seconds=1.0, keep=0)
        outcome = ci_run.run(target, spec, job, self.progress, lines)
        outcome.notes[:0] = [*notes, *self.ignored(target), *(self._kept() if runner else [])]
        return self._answer(outcome)

    def _job(self) -> tuple[Any, list[str]]:
        """Return the job. Raise ``InvalidInput`` before anything is started."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import request as ci_request

        values = self.values
        if not values["repo"]:
            raise InvalidInput("The repository is missing.", "Set SPT_FLOW_REPO.")
        if not values["command"].strip():
            raise InvalidInput("The command is missing.", "Set SPT_FLOW_COMMAND='make test'.")
        commit = ci_request.check_commit(values["commit"])
        artifacts, junit = (ci_request.globs(values[name], name) for name in ("artifacts", "junit"))
        if junit:
            from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import artifacts as ci_artifacts

            ci_artifacts.check_reader()
        env, notes = ci_request.environment(values["env"], values["env_file"], os.environ)
        folder = Path(values["artifacts_dir"]).expanduser()
        if not folder.is_absolute():
            # Ansible may have changed the current directory.
            folder = Path(os.environ.get("PWD") or os.getcwd()) / folder
        ansible_guard.refuse_links_out_of_repository(values["repo"], folder)
        return ci_request.Job(values["command"], commit, values["ttl"], artifacts, junit, env, folder), notes

    def _kept(self) -> list[str]:
        """Return the names of secrets that ansible-runner has written to its directory."""
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import request as ci_request

        names = [
            name for name in (*ci_request.words(self.values["env"]), "CODER_SESSION_TOKEN") if os.environ.get(name)
        ]
        return [KEPT.format(", ".join(names))] if names else []

    def say(self, line: str) -> None:
        """Print unless the parent is gone: its pipe would fill up and block us."""
        if os.getppid() == self.parent:
            super().say(line)

    def _show(self, text: str) -> None:
        if os.getppid() == self.parent:
            ansible_values.display.display(text, stderr=self.screen == "json")

    def _answer(self, outcome: Any) -> dict[str, Any]:
        tests = ", ".join(f"{number} {name}" for name, number in outcome.reports.items())
        lines = [f"note: {note}" for note in outcome.notes]
        lines += [f"reports: {tests}"] if tests else []
        lines += [f"folder: {outcome.folder}"] if outcome.folder else []
        last = (
            f"CI {outcome.workspace}: {outcome.kind} {outcome.reason}, exit status {outcome.status}, "
            f"{outcome.seconds:.1f} s; workspace {'LEFT' if outcome.left else 'deleted'}."
        )
        answer = {"changed": True, **asdict(outcome), "exit_status": outcome.status}
        answer["stages"] = [list(stage) for stage in outcome.stages]
        if outcome.status == 0:
            return self.finish(answer, ["", *(f"  {line}" for line in lines), last])
        hint = "\n".join(part for part in (outcome.hint, *lines, last) if part)
        error = FlowError(outcome.msg, hint, {"kind": outcome.kind, "reason": outcome.reason})
        return ansible_results.failed(error, **{**answer, "msg": outcome.msg})
