# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Show a run of `ansible-playbook`: the usual text with the closing block last, or one JSON object."""

from __future__ import annotations

DOCUMENTATION = r"""
name: output
type: stdout
short_description: Show the usual output, or one JSON object
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - >-
    Prints what P(ansible.builtin.default#callback) prints, a failure of a spt.flow action as a sentence instead of
    a dump, and the closing block of the run after everything else.
  - >-
    With the extra variable C(output=json), E(SPT_FLOW_OUTPUT=json) or C(output) in the user's settings file, standard
    output holds exactly one JSON object, failures included, and progress goes to standard error.
  - >-
    With a C(command) to run in the workspace, everything that Ansible itself says goes to standard error, so that
    standard output holds the bytes of the command only.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - To be set as stdout callback. The checkout's C(ansible.cfg) does that; elsewhere E(ANSIBLE_STDOUT_CALLBACK) does.
"""

import json
import os
import shutil
import sys
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.display import Display
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import results as ansible_results
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import values as ansible_values


class _Screen:
    """Ansible's display, with its ordinary lines sent to standard error, or dropped."""

    def __init__(self, display: Display, drop: bool) -> None:
        self._inner = display
        self._drop = drop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def display(self, msg: str, color: str | None = None, stderr: bool = False, **options: Any) -> None:
        if not self._drop:
            self._inner.display(msg, color=color, stderr=True, **options)

    def banner(self, msg: str, color: str | None = None, cows: bool = True) -> None:
        self.display(f"\n{msg.strip()}", color=color)


def _launcher() -> str:
    """Return the command that starts Ansible in the user's shell: a path if ``ansible-playbook`` is not on its PATH."""
    started = sys.argv[0]
    found = shutil.which("ansible-playbook") or os.path.basename(started) != "ansible-playbook"
    return os.environ.get("SPT_FLOW_LAUNCHER") or ("ansible-playbook" if found else started)


def _typed(line: str) -> str:
    """Return ``line`` with its commands as the user's shell needs them."""
    return line.replace("ansible-playbook ", f"{_launcher()} ")


class CallbackModule(Default):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "spt.flow.output"

    def __init__(self) -> None:
        super().__init__()
        self._screen = ansible_values.screen()
        self._failure: dict[str, Any] | None = None
        if self._screen != "text":
            self._display: Any = _Screen(self._display, drop=self._screen == "json" and not self._display.verbosity)

    def set_options(self, *args: Any, **options: Any) -> None:
        super().set_options(*args, **options)
        if self._screen != "text":
            self.set_option("display_failed_stderr", True)

    def v2_playbook_on_start(self, playbook: Any) -> None:
        # The parent prints the whole command line at -vvvv; the values of extra variables may be secret.
        if self._display.verbosity <= 3:
            super().v2_playbook_on_start(playbook)
            return
        self._display.banner(f"PLAYBOOK: {os.path.basename(playbook._file_name)}")
        for name, value in context.CLIARGS.items():
            if value and name != "extra_vars":
                self._display.display(f"{name}: {value}", color=C.COLOR_VERBOSE, screen_only=True)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            self._failure = ansible_results.failure(result.result)
        if not ansible_results.is_ours(result.result) or self._display.verbosity:
            super().v2_runner_on_failed(result, ignore_errors)
            return
        if self._last_task_banner != result.task._uuid:
            self._print_task_banner(result.task)
        to_stderr = self.get_option("display_failed_stderr")
        self._display.display(f"fatal: [{self.host_label(result)}]: FAILED!", color=C.COLOR_ERROR, stderr=to_stderr)
        for line in ansible_results.sentences(result.result):
            self._display.display(_typed(line), color=C.COLOR_ERROR, stderr=to_stderr)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._failure = ansible_results.failure(result.result)
        super().v2_runner_on_unreachable(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        super().v2_playbook_on_stats(stats)
        failed = ansible_results.has_failed(stats)
        run = ansible_results.run_data(stats)
        if self._screen == "json":
            self._print_object(stats, run, failed)
        elif run and not failed:
            for line in run["block"]:
                self._display.display(_typed(line))

    def _print_object(self, stats: Any, run: dict[str, Any] | None, failed: bool) -> None:
        """Print the object; a run without a spt.flow action gets Ansible's own counts."""
        if failed:
            result = self._failure or ansible_results.failure({"msg": "The play failed."})
        elif run:
            result = run["result"]
        else:
            result = {"changed": any(stats.changed.values())}
        sys.stdout.write(json.dumps({"ok": not failed, **result}, default=str) + "\n")
        sys.stdout.flush()
