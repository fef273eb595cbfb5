# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The author of commits in a workspace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any


def git_identity(values: Mapping[str, Any]) -> dict[str, str]:
    """Return ``name`` and ``email``: the user's values, else what the user's git says outside of repositories."""
    wanted = {"name": str(values["git_name"]), "email": str(values["git_email"])}
    if all(wanted.values()):
        return wanted
    argv = ["git", "config", "--null", "--get-regexp", r"^user\.(name|email)$"]
    # The current directory's repository may be another person's.
    environ = {name: text for name, text in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    place: dict[str, Any] = {"cwd": "/", "env": environ, "stdin": subprocess.DEVNULL}
    try:
        said = subprocess.run(argv, capture_output=True, timeout=10, check=False, **place).stdout
    except (OSError, subprocess.TimeoutExpired):
        return wanted
    for entry in said.decode(errors="replace").split("\0"):
        key, _newline, value = entry.partition("\n")
        part = key.removeprefix("user.")
        if part in wanted and not str(values[f"git_{part}"]):
            wanted[part] = value
    return wanted
