# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The home's first contents and the user's dotfiles."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from .clone import check_url, git_environment, same_repository
from .contract import Failure, Paths, reason, write_file
from .processes import Children, end
from .record import printable

SKELETONS = ("/usr/local/share/spt-flow/skel", "/etc/skel")
DOTFILES_SECONDS = 300.0
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


def prepare_home(paths: Paths, skeletons: tuple[str, ...] = SKELETONS) -> str:
    """Copy the skeleton once; what is there is never overwritten. Raises ``Failure`` with status 8.

    A full disk is no failure: only who gets in can make room. The next start copies what is missing.
    """
    marker = paths.state / "home.json"
    try:
        if marker.exists():
            return "the home was left as it is"
        probe = paths.home / f".spt-flow-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
        skeleton = next((Path(path) for path in skeletons if Path(path).is_dir()), None)
        copied = copy_missing(skeleton, paths.home) if skeleton else 0
        paths.state.mkdir(parents=True, exist_ok=True)
        write_file(marker, json.dumps({"prepared": time.time()}))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "there is no space left: nothing was copied"
        uid = os.getuid()
        raise Failure(f"The home {paths.home} cannot be prepared by uid {uid}: {reason(error)}.", 8) from None
    return f"first start: {copied} files from the skeleton"


def copy_missing(source: Path, target: Path) -> int:
    """Copy what ``target`` lacks; a kill in between leaves no half file. Returns how many were copied."""
    copied = 0
    for place, directories, files in os.walk(source):
        here = target / Path(place).relative_to(source)
        for name in directories:
            if not (Path(place) / name).is_symlink():
                (here / name).mkdir(exist_ok=True)
        for name in files + [d for d in directories if (Path(place) / d).is_symlink()]:
            if not os.path.lexists(here / name):
                temporary = here / f".{name}.spt-flow-new"
                temporary.unlink(missing_ok=True)
                shutil.copy2(Path(place) / name, temporary, follow_symlinks=False)
                os.rename(temporary, here / name)
                copied += 1
    return copied


class Dotfiles:
    """``url`` or ``url#branch``, kept in ``~/.dotfiles``, installed the way that ``coder dotfiles`` does."""

    def __init__(self, text: str, paths: Paths, children: Children, environ: Mapping[str, str]) -> None:
        self._url, _hash, self._branch = text.partition("#")
        self._paths = paths
        self._children = children
        self._env = git_environment(environ, paths)
        self._log = paths.state / "dotfiles.log"
        self._until = time.monotonic() + DOTFILES_SECONDS

    def run(self) -> str:
        """Fetch and install; raises ``Failure``, which nobody but this step minds."""
        check_url(self._url, "dotfiles repository")
        if self._branch and self._run(["git", "check-ref-format", "--branch", self._branch]):
            raise Failure("The dotfiles' branch is not a name that git allows.")
        place = self._paths.home / ".dotfiles"
        if os.path.lexists(place):
            self._update(place)
        else:
            self._clone(place)
        for name in SCRIPTS:
            script = place / name
            if script.is_file():
                argv = [str(script)] if os.access(script, os.X_OK) else ["bash", str(script)]
                status = self._run(argv, cwd=str(place), plain=True)
                if status:
                    raise Failure(f"The dotfiles' {name} ended with status {status}; see {self._log}.")
                return f"{name} ran"
        return f"{self._link(place)} files linked"

    def _clone(self, place: Path) -> None:
        temporary = place.with_name(f".dotfiles.{secrets.token_hex(4)}.new")
        branch = [f"--branch={self._branch}"] if self._branch else []
        try:
            if self._run(["git", "clone", "--quiet", *branch, "--", self._url, str(temporary)]):
                raise Failure(f"The dotfiles could not be cloned; see {self._log}.")
            os.rename(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _update(self, place: Path) -> None:
        argv = ["git", "-C", str(place), "config", "--get", "remote.origin.url"]
        origin = subprocess.run(argv, env=self._env, capture_output=True, text=True, timeout=30, check=False).stdout
        if not same_repository(origin.strip(), self._url):
            raise Failure(f"{place} is a clone of something else ({printable(origin)}); it was left untouched.")
        if self._run(["git", "-C", str(place), "pull", "--quiet", "--ff-only"]):
            raise Failure(f"The dotfiles could not be updated; see {self._log}.")

    def _link(self, place: Path) -> int:
        linked = 0
        for source in sorted(place.iterdir()):
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

    def _run(self, argv: list[str], cwd: str = "/", plain: bool = False) -> int:
        """Run into the log, within what is left of the step's time."""
        self._paths.state.mkdir(parents=True, exist_ok=True)
        env = {name: value for name, value in self._env.items() if not (plain and name.startswith("GIT_"))}
        with open(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            child = self._children.start(argv, env, stdout=log.fileno(), cwd=cwd)
        try:
            return child.wait(max(0.1, self._until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Failure(
                f"The dotfiles took more than {DOTFILES_SECONDS:.0f} s and were given up; see {self._log}."
            ) from None
        finally:
            if child.poll() is None:
                end(child, signal.SIGKILL)
                child.wait()
            self._children.forget(child)
