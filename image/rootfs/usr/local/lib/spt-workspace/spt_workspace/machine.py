# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``flow-vm``: boot a virtual machine with QEMU, under KVM or in software emulation (TCG), or with Firecracker."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import guest, kvm, microvm
from .contract import Failure, Paths, write_file
from .record import printable

HELP = "Boot a virtual machine with this image's own kernel and programs, and report how fast it is."
STATUSES = """exit status: 0 the shell of the guest answered, 1 it did not, 2 wrong usage, 6 no emulator or kernel.
QEMU's working accelerator is written to /run/spt-flow/accel; logins have it in SPT_FLOW_ACCEL until the next start.
Firecracker needs KVM: it has no software emulation."""
ACCELERATORS = ("kvm", "tcg")
MONITORS = ("qemu", "firecracker")
PATIENCE = {"kvm": 60.0, "tcg": 420.0}
"""Seconds until the guest's shell must answer. Emulation takes four on an idle machine, and minutes on a busy one."""
HARDWARE = {"kvm": ("microvm", "virtio-net-device"), "tcg": ("q35", "virtio-net-pci,romfile=")}
"""Machine type and network card. The microvm has no timer to measure the speed of an emulated processor with."""
TRIAL = 20.0
"""The same for KVM as the default: where guests boot under KVM, they take one second."""
EMULATOR = "qemu-system-x86_64"
LOOPS = 200_000
# Both the guest and this workspace run it, to compare their speed.
LOOP = f"i=0; while [ $i -lt {LOOPS} ]; do i=$((i+1)); done"
TIMED = f"read a x </proc/uptime; {LOOP}; read b x </proc/uptime; echo loop-$a-$b-"


@dataclass(frozen=True)
class Booted:
    """``seconds`` until the shell answered; ``slowdown``: the guest's time for the loop divided by the time here."""

    seconds: float
    slowdown: float
    pinged: bool


def main(arguments: list[str], paths: Paths = Paths()) -> int:  # noqa: B008 - frozen
    """Return the exit status; a failure prints one sentence to stderr."""
    parser = argparse.ArgumentParser(
        prog="flow-vm", description=HELP, epilog=STATUSES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.environ.get("SPT_FLOW_ACCEL", "")
    parser.add_argument("--vmm", choices=MONITORS, default="qemu", help="the program that runs it; default: qemu")
    parser.add_argument(
        "--accel",
        choices=ACCELERATORS,
        help="QEMU's accelerator; default: SPT_FLOW_ACCEL, else KVM if a guest boots under it, else tcg",
    )
    try:
        options = parser.parse_args(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if not options.accel and default not in ("", *ACCELERATORS):
            raise Failure(f"SPT_FLOW_ACCEL is {printable(default)[:40]!r}. Use kvm or tcg.", 2)
        if options.vmm == "firecracker" and options.accel == "tcg":
            raise Failure("Firecracker has no software emulation. Leave out --accel tcg, or use --vmm qemu.", 2)
        print(_chosen(options.vmm, options.accel or default, paths))
    except Failure as failure:
        print(f"flow-vm: {failure.sentence}", file=sys.stderr)
        return failure.status
    except KeyboardInterrupt:
        return 130
    return 0


def _chosen(monitor: str, accel: str, paths: Paths) -> str:
    if monitor == "firecracker":
        return microvm.run(paths, PATIENCE["kvm"])
    return run(accel, paths, lambda text: print(text, flush=True))


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def run(wanted: str, paths: Paths, say: Callable[[str], None]) -> str:
    """Boot with the accelerator ``wanted``, by default with the one that works; return a sentence."""
    if not shutil.which(EMULATOR):
        raise Failure(f"This image has no {EMULATOR}. Use the profile fat.", 6)
    found = guest.kernel(paths)
    state, sentence = kvm.verdict(str(paths.root / "dev/kvm"))
    say(sentence)
    if wanted == "kvm" and state != "works":
        raise Failure(f"Cannot use KVM. {sentence}")
    accel = wanted or ("kvm" if state == "works" else "tcg")
    with tempfile.TemporaryDirectory(prefix="flow-vm-") as folder:
        initrd = Path(folder, "initrd")
        initrd.write_bytes(guest.file_system(found))
        try:
            say(f"Booting Linux {found.version} with {accel} …")
            booted = boot(accel, found, initrd, TRIAL if accel == "kvm" and not wanted else PATIENCE[accel])
        except Failure as failure:
            if wanted or accel == "tcg":
                raise
            say(f"{failure.sentence} Booting with tcg (software emulation) instead …")
            accel, booted = "tcg", boot("tcg", found, initrd, PATIENCE["tcg"])
    with contextlib.suppress(OSError):
        write_file(paths.run / "accel", f"{accel}\n")
    return told(accel, booted)


def told(accel: str, booted: Booted) -> str:
    """Return the sentence about a guest that booted."""
    name = "KVM" if accel == "kvm" else "TCG (software emulation)"
    pinged = (
        "answered a ping through its tap" if booted.pinged else "has no network, because no tap can be created here"
    )
    speed = f"its processor is {booted.slowdown:.1f} times slower than this one"
    return f"Under {name} the guest's shell answered after {booted.seconds:.1f} s, it {pinged}, and {speed}."


def boot(accel: str, found: guest.Kernel, initrd: Path, patience: float) -> Booted:
    """Boot with QEMU, run commands in the guest, ping it and end it."""
    machine, card = HARDWARE[accel]
    argv = [
        EMULATOR,
        *("-machine", machine, "-accel", accel, "-m", "256", "-smp", "1"),
        *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(found.path), "-initrd", str(initrd), "-append", guest.COMMAND_LINE),
    ]
    tapped = guest.can_tap()
    if tapped:
        argv += ["-netdev", f"tap,id=n,ifname={guest.TAP},script=no,downscript=no", "-device", f"{card},netdev=n"]
        argv = guest.with_tap(argv)
    with guest.Console(argv, accel, patience) as console:
        seconds, _words = console.answer("echo shell-$((6*7))", r"shell-42\b", again=5)
        _seconds, times = console.answer(TIMED, r"loop-([\d.]+)-([\d.]+)-")
        pinged = tapped and console.ping()
    began = time.monotonic()
    subprocess.run(["sh", "-c", LOOP], timeout=600, check=False)
    here = max(time.monotonic() - began, 0.001)
    if tapped and not pinged:
        raise Failure(f"The guest's shell answered under {accel}, but the guest did not answer a ping through its tap.")
    return Booted(seconds, max(0.0, float(times[1]) - float(times[0])) / here, pinged)
