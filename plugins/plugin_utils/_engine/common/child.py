# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a program whose output a workspace controls, with limits on size and time."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Sequence
from typing import IO

from ....module_utils._node.errors import DeadlineExceeded, FlowError

MOST_OUTPUT = 16 << 20


def run(argv: Sequence[str], stdin: bytes, timeout: float) -> tuple[int, bytes, bytes]:
    """Return exit status, standard output and standard error.

    Raise ``FlowError`` if the program is missing, takes too long or prints more than ``MOST_OUTPUT``.
    """
    outputs = (bytearray(), bytearray())
    try:
        child = subprocess.Popen(list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise FlowError(f"Cannot run {argv[0]}: {error.strerror}.") from None
    with child:
        jobs = [threading.Thread(target=feed, args=(child, stdin), daemon=True)]
        for stream, into in zip((child.stdout, child.stderr), outputs, strict=True):
            jobs.append(threading.Thread(target=_read, args=(child, stream, into), daemon=True))
        for job in jobs:
            job.start()
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            raise DeadlineExceeded(f"{argv[0]} did not end within {timeout:g} s.") from None
        for job in jobs:
            job.join(5)
    if any(len(into) > MOST_OUTPUT for into in outputs):
        raise FlowError(f"{argv[0]} printed more than {MOST_OUTPUT >> 20} MiB.")
    return status, bytes(outputs[0]), bytes(outputs[1])


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
