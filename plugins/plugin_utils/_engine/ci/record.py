# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a CI run, `run.json`, as a developer's workspace is made of it."""

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
_EXAMPLE = "Name the folder of a run: -e from_run=spt-flow-ci/ci-demo-0a1b2c3d"


def load(path: Path) -> dict[str, Any]:
    """The record in a run's folder, or the file itself. Raises ``InvalidInput``."""
    path = path / FILE if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        strings = all(isinstance(record[name], str) for name in ("source", "commit", "settings_hash", "image_hash"))
        good = strings and isinstance(record["settings"], dict)
    except OSError as error:
        raise InvalidInput(f"from_run: {path} cannot be read: {error.strerror}.", _EXAMPLE) from None
    except (ValueError, KeyError, TypeError):
        good, record = False, {}
    if not good:
        raise InvalidInput(f"from_run: {path} is no record of a CI run.", _EXAMPLE)
    if not record["source"] or not record["commit"]:
        raise InvalidInput(f"from_run: the run of {path} ended before it had a commit.", "Take another run.")
    return dict(record)


def source(repository: Repository) -> dict[str, str]:
    """Where the run's commit is from: the address, or the folder and what that was itself cloned from."""
    if repository.kind != "local":
        return {"source": repository.url, "origin": ""}
    from ..repository.local import origin
    from ..repository.probe import run_bounded

    try:
        # A pipeline's checkout may carry its token in the address.
        found = Repository.parse(re.sub(r"^(https?://)[^/@]*@", r"\1", origin(repository.path, run_bounded)))
    except (OSError, InvalidInput):
        return {"source": repository.path, "origin": ""}
    return {"source": repository.path, "origin": "" if found.kind == "local" else found.url}


def values(record: Mapping[str, Any], repo: str = "", directories: bool = True, docker: str = "") -> dict[str, Any]:
    """Values of ``spt.flow.workspace`` that make what the run had: repository, commit, settings.

    ``repo`` overrides where the commit comes from. ``directories`` says whether the target can clone a directory of
    this machine; where it cannot, or the directory is not here, the record's origin counts. ``docker`` is the user's
    value.

    Raises ``InvalidInput`` for wrong settings and when nobody knows where the commit is.
    """
    settings = record["settings"]
    named = {name: settings[name] for name in OPTIONS if OPTIONS[name].scope == "workspace" and name in settings}
    checked = resolve({"the record of the run": named})
    chosen = {name: checked[name] for name in named}
    if chosen.get("docker") == "unsafe" and docker != "unsafe":
        raise InvalidInput(
            "from_run: the run had docker=unsafe, with which a workspace can become root on this machine.",
            "If you trust the record, say so: -e docker=unsafe",
        )
    folder = record["source"].startswith("/")
    if folder and not (directories and Path(record["source"]).is_dir()):
        repo = repo or str(record.get("origin") or "")
    elif not repo:
        repo = record["source"]
    if not repo:
        raise InvalidInput(
            f"from_run: the run was of the folder {record['source']}, which cannot be cloned from here.",
            "Say where its repository is: -e repo=https://host/owner/name.git",
        )
    return {"repo": repo, "ref": record["commit"], **chosen}


def drift(record: Mapping[str, Any], settings_hash: str, image_hash: str) -> str:
    """In which of image and settings a workspace differs from the run, in one line; nothing when in none."""
    pairs = {"image": image_hash, "settings": settings_hash}
    other = [name for name, now in pairs.items() if now and record[f"{name}_hash"] and now != record[f"{name}_hash"]]
    if not other:
        return ""
    shown = ", ".join(f"{name} {record[f'{name}_hash'][:12]} there, {pairs[name][:12]} here" for name in other)
    return f"This workspace differs from the CI run: {shown}."
