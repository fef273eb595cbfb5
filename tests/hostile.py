# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile local repositories: traps, and a generator that combines them by a seed.

A trap that works either runs ``Place.script``, which writes ``Place.canary``, or shows the commit of ``Place.private``,
another repository of the same user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def git(folder: Path, *arguments: str, check: bool = True, stdin: str = "") -> str:
    """Run git as its user would, with only the folder's own configuration."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "HOME": str(folder.parent), "LC_ALL": "C"}
    for kind in ("AUTHOR", "COMMITTER"):
        environ |= {f"GIT_{kind}_NAME": "A", f"GIT_{kind}_EMAIL": "a@example.com"}
    argv = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(
        argv, env=environ, input=stdin, check=check, capture_output=True, text=True, errors="replace", timeout=60
    )
    return done.stdout.strip()


@dataclass(frozen=True)
class Place:
    """A valid repository before traps are set in it, and the targets of traps."""

    folder: Path
    private: Path
    script: Path
    canary: Path

    @classmethod
    def make(cls, base: Path, name: str = "hostile") -> Place:
        base.mkdir(parents=True, exist_ok=True)
        place = cls(base / name, base / "private", base / "evil.sh", base / "canary")
        place.script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$0 $*" >>"{place.canary}"\n')
        place.script.chmod(0o755)
        for folder in (place.private, place.folder):
            git(base, "init", "-q", "-b", "main", str(folder))
            (folder / "file.txt").write_text(f"text of {folder.name}\n")
            (folder / "other.txt").write_text(f"more of {folder.name}\n")
            git(folder, "add", ".")
            git(folder, "commit", "-q", "-m", f"first of {folder.name}")
        git(place.private, "config", "remote.origin.url", "https://example.com/private/address")
        return place

    @property
    def git(self) -> Path:
        return self.folder / ".git"

    @property
    def secret(self) -> str:
        """The secret commit."""
        return git(self.private, "rev-parse", "HEAD")

    def set(self, *pairs: tuple[str, str]) -> None:
        for name, value in pairs:
            git(self.folder, "config", "--add", name, value)

    def lose_a_blob(self) -> None:
        """Delete a blob, which git then fetches automatically in a partial clone."""
        blob = git(self.folder, "rev-parse", "HEAD:file.txt")
        (self.git / "objects" / blob[:2] / blob[2:]).unlink()

    def promise(self, url: str, *pairs: tuple[str, str]) -> None:
        """Make it a partial clone of ``url`` that lacks an object."""
        self.lose_a_blob()
        self.set(
            ("core.repositoryformatversion", "1"),
            ("extensions.partialClone", "origin"),
            ("remote.origin.promisor", "true"),
            ("remote.origin.url", url),
            *pairs,
        )
        git(self.folder, "config", "--unset-all", "core.repositoryformatversion", "0", check=False)

    def point_to_the_secret(self) -> None:
        (self.git / "refs/heads/leak").write_text(f"{self.secret}\n")

    def hook(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.script, folder / name)

    def attributes(self, text: str) -> None:
        (self.git / "info").mkdir(exist_ok=True)
        (self.git / "info/attributes").write_text(text)


@dataclass(frozen=True)
class Trap:
    """``spring`` are git arguments that set it off in the folder; without them plain git is not known to run it.

    ``held`` says that copying the folder was safe even while git still ran in it.
    """

    name: str
    set: Callable[[Place], None]
    spring: tuple[str, ...] = ()
    held: bool = True
    stdin: str = ""


def _config(*pairs: tuple[str, str]) -> Callable[[Place], None]:
    """Set values, in which {script} stands for the program."""
    return lambda p: p.set(*((name, value.format(script=p.script)) for name, value in pairs))


def _promise(url: str, *pairs: tuple[str, str]) -> Callable[[Place], None]:
    def trap(p: Place) -> None:
        p.promise(
            url.format(script=p.script), *((n.format(script=p.script), v.format(script=p.script)) for n, v in pairs)
        )

    return trap


def _filter(kind: str) -> Callable[[Place], None]:
    def trap(p: Place) -> None:
        p.set((f"filter.x.{kind}", str(p.script)), ("filter.x.required", "true"))
        p.attributes("*.txt filter=x\n")
        (p.folder / "file.txt").unlink()
        os.utime(p.folder / "other.txt", (1, 1))

    return trap


def _driver(name: str, attribute: str) -> Callable[[Place], None]:
    def trap(p: Place) -> None:
        p.set((name, str(p.script)))
        p.attributes(f"*.txt {attribute}\n")
        (p.folder / "file.txt").write_text("changed\n")

    return trap


def _include(key: str) -> Callable[[Place], None]:
    def trap(p: Place) -> None:
        (p.folder / "more").write_text(f"[core]\n\tfsmonitor = {p.script}\n")
        p.set(("remote.origin.url", "https://example.com/o/r"), (key.format(git=p.git), str(p.folder / "more")))

    return trap


def _hooks_path(p: Place) -> None:
    p.hook(p.folder / "hooks", "reference-transaction")
    p.set(("core.hooksPath", str(p.folder / "hooks")))


def _worktree_configuration(p: Place) -> None:
    p.set(("core.repositoryformatversion", "1"), ("extensions.worktreeConfig", "true"))
    git(p.folder, "config", "--unset-all", "core.repositoryformatversion", "0", check=False)
    (p.git / "config.worktree").write_text(f"[core]\n\tfsmonitor = {p.script}\n")


def _separate(p: Place) -> None:
    """A git directory in another place of the folder, with a configuration that runs programs."""
    p.set(("core.fsmonitor", str(p.script)))
    p.git.rename(p.folder / "inner")
    p.git.write_text("gitdir: inner\n")


def _bare(p: Place) -> None:
    """The folder is itself the git directory."""
    p.set(("core.bare", "false"), ("core.worktree", str(p.folder / "tree")), ("core.fsmonitor", str(p.script)))
    git(p.folder, "config", "--unset-all", "core.bare", "false", check=False)
    (p.folder / "tree").mkdir()
    for entry in list(p.git.iterdir()):
        entry.rename(p.folder / entry.name)
    p.git.rmdir()


def _submodule(p: Place) -> None:
    inner = p.folder / "sub"
    git(p.folder, "init", "-q", str(inner))
    (inner / "x").write_text("x")
    git(inner, "add", ".")
    git(inner, "commit", "-q", "-m", "inner")
    git(inner, "config", "core.fsmonitor", str(p.script))
    (p.folder / ".gitmodules").write_text('[submodule "sub"]\n\tpath = sub\n\turl = ./sub\n')
    git(p.folder, "add", ".gitmodules", "sub")
    git(p.folder, "commit", "-q", "-m", "submodule")


def _submodule_update(p: Place) -> None:
    _submodule(p)
    git(p.folder / "sub", "commit", "-q", "--allow-empty", "-m", "another one is checked out")
    p.set(("submodule.sub.update", f"!{p.script}"), ("submodule.sub.url", str(p.folder / "sub")))


def _alternate_refs(p: Place) -> None:
    p.set(("core.alternateRefsCommand", str(p.script)))
    (p.git / "objects/info").mkdir(exist_ok=True)
    (p.git / "objects/info/alternates").write_text(f"{p.private}/.git/objects\n")


def _alternates(p: Place) -> None:
    (p.git / "objects/info").mkdir(exist_ok=True)
    (p.git / "objects/info/alternates").write_text(f"# comment\n{p.private}/.git/objects\n")
    p.point_to_the_secret()


def _nested_alternates(p: Place) -> None:
    inner = p.folder / "objects"
    (inner / "info").mkdir(parents=True)
    (inner / "info/alternates").write_text(f"{p.private}/.git/objects\n")
    (p.git / "objects/info").mkdir(exist_ok=True)
    (p.git / "objects/info/alternates").write_text(f"{inner}\n")
    p.point_to_the_secret()


def _git_file(p: Place) -> None:
    shutil.rmtree(p.git)
    p.git.write_text(f"gitdir: {p.private}/.git\n")


def _git_link(p: Place) -> None:
    shutil.rmtree(p.git)
    p.git.symlink_to(p.private / ".git")


def _linked(*names: str) -> Callable[[Place], None]:
    """Entries of the git directory that are links into the private one; packs if the secret is in one."""

    def trap(p: Place) -> None:
        git(p.private, "gc", "-q")
        for name in names:
            target = p.git / name
            if target.is_dir():
                shutil.rmtree(target)
            target.unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(p.private / ".git" / name)
        if "refs" not in names:
            (p.git / "refs/heads/main").write_text(f"{p.secret}\n")

    return trap


def _linked_pack(p: Place) -> None:
    git(p.private, "gc", "-q")
    for file in (p.private / ".git/objects/pack").iterdir():
        (p.git / "objects/pack" / file.name).symlink_to(file)
    p.point_to_the_secret()


def _common_directory(p: Place) -> None:
    (p.git / "commondir").write_text(f"{p.private}/.git\n")


def _false_worktree(p: Place) -> None:
    """A worktree whose administration, in the folder, names the private repository."""
    shutil.rmtree(p.git)
    inner = p.folder / "fake/worktrees/x"
    inner.mkdir(parents=True)
    (inner / "HEAD").write_text("ref: refs/heads/main\n")
    (inner / "commondir").write_text(f"{p.private}/.git\n")
    (inner / "gitdir").write_text(f"{p.git}\n")
    p.git.write_text("gitdir: fake/worktrees/x\n")


def _false_submodule(p: Place) -> None:
    shutil.rmtree(p.git)
    (p.private / ".git/modules").mkdir()
    git(p.private, "clone", "-q", "--bare", str(p.private), str(p.private / ".git/modules/x"))
    p.git.write_text("gitdir: ../private/.git/modules/x\n")


def _included_address(p: Place) -> None:
    """The address that it was cloned from belongs to another repository."""
    p.set(("include.path", str(p.private / ".git/config")))


def _fifo(name: str) -> Callable[[Place], None]:
    """A file that blocks every reader."""

    def trap(p: Place) -> None:
        path = p.git / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)

    return trap


def _replaced(p: Place) -> None:
    """A commit that replaces another one."""
    _linked_pack(p)
    head = git(p.folder, "rev-parse", "HEAD")
    (p.git / "refs/heads/leak").unlink()
    (p.git / "refs/replace").mkdir()
    (p.git / "refs/replace" / head).write_text(f"{p.secret}\n")


def _broken_names(p: Place) -> None:
    head = git(p.folder, "rev-parse", "HEAD")
    for name in (b"a\x1b[2Jb", b"-upload-pack=x", b"a..b", b"new\nline", b"\xff\xfe", b"x.lock", b"@{u}"):
        (p.git / "refs/heads" / os.fsdecode(name)).write_text(f"{head}\n")


_SSH = "ssh://nowhere.invalid/x"
_EXT = "ext::{script} %S"
_ALLOW = ("protocol.ext.allow", "always")
_FETCH = ("cat-file", "-p", "HEAD:file.txt")
_STATUS = ("status", "--short")
_UPDATE = ("update-ref", "refs/heads/new", "HEAD")
_FILL = "protocol=https\nhost=example.invalid\n\n"

EXECUTING: tuple[Trap, ...] = (
    Trap("promisor-ssh-command", _promise(_SSH, ("core.sshCommand", "{script}")), _FETCH, False),
    Trap("promisor-ext", _promise(_EXT, _ALLOW), _FETCH, False),
    Trap("promisor-upload-pack", _promise("/nowhere", ("remote.origin.uploadpack", "{script}")), _FETCH, False),
    Trap("promisor-git-proxy", _promise("git://127.0.0.1/x", ("core.gitProxy", "{script}")), _FETCH, False),
    Trap("promisor-vcs", _promise("x", ("remote.origin.vcs", "ext"), _ALLOW, ("remote.origin.url", _EXT))),
    Trap(
        "promisor-instead-of",
        _promise("/nowhere/x", ("url.ext::{script} %S .insteadOf", "/nowhere/"), _ALLOW),
        _FETCH,
        False,
    ),
    Trap("pack-objects-hook", _config(("uploadpack.packObjectsHook", "{script}"))),
    Trap("fsmonitor", _config(("core.fsmonitor", "{script}")), _STATUS),
    Trap("hooks-path", _hooks_path, _UPDATE),
    Trap("hook", lambda p: p.hook(p.git / "hooks", "reference-transaction"), _UPDATE),
    Trap("hook-index", lambda p: p.hook(p.git / "hooks", "post-index-change"), ("read-tree", "HEAD")),
    Trap("filter-clean", _filter("clean"), _STATUS),
    Trap("filter-smudge", _filter("smudge"), ("checkout", "--", "file.txt")),
    Trap("filter-process", _filter("process"), ("checkout", "--", "file.txt")),
    Trap("diff-external", _driver("diff.external", "diff"), ("diff",)),
    Trap("diff-command", _driver("diff.x.command", "diff=x"), ("diff",)),
    Trap("diff-textconv", _driver("diff.x.textconv", "diff=x"), ("diff",)),
    Trap("pager", _config(("core.pager", "{script}"), ("pager.rev-parse", "{script}"), ("pager.bundle", "{script}"))),
    Trap("editor", _config(("core.editor", "{script}")), ("commit", "--amend")),
    Trap("gpg-program", _config(("gpg.program", "{script}"), ("commit.gpgSign", "true")), ("commit", "--amend", "-m1")),
    Trap("credential-helper", _config(("credential.helper", "!{script}")), ("credential", "fill"), stdin=_FILL),
    Trap("askpass", _config(("core.askPass", "{script}")), ("credential", "fill"), stdin=_FILL),
    Trap(
        "alias", _config(("alias.bundle", "!{script}"), ("alias.rev-parse", "!{script}"), ("alias.config", "!{script}"))
    ),
    Trap("include", _include("include.path"), _STATUS),
    Trap("include-if-gitdir", _include("includeIf.gitdir:{git}.path"), _STATUS),
    Trap("include-if-branch", _include("includeIf.onbranch:main.path"), _STATUS),
    Trap("include-if-remote", _include("includeIf.hasconfig:remote.*.url:https://example.com/**.path"), _STATUS),
    Trap("worktree-configuration", _worktree_configuration, _STATUS),
    Trap("git-file-inside", _separate, _STATUS),
    Trap("bare", _bare, _STATUS),
    Trap("submodule", _submodule, _STATUS),
    Trap("submodule-update", _submodule_update, ("submodule", "update")),
    Trap("alternate-refs-command", _alternate_refs, ("rev-list", "--count", "--alternate-refs")),
    Trap("ssh-command", _config(("core.sshCommand", "{script}"), ("remote.origin.url", _SSH)), ("fetch", "origin")),
    Trap("protocol-ext", _config(("remote.origin.url", _EXT), _ALLOW), ("fetch", "origin")),
    Trap(
        "trailer", _config(("trailer.x.command", "{script}")), ("interpret-trailers", "--trailer", "x=1"), stdin="a\n"
    ),
    Trap("difftool", _config(("difftool.x.cmd", "{script}"), ("diff.tool", "x")), ()),
    Trap("recent-objects-hook", _config(("gc.recentObjectsHook", "{script}"), ("gc.auto", "1"))),
)
"""Each runs a program where git works with it."""

READING: tuple[Trap, ...] = (
    Trap("git-file", _git_file, held=False),
    Trap("git-link", _git_link, held=False),
    Trap("alternates", _alternates, held=False),
    Trap("nested-alternates", _nested_alternates, held=False),
    Trap("objects-link", _linked("objects"), held=False),
    Trap("refs-and-objects-links", _linked("refs", "packed-refs", "objects"), held=False),
    Trap("pack-links", _linked_pack, held=False),
    Trap("common-directory", _common_directory, held=False),
    Trap("false-worktree", _false_worktree, held=False),
    Trap("false-submodule", _false_submodule, held=False),
    Trap("replaced", _replaced),
    Trap("other-worktree", _config(("core.worktree", "/"))),
    Trap("included-address", _included_address, held=False),
    Trap("fifo-head", _fifo("HEAD"), held=False),
    Trap("fifo-config", _fifo("config"), held=False),
    Trap("fifo-packed-refs", _fifo("packed-refs"), held=False),
    Trap("fifo-alternates", _fifo("objects/info/alternates"), held=False),
    Trap("fifo-commit-graph", _fifo("objects/info/commit-graph"), held=False),
    Trap("ref-names", _broken_names),
)
"""Each shows another repository of the user, or blocks its reader."""

TRAPS = (*EXECUTING, *READING)
