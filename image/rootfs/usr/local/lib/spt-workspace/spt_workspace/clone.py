# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clone into a temporary directory, verify and rename: a kill leaves nothing or a complete clone."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .access import coder_credentials
from .background import AGENT
from .contract import Contract, Failure, Paths, reason, write_file
from .identity import sessions
from .processes import Children, Outcome, backoff
from .record import printable

LEFTOVER = ".spt-flow-clone-"
TRIES = 4
TIMEOUT = 3600.0

_SCP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[^-].*")
_URL = re.compile(r"(https://|ssh://([A-Za-z0-9_][A-Za-z0-9._-]*@)?)[A-Za-z0-9\[][A-Za-z0-9.:\]-]*/[^-].*")
_COMMIT = re.compile(r"[0-9a-fA-F]{7,64}")

# Messages of git by kind; the first match decides, because ssh ends every failure with the same general sentence.
_WORDS = {
    "disk": ("no space left on device", "disk quota exceeded"),
    "host-key": (
        "host key verification failed",
        "no matching host key",
        "certificate verification failed",
        "ssl certificate problem",
        "server certificate",
    ),
    "auth": (
        "permission denied (",
        "authentication failed",
        "could not read username",
        "could not read password",
        "terminal prompts disabled",
        "returned error: 401",
        "returned error: 403",
        "access denied",
    ),
    "missing-ref": ("remote branch", "couldn't find remote ref", "not our ref", "did not match any"),
    "missing": (
        "not found",
        "returned error: 404",
        "does not appear to be a git repository",
        "does not exist",
    ),
    "network": (
        "could not resolve",
        "failed to connect",
        "couldn't connect",
        "connection timed out",
        "connection refused",
        "connection reset",
        "connection closed",
        "network is unreachable",
        "no route to host",
        "timed out",
        "early eof",
        "rpc failed",
        "hung up unexpectedly",
        "unexpected disconnect",
        "returned error: 5",
        "operation too slow",
        "empty reply",
        "broken pipe",
        "tls connection",
    ),
}


def classify(text: str) -> str:
    """Return the kind of git's error: disk, host-key, auth, missing-ref, missing, network or other."""
    lower = text.lower()
    return next((kind for kind, words in _WORDS.items() if any(word in lower for word in words)), "other")


def check_url(url: str, what: str = "repository") -> str:
    """Return ``url`` if git may get it; raise ``Failure`` otherwise."""
    good = url.isprintable() and len(url) <= 4096 and (_URL.fullmatch(url) or _SCP.fullmatch(url)) and "::" not in url
    if not good:
        raise Failure(f"The {what} is not cloned: only https://host/path, ssh://user@host/path and user@host:path are.")
    return url


def same_repository(one: str, other: str) -> bool:
    """Return whether two addresses name the same repository (https, ssh and scp-like forms are equal)."""
    return bool(one) and _identity(one) == _identity(other)


def _identity(address: str) -> str:
    text = re.sub(r"^[a-z]+://", "", address.strip())
    host, _slash, path = text.partition("/") if "://" in address else re.sub(r":/*", "/", text, count=1).partition("/")
    host = host.rpartition("@")[2].lower()
    if address.startswith("ssh://"):
        host = host.partition(":")[0]
    path = path.strip("/")
    return f"{host}/{path[:-4] if path.endswith('.git') else path}"


