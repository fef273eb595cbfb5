# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check whether a repository can be cloned, and bundle a local one.

Separate from ``address``, because only creating needs it. git never prompts here, and every call has a deadline.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from ....module_utils._node.errors import DeadlineExceeded, FlowError, NotFound, redact
from ..common import untrusted
from .address import _COMMIT, Repository
from .names import validate_ref

if TYPE_CHECKING:
    from .local import LocalGit

BUNDLE_LIMIT = 1024**3
"""Maximum size of a bundle in memory, in bytes."""


@dataclass(frozen=True)
class Probe:
    """A server's answer. ``state``: open, needs-auth, not-found, host-key-unknown, unreachable or unreadable.

    ``detail`` is a sentence or the server's message; ``head`` is the first commit of a clone, if known. ``identity``
    says which credential opened a private repository.
    """

    state: str
    detail: str = ""
    head: str = ""
    identity: str = ""


@dataclass(frozen=True)
class Outcome:
    """Result of a program; ``status`` is ``None`` if it was killed at its timeout."""

    status: int | None
    stdout: str
    stderr: str


Runner = Callable[[Sequence[str], Mapping[str, str], float], Outcome]


def run_bounded(argv: Sequence[str], environ: Mapping[str, str], timeout: float) -> Outcome:
    """Run ``argv`` without a terminal. After ``timeout`` seconds, kill it and all its children.

    Output goes to files, because a daemon left by a child (a shared SSH connection, a credential cache) would keep a
    pipe open forever.
    """
    import signal
    import subprocess
    import tempfile

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            argv, env=dict(environ), cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        status: int | None = None
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if status is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1024**2).decode("utf-8", "replace"))
    return Outcome(status, texts[0], texts[1])


_SIGNS = (
    ("host-key-unknown", r"host key verification failed|host identification has changed|no \S+ host key is known"),
    (
        "needs-auth",
        r"permission denied|terminal prompts disabled|could not read (username|password)|authentication failed"
        r"|returned error: 40[13]|access denied|too many authentication failures|invalid username or",
    ),
    (
        "not-found",
        r"repository not found|returned error: 404|repository '[^']*' not found|does not appear to be a git repository"
        r"|project you were looking for could not be found|repository .*does not exist|not a git repository"
        r"|no such file or directory|info/refs not valid",
    ),
)
"""Messages of git, OpenSSH and common servers in the C locale; the first match counts."""


_RECORD_USER = """!f() { test "$1" != store || sed -n s/^username=//p >"$SPT_FLOW_USED"; }; f"""
"""A credential helper that only notes the name of the user whose credential the server accepted."""


def _classified(stderr: str) -> str:
    text = "\n".join(line for line in stderr.lower().splitlines() if not line.startswith("warning:"))
    if re.search(r"cannot run|unable to find remote helper", text):
        return "unreachable"
    return next((state for state, signs in _SIGNS if re.search(signs, text)), "unreachable")


def _last_words(stderr: str) -> str:
    """Return the most informative line of ``stderr``."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if re.match(r"(fatal|error|remote|ssh|[\w.-]+@[\w.-]+:|@ *warning|no )", line, re.IGNORECASE)
    ]
    vague = ("fatal: could not read from remote", "and the repository exists", "please make sure")
    telling = [line for line in telling if not line.lower().startswith(vague)] or lines or [""]
    return untrusted.line(redact(telling[0]), 300)


@contextmanager
def _environment(repository: Repository, known_hosts: str, timeout: float) -> Iterator[dict[str, str]]:
    """Return the caller's environment with all prompts disabled."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_DIR", "GIT_WORK_TREE"))}
    environ.update(
        LC_ALL="C",
        LANGUAGE="",
        GIT_TERMINAL_PROMPT="0",
        GIT_ASKPASS="",
        SSH_ASKPASS="",
        SSH_ASKPASS_REQUIRE="never",
        GCM_INTERACTIVE="never",
        GIT_ALLOW_PROTOCOL="https:ssh",
    )
    if repository.kind != "ssh":
        yield environ
        return
    import shlex
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="spt-flow-known-hosts-") as lines:
        ssh = shlex.split(environ.get("GIT_SSH_COMMAND", "")) or [environ.get("GIT_SSH", "ssh")]
        options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "ControlMaster=no",
            f"ConnectTimeout={max(1, int(timeout))}",
        ]
        if known_hosts:
            lines.write(known_hosts.rstrip("\n") + "\n")
            lines.flush()
            options.append(f"GlobalKnownHostsFile=/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2 {lines.name}")
        environ["GIT_SSH_COMMAND"] = shlex.join([ssh[0], *(f"-o{option}" for option in options), *ssh[1:]])
        yield environ


