# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command of a CI run and its output.

Command and variables travel by standard input, so neither is in a list of processes, a container's description or a
log. What the job prints comes by standard output; its status by standard error, where SSH's own words come as well.
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
"""Characters from which on a value is hidden; shorter ones would riddle the output."""
LINGER = 2.0
"""Seconds of silence after which the output counts as read once the job has ended: what it left running may hold it."""
BACKLOG = 4 << 20
"""Bytes of output that are read after the job has ended, at most: more than SSH and pipes hold."""
LONGEST_LINE = 65536
LOG_HEAD = LOG_TAIL = 16 << 20
"""Bytes that job.log keeps of the beginning and of the end of a job's output."""
BLOCK = 65536
STATUS_DIGITS = 3
ROOM = "Make room, or choose another folder: SPT_FLOW_ARTIFACTS_DIR"

_THERE = (
    "umask 022; job=$(cat); "
    '( exec </dev/null 2>&1; cd -- "$1" || exit 125; eval "$job" ); '
    f'printf "\\n{STATUS.decode()}%d\\n" "$?" >&2'
)


@dataclass
class Ended:
    """``status`` is the job's, ``None`` when it did not say; ``words`` are what the way there complained of."""

    status: int | None
    words: list[str] = field(default_factory=list)


class Mask:
    """Hides the values of variables in text, a line at a time."""

    def __init__(self, values: Iterable[str]) -> None:
        parts = {line for value in values for line in value.splitlines() if len(line) >= SHORTEST}
        self._parts = sorted(parts, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for part in self._parts:
            text = text.replace(part, "***")
        return text


class Log:
    """Write a job's output into ``path``: the first ``LOG_HEAD`` bytes at once, the last ``LOG_TAIL`` bytes at the end.

    Raises ``Unhealthy`` when this machine has no room.
    """

    def __init__(self, path: Path) -> None:
        self.cut = 0
        self._path = path
        self._room = LOG_HEAD
        self._last: deque[bytearray] = deque()
        self._size = 0
        with self._said():
            self._file = path.open("wb", buffering=0)

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unhealthy(f"Cannot write {self._path} on this machine: {error.strerror}.", ROOM) from None

    def add(self, lines: str) -> bool:
        """Take one or more lines; whether they belong to the beginning."""
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
        """Return the last of the lines that do not belong to the beginning."""
        return b"".join(list(self._last)[-2:]).decode().splitlines()[-lines:]

    def close(self) -> None:
        """Write the end."""
        with self._file:
            if self.cut:
                self._write(f"[spt.flow] {self.cut} bytes of output were cut here.\n".encode())
            for block in self._last:
                self._write(block)
        self._last.clear()

    def _write(self, data: bytes | bytearray) -> None:
        rest = memoryview(data)
        with self._said():
            while rest:
                rest = rest[self._file.write(rest) or 0 :]


def there(directory: str) -> str:
    """The shell command that runs, in the workspace, the job that comes by standard input."""
    return shlex.join(["exec", "bash", "-c", _THERE, "spt-flow-ci", directory])


def payload(command: str, variables: Mapping[str, str]) -> bytes:
    """What ``there`` reads: the variables, then the command."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*lines, command, ""]).encode()


def attend(
    argv: Sequence[str], stdin: bytes, mask: Mask, tell: Callable[[str], None], enough: Callable[[], bool]
) -> Ended:
    """Run ``argv`` and tell one or more lines of its output at a time.

    It is ended when ``enough`` says so, which is asked twice a second.
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
    return Ended(reader.status, [mask(word) for word in reader.words()])


class _Reader:
    """Both outputs of a child, read as they come."""

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
        """Wait for output, at most ``timeout`` seconds; whether more may come."""
        for key, _events in self._selector.select(timeout):
            data = os.read(key.fd, 65536)
            if not data:
                self._selector.unregister(key.fileobj)
                continue
            key.data(data)
        return bool(self._selector.get_map())

    @property
    def drained(self) -> bool:
        """Whether the job has ended and its output was read; telling it may take longer than the job did."""
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
        # Masked twice: an escape sequence may stand within a value, and a value may hold what cleaning changes.
        said = b"\n".join(line.rstrip(b"\r") for line in lines).decode(errors="replace")
        self._tell(self._mask(untrusted.text(self._mask(said))))

    def _take_err(self, data: bytes) -> None:
        self._err = (self._err + data)[-65536:]
        start = self._err.rfind(b"\n" + STATUS)
        number, newline, _rest = self._err[start + 1 + len(STATUS) :].partition(b"\n")
        if start >= 0 and newline and number.isdigit() and len(number) <= STATUS_DIGITS and self.status is None:
            self.status, self._heard = int(number), time.monotonic()

    def flush(self) -> None:
        """Tell the line that did not end."""
        if self._out:
            self._say([self._out])
            self._out = b""

    def words(self) -> list[str]:
        """Lines of standard error that are not the status."""
        lines = map(untrusted.line, self._err.decode(errors="replace").splitlines())
        return [line.strip() for line in lines if line.strip() and not line.startswith(STATUS.decode())]
