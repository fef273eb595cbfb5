# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run in the background, where Coder's agent is the container's main process and runs scripts that must end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from .contract import Failure, Paths, write_file
from .record import ENDED

PATIENCE = 600.0
"""Seconds to wait for IDE and clone; they continue in the background afterwards."""
STOP_PATIENCE = 25.0
AGENT = "SPT_FLOW_AGENT"
"""Environment variable of the started process: process id and start time of Coder's agent."""


def start(paths: Paths, environ: Mapping[str, str], run: Callable[[Mapping[str, str]], int]) -> int:
    """Call ``run`` in the background and print its log until IDE and clone have ended; 0 if the IDE answers."""
    paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = paths.run / "contract.log"
    log.write_bytes(b"")
    agent = {AGENT: f"{os.getppid()} {_started(os.getppid())}"}
    # A fork, because starting another Python takes a tenth of a second.
    pid = os.fork()
    if pid == 0:
        _detached({**environ, **agent}, log, run)
    write_file(paths.run / "run.json", json.dumps({"pid": pid, "started": _started(pid)}), 0o600)
    states: dict[str, str] = {}
    for line in _follow(log, pid):
        print(line, flush=True)
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == "step":
                states[str(event.get("step"))] = str(event.get("state"))
        if states.get("ide") in ENDED and states.get("clone") in ENDED:
            break
    return 0 if states.get("ide") in ("ok", "skipped") else 8


def _detached(environ: Mapping[str, str], log: Path, run: Callable[[Mapping[str, str]], int]) -> NoReturn:
    """Run in a new session with the log as output, so that the end of the script does not end it."""
    status = 1
    try:
        os.setsid()
        with open(os.devnull, "rb") as nothing, open(log, "ab") as output:
            for number, stream in enumerate((nothing, output, output)):
                os.dup2(stream.fileno(), number)
        status = run(environ)
    except BaseException:  # noqa: BLE001 - a fork must not return into its parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _follow(log: Path, pid: int) -> Iterator[str]:
    """Yield new lines of ``log`` until the child ``pid`` ends or the time is over."""
    end = time.monotonic() + PATIENCE
    rest = ""
    with open(log, encoding="utf-8", errors="replace") as stream:
        while time.monotonic() < end:
            ended = os.waitpid(pid, os.WNOHANG) != (0, 0)
            text = stream.read()
            *lines, rest = (rest + text).split("\n")
            yield from lines
            if ended:
                return
            if not text:
                time.sleep(0.03)


def stop(paths: Paths) -> int:
    """End the process that ``start`` started; return 0 also if none runs."""
    try:
        record = json.loads((paths.run / "run.json").read_text())
        pid, started = int(record["pid"]), record["started"]
    except (OSError, ValueError, KeyError):
        return 0
    if _started(pid) != started:
        return 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_PATIENCE
    while time.monotonic() < end:
        if _started(pid) != started:
            return 0
        time.sleep(0.1)
    raise Failure("The workspace did not end in time.")


def end_agent(environ: Mapping[str, str]) -> None:
    """End Coder's agent, if there is one, and with it the container; the server cannot keep it alive."""
    pid, _, started = environ.get(AGENT, "").partition(" ")
    if pid.isdigit() and started and _started(int(pid)) == started:
        with contextlib.suppress(OSError):
            os.kill(int(pid), signal.SIGTERM)


def _started(pid: int) -> str:
    """Return the start time of a process in ticks, which distinguishes it from a later one with the same id.

    Empty if the process has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
