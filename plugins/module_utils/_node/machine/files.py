# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare and write a list of small files, directories and absences on a host.

A task per file costs half a second each (two module runs); a list costs that once.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import atomic
from ..errors import FlowError, InvalidInput

STATES = ("file", "directory", "absent")
ENTRY = {
    "path": {"type": "path", "required": True},
    "state": {"type": "str", "choices": list(STATES), "default": "file"},
    "content": {"type": "str", "default": ""},
    "mode": {"type": "str"},
}
SPEC = {"files": {"type": "list", "elements": "dict", "required": True, "options": ENTRY}, "seen": {"type": "dict"}}
"""Options of the module and the action host_files."""


@dataclass(frozen=True)
class Entry:
    """The state wanted at ``path``. The owner is the current user, so root on hosts; ``mode`` are permission bits."""

    path: str
    state: str = "file"
    content: str = ""
    mode: int = 0o644

    @classmethod
    def of(cls, values: dict[str, Any]) -> Entry:
        """Create an entry from a task's values. ``mode`` is octal text; the default is 0755 for directories and 0644
        for files.

        Raise ``InvalidInput`` for any other mode.
        """
        state = values.get("state") or "file"
        mode = str(values.get("mode") or ("0755" if state == "directory" else "0644"))
        try:
            return cls(values["path"], state, values.get("content") or "", int(mode, 8))
        except ValueError:
            raise InvalidInput(f"The mode of {values['path']} is {mode!r}.", 'Write it as octal text such as "0644".')

    def describe(self, owner: str = "") -> str:
        """Return the wanted state in the format of ``_found``. ``owner`` is uid:gid, by default the current user's."""
        if self.state == "absent":
            return ""
        owner = owner or f"{os.geteuid()}:{os.getegid()}"
        return f"{self.state} {self.mode:04o} {owner}\n" + (self.content if self.state == "file" else "")


def _found(path: str) -> str:
    """Return kind, mode, owner and content of ``path``, or nothing if it does not exist."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    head = f"{stat.S_IMODE(status.st_mode):04o} {status.st_uid}:{status.st_gid}\n"
    if stat.S_ISDIR(status.st_mode):
        return f"directory {head}"
    if not stat.S_ISREG(status.st_mode):
        return f"other {head}"
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return f"file {head}{file.read()}"


def result(files: Sequence[dict[str, Any]], dry: bool) -> dict[str, Any]:
    """Return what the module returns for its option ``files``."""
    changes = apply([Entry.of(values) for values in files], dry)
    paths = [change["after_header"] for change in changes]
    return {"changed": bool(paths), "paths": paths, "diff": changes, "msg": ", ".join(paths) or "already up to date"}


def digests(paths: Sequence[str]) -> dict[str, str]:
    """Return a digest of each path, short enough to be sent to the controller for comparison.

    Empty if the path does not exist.
    """
    found = {}
    for path in paths:
        try:
            found[path] = _digest(_found(path))
        except OSError:
            found[path] = "unreadable"
    return found


def up_to_date(entries: Sequence[Entry], seen: Mapping[str, str]) -> bool:
    """Return whether ``entries`` match ``digests`` read by root on a host, so that no change is needed."""
    return all(seen.get(entry.path) == _digest(entry.describe(owner="0:0")) for entry in entries)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest() if text else ""


def apply(entries: Sequence[Entry], dry: bool = False) -> list[dict[str, str]]:
    """Apply all entries in order, each atomically. Return a diff in Ansible's format for each change.

    A directory that should be absent stays while it is not empty. Raise ``FlowError`` with the path that failed.
    """
    changes = []
    for entry in entries:
        before, after = _found(entry.path), entry.describe()
        if before == after or (entry.state == "absent" and _kept(entry.path)):
            continue
        if not dry:
            try:
                _write(entry)
            except OSError as error:
                reason = error.strerror or error
                raise FlowError(
                    f"Cannot apply the state {entry.state} to {entry.path}: {reason}.",
                    "Remove what exists at that path or free space, then run it again. Earlier entries are complete.",
                )
        headers = {"before_header": entry.path, "after_header": entry.path}
        changes.append({"before": _shown(before), "after": _shown(after), **headers})
    return changes


def _kept(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path) and bool(os.listdir(path))


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _write(entry: Entry) -> None:
    if entry.state == "absent":
        if os.path.isdir(entry.path) and not os.path.islink(entry.path):
            os.rmdir(entry.path)
        else:
            os.unlink(entry.path)
    elif entry.state == "directory":
        os.makedirs(entry.path, exist_ok=True)
        os.chown(entry.path, os.geteuid(), os.getegid())
        os.chmod(entry.path, entry.mode)
    else:
        atomic.write(entry.path, entry.content, entry.mode, durable=True)
