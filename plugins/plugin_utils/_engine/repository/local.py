# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a repository in a directory of this machine, without trusting it.

A repository's configuration can make git run programs, and links or alternates can make it read other directories. So
git never runs inside the directory. It runs in a temporary git directory of ours with a copy of the refs, which borrows
the objects. As in git itself, the directory must belong to the caller. It must also contain all of its objects.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..common import untrusted

if TYPE_CHECKING:
    from .probe import Outcome, Runner

SMALL = 64 * 1024
"""Largest size of a file with one line, in bytes."""
LARGE = 128 * 1024**2
"""Largest size of the packed refs, in bytes."""

_HEX = rb"[0-9a-f]{40}(?:[0-9a-f]{24})?"
_REF_NAME = re.compile(
    rb"refs/(?!replace/)(?!.*(?:\.\.|@\{|//|/\.|\.lock(?:/|$)))[^\x00-\x20\x7f~^:?*\[\\]*[^\x00-\x20\x7f~^:?*\[\\/.]",
    re.DOTALL,
)
_CONFIGURATION = """\
[core]
\trepositoryformatversion = {version}
\tbare = true
\thooksPath = /dev/null
\tfsmonitor = false
\tcommitGraph = false
\tmultiPackIndex = false
\tbigFileThreshold = 64m
[pack]
\twindowMemory = 256m
[protocol]
\tallow = never
"""


class Unreadable(Exception):
    """Why a directory cannot be read as a repository: a printable sentence without its full stop."""

    def __init__(self, sentence: str) -> None:
        super().__init__(untrusted.line(sentence))


class NotARepository(Unreadable):
    """The directory is not a repository."""


@dataclass(frozen=True)
class Places:
    """Real paths: the directory, the git directory with its HEAD, and the one with refs and objects."""

    folder: str
    git: str
    common: str


@dataclass(frozen=True)
class LocalGit:
    """A git directory of ours that stands for a directory's repository."""

    path: str
    runner: Runner
    shallow: bool

    def run(self, arguments: Sequence[str], timeout: float) -> Outcome:
        return self.runner(["git", *arguments], environment(self.path), timeout)


