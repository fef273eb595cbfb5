# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the command of a CI run and read its output.

Command and variables are sent by standard input, so they are not in a process list, a container's configuration or a
log. The job's output arrives on standard output. Its status arrives on standard error, together with SSH's own
messages.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ....module_utils._node.errors import Unhealthy
from ..common import child as child_process
from ..common import untrusted

STATUS = b"spt-flow-ci-status "
SHORTEST = 4
"""Length from which values are masked; masking shorter ones would make the output unreadable."""
LINGER = 2.0
"""Seconds of silence after the job's end until its output counts as complete: background processes may keep it open."""
BACKLOG = 4 << 20
"""Maximum bytes of output read after the job has ended: more than SSH and pipes buffer."""
LONGEST_LINE = 65536
LOG_HEAD = LOG_TAIL = 16 << 20
"""Bytes that job.log keeps of the beginning and of the end of a job's output."""
BLOCK = 65536
STATUS_DIGITS = 3
ROOM = "Free disk space, or choose another directory: SPT_FLOW_ARTIFACTS_DIR"

_THERE = (
    "umask 022; job=$(cat); "
    '( exec </dev/null 2>&1; cd -- "$1" || exit 125; eval "$job" ); '
    f'printf "\\n{STATUS.decode()}%d\\n" "$?" >&2'
)


@dataclass
class Ended:
    """How the job ended. ``status`` is ``None`` if it is unknown; ``words`` are error messages of the connection."""

    status: int | None
    words: list[str] = field(default_factory=list)


class Mask:
    """Mask the values of variables in text, line by line."""

    def __init__(self, values: Iterable[str]) -> None:
        parts = {line for value in values for line in value.splitlines() if len(line) >= SHORTEST}
        self._parts = sorted(parts, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for part in self._parts:
            text = text.replace(part, "***")
        return text


class Log:
    """Write a job's output to ``path``: the first ``LOG_HEAD`` bytes at once, the last ``LOG_TAIL`` bytes at the end.

    Raise ``Unhealthy`` if this machine's disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.cut = 0
        self._path = path
        self._room = LOG_HEAD
        self._last: deque[bytearray] = deque()
        self._size = 0
        with self._explain_write_errors():
            self._file = path.open("wb", buffering=0)

    @contextlib.contextmanager
    def _explain_write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unhealthy(f"Cannot write {self._path} on this machine: {error.strerror}.", ROOM) from None

    def add(self, lines: str) -> bool:
        """Add one or more lines. Return whether they belong to the beginning."""
        data = f"{lines}\n".encode()
        if len(data) <= self._room and not self._last:
            self._room -= len(data)
            self._write(data)
            return True
        if not self._last or len(self._last[-1]) >= BLOCK:
            self._last.append(bytearray())
        self._last[-1] += data
        self._size += len(data)
        while self._size > LOG_TAIL and len(self._last) > 1:
            gone = len(self._last.popleft())
            self._size -= gone
            self.cut += gone
        return False

    def last(self, lines: int) -> list[str]:
        """Return the last lines that do not belong to the beginning."""
        return b"".join(list(self._last)[-2:]).decode().splitlines()[-lines:]

    def close(self) -> None:
        """Write the last part."""
        with self._file:
            if self.cut:
                self._write(f"[spt.flow] {self.cut} bytes of output were cut here.\n".encode())
            for block in self._last:
                self._write(block)
        self._last.clear()

    def _write(self, data: bytes | bytearray) -> None:
        rest = memoryview(data)
        with self._explain_write_errors():
            while rest:
                rest = rest[self._file.write(rest) or 0 :]


def remote_command(directory: str) -> str:
    """Return the shell command that runs the job read from standard input, in the workspace."""
    return shlex.join(["exec", "bash", "-c", _THERE, "spt-flow-ci", directory])


def payload(command: str, variables: Mapping[str, str]) -> bytes:
    """Return the input of that command: the variables, then the job's command."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*lines, command, ""]).encode()


def run(
    argv: Sequence[str], stdin: bytes, mask: Mask, tell: Callable[[str], None], enough: Callable[[], bool]
) -> Ended:
    """Run ``argv`` and pass its output to ``tell``, one or more lines at a time.

    Terminates it when ``enough`` returns true; ``enough`` is called twice a second.
    """
    with subprocess.Popen(
        list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as child:
        feeder = threading.Thread(target=child_process.feed, args=(child, stdin), daemon=True)
        feeder.start()
        reader = _Reader(child, mask, tell)
        try:
            while reader.read(0.5):
                if enough() or reader.drained:
                    break
            reader.flush()
        finally:
            if child.poll() is None:
                child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
            feeder.join(5)  # Else closing the input here could raise, and hide the messages of the connection.
    return Ended(reader.status, [mask(word) for word in reader.words()])


class _Reader:
    """Read both outputs of a child."""

    def __init__(self, child: subprocess.Popen[bytes], mask: Mask, tell: Callable[[str], None]) -> None:
        self.status: int | None = None
        self._mask, self._tell = mask, tell
        self._out = self._err = b""
        self._heard = 0.0
        self._backlog = 0
        self._selector = selectors.DefaultSelector()
        for stream, taker in ((child.stdout, self._take_out), (child.stderr, self._take_err)):
            if stream is not None:
                self._selector.register(stream, selectors.EVENT_READ, taker)

    def read(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for output. Return whether more may follow."""
        for key, _events in self._selector.select(timeout):
            data = os.read(key.fd, 65536)
            if not data:
                self._selector.unregister(key.fileobj)
                continue
            key.data(data)
        return bool(self._selector.get_map())

    @property
    def drained(self) -> bool:
        """Whether the job has ended and its output has been read; printing it may take longer than the job."""
        quiet = time.monotonic() - self._heard
        return self.status is not None and (quiet > LINGER or self._backlog > BACKLOG)

    def _take_out(self, data: bytes) -> None:
        *lines, self._out = (self._out + data).split(b"\n")
        if len(self._out) > LONGEST_LINE:
            lines, self._out = [*lines, self._out], b""
        if lines:
            self._say(lines)
        self._heard = time.monotonic()
        self._backlog += len(data) if self.status is not None else 0

    def _say(self, lines: Sequence[bytes]) -> None:
        # Masked before and after cleaning: a value may contain characters that cleaning changes, and output may contain
        # an escape sequence within a value.
        said = b"\n".join(line.rstrip(b"\r") for line in lines).decode(errors="replace")
        self._tell(self._mask(untrusted.text(self._mask(said))))

    def _take_err(self, data: bytes) -> None:
        self._err = (self._err + data)[-65536:]
        start = self._err.rfind(b"\n" + STATUS)
        number, newline, _rest = self._err[start + 1 + len(STATUS) :].partition(b"\n")
        if start >= 0 and newline and number.isdigit() and len(number) <= STATUS_DIGITS and self.status is None:
            self.status, self._heard = int(number), time.monotonic()

    def flush(self) -> None:
        """Print the incomplete last line."""
        if self._out:
            self._say([self._out])
            self._out = b""

    def words(self) -> list[str]:
        """Return the lines of standard error without the status."""
        lines = map(untrusted.line, self._err.decode(errors="replace").splitlines())
        return [line.strip() for line in lines if line.strip() and not line.startswith(STATUS.decode())]
