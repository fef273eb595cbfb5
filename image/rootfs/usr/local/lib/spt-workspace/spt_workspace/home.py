# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill a new home."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from pathlib import Path

from .contract import Failure, Paths, reason, write_file

SKELETONS = ("/usr/local/share/spt-flow/skel", "/etc/skel")


def prepare_home(paths: Paths, skeletons: tuple[str, ...] = SKELETONS) -> str:
    """Copy the skeleton once, without overwriting files; raise ``Failure`` with status 8 if the home is unusable.

    A full disk is not a failure, because the user must get in to make room. The next start copies the missing files.
    """
    marker = paths.state / "home.json"
    try:
        if marker.exists():
            return "the home was left as it is"
        probe = paths.home / f".spt-flow-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
        skeleton = next((Path(path) for path in skeletons if Path(path).is_dir()), None)
        copied = copy_missing(skeleton, paths.home) if skeleton else 0
        paths.state.mkdir(parents=True, exist_ok=True)
        write_file(marker, json.dumps({"prepared": time.time()}))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "there is no space left: nothing was copied"
        uid = os.getuid()
        raise Failure(f"The home {paths.home} cannot be prepared by uid {uid}: {reason(error)}.", 8) from None
    return f"first start: {copied} files from the skeleton"


def copy_missing(source: Path, target: Path) -> int:
    """Copy missing files to ``target``, each atomically; return how many."""
    copied = 0
    for place, directories, files in os.walk(source):
        here = target / Path(place).relative_to(source)
        for name in directories:
            if not (Path(place) / name).is_symlink():
                (here / name).mkdir(exist_ok=True)
        for name in files + [d for d in directories if (Path(place) / d).is_symlink()]:
            if not os.path.lexists(here / name):
                temporary = here / f".{name}.spt-flow-new"
                temporary.unlink(missing_ok=True)
                shutil.copy2(Path(place) / name, temporary, follow_symlinks=False)
                os.rename(temporary, here / name)
                copied += 1
    return copied
