# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boot a microVM with Firecracker: to a line on its console, a command in its shell and a ping through its tap.

Firecracker has no software emulation, so it needs a KVM that boots Linux.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from . import guest, kvm
from .contract import Failure, Paths

PROGRAM = "firecracker"
NAME = "Firecracker"
CARD = "06:00:ac:1f:ff:02"


def run(paths: Paths, patience: float) -> str:
    """Boot the image's own kernel with Firecracker; return a sentence about the guest."""
    if not shutil.which(PROGRAM):
        raise Failure(f"This image has no {PROGRAM}. Use the profile fat.", 6)
    found = guest.kernel(paths)
    state, sentence = kvm.verdict(str(paths.root / "dev/kvm"))
    if state != "works":
        raise Failure(f"Firecracker needs KVM, and has no software emulation. {sentence}")
    with tempfile.TemporaryDirectory(prefix="flow-vm-") as folder:
        seconds, pinged = _boot(found, Path(folder), patience)
    network = "answered a ping through its tap" if pinged else "has no network, because no tap can be created here"
    return f"Under {NAME} Linux {found.version} ran a command on its console after {seconds:.1f} s, and it {network}."


def _boot(found: guest.Kernel, folder: Path, patience: float) -> tuple[float, bool]:
    """Return the seconds until the guest's shell answered, and whether the guest answered a ping."""
    tapped = guest.can_tap()
    (folder / "initrd").write_bytes(guest.file_system(found))
    file = folder / "vm.json"
    file.write_text(json.dumps(configuration(found, folder / "initrd", tapped)))
    argv = [PROGRAM, "--no-api", "--config-file", str(file)]
    with guest.Console(guest.with_tap(argv) if tapped else argv, NAME, patience) as console:
        seconds, _words = console.answer("echo shell-$((6*7))", r"shell-42\b", again=5)
        pinged = tapped and console.ping()
    if tapped and not pinged:
        raise Failure(f"The guest's shell answered under {NAME}, but the guest did not answer a ping through its tap.")
    return seconds, pinged


def configuration(found: guest.Kernel, initrd: Path, tapped: bool) -> dict[str, object]:
    """Return Firecracker's configuration file: the guest has one processor, 256 MiB and no disk."""
    card = {"iface_id": "eth0", "guest_mac": CARD, "host_dev_name": guest.TAP}
    return {
        "boot-source": {
            "kernel_image_path": str(found.path),
            "initrd_path": str(initrd),
            "boot_args": guest.COMMAND_LINE,
        },
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 256},
        "network-interfaces": [card] if tapped else [],
    }
