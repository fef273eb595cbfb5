# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""End a run: hand the terminal over to OpenSSH, or exit with the documented status."""

from __future__ import annotations

DOCUMENTATION = r"""
name: connect
type: notification
short_description: Hand the terminal over to the workspace at the end of a run
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - >-
    After a successful run that ended in a running workspace, replaces C(ansible-playbook) by C(ssh) into it. Only when
    standard input and output are terminals, and not with C(connect=false) or C(output=json).
  - A C(command) is run the same way, also without a terminal. The exit status is the command's.
  - A failed run with C(output=json) ends with the error's documented code as exit status.
  - >-
    A run of M(spt.flow.ci) ends with its job's exit status. SIGTERM and SIGINT are passed on to it, and the run ends in
    order.
  - >-
    Ctrl-C while M(spt.flow.workspace) works is passed on to it as well, which then says what goes on without it and how
    to come back.
  - >-
    Enabled by the checkout's C(ansible.cfg); elsewhere by E(ANSIBLE_CALLBACKS_ENABLED=spt.flow.connect). Put it last:
    callbacks after it do not see the end of a run that is handed over.
requirements:
  - OpenSSH's client
"""

import contextlib
import io
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from typing import Any

from ansible import constants as C
from ansible.plugins.callback import CallbackBase
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import results as ansible_results
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import values as ansible_values

PASSED_ON = {
    "spt.flow.ci": (signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    "spt.flow.workspace": (signal.SIGINT,),
}
"""Signals that an action handles itself. Ansible would end at the first one and leave its worker running."""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "spt.flow.connect"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._code = 0
        self._status: int | None = None
        self._before: dict[int, Any] = {}

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        main = threading.current_thread() is threading.main_thread()
        if main:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signals = PASSED_ON.get(task.resolved_action, ())
            self._before = {number: signal.signal(number, _pass_on) for number in signals}
        if isinstance(sys.stdout, io.TextIOWrapper) and str(task.resolved_action).startswith("spt.flow."):
            # Ansible flushes a pipe only at its end, but users want to see progress at once.
            sys.stdout.reconfigure(line_buffering=True)
        if main and task.resolved_action == "spt.flow.ci":
            # If the reader is gone, Ansible would lose the thread that receives results, and wait forever.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            self._code = ansible_results.failure(result.result)["error"]["code"]
            self._status = result.result.get("exit_status") if ansible_results.is_ours(result.result) else None

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if ansible_results.has_failed(stats):
            if self._status is not None:
                raise SystemExit(self._status)
            if self._code and ansible_values.screen() == "json":
                # SystemExit passes Ansible's error handlers and runs its cleanup.
                raise SystemExit(self._code)
            return
        run = ansible_results.run_data(stats)
        if not run or not run.get("connect") or run["output"] == "json":
            return
        connect = run["connect"]
        if connect["always"] or (sys.stdin.isatty() and sys.stdout.isatty()):
            self._hand_over(connect["argv"], connect["env"])

    def _hand_over(self, argv: list[str], env: dict[str, str]) -> None:
        """Execute ``argv``, after the cleanup that ``exec`` would skip (docs/decisions/terminal-handover.md)."""
        program = shutil.which(argv[0])
        if program is None:
            self._display.error(f"Cannot enter the workspace: {argv[0]} is not installed. Install OpenSSH's client.")
            return
        shutil.rmtree(C.DEFAULT_LOCAL_TMP, ignore_errors=True)
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor in (0, 1, 2):
            os.set_inheritable(descriptor, True)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        # Python ignores these two signals, and the new program would inherit that.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execve(program, argv, {**os.environ, **env})  # noqa: S606 - deliberately without a shell


def _pass_on(signum: int, _frame: Any) -> None:
    """Pass the signal to the workers; their results end the run. Exit at once without workers."""
    workers = multiprocessing.active_children()
    if not workers:
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    for worker in workers:
        if worker.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signum)
