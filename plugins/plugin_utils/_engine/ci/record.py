# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the record of a CI run, `run.json`, to create a developer's workspace from it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....module_utils._node.errors import InvalidInput
from ..repository.address import Repository
from ..settings.options import OPTIONS
from ..settings.resolve import resolve

FILE = "run.json"
_EXAMPLE = "Name the directory of a run: -e from_run=spt-flow-ci/ci-demo-0a1b2c3d"


def load(path: Path) -> dict[str, Any]:
    """Return the record of a run's directory or of the file itself. Raise ``InvalidInput``."""
    path = path / FILE if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        strings = all(isinstance(record[name], str) for name in ("source", "commit", "settings_hash", "image_hash"))
        good = strings and isinstance(record["settings"], dict)
    except OSError as error:
        raise InvalidInput(f"from_run: cannot read {path}: {error.strerror}.", _EXAMPLE) from None
    except (ValueError, KeyError, TypeError):
        good, record = False, {}
    if not good:
        raise InvalidInput(f"from_run: {path} is not the record of a CI run.", _EXAMPLE)
    if not record["source"] or not record["commit"]:
        raise InvalidInput(f"from_run: the run of {path} ended before it had a commit.", "Choose another run.")
    return dict(record)


def source(repository: Repository) -> dict[str, str]:
    """Return the source of the run's commit: the address, or the directory and the address it was cloned from."""
    if repository.kind != "local":
        return {"source": repository.url, "origin": ""}
    from ..repository.local import origin
    from ..repository.probe import run_bounded

    try:
        # A pipeline's checkout may have its token in the address.
        found = Repository.parse(re.sub(r"^(https?://)[^/@]*@", r"\1", origin(repository.path, run_bounded)))
    except (OSError, InvalidInput):
        return {"source": repository.path, "origin": ""}
    return {"source": repository.path, "origin": "" if found.kind == "local" else found.url}


def values(record: Mapping[str, Any], repo: str = "", directories: bool = True, docker: str = "") -> dict[str, Any]:
    """Return values of ``spt.flow.workspace`` for a workspace like the run's: repository, commit, settings.

    ``repo`` overrides where the commit comes from. ``directories`` says whether the target can clone a directory of
    this machine; where it cannot, or the directory is not here, the record's origin counts. ``docker`` is the user's
    value.

    Raise ``InvalidInput`` for invalid settings or an unknown source.
    """
    settings = record["settings"]
    named = {name: settings[name] for name in OPTIONS if OPTIONS[name].scope == "workspace" and name in settings}
    checked = resolve({"the record of the run": named})
    chosen = {name: checked[name] for name in named}
    if chosen.get("docker") == "unsafe" and docker != "unsafe":
        raise InvalidInput(
            "from_run: the run used docker=unsafe, which lets a workspace become root on this machine.",
            "If you trust the record, add -e docker=unsafe.",
        )
    folder = record["source"].startswith("/")
    if folder and not (directories and Path(record["source"]).is_dir()):
        repo = repo or str(record.get("origin") or "")
    elif not repo:
        repo = record["source"]
    if not repo:
        raise InvalidInput(
            f"from_run: the run used the directory {record['source']}, which does not exist here.",
            "Name its repository: -e repo=https://host/owner/name.git",
        )
    return {"repo": repo, "ref": record["commit"], **chosen}


def drift(record: Mapping[str, Any], settings_hash: str, image_hash: str) -> str:
    """Return a line that names the differences between a workspace and the run in image and settings, or nothing."""
    pairs = {"image": image_hash, "settings": settings_hash}
    other = [name for name, now in pairs.items() if now and record[f"{name}_hash"] and now != record[f"{name}_hash"]]
    if not other:
        return ""
    shown = ", ".join(f"{name} {record[f'{name}_hash'][:12]} there, {pairs[name][:12]} here" for name in other)
    return f"This workspace differs from the CI run: {shown}."
