# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that a CI run brings home: artifacts, and JUnit reports with their counts.

The workspace packs them into a tar stream; what comes is written as regular files below a folder that the run has just
made, whatever the stream says.
"""

from __future__ import annotations

import os
import selectors
import shlex
import subprocess
import tarfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ....module_utils._node.errors import DeadlineExceeded, FlowError, Unhealthy

ARTIFACTS, REPORTS = "artifacts", "reports"
MOST_BYTES = 2 * 2**30
MOST_FILES = 20_000
LARGEST_REPORT = 32 * 2**20
COUNTED = ("tests", "failures", "errors", "skipped")

_PACK = """
import glob, os, sys, tarfile
root, many, much = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.chdir(root)
top = os.path.realpath('.') + '/'
def files(path):
    if os.path.islink(path) or not os.path.isdir(path):
        return [path]
    return [os.path.join(d, n) for d, _s, names in os.walk(path) for n in names]
with tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.PAX_FORMAT) as tar:
    for word in sys.argv[4:]:
        kind, _, pattern = word.partition(':')
        seen, refused = set(), 0
        for found in sorted(glob.glob(pattern, recursive=True)):
            for path in sorted(files(found)):
                name = os.path.normpath(path)
                real = os.path.realpath(path)
                if name in seen:
                    continue
                seen.add(name)
                if os.path.islink(path) or not os.path.isfile(path) or real != top + name:
                    refused += 1
                    continue
                many -= 1
                much -= os.path.getsize(path)
                if many < 0 or much < 0:
                    sys.exit('more than %s files or %s bytes match' % tuple(sys.argv[2:4]))
                tar.add(path, kind + '/' + name, recursive=False)
        if not seen:
            print('note: nothing matches ' + pattern, file=sys.stderr)
        if refused:
            print('note: %d that match %s are no regular files of the clone' % (refused, pattern), file=sys.stderr)
"""


@dataclass
class Found:
    """``files`` are relative to the run's folder; ``reports`` counts tests, failures, errors and skipped."""

    files: list[str] = field(default_factory=list)
    reports: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def there(directory: str, artifacts: Sequence[str], reports: Sequence[str]) -> str:
    """The shell command that packs, in the workspace, what the globs match."""
    patterns = [f"{ARTIFACTS}:{glob}" for glob in artifacts] + [f"{REPORTS}:{glob}" for glob in reports]
    limits = [str(MOST_FILES), str(MOST_BYTES)]
    return shlex.join(["exec", "/usr/bin/python3", "-I", "-c", _PACK, directory, *limits, *patterns])


def fetch(argv: Sequence[str], folder: Path, seconds: float, stop: Callable[[], bool] = lambda: False) -> Found:
    """Run ``argv``, which writes a tar stream, and unpack it below ``folder``. Raises ``FlowError``."""
    archive = folder / ".collect.tar"
    try:
        said = _receive(argv, archive, seconds, stop)
        found = Found(notes=[line.removeprefix("note: ") + "." for line in said if line.startswith("note: ")])
        found.files = unpack(archive, folder)
    except (OSError, tarfile.TarError) as error:
        raise FlowError(f"What the workspace sent cannot be kept: {error}.") from None
    finally:
        archive.unlink(missing_ok=True)
    _read_reports(found, folder)
    return found


def _receive(argv: Sequence[str], archive: Path, seconds: float, stop: Callable[[], bool]) -> list[str]:
    """Standard output of ``argv`` in ``archive``; the lines of standard error."""
    end = time.monotonic() + seconds
    room, words = MOST_BYTES + MOST_FILES * 2048, b""
    with (
        archive.open("xb") as file,
        subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        ) as child,
        selectors.DefaultSelector() as selector,
    ):
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ)
        try:
            while selector.get_map():
                for key, _events in selector.select(0.5):
                    data = os.read(key.fd, 1 << 20)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is child.stdout:
                        room -= len(data)
                        file.write(data)
                    else:
                        words = (words + data)[-65536:]
                if stop() or room < 0 or time.monotonic() > end:
                    raise DeadlineExceeded("it took too long, or is too much")
        finally:
            if selector.get_map():
                child.kill()
        status = child.wait(30)
    lines = [line.strip() for line in words.decode(errors="replace").splitlines() if line.strip()]
    if status:
        raise Unhealthy(lines[-1] if lines else f"status {status}")
    return lines


def unpack(archive: Path, folder: Path) -> list[str]:
    """Regular files of ``archive`` below ``folder``, which holds nothing of the same name yet; their relative names.

    Anything else, and any name that leads elsewhere, is refused: the stream was written where the job ran.
    """
    names: list[str] = []
    room = MOST_BYTES
    with tarfile.open(archive, "r|") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            safe = len(parts) > 1 and parts[0] in (ARTIFACTS, REPORTS) and not {"..", "/"} & set(parts)
            room -= member.size
            if not (member.isreg() and safe and member.name.isprintable()) or member.issparse():
                raise FlowError(f"the workspace sent {member.name!r}, which is no plain file below its folder")
            if room < 0 or len(names) >= MOST_FILES:
                raise FlowError("the workspace sent too much")
            path = folder.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = 0o755 if member.mode & 0o100 else 0o644
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            source = tar.extractfile(member)
            with os.fdopen(descriptor, "wb") as file:
                while source is not None and (block := source.read(1 << 20)):
                    file.write(block)
            names.append("/".join(parts))
    return names


def _read_reports(found: Found, folder: Path) -> None:
    reports = [name for name in found.files if name.startswith(f"{REPORTS}/")]
    if not reports:
        return
    found.reports = dict.fromkeys(COUNTED, 0)
    for name in reports:
        counted = junit(folder / name)
        if counted is None:
            found.notes.append(f"{name} is no JUnit report.")
            continue
        for key, number in counted.items():
            found.reports[key] += number


def junit(path: Path) -> dict[str, int] | None:
    """Counts of a JUnit report, ``None`` when it is none. A document that declares entities is not read."""
    try:
        if path.stat().st_size > LARGEST_REPORT:
            return None
        data = path.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            return None
        root = ET.fromstring(data)  # noqa: S314 - without a document type there are no entities to expand
    except (OSError, ET.ParseError, ValueError):
        return None
    if root.tag not in ("testsuites", "testsuite"):
        return None
    cases = list(root.iter("testcase"))
    found = {"tests": len(cases)}
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        found[key] = sum(case.find(tag) is not None for case in cases)
    return found
