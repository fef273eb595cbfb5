# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Create a base image from a Debian archive if no registry has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ....module_utils._node.errors import FlowError
from ..common.progress import Progress
from .cache import no_space

_SCRIPTS = Path("/usr/share/debootstrap/scripts")


def debootstrap(
    suite: str, script: str, mirror: str, path: Path, progress: Progress, keyring: Path | None = None
) -> None:
    """Write a minimal system as a tar to ``path``. Needs root, or sudo without a password prompt."""
    program = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise FlowError(
            "Cannot create the base system of the image: debootstrap is not installed.",
            "Install it (apt-get install debootstrap), or name a base image by digest in image/versions.yml.",
        )
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if root and subprocess.run([*root, "true"], capture_output=True, check=False).returncode:
        raise FlowError(
            "Cannot create the base system of the image: debootstrap needs root, and sudo asks for a password.",
            "Run `sudo -v` first, or name a base image by digest in image/versions.yml.",
        )
    progress.note(f"image: bootstrapping {suite} from {mirror} (about a minute, once)")
    with tempfile.TemporaryDirectory(prefix="spt-flow-base.", dir=path.parent) as folder:
        system = os.path.join(folder, "system")
        trust = [f"--keyring={keyring}"] if keyring else []
        # For a suite newer than this debootstrap, use the script of its distribution's other suites.
        known = [] if (_SCRIPTS / suite).exists() else [script]
        argv = [*root, program, "--variant=minbase", "--force-check-gpg", *trust, suite, system, mirror, *known]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        try:
            if done.returncode:
                tail = "\n".join(done.stdout.splitlines()[-5:])
                # debootstrap reports every file error as a failed download; the real error is in its log.
                log = Path(system, "debootstrap/debootstrap.log")
                if "No space left on device" in done.stdout + (log.read_text(errors="replace") if log.exists() else ""):
                    raise no_space(f"bootstrap {suite} in", path.parent.parent)
                raise FlowError(f"Cannot bootstrap {suite} from {mirror}:\n{tail}", "Check the mirror (mirror_apt).")
            with open(path, "wb") as out:
                tar = ["tar", "--numeric-owner", "--exclude=./var/cache/apt/archives/*.deb", "-C", system, "-c", "."]
                subprocess.run([*root, *tar], stdout=out, check=True)
        finally:
            subprocess.run([*root, "rm", "-rf", "--one-file-system", system], check=False)
