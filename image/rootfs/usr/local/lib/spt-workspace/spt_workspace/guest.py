# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest of a test: the image's own kernel, a file system of its own programs, a console and a tap.

All of it works as the workspace's user. A tap needs a network namespace, which Docker inside needs and brings as well.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import tree
from .contract import Failure, Paths, reason
from .record import printable

HOST_ADDRESS, GUEST_ADDRESS = "172.31.255.1", "172.31.255.2"
TAP = "flow0"
MODULES = ("virtio_mmio", "virtio_pci", "virtio_net")
# The kernel's test of the timer interrupt fails by chance in emulation on a busy node, and then panics.
COMMAND_LINE = "console=ttyS0 quiet reboot=k panic=-1 no_timer_check"
INIT = f"""#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
ip link set lo up
ip link set eth0 up && ip address add {GUEST_ADDRESS}/30 dev eth0
exec sh 2>&1
"""
_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")
_TAPPED = (
    f'ip tuntap add dev {TAP} mode tap; ip address add {HOST_ADDRESS}/30 dev {TAP}; ip link set {TAP} up; exec "$@"'
)


@dataclass(frozen=True)
class Kernel:
    """``modules``: the modules that the guest's network needs, in the order in which they are loaded."""

    version: str
    path: Path
    modules: tuple[Path, ...]


def kernel(paths: Paths) -> Kernel:
    """Return the newest kernel of the image; raise ``Failure`` with status 6 if there is none."""
    found = [path for path in (paths.root / "boot").glob("vmlinuz-*") if os.access(path, os.R_OK)]
    if not found:
        raise Failure("This image has no kernel in /boot for a guest. Use the profile fat.", 6)
    newest = max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
    version = newest.name[len("vmlinuz-") :]
    return Kernel(version, newest, _modules(version, paths))


def _modules(version: str, paths: Paths) -> tuple[Path, ...]:
    program = shutil.which("modprobe", path="/usr/sbin:/sbin")
    if not program:
        return ()
    argv = [program, "--dirname", str(paths.root), "--set-version", version, "--all", "--show-depends", *MODULES]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False).stdout
    found = dict.fromkeys(Path(line.split()[1]) for line in said.splitlines() if line.startswith("insmod "))
    return tuple(found)


def file_system(found: Kernel) -> bytes:
    """Return the guest's root file system as an initrd; the image stores none."""
    modules = {f"modules/{n:02}-{path.stem}": _plain(path) for n, path in enumerate(found.modules)}
    files = {"init": INIT.encode(), **modules}
    return tree.cpio(tree.of(("sh", "mount", "ip", "insmod"), files, ("dev", "proc", "modules")))


def _plain(module: Path) -> bytes:
    """Return the module uncompressed: the guest's ``insmod`` has no library for compressed ones."""
    content = module.read_bytes()
    return lzma.decompress(content) if module.suffix == ".xz" else content


def can_tap() -> bool:
    """Return whether the tun device exists and this user may create a network namespace."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK) or not shutil.which("unshare") or not shutil.which("ip"):
        return False
    return subprocess.run([*_NAMESPACE, "true"], capture_output=True, timeout=30, check=False).returncode == 0


def with_tap(argv: Sequence[str]) -> list[str]:
    """Return the command that runs ``argv`` in a network namespace with a tap."""
    return [*_NAMESPACE, "sh", "-ec", _TAPPED, "sh", *argv]


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Console:
    """A running virtual machine and its serial console; the block's end kills the machine.

    ``name`` is the program and its accelerator as messages name them.
    """

    def __init__(self, argv: Sequence[str], name: str, patience: float) -> None:
        self._argv = list(argv)
        self._name = name
        self._patience = patience
        self._began = time.monotonic()
        self._until = self._began + patience
        self._said = ""

    def __enter__(self) -> Console:
        with contextlib.ExitStack() as begun:
            # A signal between the start and the return would leave a running machine behind.
            with _signals_blocked():
                try:
                    self._process = subprocess.Popen(
                        self._argv,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                except OSError as error:
                    raise Failure(f"Cannot start {self._argv[0]}: {reason(error)}.") from None
                begun.callback(self.__exit__)
            begun.pop_all()
        return self

    def __exit__(self, *_words: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe and pipe.close()

    def answer(self, command: str, pattern: str, again: float = 0) -> tuple[float, tuple[str, ...]]:
        """Type ``command``; return the seconds since the start and the groups of ``pattern`` in the guest's output.

        ``again``: type it again after so many seconds, since the guest loses what arrives before its shell runs.
        """
        typed = None
        while True:
            found = re.search(pattern, self._said)
            if found:
                return time.monotonic() - self._began, found.groups()
            now = time.monotonic()
            if now > self._until:
                wait = f"under {self._name} within {self._patience:.0f} s"
                raise Failure(f"The guest's shell did not answer {wait}. Last line of its console: {self._last}.")
            if typed is None or (again and now > typed + again):
                typed = now
                self._type(command)
            self._listen()

    @property
    def _last(self) -> str:
        return printable(next(reversed(self._said.strip().splitlines()), "nothing"))

    def _type(self, command: str) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(f"{command}\n".encode())
                self._process.stdin.flush()

    def _listen(self) -> None:
        """Read the console for half a second; raise ``Failure`` if the machine has ended."""
        stream = self._process.stdout
        if stream is None or not select.select([stream], [], [], 0.5)[0]:
            return
        block = os.read(stream.fileno(), 65536)
        if not block:
            status = self._process.wait()
            raise Failure(f"{self._name} ended with status {status}. Its last line: {self._last}.")
        self._said = (self._said + block.decode(errors="replace"))[-65536:]

    def ping(self) -> bool:
        """Ping the guest from the host's side of the tap."""
        inside = ("nsenter", "--target", str(self._process.pid), "--user", "--net", "--preserve-credentials")
        argv = [*inside, "ping", "-n", "-c", "3", "-i", "0.5", "-W", "5", GUEST_ADDRESS]
        return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0