def git_environment(environ: Mapping[str, str], paths: Paths, protocols: str = "https:ssh") -> dict[str, str]:
    """Return the environment for a git that never prompts, trusts no new host key and uses only ``protocols``."""
    known = f"/etc/ssh/ssh_known_hosts {paths.run / 'known_hosts'}"
    # Git asks Coder's program after our credential helper.
    coder = coder_credentials(environ)
    kept = ("GIT_CONFIG_SYSTEM", *(name for name in coder if name == "GIT_ASKPASS"))
    env = {
        name: value
        for name, value in environ.items()
        if name in kept or (not name.startswith("GIT_") and name != "SSH_ASKPASS")
    }
    env.update(
        HOME=str(paths.home),
        LC_ALL="C.UTF-8",
        GIT_ALLOW_PROTOCOL=protocols,
        GIT_TERMINAL_PROMPT="0",
        GIT_LFS_SKIP_SMUDGE="1",
        GIT_SSH_VARIANT="ssh",
        SSH_AUTH_SOCK=environ.get("SSH_AUTH_SOCK") or str(paths.agent),
        GIT_SSH_COMMAND=(
            f"{coder.get('GIT_SSH_COMMAND', 'ssh')} -o BatchMode=yes -o StrictHostKeyChecking=yes "
            f"-o 'GlobalKnownHostsFile={known}' -o UpdateHostKeys=no -o ConnectTimeout=20 "
            "-o ServerAliveInterval=20 -o ServerAliveCountMax=3 -o LogLevel=ERROR"
        ),
    )
    return env


class Killed(Failure):
    """A signal ended git: memory ran out, or a user killed it."""


