# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``flow-vm``: a virtual machine with the image's own kernel and programs, under KVM or in software emulation (TCG).

As the workspace's user: a tap needs a network namespace of one's own, which Docker inside needs and brings as well.
"""

from __future__ import annotations

import argparse
import contextlib
import lzma
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import kvm, tree
from .contract import Failure, Paths, reason, write_file
from .record import printable

HELP = "Boot a virtual machine with this image's own kernel and programs, and tell how fast it is."
STATUSES = """exit status: 0 its shell answered, 1 it did not, 2 wrong usage, 6 this image has no emulator or kernel.
What works is noted in /run/spt-flow/accel, and is SPT_FLOW_ACCEL in every login from then on, until the next start."""
ACCELERATORS = ("kvm", "tcg")
PATIENCE = {"kvm": 60.0, "tcg": 420.0}
"""Seconds in which its shell has to answer. Emulation takes four on an idle machine, and minutes on a crowded one."""
HARDWARE = {"kvm": ("microvm", "virtio-net-device"), "tcg": ("q35", "virtio-net-pci,romfile=")}
"""Machine and network card. The small machine has no timer that an emulated processor's speed could be told by."""
TRIAL = 20.0
"""The same for a KVM that nobody asked for: where guests boot at all, they take one."""
EMULATOR = "qemu-system-x86_64"
HERE, THERE = "172.31.255.1", "172.31.255.2"
TAP = "flow0"
LOOPS = 200_000
# The guest runs it, and so does this machine.
LOOP = f"i=0; while [ $i -lt {LOOPS} ]; do i=$((i+1)); done"
_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")
_TAPPED = f'ip tuntap add dev {TAP} mode tap; ip address add {HERE}/30 dev {TAP}; ip link set {TAP} up; exec "$@"'
TIMED = f"read a x </proc/uptime; {LOOP}; read b x </proc/uptime; echo loop-$a-$b-"
MODULES = ("virtio_mmio", "virtio_net")
INIT = f"""#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
ip link set lo up
ip link set eth0 up && ip address add {THERE}/30 dev eth0
exec sh 2>&1
"""


@dataclass(frozen=True)
class Kernel:
    """``modules`` are what its network needs and it has not built in, in the order in which they are loaded."""

    version: str
    path: Path
    modules: tuple[Path, ...]


@dataclass(frozen=True)
class Booted:
    """``seconds`` until its shell answered; ``slowdown``: its loop's time by that of the same one here."""

    seconds: float
    slowdown: float
    pinged: bool


def main(arguments: Sequence[str], paths: Paths = Paths()) -> int:  # noqa: B008 - frozen
    """The exit status; a failure is one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="flow-vm", description=HELP, epilog=STATUSES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    wish = os.environ.get("SPT_FLOW_ACCEL", "")
    parser.add_argument(
        "--accel",
        choices=ACCELERATORS,
        help="by default SPT_FLOW_ACCEL, else what is found out: KVM where a guest boots under it, else tcg",
    )
    try:
        options = parser.parse_args(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if not options.accel and wish not in ("", *ACCELERATORS):
            raise Failure(f"SPT_FLOW_ACCEL is {printable(wish)[:40]!r}, neither kvm nor tcg.", 2)
        print(run(options.accel or wish, paths, lambda text: print(text, flush=True)))
    except Failure as failure:
        print(f"flow-vm: {failure.sentence}", file=sys.stderr)
        return failure.status
    except KeyboardInterrupt:
        return 130
    return 0


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def run(wish: str, paths: Paths, say: Callable[[str], None]) -> str:
    """Boot with the accelerator ``wish``, or with the one that works; a sentence, or ``Failure``."""
    found = kernel(paths)
    state, word = kvm.verdict(str(paths.root / "dev/kvm"))
    say(word)
    if wish == "kvm" and state != "works":
        raise Failure(f"SPT_FLOW_ACCEL=kvm is not possible here. {word}")
    accel = wish or ("kvm" if state == "works" else "tcg")
    with tempfile.TemporaryDirectory(prefix="flow-vm-") as folder:
        initrd = Path(folder, "initrd")
        initrd.write_bytes(first_files(found))
        try:
            say(f"Booting Linux {found.version} with {accel} …")
            booted = boot(accel, found, initrd, TRIAL if accel == "kvm" and not wish else PATIENCE[accel])
        except Failure as failure:
            if wish or accel == "tcg":
                raise
            say(f"{failure.sentence} Booting with tcg, software emulation, instead …")
            accel, booted = "tcg", boot("tcg", found, initrd, PATIENCE["tcg"])
    with contextlib.suppress(OSError):
        write_file(paths.run / "accel", f"{accel}\n")
    return told(accel, booted)


def told(accel: str, booted: Booted) -> str:
    name = "KVM" if accel == "kvm" else "TCG (software emulation)"
    pinged = "answered a ping through its tap" if booted.pinged else "has no network: no tap can be made here"
    speed = f"its processor is {booted.slowdown:.1f} times slower than this one"
    return f"Under {name} the guest's shell answered after {booted.seconds:.1f} s, it {pinged}, and {speed}."


def kernel(paths: Paths) -> Kernel:
    """The newest that the image has; ``Failure`` with status 6 where there is nothing to boot, or to boot it with."""
    if not shutil.which(EMULATOR):
        raise Failure(f"This image has no {EMULATOR}; profile fat has.", 6)
    there = [path for path in (paths.root / "boot").glob("vmlinuz-*") if os.access(path, os.R_OK)]
    if not there:
        raise Failure("This image has no kernel in /boot that a guest could boot; profile fat has.", 6)
    newest = max(there, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
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


def first_files(found: Kernel) -> bytes:
    """The guest's whole file system, made anew each time: nothing of it lies in the image."""
    modules = {f"modules/{n:02}-{path.stem}": _plain(path) for n, path in enumerate(found.modules)}
    files = {"init": INIT.encode(), **modules}
    return tree.cpio(tree.of(("sh", "mount", "ip", "insmod"), files, ("dev", "proc", "modules")))


