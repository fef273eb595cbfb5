# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a program whose output a workspace controls, with limits on size and time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from ....module_utils._node.errors import DeadlineExceeded, FlowError

MOST_OUTPUT = 16 << 20
_apart: set[subprocess.Popen[bytes]] = set()
"""Running programs that have a process group of their own."""


def run(
    argv: Sequence[str], stdin: bytes, timeout: float, environ: Mapping[str, str] | None = None
) -> tuple[int, bytes, bytes]:
    """Return exit status, standard output and standard error.

    With ``environ``, the program has this environment and no terminal, and its children end with it. Raise
    ``FlowError`` if the program is missing, takes too long or prints more than ``MOST_OUTPUT``.
    """
    outputs = (bytearray(), bytearray())
    apart: dict[str, Any] = {} if environ is None else {"env": environ, "cwd": "/", "start_new_session": True}
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(list(argv), stdin=pipe, stdout=pipe, stderr=pipe, **apart)
    except OSError as error:
        raise FlowError(f"Cannot run {argv[0]}: {error.strerror}.") from None
    with child, _ends_with_us(child, bool(apart)):
        jobs = [threading.Thread(target=feed, args=(child, stdin), daemon=True)]
        for stream, into in zip((child.stdout, child.stderr), outputs, strict=True):
            jobs.append(threading.Thread(target=_read, args=(child, stream, into), daemon=True))
        for job in jobs:
            job.start()
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            _kill(child, bool(apart))
            raise DeadlineExceeded(f"{argv[0]} did not end within {timeout:g} s.") from None
        for job in jobs:
            job.join(5)
    if any(len(into) > MOST_OUTPUT for into in outputs):
        raise FlowError(f"{argv[0]} printed more than {MOST_OUTPUT >> 20} MiB.")
    return status, bytes(outputs[0]), bytes(outputs[1])


@contextlib.contextmanager
def _ends_with_us(child: subprocess.Popen[bytes], group: bool) -> Iterator[None]:
    if group:
        _apart.add(child)
    try:
        yield
    finally:
        _apart.discard(child)


def end_all() -> None:
    """End the programs that were started without a terminal."""
    for child in list(_apart):
        _kill(child, True)


def _kill(child: subprocess.Popen[bytes], group: bool) -> None:
    if not group:
        child.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def feed(child: subprocess.Popen[bytes], data: bytes) -> None:
    """Write ``data`` and close. A child that has ended meanwhile reports that itself."""
    with contextlib.suppress(OSError, ValueError):
        if child.stdin:
            child.stdin.write(data)
            child.stdin.close()


def _read(child: subprocess.Popen[bytes], stream: IO[bytes] | None, into: bytearray) -> None:
    with contextlib.suppress(OSError, ValueError):
        while stream and (block := stream.read1(65536)):  # type: ignore[attr-defined]
            into += block
            if len(into) > MOST_OUTPUT:
                child.kill()
                return