def environment(path: str) -> dict[str, str]:
    """Return the caller's environment for git in ``path``:

    no configuration except that of ``path``, no network, no prompts.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **kept,
        "HOME": path,
        "XDG_CONFIG_HOME": path,
        "LC_ALL": "C",
        "LANGUAGE": "",
        "GIT_DIR": path,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
    }


@contextmanager
def reading(path: str, runner: Runner) -> Iterator[LocalGit]:
    """Yield a git for the repository in the directory ``path``. Raise ``Unreadable`` and the errors of ``runner``."""
    import tempfile

    places = locate(path, runner)
    head, refs = read_refs(places)
    check_objects(os.path.join(places.common, "objects"))
    shallow = bool((read(os.path.join(places.common, "shallow"), LARGE) or b"").strip())
    with tempfile.TemporaryDirectory(prefix="spt-flow-git-") as ours:
        fill(ours, os.path.join(places.common, "objects"), head, refs)
        yield LocalGit(ours, runner, shallow)


def origin(path: str, runner: Runner) -> str:
    """Return the address that the directory ``path`` was cloned from, or nothing."""
    try:
        return setting(locate(path, runner).common, "remote.origin.url", runner)
    except Unreadable:
        return ""


# Locating


def locate(path: str, runner: Runner) -> Places:
    """Find the git directory of the directory ``path``, which the caller must own."""
    folder = os.path.realpath(path)
    if not os.path.isdir(folder):
        raise NotARepository("the directory does not exist")
    entry = os.path.join(folder, ".git")
    kind = _kind(entry)
    if kind == "missing" and not _is_git(folder):
        above = any(os.path.lexists(os.path.join(parent, ".git")) for parent in _parents(folder))
        inside = "it is a directory inside a repository, not the repository itself"
        raise NotARepository(inside if above else "it is not a git repository")
    if kind not in ("missing", "folder", "file"):
        raise Unreadable("its .git is a link; use the directory that the link points to")
    git = {"missing": folder, "folder": entry}.get(kind) or _follow(entry)
    common = _common(git, entry)
    for place in dict.fromkeys((folder, entry if kind == "file" else git, git, common)):
        _check_owner(place, folder, runner)
    if kind == "file" and git == common and setting(git, "core.worktree", runner, git) != folder:
        raise Unreadable("its .git names a git directory that does not name this directory; use a clone of it")
    if not _is_git(common):
        raise Unreadable("it is not a git repository")
    return Places(folder, git, common)


def _parents(folder: str) -> Iterator[str]:
    while (parent := os.path.dirname(folder)) != folder:
        folder = parent
        yield folder


def _kind(path: str) -> str:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"


def _is_git(path: str) -> bool:
    if _kind(os.path.join(path, "reftable")) != "missing":
        raise Unreadable(
            "it keeps its refs in the reftable format, which is not supported; "
            "run `git refs migrate --ref-format=files` in it"
        )
    kinds = {"HEAD": "file", "objects": "folder", "refs": "folder"}
    return all(_kind(os.path.join(path, name)) == kind for name, kind in kinds.items())


def _follow(entry: str) -> str:
    """Return the git directory that a file named ``.git`` points to."""
    text = os.fsdecode(read(entry, SMALL) or b"").rstrip("\r\n")
    if not text.startswith("gitdir: ") or "\0" in text:
        raise Unreadable("its .git is not a git directory")
    return os.path.realpath(os.path.join(os.path.dirname(entry), text.removeprefix("gitdir: ")))


def _common(git: str, entry: str) -> str:
    """Return the directory with refs and objects of ``git``.

    It differs only for a linked worktree, which its repository must name.
    """
    text = read(os.path.join(git, "commondir"), SMALL)
    if text is None:
        return git
    common = os.path.realpath(os.path.join(git, os.fsdecode(text.rstrip(b"\r\n").replace(b"\0", b""))))
    back = os.fsdecode((read(os.path.join(git, "gitdir"), SMALL) or b"").rstrip(b"\r\n").replace(b"\0", b""))
    # Git writes this path either as absolute or as relative to the git directory.
    named = os.path.join(git, back)
    known = os.path.realpath(os.path.dirname(named)) == os.path.dirname(entry) and os.path.basename(named) == ".git"
    if not known or os.path.dirname(git) != os.path.join(common, "worktrees"):
        raise Unreadable("its .git names a repository that does not list this worktree; run `git worktree repair`")
    return common


def _check_owner(place: str, folder: str, runner: Runner) -> None:
    """Check the owner like git, because the owner of a repository decides what git runs there.

    ``sudo`` counts as its caller.
    """
    caller = os.geteuid()
    owners = {caller}
    if caller == 0 and os.environ.get("SUDO_UID", "").isascii() and os.environ.get("SUDO_UID", "").isdigit():
        owners.add(int(os.environ["SUDO_UID"]))
    try:
        owner = os.lstat(place).st_uid
    except OSError as error:
        raise Unreadable(f"{place} cannot be read: {error.strerror}") from None
    if owner not in owners and not _is_safe(folder, runner):
        raise Unreadable(
            f"{place} belongs to another user (id {owner}); "
            f"if you trust it, run `git config --global --add safe.directory {folder}`"
        )


def _is_safe(folder: str, runner: Runner) -> bool:
    """Return whether the caller's own git configuration lists ``folder`` as safe."""
    caller = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    said = runner(["git", "config", "--null", "--type=path", "--get-all", "safe.directory"], caller, 10.0)
    safe = False
    for value in said.stdout.split("\0")[:-1]:
        parent = value.removesuffix("/*")
        below = value.endswith("/*") and folder.startswith(f"{os.path.realpath(parent)}/")
        safe = bool(value) and (safe or value == "*" or below or os.path.realpath(value) == folder)
    return safe


def setting(git: str, name: str, runner: Runner, base: str = "") -> str:
    """Return one value of a git directory's configuration, read as data; with ``base`` the real path relative to it."""
    import tempfile

    text = read(os.path.join(git, "config"), SMALL * 16)
    if text is None:
        return ""
    with tempfile.TemporaryDirectory(prefix="spt-flow-git-") as ours:
        copy = os.path.join(ours, "copy")
        with open(copy, "wb") as file:
            file.write(text)
        argv = ["git", "config", "--file", copy, "--no-includes", "--null", "--get", name]
        said = runner(argv, environment(ours), 10.0)
    value = said.stdout.rstrip("\0") if said.status == 0 else ""
    return os.path.realpath(os.path.join(base, value)) if base and value else value