def _plain(module: Path) -> bytes:
    """What ``insmod`` loads without the libraries that it would look for while it runs."""
    content = module.read_bytes()
    return lzma.decompress(content) if module.suffix == ".xz" else content


def boot(accel: str, found: Kernel, initrd: Path, patience: float) -> Booted:
    """Boot, talk to its shell, ping it, end it. Raises ``Failure``."""
    machine, card = HARDWARE[accel]
    argv = [
        EMULATOR,
        *("-machine", machine, "-accel", accel, "-m", "256", "-smp", "1"),
        *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(found.path), "-initrd", str(initrd), "-append", "console=ttyS0 quiet panic=-1"),
    ]
    tapped = _can_tap()
    if tapped:
        argv += ["-netdev", f"tap,id=n,ifname={TAP},script=no,downscript=no", "-device", f"{card},netdev=n"]
        argv = [*_NAMESPACE, "sh", "-ec", _TAPPED, "sh", *argv]
    with _Guest(argv, accel, patience) as guest:
        seconds, _words = guest.answer("echo shell-$((6*7))", r"shell-42\b", again=5)
        _seconds, times = guest.answer(TIMED, r"loop-([\d.]+)-([\d.]+)-")
        pinged = tapped and guest.ping()
    began = time.monotonic()
    subprocess.run(["sh", "-c", LOOP], timeout=600, check=False)
    here = max(time.monotonic() - began, 0.001)
    if tapped and not pinged:
        raise Failure(f"The guest's shell answered under {accel}, but {THERE} no ping through its tap.")
    return Booted(seconds, max(0.0, float(times[1]) - float(times[0])) / here, pinged)


def _can_tap() -> bool:
    """Whether the device is here and this user may have a network of its own."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK) or not shutil.which("unshare") or not shutil.which("ip"):
        return False
    return subprocess.run([*_NAMESPACE, "true"], capture_output=True, timeout=30, check=False).returncode == 0


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """What would end this run waits until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Guest:
    """A running emulator, talked to over the guest's serial line; gone at the end of the block."""

    def __init__(self, argv: Sequence[str], accel: str, patience: float) -> None:
        self._argv = list(argv)
        self._accel = accel
        self._patience = patience
        self._began = time.monotonic()
        self._until = self._began + patience
        self._said = ""

    def __enter__(self) -> _Guest:
        with contextlib.ExitStack() as begun:
            # A signal in between would leave an emulator that nobody ends.
            with _held():
                try:
                    self._process = subprocess.Popen(
                        self._argv,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                except OSError as error:
                    raise Failure(f"{self._argv[0]} cannot be started: {reason(error)}.") from None
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
        """Seconds since the start and the groups of ``pattern`` in what the guest says to ``command``.

        ``again``: typed anew after so many seconds, since what comes before the shell is there may be lost.
        """
        typed = None
        while True:
            found = re.search(pattern, self._said)
            if found:
                return time.monotonic() - self._began, found.groups()
            now = time.monotonic()
            if now > self._until:
                wait = f"under {self._accel} within {self._patience:.0f} s"
                raise Failure(f"The guest's shell did not answer {wait}; its console said last: {self._last}.")
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
        """Take what the console says within half a second; ``Failure`` when the emulator has ended."""
        stream = self._process.stdout
        if stream is None or not select.select([stream], [], [], 0.5)[0]:
            return
        block = os.read(stream.fileno(), 65536)
        if not block:
            status = self._process.wait()
            raise Failure(f"The emulator ended under {self._accel} with status {status}; it said last: {self._last}.")
        self._said = (self._said + block.decode(errors="replace"))[-65536:]

    def ping(self) -> bool:
        """From the emulator's side of the tap."""
        inside = ("nsenter", "--target", str(self._process.pid), "--user", "--net", "--preserve-credentials")
        argv = [*inside, "ping", "-n", "-c", "3", "-i", "0.5", "-W", "5", THERE]
        return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0
