# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which local folders are copied, in which layouts, and who must own them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import NotFound
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import local as repository_local
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import probe as repository_probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.tests.hostile import git

OTHER = 54321


def repository(path: Path, *options: str) -> Path:
    git(path.parent, "init", "-q", "-b", "main", *options, str(path))
    (path / "file").write_text("text\n")
    git(path, "add", "file")
    git(path, "commit", "-q", "-m", "one")
    return path


def copied(path: Path, tmp_path: Path, ref: str = "") -> set[str]:
    """Return the names and commits that a workspace gets of the folder ``path``."""
    (tmp_path / "seed.bundle").write_bytes(repository_probe.make_bundle(Repository.parse(str(path)), ref))
    heads = git(tmp_path, "ls-remote", "seed.bundle")
    git(tmp_path, "clone", "-q", "--bare", "seed.bundle", str(tmp_path / "copy"))
    git(tmp_path / "copy", "fsck", "--strict")
    return {line.replace("\t", " ") for line in heads.splitlines()}


def refused(path: Path) -> str:
    with pytest.raises(NotFound, match="Cannot copy the repository") as caught:
        repository_probe.make_bundle(Repository.parse(str(path)))
    return caught.value.message


def test_packed_loose_and_symbolic_refs_are_copied(tmp_path: Path) -> None:
    path = repository(tmp_path / "work")
    head = git(path, "rev-parse", "HEAD")
    git(path, "tag", "-a", "v1", "-m", "first")
    git(path, "branch", "old")
    git(path, "pack-refs", "--all")
    git(path, "commit", "-q", "--allow-empty", "-m", "two")
    git(path, "symbolic-ref", "refs/heads/alias", "refs/heads/old")
    git(path, "update-ref", "refs/remotes/origin/main", head)
    new = git(path, "rev-parse", "HEAD")
    found = copied(path, tmp_path, "origin/main")
    assert {f"{new} HEAD", f"{new} refs/heads/main", f"{head} refs/heads/alias", f"{head} refs/heads/old"} <= found
    assert f"{git(path, 'rev-parse', 'v1')} refs/tags/v1" in found


def test_linked_worktree_is_copied_with_its_own_head(tmp_path: Path) -> None:
    path = repository(tmp_path / "work")
    git(path, "worktree", "add", "-q", "-b", "side", str(tmp_path / "tree"))
    git(tmp_path / "tree", "commit", "-q", "--allow-empty", "-m", "two")
    side = git(tmp_path / "tree", "rev-parse", "HEAD")
    assert {f"{side} HEAD", f"{side} refs/heads/side"} <= copied(tmp_path / "tree", tmp_path)
    (tmp_path / "tree").rename(tmp_path / "moved")
    assert "does not list this worktree; run `git worktree repair`" in refused(tmp_path / "moved")


def test_submodule_and_separate_git_directory_are_copied(tmp_path: Path) -> None:
    path = repository(tmp_path / "work")
    repository(tmp_path / "inner")
    git(path, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(tmp_path / "inner"), "sub")
    assert f"{git(path / 'sub', 'rev-parse', 'HEAD')} HEAD" in copied(path / "sub", tmp_path)


def test_folder_with_a_long_unusual_name_is_copied(tmp_path: Path) -> None:
    path = repository(tmp_path / 'a "b" \\c: é')
    assert copied(path, tmp_path)


def test_sha256_repository_is_copied(tmp_path: Path) -> None:
    path = repository(tmp_path / "work", "--object-format=sha256")
    head = git(path, "rev-parse", "HEAD")
    assert len(head) == 64 and f"{head} HEAD" in copied(path, tmp_path)


def test_unsupported_layout_is_reported_with_a_remedy(tmp_path: Path) -> None:
    path = repository(tmp_path / "work")
    git(tmp_path, "clone", "-q", "--shared", str(path), str(tmp_path / "shared"))
    assert "run `git repack -a -d` in it" in refused(tmp_path / "shared")
    git(tmp_path / "shared", "repack", "-a", "-d", "-q")
    (tmp_path / "shared/.git/objects/info/alternates").unlink()
    assert copied(tmp_path / "shared", tmp_path)
    (path / ".git/reftable").mkdir()
    assert "run `git refs migrate --ref-format=files` in it" in refused(path)
    (tmp_path / "link").mkdir()
    (tmp_path / "link/.git").symlink_to(path / ".git")
    assert "its .git is a link" in refused(tmp_path / "link")


def test_unusual_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = repository(tmp_path / "work")
    os.mkfifo(path / ".git/refs/heads/a\x1b[2J\u202egnp")
    assert refused(path).isprintable()


def test_link_to_the_folder_is_accepted_for_the_users_own(tmp_path: Path) -> None:
    path = repository(tmp_path / "work")
    (tmp_path / "alias").symlink_to(path)
    assert copied(tmp_path / "alias", tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("part", ["", ".git"])
def test_folder_must_belong_to_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    monkeypatch.delenv("SUDO_UID", raising=False)
    path = repository(tmp_path / "work")
    os.chown(path / part, OTHER, OTHER)
    assert f"belongs to another user (id {OTHER})" in refused(path)
    monkeypatch.setenv("SUDO_UID", str(OTHER))
    assert copied(path, tmp_path)
    monkeypatch.delenv("SUDO_UID")
    for value, good in ((str(tmp_path / "other"), False), (f"{tmp_path}/*", True), ("", False), (str(path), True)):
        (tmp_path / ".gitconfig").write_text("") if value == str(tmp_path / "other") else None
        with open(tmp_path / ".gitconfig", "a", encoding="utf-8") as file:
            file.write(f"[safe]\n\tdirectory = {value}\n")
        state = repository_probe.probe(Repository.parse(str(path))).state
        assert (state == "open") is good, value


def test_invalid_git_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/.git").write_text("nonsense\n")
    assert "its .git is not a git directory" in refused(tmp_path / "work")


def test_environment_of_git_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_EXEC_PATH", "GIT_CONFIG_COUNT", "GIT_SSH_COMMAND", "GIT_ALTERNATE_OBJECT_DIRECTORIES"):
        monkeypatch.setenv(name, "/nowhere")
    found = repository_local.environment(str(tmp_path))
    assert found["GIT_DIR"] == found["HOME"] == str(tmp_path)
    assert "/nowhere" not in found.values() and found["GIT_ALLOW_PROTOCOL"] == "none"


def test_copying_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = repository(tmp_path / "work")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    before = sorted(p.name for p in path.rglob("*"))
    copied(path, tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == [] and before == sorted(p.name for p in path.rglob("*"))
