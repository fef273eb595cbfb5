# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program `coder` that enters workspaces of a Coder server.

The one on PATH when its major and minor version are the server's; else the server's own, fetched once from its
``/bin/`` (docs/decisions/coder-server-behaviour.md).
``coder`` in ``folder()`` is a link to that: SSH's block looks there first, so plain SSH
uses the same one. No server is asked for its version: each of its answers told it.
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
    """Where the fetched programs lie, each in a folder of its version; made by nobody but ``_fetch``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spt-flow/coder"


def ready(http: CoderHttp, progress: Progress, needed: bool = False) -> list[str]:
    """Have a program that goes with the server; notes about what is not as it should be.

    ``http`` has had an answer. Raises ``NotFound`` or ``Unhealthy`` when there is no program at all and one is
    ``needed``.
    """
    wanted = http.server_version
    found = shutil.which("coder")
    version = _version_of(found) if found else ""
    link = folder() / "coder"
    if found and goes_with(version, wanted):
        link.unlink(missing_ok=True)
        return []
    numbers = _VERSION.fullmatch(wanted)
    if not numbers:
        return _without(found, f"The server's version {wanted[:40]!r} is none", needed)
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


def goes_with(version: str, server: str) -> bool:
    """Whether a client of ``version`` speaks with ``server``: major and minor count, builds of developers fit all."""
    if "devel" in version + server:
        return bool(version)
    here, there = _VERSION.fullmatch(version), _VERSION.fullmatch(server)
    return bool(here and there and here.groups()[:2] == there.groups()[:2])


def _without(found: str | None, reason: str, needed: bool, version: str = "", wanted: str = "") -> list[str]:
    """What it means that the server's program cannot be had."""
    if found:
        words = f"{found} is {version or 'of an unknown version'}, the server is {wanted}" if wanted else reason
        return [f"{words}: connections may fail until they are alike ({reason})." if wanted else f"{reason}."]
    hint = "Install Coder's command line (see <server>/install.sh), or see why the server does not hand it out."
    if needed:
        raise NotFound(
            f"Workspaces of a Coder server are entered by the program coder, and there is none: {reason}.", hint
        )
    return [f"There is no program coder to enter the workspace with: {reason}. {hint}"]


def _version_of(program: str) -> str:
    """The program's version, remembered as long as its file stays what it is: asking takes a tenth of a second."""
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
    """What `coder version` says; empty when it says none."""
    try:
        return str(json.loads(process.ask(program, "version", "--output", "json", timeout=20)[1])["version"])
    except (ValueError, KeyError, TypeError):
        return ""


def _fetch(http: CoderHttp, path: Path, wanted: str) -> None:
    """The server's program to ``path``, at once and executable. Raises ``FlowError``."""
    machine = MACHINES.get(platform.machine().lower())
    if machine is None or sys.platform not in ("linux", "darwin"):
        raise NotFound(f"The server has no program for {sys.platform} on {platform.machine()}.")
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
            raise Unhealthy(f"What {http.config.url}/bin/ handed out is not what it announced.")
        os.chmod(temporary, 0o755)  # noqa: S103 - a program for whoever has this home
        if not goes_with(asked(temporary), wanted):
            raise Unhealthy(f"What {http.config.url}/bin/ handed out is no coder {wanted} that runs here.")
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _point(link: Path, program: Path) -> None:
    """Make ``link`` lead to ``program``, which lies below its folder."""
    relative = os.path.relpath(program, link.parent)
    if link.is_symlink() and os.readlink(link) == relative:
        return
    temporary = link.with_name(f".coder.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(relative)
    os.replace(temporary, link)