@dataclass
class Cloner:
    """The step clone. ``say`` gets git's output."""

    contract: Contract
    paths: Paths
    children: Children
    environ: Mapping[str, str]
    say: Callable[[str], None]
    sleep: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        self._env: dict[str, str] = {}
        self._lock = -1

    @property
    def target(self) -> Path:
        return Path(self.contract.directory)

    def run(self) -> str:
        """Clone unless the clone exists. Return a sentence; raise ``Failure`` (state failed or needs-auth)."""
        target = self.target
        if (
            not self.contract.directory
            or not target.is_absolute()
            or self.paths.home not in target.parents
            or ".." in target.parts
        ):
            raise Failure(f"The directory {printable(self.contract.directory)!r} is not below {self.paths.home}.")
        seed = Path(self.contract.seed) if self.contract.seed else None
        try:
            with self._alone():
                self._sweep()
                if self._present():
                    self._drop(seed)
                    return f"{target} is already there; it was left untouched"
                said = self._whole(seed)
                self._drop(seed)
                return said
        except OSError as error:
            raise Failure(f"{target} cannot be cloned: {reason(error)}.") from None

    # Existing files

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Allow one clone at a time; git inherits the lock, so that it stays locked if the parent is killed."""
        descriptor = os.open(self.paths.run / "clone.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            until = time.monotonic() + 10
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise Failure(f"{self.target} is being cloned by another process.", 7, "running") from None
                    self.sleep(0.1)
            self._lock = descriptor
            yield
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove leftovers of killed attempts."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in self.target.parent.glob(f"{LEFTOVER}*"):
            self.say(f"removing {leftover.name}, a leftover of an interrupted start")
            shutil.rmtree(leftover, ignore_errors=True)

    def _present(self) -> bool:
        """Return whether the clone exists; raise ``Failure`` if something else is in its place."""
        target = self.target
        if not os.path.lexists(target) or (target.is_dir() and not target.is_symlink() and not os.listdir(target)):
            return False
        advice = "Move it away or use another workspace name; nothing was deleted."
        if not (target / ".git").exists():
            raise Failure(f"{target} exists and is not a clone of {self._name}. {advice}", 7)
        self._env = git_environment(self.environ, self.paths, "none")
        origin = self._git("-C", str(target), "config", "--get", "remote.origin.url", timeout=30).text
        ours = self._marker.get(str(target)) == self._name
        wanted = (self.contract.repo, self.contract.repo_id)
        if ours or not self.contract.repo or any(same_repository(origin, text) for text in wanted):
            return True
        raise Failure(f"{target} is a clone of {printable(origin) or 'no remote'}, not of {self._name}. {advice}", 7)

    @property
    def _name(self) -> str:
        return printable(self.contract.repo_id or self.contract.repo or "the local repository")

    @property
    def _marker(self) -> dict[str, str]:
        """Return which repository this workspace cloned where; the user may have changed the remote since."""
        try:
            directory, _tab, name = (self.paths.state / "clone").read_text().rstrip("\n").partition("\t")
        except OSError:
            return {}
        return {directory: name}

    def _drop(self, seed: Path | None) -> None:
        if seed is not None:
            seed.unlink(missing_ok=True)

    # Cloning

    def _whole(self, seed: Path | None) -> str:
        """Clone, and retry if git was killed."""
        for attempt in range(1, TRIES + 1):
            try:
                return self._from_seed(seed) if seed else self._from_server()
            except Killed:
                if attempt == TRIES or self.children.stopping.is_set():
                    raise
                self.say(f"git was killed; attempt {attempt + 1} of {TRIES}")
        raise AssertionError("the last attempt returns or raises")

    def _from_seed(self, seed: Path) -> str:
        if not seed.is_file():
            if AGENT in self.environ:
                raise Failure("The copy of the local repository follows.", state="needs-auth")
            raise Failure(
                f"The copy of the local repository, {seed}, does not exist. Delete the workspace and create it again."
            )
        self._env = git_environment(self.environ, self.paths, "file")
        with self._aside() as temporary:
            outcome = self._git("clone", "--no-checkout", "--", str(seed), str(temporary))
            if outcome.status and classify(outcome.text) != "disk":
                raise Failure(
                    f"The copy of {self._name} is damaged: {_words(outcome)} Delete the workspace and create it again."
                )
            if outcome.status:
                raise self._refusal(outcome)
            origin = self.contract.repo
            where = ("-C", str(temporary), "remote")
            self._must(*where, *(("set-url", "--", "origin", origin) if origin else ("remove", "origin")))
            return self._finish(temporary)

    def _from_server(self) -> str:
        check_url(self.contract.repo)
        if self.contract.ref:
            self._check_ref(self.contract.ref)
        self._env = git_environment(self.environ, self.paths)
        for attempt in range(1, TRIES + 1):
            with self._aside() as temporary:
                outcome = self._fetch(temporary)
                if not outcome.status:
                    return self._finish(temporary)
                refusal = self._refusal(outcome)
                if classify(outcome.text) != "network" or attempt == TRIES or self.children.stopping.is_set():
                    raise refusal
            wait = backoff(attempt) * 2
            self.say(f"attempt {attempt} of {TRIES} failed, next in {wait:.0f} s")
            self.sleep(wait / self.contract.tick)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _aside(self) -> Iterator[Path]:
        """Yield a temporary path next to the target; it is removed unless it was renamed."""
        temporary = self.target.parent / f"{LEFTOVER}{secrets.token_hex(4)}"
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _check_ref(self, ref: str) -> None:
        outcome = self.children.run(["git", "check-ref-format", f"refs/heads/{ref}"], dict(self.environ), 30)
        if outcome.status or ref.startswith("-") or not ref.isprintable():
            raise Failure("The ref is not cloned: git does not allow it as the name of a branch, tag or commit.")

    def _fetch(self, temporary: Path) -> Outcome:
        options = ["--no-checkout"]
        depth, ref = self.contract.depth, self.contract.ref
        if depth:
            options.append(f"--depth={depth}")
        if depth and ref and not _COMMIT.fullmatch(ref):
            options.append(f"--branch={_short(ref)}")
        cache = self._cache()
        if cache:
            options += [f"--reference-if-able={cache}", "--dissociate"]
        outcome = self._git("clone", *options, "--", self.contract.repo, str(temporary))
        if not outcome.status and depth and ref and _COMMIT.fullmatch(ref):
            fetched = self._git("-C", str(temporary), "fetch", f"--depth={depth}", "origin", ref)
            outcome = outcome if not fetched.status or _is_branch(fetched) else fetched
        if not outcome.status and cache:
            self._refill(cache, temporary)
        return outcome

    def _cache(self) -> str:
        """Return the path of the owner's cache of this repository on the node, or an empty text."""
        directory = self.contract.clone_cache
        if not directory or not os.access(directory, os.W_OK) or self.contract.depth:
            return ""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", self.contract.repo_id or _identity(self.contract.repo)).strip(".-")
        return str(Path(directory) / f"{slug}.git")

    def _refill(self, cache: str, temporary: Path) -> None:
        """Update ``cache`` from the new clone; errors do not matter."""
        env = {**self._env, "GIT_ALLOW_PROTOCOL": "file"}
        if not os.path.isdir(cache):
            self.children.run(["git", "init", "--quiet", "--bare", "--", cache], env, 60, self.say)
        refs = "+refs/remotes/origin/*:refs/heads/*"
        argv = ["git", "-C", cache, "fetch", "--quiet", "--no-auto-gc", "--", str(temporary), refs]
        self.children.run(argv, env, TIMEOUT, self.say, keep=self._lock)

    def _finish(self, temporary: Path) -> str:
        """Check out, verify and rename the clone."""
        where = ("-C", str(temporary))
        empty = (
            not self._git(*where, "for-each-ref", "--count=1").lines
            and self._git(*where, "rev-parse", "--verify", "--quiet", "HEAD").status
        )
        notes = ["the repository is empty"] if empty else []
        if not empty:
            notes += self._check_out(temporary)
            self._must(*where, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
            self._must(*where, "fsck", "--connectivity-only", "--no-dangling", "--no-progress", "HEAD")
        os.rename(temporary, self.target)
        self.paths.state.mkdir(parents=True, exist_ok=True)
        write_file(self.paths.state / "clone", f"{self.target}\t{self._name}\n")
        return "; ".join([f"cloned to {self.target}", *notes])

    def _check_out(self, temporary: Path) -> list[str]:
        where = ("-C", str(temporary))
        self._switch(where, self.contract.ref)
        if self.contract.submodules and (temporary / ".gitmodules").exists():
            depth = [f"--depth={self.contract.depth}"] if self.contract.depth else []
            self._must(*where, "submodule", "update", "--init", "--recursive", *depth)
        return self._pull_lfs(temporary) if self.contract.lfs else []

    def _switch(self, where: tuple[str, str], ref: str) -> None:
        """Branch before tag before commit, as ``git clone --branch`` has it."""
        name = _short(ref)
        if not ref:
            if self._git(*where, "rev-parse", "--verify", "--quiet", "HEAD^{commit}").status:
                raise Failure(f"{self._name} has no default branch. Name one with ref=.")
            self._must(*where, "checkout", "--quiet")
        elif self._has(where, f"refs/remotes/origin/{name}"):
            self._must(*where, "checkout", "--quiet", "-B", name, "--track", f"refs/remotes/origin/{name}")
        elif self._has(where, f"refs/tags/{name}"):
            self._must(*where, "checkout", "--quiet", "--detach", f"refs/tags/{name}")
        elif (_COMMIT.fullmatch(ref) and self._has(where, ref)) or self._fetched(where, ref):
            self._must(*where, "checkout", "--quiet", "--detach", ref if self._has(where, ref) else "FETCH_HEAD")
        else:
            raise Failure(f"{self._name} has no branch, tag or commit {printable(ref)!r}.")

    def _has(self, where: tuple[str, str], name: str) -> bool:
        return not self._git(
            *where, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
        ).status

    def _fetched(self, where: tuple[str, str], ref: str) -> bool:
        """Fetch a commit that is on no branch, or a full name such as refs/pull/7/head."""
        if not (_COMMIT.fullmatch(ref) or ref.startswith("refs/")):
            return False
        return not self._git(*where, "fetch", "--quiet", "origin", ref).status

    def _pull_lfs(self, temporary: Path) -> list[str]:
        attributes = self._git("-C", str(temporary), "grep", "-lI", "filter=lfs", "HEAD", "--", "*.gitattributes")
        if attributes.status:
            return []
        if not shutil.which("git-lfs", path=self._env.get("PATH")):
            return ["its large files (LFS) are placeholders: git-lfs is not installed"]
        outcome = self._git("-C", str(temporary), "lfs", "pull")
        return ["its large files (LFS) could not be fetched; 'git lfs pull' tries again"] if outcome.status else []

    # Running git

    def _git(self, *argv: str, timeout: float = TIMEOUT) -> Outcome:
        options = ["-c", "http.lowSpeedLimit=100", "-c", "http.lowSpeedTime=60", "-c", "advice.detachedHead=false"]
        if self.contract.git_hooks:
            # An operator's hooks are for users' commands; a failing hook would leave half a clone.
            options += ["-c", "core.hooksPath=/dev/null"]
        if "clone" in argv:
            options += ["-c", "core.askPass=", "-c", "init.templateDir="]
        outcome = self.children.run(["git", *options, *argv], self._env, timeout, self.say, keep=self._lock)
        if outcome.timed_out:
            raise Failure(f"Cloning {self._name} took more than {timeout:.0f} s and was given up.")
        if outcome.status < 0 or (outcome.status and re.search(r"died of signal (9|15)\b", outcome.text)):
            raise Killed(f"git was killed while it cloned {self._name}. Start the workspace again.")
        return outcome

    def _must(self, *argv: str) -> None:
        outcome = self._git(*argv)
        if outcome.status:
            raise self._refusal(outcome)

    def _refusal(self, outcome: Outcome) -> Failure:
        """Return the failure for an error of git while it cloned."""
        name, kind, words = self._name, classify(outcome.text), _words(outcome)
        if kind == "auth":
            return Failure(self._without_access(outcome), 4, "needs-auth")
        sentence = {
            "disk": f"There is no space left for {name}. Make room in the home and start again.",
            "host-key": f"The server of {name} could not be verified: {words} "
            "Add its key with known_hosts (SPT_FLOW_KNOWN_HOSTS).",
            "missing-ref": f"{name} has no branch, tag or commit {printable(self.contract.ref)!r}.",
            "missing": f"The server has no repository {name}, or hides it from you: {words}",
            "network": f"The server of {name} cannot be reached from the workspace, {TRIES} attempts: {words}",
        }.get(kind, f"git could not clone {name}: {words or f'exit status {outcome.status}'}")
        return Failure(sentence, 1)

    def _without_access(self, outcome: Outcome) -> str:
        """Return what the user can do: connect, or, in a session, look at the credentials that it gave."""
        refused = refusal_in_session(outcome, self.paths)
        if refused:
            check = f"Check on your own machine: git ls-remote {printable(self.contract.repo)}"
            return f"No access to {self._name} with your keys. {refused} {check}"
        playbook = f"ansible-playbook spt.flow.ssh -e workspace={self.contract.workspace}"
        command = f"SPT_FLOW_COMMAND='spt-workspace clone' {playbook}"
        return f"No access to {self._name} without your keys. Run on your own machine: {command}"


def refusal_in_session(outcome: Outcome, paths: Paths) -> str:
    """Return why the credentials of a live session did not suffice for git; empty without a session."""
    if sessions.NO_SESSION in outcome.text or not sessions.sockets(paths):
        return ""
    ours = "spt-workspace: "
    said = [line[len(ours) :] for line in outcome.lines if line.startswith(ours)]
    said += [f"{line.rstrip('.')}." for line in outcome.lines if classify(line) == "auth"]
    return printable(said[0]) if said else "The server refused them."


def _words(outcome: Outcome) -> str:
    """Return git's last error message as one line with a full stop."""
    words = printable(next((line for line in reversed(outcome.lines) if re.match(r"(fatal|error|ERROR)", line)), ""))
    return f"{words.rstrip('.')}." if words else ""


def _short(ref: str) -> str:
    """Return ``ref`` without refs/heads/ or refs/tags/."""
    return re.sub(r"^refs/(heads|tags)/", "", ref)


def _is_branch(outcome: Outcome) -> bool:
    """Return whether a name of hexadecimal digits is a branch, which the clone already contains."""
    return classify(outcome.text) == "missing-ref"
