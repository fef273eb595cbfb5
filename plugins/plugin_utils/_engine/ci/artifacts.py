# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collect the files of a CI run: artifacts, and JUnit reports with their counts.

The workspace packs them into a tar stream. Whatever the stream contains, only regular files are written, below a new
directory of the run.
"""

from __future__ import annotations

import codecs
import os
import re
import selectors
import shlex
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self
from xml.sax.handler import ContentHandler

from ....module_utils._node.errors import DeadlineExceeded, FlowError, Unhealthy
from ..common import untrusted

ARTIFACTS, REPORTS = "artifacts", "reports"
MOST_BYTES = 2 * 2**30
MOST_FILES = 20_000
LARGEST_REPORT = 32 * 2**20
LONGEST_HEADER = 16384
"""Bytes of a tar header with a long name: no path is longer than 4096."""
MOST_HEADERS = 4
LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
LONGEST_NAME = 1024
DEEPEST = 64
"""Nested directories, and elements of a report."""
MOST_ELEMENTS = 2_000_000
MOST_NOTES = 20
LAST_SECONDS = 30.0
"""Seconds in which the packing command must end after its output has ended."""
COUNTED = ("tests", "failures", "errors", "skipped")
RESULTS = {"failure": "failures", "error": "errors", "skipped": "skipped"}

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
    """Collected files.

    ``files`` are relative to the run's directory; ``reports`` counts tests, failures, errors and skipped.
    """

    files: list[str] = field(default_factory=list)
    reports: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def remote_command(directory: str, artifacts: Sequence[str], reports: Sequence[str]) -> str:
    """Return the shell command that packs the files matching the globs, in the workspace."""
    patterns = [f"{ARTIFACTS}:{glob}" for glob in artifacts] + [f"{REPORTS}:{glob}" for glob in reports]
    limits = [str(MOST_FILES), str(MOST_BYTES)]
    return shlex.join(["exec", "/usr/bin/python3", "-I", "-c", _PACK, directory, *limits, *patterns])


def fetch(argv: Sequence[str], folder: Path, seconds: float, stop: Callable[[], bool] = lambda: False) -> Found:
    """Run ``argv``, which writes a tar stream, and unpack it below ``folder``. Raise ``FlowError``.

    ``seconds`` limits the whole call. After a failure, all files are deleted.
    """
    archive, limit = folder / ".collect.tar", Limit(seconds, stop)
    try:
        said = _receive(argv, archive, limit)
        notes = [line.removeprefix("note: ") + "." for line in said if line.startswith("note: ")]
        found = Found(notes=notes[:MOST_NOTES])
        found.files = unpack(archive, folder, limit)
        _read_reports(found, folder, limit)
    except (OSError, tarfile.TarError) as error:
        _discard(folder)
        raise FlowError(f"Cannot store the files of the workspace: {untrusted.line(str(error))}.") from None
    except BaseException:
        _discard(folder)
        raise
    finally:
        archive.unlink(missing_ok=True)
    return found


def _discard(folder: Path) -> None:
    for kind in (ARTIFACTS, REPORTS):
        shutil.rmtree(folder / kind, ignore_errors=True)


class Limit:
    """Time limit of collecting. ``check`` raises ``DeadlineExceeded`` when it has passed or the run must stop."""

    def __init__(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        self._end = time.monotonic() + seconds
        self._stop = stop

    def check(self) -> None:
        if self._stop() or time.monotonic() > self._end:
            raise DeadlineExceeded("collecting took too long or was stopped")


def _receive(argv: Sequence[str], archive: Path, limit: Limit) -> list[str]:
    """Write the standard output of ``argv`` to ``archive``. Return the lines of standard error."""
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
                limit.check()
                if room < 0:
                    raise FlowError(f"the workspace sent more than {MOST_BYTES >> 20} MiB")
            status = child.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            raise DeadlineExceeded("the packing command did not end") from None
        finally:
            if child.poll() is None:
                child.kill()
    lines = [untrusted.line(line.strip()) for line in words.decode(errors="replace").splitlines() if line.strip()]
    if status:
        raise Unhealthy(lines[-1] if lines else f"status {status}")
    return lines


def unpack(archive: Path, folder: Path, limit: Limit) -> list[str]:
    """Unpack the regular files of ``archive`` below the new ``folder``. Return their relative names.

    The job controls the stream, so anything else, and any name outside the directory, is rejected.
    """
    names: list[str] = []
    room = MOST_BYTES
    try:
        with tarfile.open(archive, "r|", tarinfo=_headers()) as tar:
            for member in tar:
                limit.check()
                room -= member.size
                if room < 0 or len(names) >= MOST_FILES:
                    raise FlowError(f"the workspace sent more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB")
                names.append(_unpack_one(tar, member, folder, limit))
    except RecursionError:
        raise FlowError("the workspace sent headers inside headers") from None
    return names


def _headers() -> type[tarfile.TarInfo]:
    """Return a class of headers that rejects long headers, and long series of them, before reading them into memory."""
    in_a_row = 0

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            nonlocal in_a_row
            found = super().frombuf(buf, encoding, errors)
            in_a_row = in_a_row + 1 if found.type in LONG_HEADERS else 0
            if in_a_row > MOST_HEADERS or (in_a_row and found.size > LONGEST_HEADER):
                raise FlowError(f"the workspace sent a file name or header of {found.size} bytes")
            return found

    return Header


def _unpack_one(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, limit: Limit) -> str:
    """Write the file of ``member`` and return its name relative to ``folder``."""
    parts = PurePosixPath(member.name).parts
    safe = len(parts) > 1 and parts[0] in (ARTIFACTS, REPORTS) and not {"..", "/"} & set(parts)
    if not (member.isreg() and safe and member.name.isprintable()) or member.issparse():
        raise FlowError(
            f"the workspace sent {untrusted.line(member.name, 200)!r}, which is not a regular file below its directory"
        )
    if len(parts) > DEEPEST or len(member.name.encode()) > LONGEST_NAME:
        raise FlowError(f"the workspace sent {untrusted.line(member.name, 80)!r}: the name is too long or too deep")
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = 0o755 if member.mode & 0o100 else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    source = tar.extractfile(member)
    with os.fdopen(descriptor, "wb") as file:
        while source is not None and (block := source.read(1 << 20)):
            limit.check()
            file.write(block)
    return "/".join(parts)


# Reports


def check_reader() -> None:
    """Raise ``FlowError`` if the package that reads reports is missing."""
    try:
        import defusedxml  # noqa: F401
    except ImportError:
        raise FlowError(
            "Cannot read JUnit reports: the Python package defusedxml is missing.",
            "Install it in the environment of ansible-core (pip install defusedxml), or collect the reports as "
            "artifacts.",
        ) from None


def _read_reports(found: Found, folder: Path, limit: Limit) -> None:
    reports = [name for name in found.files if name.startswith(f"{REPORTS}/")]
    if not reports:
        return
    found.reports = dict.fromkeys(COUNTED, 0)
    refused: list[str] = []
    for name in reports:
        try:
            counted = junit(folder / name, limit)
        except ValueError as error:
            refused.append(f"{name} was not counted: {error}.")
            continue
        for key, number in counted.items():
            found.reports[key] += number
    found.notes += refused[:MOST_NOTES]
    if len(refused) > MOST_NOTES:
        found.notes.append(f"{len(refused) - MOST_NOTES} more reports were not counted.")


def junit(path: Path, limit: Limit) -> dict[str, int]:
    """Return the counts of a JUnit report. Raise ``ValueError`` with the reason if it is not one.

    Never loads the report as a whole, and rejects document types.
    """
    from xml.sax import SAXException

    from defusedxml.common import DefusedXmlException
    from defusedxml.expatreader import create_parser

    counts = _Counts()
    parser = create_parser(forbid_dtd=True)
    parser.setContentHandler(counts)
    # With text instead of bytes, the parser ignores the encoding that the report declares.
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        if path.stat().st_size > LARGEST_REPORT:
            raise ValueError(f"it is larger than {LARGEST_REPORT >> 20} MiB")
        with path.open("rb") as file:
            _refuse_encoding(file.read(200))
            file.seek(0)
            while block := file.read(65536):
                limit.check()
                parser.feed(decoder.decode(block))
        parser.feed(decoder.decode(b"", final=True))
        parser.close()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except DefusedXmlException:
        raise ValueError("it declares a document type or entities") from None
    except (OSError, SAXException):
        raise ValueError("it is not valid XML") from None
    return counts.found


def _refuse_encoding(head: bytes) -> None:
    """Raise ``ValueError`` for a report that declares an encoding other than UTF-8."""
    declared = re.match(rb"(?:\xef\xbb\xbf)?<\?xml[^>]*?encoding\s*=\s*[\"']([^\"'>]*)", head)
    if b"\0" in head or (declared and declared[1].lower() not in (b"utf-8", b"us-ascii", b"ascii")):
        raise ValueError("it is not UTF-8")


class _Counts(ContentHandler):
    """Count test cases by their direct children."""

    def __init__(self) -> None:
        super().__init__()
        self.found = dict.fromkeys(COUNTED, 0)
        self._elements = 0
        self._depth = 0
        self._case = 0
        self._seen: set[str] = set()

    def startElement(self, name: str, attrs: Any) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth == 1 and name not in ("testsuites", "testsuite"):
            raise ValueError("it is not a JUnit report")
        if self._depth > DEEPEST or self._elements > MOST_ELEMENTS:
            raise ValueError(f"it holds more than {DEEPEST} levels or {MOST_ELEMENTS} elements")
        if name == "testcase" and not self._case:
            self.found["tests"] += 1
            self._case, self._seen = self._depth, set()
        elif self._case and self._depth == self._case + 1 and name in RESULTS and name not in self._seen:
            self._seen.add(name)
            self.found[RESULTS[name]] += 1

    def endElement(self, name: str) -> None:
        if self._depth == self._case:
            self._case = 0
        self._depth -= 1