# Content


def read(path: str, limit: int) -> bytes | None:
    """Return the content of a regular file, or nothing if it does not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unreadable(f"{path} is not a readable file ({error.strerror})") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise Unreadable(f"{path} is not a regular file, or is too large")
        return file.read(limit)


def read_refs(places: Places) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the content of HEAD, and all refs with their commits."""
    head = (read(os.path.join(places.git, "HEAD"), SMALL) or b"").strip()
    branch = head.removeprefix(b"ref:").strip() if head.startswith(b"ref:") else b""
    if not re.fullmatch(_HEX, head) and not _REF_NAME.fullmatch(branch):
        raise Unreadable("its HEAD is neither a branch nor a commit")
    values = dict(_packed(read(os.path.join(places.common, "packed-refs"), LARGE) or b""))
    values |= {name: value for name, value in _loose(places.common) if _REF_NAME.fullmatch(name)}
    refs = {}
    for name in values:
        value = values[name]
        for _hop in range(5):
            if not value.startswith(b"ref:"):
                break
            value = values.get(value.removeprefix(b"ref:").strip(), b"")
        if re.fullmatch(_HEX, value):
            refs[name] = value
    commits = [*refs.values(), *([] if branch else [head])]
    if len({len(commit) for commit in commits}) > 1:
        raise Unreadable("its refs are of two kinds, SHA-1 and SHA-256")
    return (b"ref: " + branch if branch else head), refs


def _packed(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    for line in text.split(b"\n"):
        value, _space, name = line.partition(b" ")
        if re.fullmatch(_HEX, value) and _REF_NAME.fullmatch(name):
            yield name, value


def _loose(common: str) -> Iterator[tuple[bytes, bytes]]:
    pending = [b"refs"]
    while pending:
        folder = pending.pop()
        for entry in _entries(os.path.join(os.fsencode(common), folder)):
            name = folder + b"/" + entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(name)
            elif not name.endswith(b".lock"):
                yield name, (read(os.fsdecode(entry.path), SMALL) or b"").strip()


def _entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    """Return the entries of ``folder``. Raise ``Unreadable`` for links, which lead elsewhere, and special files."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise Unreadable(f"{os.fsdecode(folder)} cannot be read: {error.strerror}") from None
    for entry in found:
        if not entry.is_dir(follow_symlinks=False) and not entry.is_file(follow_symlinks=False):
            raise Unreadable(f"{os.fsdecode(entry.path)} is neither a file nor a directory; use a clone of it")
    return found


def check_objects(objects: str) -> None:
    """Raise ``Unreadable`` for objects outside the directory: links and alternates."""
    for entry in _entries(os.fsencode(objects)):
        if re.fullmatch(rb"[0-9a-f]{2}|pack|info", entry.name) and entry.is_dir(follow_symlinks=False):
            _entries(entry.path)
    borrowed = read(os.path.join(objects, "info", "alternates"), SMALL) or b""
    if any(line.strip() and not line.startswith(b"#") for line in borrowed.split(b"\n")):
        raise Unreadable(
            "it borrows objects of another repository; "
            "run `git repack -a -d` in it and remove objects/info/alternates from its git directory"
        )


# Our git directory


def fill(ours: str, objects: str, head: bytes, refs: dict[bytes, bytes]) -> None:
    """Make ``ours`` a git directory with these refs, which borrows ``objects``."""
    long = any(len(commit) == 64 for commit in (head, *refs.values()))
    configuration = _CONFIGURATION.format(version=int(long))
    if long:
        configuration += "[extensions]\n\tobjectFormat = sha256\n"
    os.makedirs(os.path.join(ours, "objects", "info"))
    os.mkdir(os.path.join(ours, "refs"))
    quoted = b"".join(
        b"\\%03o" % byte if byte in b'"\\' or not 32 <= byte < 127 else bytes([byte]) for byte in os.fsencode(objects)
    )
    files = {
        "HEAD": head + b"\n",
        "config": configuration.encode(),
        "packed-refs": b"".join(refs[name] + b" " + name + b"\n" for name in sorted(refs)),
        os.path.join("objects", "info", "alternates"): b'"' + quoted + b'"\n',
    }
    for name, text in files.items():
        with open(os.path.join(ours, name), "wb") as file:
            file.write(text)
