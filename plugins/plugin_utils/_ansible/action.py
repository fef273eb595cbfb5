# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Base class of the collection's action plugins.

An action resolves its values, calls the engine once and turns its errors into failed results. Modules that not every
run needs are imported late: `up` of a running workspace has about 100 ms on top of an empty play.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

from ...module_utils._node.errors import Cancelled, FlowError, InvalidInput, redact
from .._engine.common import untrusted
from .._engine.common.progress import Progress
from .._engine.identity import record as identity_record
from .._engine.settings import resolve as settings_resolve
from .._engine.settings.options import OPTIONS
from . import guard as ansible_guard
from .open import engine_of
from .results import NotYet, failed, unexpected
from .values import OUTPUT_CALLBACK, RUNNER_CALLBACK, display, screen, user_layers

if TYPE_CHECKING:
    from .._engine.workspace.target import Target


INTERRUPTED = "Unfinished work stays as it is; the same command continues it."


class FlowAction(ActionBase):
    """An action of spt.flow: resolves user values, calls the engine once and turns its errors into failed results.

    ``OWN`` is the argument spec of options that only tasks set, ``VALUES`` the options that are user values as well.
    """

    OWN: dict[str, Any] = {}
    VALUES: tuple[str, ...] = ()
    DOING = "run the task"
    FAILED: dict[str, Any] = {}
    """Keys of a failed result in addition to the error."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        # The worker was forked from a process full of objects, which the collector would scan again and again.
        gc.freeze()
        super().run(tmp, task_vars)
        spec = {**self.OWN, **{name: {"type": "raw"} for name in self.VALUES}}
        _checked, args = self.validate_argument_spec(spec)
        self.own = {name: args.get(name) for name in self.OWN}
        self.task_vars = task_vars or {}
        self.screen = screen()
        self.progress = Progress(self.say)
        try:
            self.values = self._resolve()
            with interruptible():
                return self.act()
        except KeyboardInterrupt:
            return failed(Cancelled("The run was interrupted.", INTERRUPTED), **self.FAILED)
        except NotYet as early:
            return self.finish({"changed": True, "msg": early.message}, ["", early.message])
        except FlowError as error:
            return failed(error, **self.FAILED)
        except AnsibleError:
            raise
        except Exception as error:  # noqa: BLE001 - users never see a traceback
            display.vvv(redact(traceback.format_exc()))
            return failed(unexpected(self.DOING, error), **self.FAILED)

    def act(self) -> dict[str, Any]:
        """Return the task's result. Raise ``FlowError``."""
        raise NotImplementedError

    def _resolve(self) -> dict[str, Any]:
        self.layers = user_layers(self.given(), self.task_vars, self._templar, self._loader)
        values = settings_resolve.resolve(self.layers)
        ansible_guard.refuse_configuration_of_repository(values["repo"], C.CONFIG_FILE)
        self.complete(values)
        os.environ.update(self.session_environment(values))
        if values["output"] == "json" and self.screen != "json" and C.DEFAULT_STDOUT_CALLBACK != RUNNER_CALLBACK:
            raise InvalidInput(
                "Cannot print one JSON object: Ansible uses another stdout callback.",
                f"Set ANSIBLE_STDOUT_CALLBACK={OUTPUT_CALLBACK}, and use SPT_FLOW_OUTPUT=json or -e output=json.",
            )
        return values

    def session_environment(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the values of this run that the owner of a session obeys but cannot read itself."""
        sources = [self.layers[name] for name in ("the task", "extra variables", "the inventory")]
        return {
            OPTIONS[name].environment: str(values[name]).lower()
            for name in identity_record.OPTIONS
            if any(source.get(name) is not None for source in sources)
        }

    def given(self) -> dict[str, Any]:
        """Return the values that the task sets."""
        return {name: value for name, value in self._task.args.items() if name in self.VALUES}

    def complete(self, values: dict[str, Any]) -> None:
        """Add to resolved ``values`` what only the inventory knows: ``engine``, the address of the node's engine."""
        values["engine"] = engine_of(values["node"], self.task_vars)

    def ignored(self, target: Target) -> list[str]:
        """Return a note about values of this run that have no effect on ``target``."""
        layers = [self.layers[name] for name in ("the task", "extra variables", "the environment")]
        given = {name for layer in layers for name, value in layer.items() if value not in (None, "")}
        note = target.ignored(given)
        return [note] if note else []

    def say(self, line: str) -> None:
        """Print a line at once; on standard error unless in text mode (docs/decisions/no-terminal-in-actions.md)."""
        display.display(redact(untrusted.text(line)), stderr=self.screen != "text")

    def finish(self, result: dict[str, Any], block: list[str], connect: dict[str, Any] | None = None) -> dict[str, Any]:
        """Add to ``result`` what the callbacks need at the end of the run; without them, show the block here."""
        block = [untrusted.text(line) for line in block]
        if C.DEFAULT_STDOUT_CALLBACK != OUTPUT_CALLBACK:
            for line in block:
                self.say(line)
        run = {"result": dict(result), "block": block, "connect": connect, "output": self.values["output"]}
        return {**result, "ansible_stats": {"data": {"spt_flow": run}, "per_host": False, "aggregate": False}}


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C, passed on by the callback `connect`, into a ``KeyboardInterrupt``; a second one ends the worker."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(_signum: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def at_terminal() -> bool:
    """Return whether the parent has a terminal; workers have none (docs/decisions/no-terminal-in-actions.md)."""
    for descriptor in (0, 1):
        try:
            opened = os.open(f"/proc/{os.getppid()}/fd/{descriptor}", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            if not os.isatty(opened):
                return False
        finally:
            os.close(opened)
    return True


def stream(argv: Sequence[str], say: Callable[[str], None]) -> int:
    """Run ``argv`` without input and pass each line to ``say`` at once.

    Return the exit status (128 + signal if killed).
    """
    with subprocess.Popen(
        list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
    ) as child:
        for line in iter(lambda: child.stdout.readline(untrusted.LONGEST_LINE) if child.stdout else "", ""):
            say(untrusted.output(line.rstrip("\r\n")))
    return child.returncode if child.returncode >= 0 else 128 - child.returncode
