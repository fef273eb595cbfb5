# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install the user's dotfiles from ``~/.dotfiles``, in the way of ``coder dotfiles``."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping

from .clone import check_url, classify, git_environment, refusal_in_session, same_repository
from .contract import Failure, Paths, alone
from .processes import Children, Outcome, end
from .record import printable

SECONDS = 300.0
"""The time limit for fetching, installing and linking together."""
SCRIPTS = (
    "install.sh",
    "install",
    "bootstrap.sh",
    "bootstrap",
    "script/bootstrap",
    "setup.sh",
    "setup",
    "script/setup",
)
_NO_DOTFILES = (".git", ".gitignore", ".gitmodules", ".gitattributes", ".github", ".gitlab-ci.yml", ".editorconfig")
COMMAND = "spt-workspace dotfiles"


class Dotfiles:
    """The repository is ``url`` or ``url#branch``. If it cannot be updated, the present version is installed."""

    def __init__(self, text: str, paths: Paths, children: Children, environ: Mapping[str, str]) -> None:
        self._url, _hash, self._branch = text.partition("#")
        self._paths = paths
        self._children = children
        self._env = git_environment(environ, paths)
        self._place = paths.home / ".dotfiles"
        self._log = paths.state / "dotfiles.log"
        self._until = time.monotonic() + SECONDS

    def run(self) -> str:
        """Fetch and install; a ``Failure`` affects this step only."""
        check_url(self._url, "dotfiles repository")
        self._paths.state.mkdir(parents=True, exist_ok=True)
        busy = f"The dotfiles are still being installed by another process; see {self._log}."
        with alone(self._paths.run / "dotfiles.lock", SECONDS, busy):
            old = self._fetch()
            said = self._install()
        if old is not None:
            raise Failure(f"{old.sentence} What was there before was installed: {said}.", old.status, old.state)
        return f"{said}; log: {self._log}"

    # Fetching

    def _fetch(self) -> Failure | None:
        """Clone or update; return the failure of an update."""
        if self._branch and self._git("check-ref-format", "--branch", self._branch).status:
            raise Failure("The dotfiles' branch is not a name that git allows.")
        if not os.path.lexists(self._place):
            self._clone()
            return None
        origin = "".join(self._git("-C", str(self._place), "config", "--get", "remote.origin.url").lines)
        if not same_repository(origin.strip(), self._url):
            raise Failure(f"{self._place} is a clone of something else ({printable(origin)}); it was left untouched.")
        return self._update()

    def _clone(self) -> None:
        temporary = self._place.with_name(f".dotfiles.{secrets.token_hex(4)}.new")
        branch = [f"--branch={self._branch}"] if self._branch else []
        try:
            outcome = self._git("clone", "--quiet", *branch, "--", self._url, str(temporary))
            if outcome.status:
                raise self._refusal(outcome, "cloned")
            os.rename(temporary, self._place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _update(self) -> Failure | None:
        """Fast-forward the branch; never overwrite the user's changes."""
        where = ("-C", str(self._place))
        steps = [("fetch", "--quiet", "--tags", "origin")]
        if self._branch:
            steps.append(("checkout", "--quiet", self._branch, "--"))
        for step in steps:
            outcome = self._git(*where, *step)
            if outcome.status:
                return self._refusal(outcome, "updated")
        if self._git(*where, "symbolic-ref", "--quiet", "HEAD").status:
            return None  # a tag
        outcome = self._git(*where, "merge", "--quiet", "--ff-only", "@{upstream}")
        return self._refusal(outcome, "updated") if outcome.status else None

    def _refusal(self, outcome: Outcome, what: str) -> Failure:
        if classify(outcome.text) == "auth":
            refused = refusal_in_session(outcome, self._paths)
            if refused:
                check = f"Check on your own machine: git ls-remote {printable(self._url)}"
                return Failure(f"The dotfiles could not be {what} with your keys. {refused} {check}", 4, "needs-auth")
            return Failure(
                f"The dotfiles could not be {what} without your keys. Run in a session of yours: {COMMAND}",
                4,
                "needs-auth",
            )
        return Failure(f"The dotfiles could not be {what}; see {self._log}.")

    def _git(self, *argv: str) -> Outcome:
        """Run git into the log, within the remaining time."""
        with open(self._opened(), "a", encoding="utf-8", errors="replace") as log:
            outcome = self._children.run(["git", *argv], self._env, self._left(), lambda line: print(line, file=log))
        if outcome.timed_out:
            raise self._late()
        return outcome

    # Installing

    def _install(self) -> str:
        for name in SCRIPTS:
            script = self._place / name
            if script.is_file():
                status = self._run([str(script)] if os.access(script, os.X_OK) else ["bash", str(script)])
                if status:
                    raise Failure(f"The dotfiles' {name} ended with status {status}; see {self._log}.")
                return f"{name} ran"
        return f"{self._link()} files linked"

    def _link(self) -> int:
        linked = 0
        for source in sorted(self._place.iterdir()):
            target = self._paths.home / source.name
            if not source.name.startswith(".") or source.name in _NO_DOTFILES:
                continue
            if target.is_symlink() and os.readlink(target) == str(source):
                continue
            if os.path.lexists(target):
                spare = target.with_name(f"{target.name}.bak")
                if os.path.lexists(spare):
                    spare = target.with_name(f"{target.name}.{int(time.time())}.bak")
                os.rename(target, spare)
            target.symlink_to(source)
            linked += 1
        return linked

    def _run(self, argv: list[str]) -> int:
        """Run a script into the log; its background processes do not delay the step."""
        env = {name: value for name, value in self._env.items() if not name.startswith("GIT_")}
        with open(self._opened(), "ab") as log:
            child = self._children.start(argv, env, stdout=log.fileno(), cwd=str(self._place))
        try:
            return child.wait(self._left())
        except subprocess.TimeoutExpired:
            raise self._late() from None
        finally:
            if child.poll() is None:
                end(child, signal.SIGKILL)
                child.wait()
            self._children.forget(child)

    def _opened(self) -> int:
        return os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _left(self) -> float:
        return max(0.1, self._until - time.monotonic())

    def _late(self) -> Failure:
        return Failure(f"The dotfiles took more than {SECONDS:.0f} s and were given up; see {self._log}.")