def probe(
    repository: Repository, ref: str = "", timeout: float = 10.0, runner: Runner = run_bounded, known_hosts: str = ""
) -> Probe:
    """Query the server with the caller's own credentials. Never prompts and never exceeds ``timeout`` seconds."""
    validate_ref(ref)
    if repository.kind == "local":
        return _probe_local(repository, ref, timeout, runner)
    names = [ref, f"refs/heads/{ref}", f"refs/tags/{ref}", f"refs/tags/{ref}^{{}}"] if ref else ["HEAD"]
    words = ["ls-remote", "--", repository.url, *names]
    try:
        with _environment(repository, known_hosts, timeout) as environ:
            outcome, identity = _with_credentials(repository, words, environ, timeout, runner)
    except FileNotFoundError:
        return Probe("unreachable", "git is not installed on this machine")
    except OSError as error:
        return Probe("unreachable", f"cannot run git on this machine: {error.strerror}")
    if outcome.status is None:
        return Probe("unreachable", f"no answer within {timeout:g} s")
    if outcome.status != 0:
        return Probe(_classified(outcome.stderr), _last_words(outcome.stderr))
    commits = {name: commit for commit, _tab, name in (line.partition("\t") for line in outcome.stdout.splitlines())}
    head = next((commits[name] for name in reversed(names) if name in commits), "")
    if ref and not head and not _COMMIT.fullmatch(ref):
        return Probe("not-found", f"it does not have a branch or tag {ref}")
    return Probe("open", "", head, identity)


def _with_credentials(
    repository: Repository, words: Sequence[str], environ: Mapping[str, str], timeout: float, runner: Runner
) -> tuple[Outcome, str]:
    """Run git with the user's own helpers, then with gh or glab, like the later clone (docs/identity.md).

    Return the outcome and which credential was used.
    """
    git = ["git", "-c", "core.askPass="]
    if repository.kind != "https":
        return runner([*git, *words], environ, timeout), ""
    import shutil
    import tempfile
    import time

    end = time.monotonic() + timeout
    with tempfile.NamedTemporaryFile("r", prefix="spt-flow-user-") as used:
        recording = {**environ, "SPT_FLOW_USED": used.name}
        outcome = runner([*git, "-c", f"credential.helper={_RECORD_USER}", *words], recording, timeout)
        for program in filter(shutil.which, ("gh", "glab")):
            if outcome.status in (None, 0) or _classified(outcome.stderr) != "needs-auth":
                break
            # An empty helper first, so that git's own helpers do not store another program's token.
            helper = ["-c", "credential.helper=", "-c", f"credential.helper=!{program} auth git-credential"]
            argv = [*git, *helper, "-c", f"credential.helper={_RECORD_USER}", *words]
            tried = runner(argv, recording, max(0.1, end - time.monotonic()))
            if tried.status == 0:
                return tried, f"as {_line_of(used)} with {program}"
        user = _line_of(used) if outcome.status == 0 else ""
    return outcome, f"as {user} with git" if user else ""


def _line_of(file: IO[str]) -> str:
    return untrusted.line(file.read().strip(), 100)


# Repositories on this machine


def _probe_local(repository: Repository, ref: str, timeout: float, runner: Runner) -> Probe:
    from .local import NotARepository, Unreadable, reading

    try:
        with reading(repository.path, runner) as git:
            return _probe_git(git, ref, timeout)
    except Unreadable as error:
        return Probe("not-found" if isinstance(error, NotARepository) else "unreadable", str(error))
    except FileNotFoundError:
        return Probe("unreachable", "git is not installed on this machine")


def _probe_git(git: LocalGit, ref: str, timeout: float) -> Probe:
    if git.shallow:
        return Probe(
            "unreadable", "it is a shallow clone, which cannot be copied completely; run `git fetch --unshallow` in it"
        )
    wanted = ref or "HEAD"
    outcome = git.run(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{wanted}^{{commit}}"], timeout)
    if outcome.status is None:
        return Probe("unreachable", f"no answer within {timeout:g} s")
    if outcome.status != 0:
        return Probe(
            "not-found", f"it does not have a branch, tag or commit {ref}" if ref else "it does not have a commit yet"
        )
    return Probe("open", "", outcome.stdout.split()[-1])


def make_bundle(repository: Repository, ref: str = "", timeout: float = 300.0, runner: Runner = run_bounded) -> bytes:
    """Bundle a local repository's branches, tags and HEAD (docs/decisions/local-repositories.md)."""
    from .local import Unreadable, reading

    validate_ref(ref)
    where = f"Cannot copy the repository {repository.path}"
    hint = "Use the top directory of a complete clone that has a commit."
    try:
        with reading(repository.path, runner) as git:
            answer = _probe_git(git, ref, timeout)
            if answer.state != "open":
                raise NotFound(f"{where}: {answer.detail}.", hint)
            return _bundle(git, where, timeout)
    except Unreadable as error:
        raise NotFound(f"{where}: {error}.", hint) from None
    except FileNotFoundError:
        raise NotFound(f"{where}: git is not installed on this machine.", hint) from None


def _bundle(git: LocalGit, where: str, timeout: float) -> bytes:
    file = os.path.join(git.path, "seed.bundle")
    outcome = git.run(["bundle", "create", "--quiet", file, "HEAD", "--branches", "--tags"], timeout)
    if outcome.status is None:
        raise DeadlineExceeded(f"{where}: git took longer than {timeout:g} s.")
    if outcome.status != 0:
        raise FlowError(
            f"{where}: {_last_words(outcome.stderr)}",
            "If it is a partial clone or damaged, use a complete clone.",
        )
    if os.path.getsize(file) > BUNDLE_LIMIT:
        raise FlowError(f"{where}: it is larger than 1 GiB.", "Push it to a server and use its address.")
    with open(file, "rb") as bundle:
        return bundle.read()
