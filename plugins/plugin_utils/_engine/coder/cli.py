# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Provide the program `coder`, which enters workspaces of a Coder server.

Uses the one on PATH if its major and minor version match the server's. Otherwise downloads the server's own from
``/bin/`` once (docs/decisions/coder-server-behaviour.md). ``coder`` in ``folder()`` links to it. The SSH configuration
tries that link first, so plain SSH uses the same program. The server's version is known from its earlier answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ....module_utils._node import atomic, process
from ....module_utils._node.errors import FlowError, NotFound, Unhealthy
from ..common.progress import Progress

if TYPE_CHECKING:
    from .http import CoderHttp

MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "armv7l": "armv7"}
FETCH_TIMEOUT = 300.0
LARGEST = 512 << 20
_VERSION = re.compile(r"v?(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:[-+][A-Za-z0-9.+-]{1,80})?", re.ASCII)


def folder() -> Path:
    """Directory of the downloaded programs, with one directory per version. Only ``_fetch`` creates it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spt-flow/coder"


def ready(http: CoderHttp, progress: Progress, needed: bool = False) -> list[str]:
    """Provide a program that is compatible with the server. Return notes about problems.

    ``http`` must have received an answer before. Raise ``NotFound`` or ``Unhealthy`` if there is no program and one is
    ``needed``.
    """
    wanted = http.server_version
    found = shutil.which("coder")
    version = _version_of(found) if found else ""
    link = folder() / "coder"
    if found and is_compatible(version, wanted):
        link.unlink(missing_ok=True)
        return []
    numbers = _VERSION.fullmatch(wanted)
    if not numbers:
        return _without(found, f"The server's version {wanted[:40]!r} is not valid", needed)
    kept = folder() / ".".join(numbers.groups()) / "coder"
    try:
        if not os.access(kept, os.X_OK):
            with progress.stage("coder", f"fetching {wanted} from the server"):
                _fetch(http, kept, wanted)
        _point(link, kept)
    except FlowError as error:
        return _without(found, error.message.rstrip("."), needed, version, wanted)
    except OSError as error:
        return _without(found, f"{folder()}: {error.strerror}", needed, version, wanted)
    return []


def is_compatible(version: str, server: str) -> bool:
    """Return whether a client of ``version`` is compatible: same major and minor version, or a development build."""
    if "devel" in version + server:
        return bool(version)
    here, there = _VERSION.fullmatch(version), _VERSION.fullmatch(server)
    return bool(here and there and here.groups()[:2] == there.groups()[:2])


def _without(found: str | None, reason: str, needed: bool, version: str = "", wanted: str = "") -> list[str]:
    """Return a note, or raise an error, about the server's program being unavailable."""
    if found:
        words = f"{found} is {version or 'of an unknown version'}, the server is {wanted}" if wanted else reason
        return [
            f"{words}: connections may fail until both have the same version ({reason})." if wanted else f"{reason}."
        ]
    hint = "Install Coder's command line (see <server>/install.sh), or check why the server does not offer it."
    if needed:
        raise NotFound(f"The program coder, which enters workspaces of a Coder server, is missing: {reason}.", hint)
    return [f"The program coder, which enters the workspace, is missing: {reason}. {hint}"]


def _version_of(program: str) -> str:
    """Return the program's version.

    It is cached until the file changes, because running it takes a tenth of a second.
    """
    try:
        status = os.stat(program)
        key = [os.path.realpath(program), status.st_size, status.st_mtime_ns]
    except OSError:
        return ""
    memory = folder() / "path.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["key"] == key:
            return str(known["version"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    version = asked(program)
    if version:
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(memory, json.dumps({"key": key, "version": version}).encode(), 0o644)
        except OSError:
            return version
    return version


def asked(program: str) -> str:
    """Return the output of `coder version`, or nothing if it fails."""
    try:
        return str(json.loads(process.ask(program, "version", "--output", "json", timeout=20)[1])["version"])
    except (ValueError, KeyError, TypeError):
        return ""


def _fetch(http: CoderHttp, path: Path, wanted: str) -> None:
    """Download the server's program to ``path``, atomically and executable. Raise ``FlowError``."""
    machine = MACHINES.get(platform.machine().lower())
    if machine is None or sys.platform not in ("linux", "darwin"):
        raise NotFound(f"The server does not offer a program for {sys.platform} on {platform.machine()}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        digest, announced = hashlib.sha1(usedforsecurity=False), ""
        with os.fdopen(descriptor, "wb") as file:
            for block, tag in http.download(f"/bin/coder-{sys.platform}-{machine}", FETCH_TIMEOUT, LARGEST):
                file.write(block)
                digest.update(block)
                announced = tag
        if re.fullmatch(r"[0-9a-f]{40}", announced) and announced != digest.hexdigest():
            raise Unhealthy(f"The file from {http.config.url}/bin/ does not match its announced digest.")
        os.chmod(temporary, 0o755)  # noqa: S103 - a program for the user of this home
        if not is_compatible(asked(temporary), wanted):
            raise Unhealthy(f"The file from {http.config.url}/bin/ is not a working coder {wanted}.")
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _point(link: Path, program: Path) -> None:
    """Make the link ``link`` point to ``program``, below its directory."""
    relative = os.path.relpath(program, link.parent)
    if link.is_symlink() and os.readlink(link) == relative:
        return
    temporary = link.with_name(f".coder.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(relative)
    os.replace(temporary, link)
