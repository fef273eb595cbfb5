# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import subprocess
import time

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import errors
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import address as repository_address
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import names as repository_names
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import probe as repository_probe

Repository = repository_address.Repository
Outcome = repository_probe.Outcome


@pytest.mark.parametrize(
    ("text", "kind", "url", "identity", "slug"),
    [
        ("o/r", "https", "https://github.com/o/r", "github.com/o/r", "r"),
        ("https://h.example/o/r.git", "https", "https://h.example/o/r.git", "h.example/o/r", "r"),
        ("HTTPS://H.Example/o/R/", "https", "https://h.example/o/R", "h.example/o/R", "r"),
        ("  https://h.example/o/r  ", "https", "https://h.example/o/r", "h.example/o/r", "r"),
        ("https://h.example:443/o/r", "https", "https://h.example/o/r", "h.example/o/r", "r"),
        ("https://h.example:8443/o/r", "https", "https://h.example:8443/o/r", "h.example:8443/o/r", "r"),
        ("git@h.example:o/r.git", "ssh", "git@h.example:o/r.git", "h.example/o/r", "r"),
        ("git@h.example:/srv/r", "ssh", "git@h.example:/srv/r", "h.example/srv/r", "r"),
        ("ssh://git@h.example/o/r", "ssh", "ssh://git@h.example/o/r", "h.example/o/r", "r"),
        ("ssh://h.example/o/r", "ssh", "ssh://git@h.example/o/r", "h.example/o/r", "r"),
        ("ssh://ada@h.example:2222/~/r.git", "ssh", "ssh://ada@h.example:2222/~/r.git", "h.example/~/r", "r"),
        ("ssh://git@h.example:22/o/r", "ssh", "ssh://git@h.example/o/r", "h.example/o/r", "r"),
        ("https://127.0.0.1/o/r", "https", "https://127.0.0.1/o/r", "127.0.0.1/o/r", "r"),
        ("https://[::1]:8443/o/r", "https", "https://[::1]:8443/o/r", "[::1]:8443/o/r", "r"),
        ("https://h.example/a/b/c/My_Repo.Name", "https", "https://h.example/a/b/c/My_Repo.Name", None, "my-repo-name"),
        ("https://h.example/o/My%20Project", "https", "https://h.example/o/My%20Project", None, "my-project"),
        ("https://h.example/o/%c3%a9", "https", "https://h.example/o/%C3%A9", "h.example/o/%C3%A9", "repository"),
        ("https://h.example/o/---", None, None, None, None),
        ("https://h.example/o/_", "https", "https://h.example/o/_", None, "repository"),
        ("https://h.example/o/foo-old", "https", "https://h.example/o/foo-old", None, "foo-old-repo"),
        ("/srv/git/r.git", "local", "/srv/git/r.git", "local/srv/git/r", "r"),
        ("/srv/git/../r/.git", "local", "/srv/r", "local/srv/r", "r"),
        ("/srv/dé pot", "local", "/srv/dé pot", "local/srv/dé pot", "d-pot"),
    ],
)
def test_address_is_parsed(text, kind, url, identity, slug):
    if kind is None:
        with pytest.raises(errors.InvalidInput):
            Repository.parse(text)
        return
    repository = Repository.parse(text)
    assert (repository.kind, repository.url, repository.slug) == (kind, url, slug)
    assert identity is None or repository.identity == identity
    assert repository.directory == f"/home/coder/{slug}"


def test_relative_path_is_resolved_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Repository.parse(".").path == str(tmp_path)
    assert Repository.parse("./-x").path == str(tmp_path / "-x")
    assert Repository.parse("~/r").path == str(tmp_path / "home/r")


def test_all_forms_of_one_repository_have_one_identity():
    forms = ["https://h.example/o/r.git", "https://H.EXAMPLE/o/r/", "git@h.example:o/r", "ssh://git@h.example/o/r"]
    forms += ["ssh://git@h.example:2222/o/r.git", "git@h.example:/o/r.git", "ssh://ada@h.example/o/r"]
    assert {Repository.parse(form).identity for form in forms} == {"h.example/o/r"}


def test_default_host_can_have_a_port():
    assert Repository.parse("o/r", "git.example:8443").url == "https://git.example:8443/o/r"


def test_missing_scheme_is_suggested():
    with pytest.raises(errors.InvalidInput) as caught:
        Repository.parse("github.com/o/r")
    assert caught.value.hint == "Did you mean https://github.com/o/r?"


def test_suffix_is_derived_from_the_identity():
    one, two = Repository.parse("a/demo"), Repository.parse("b/demo")
    assert one.slug == two.slug == "demo"
    assert one.slug_with_suffix() != two.slug_with_suffix()
    assert one.slug_with_suffix() == Repository.parse("git@github.com:a/demo.git").slug_with_suffix()
    long = Repository.parse("o/" + "x" * 31 + "-y")
    assert len(long.slug) <= 32 and len(long.slug_with_suffix()) == 32


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "main",
        "v1.2.3",
        "feature/x_y-z",
        "0a1b2c3",
        "user/#12",
        "größe",
        "a@b",
        "a+b=c",
        "HEAD",
        "a{{lookup('pipe','id')}}",
    ],
)
def test_refs_are_validated(ref):
    assert repository_names.validate_ref(ref) == ref


# Probe


def answer(outcome: Outcome, text: str = "https://h.example/o/r", ref: str = "", **more):
    seen = {}

    def runner(argv, environ, timeout):
        seen.update(argv=list(argv), environ=dict(environ), timeout=timeout)
        return outcome

    return repository_probe.probe(Repository.parse(text), ref, runner=runner, **more), seen


@pytest.mark.parametrize(
    ("stderr", "state"),
    [
        (
            "No ED25519 host key is known for h and you have requested strict checking.\nHost key verification failed.",
            0,
        ),
        ("@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", 0),
        ("git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.", 1),
        ("fatal: could not read Username for 'https://h': terminal prompts disabled", 1),
        ("fatal: Authentication failed for 'https://h/o/r/'", 1),
        ("fatal: unable to access 'https://h/o/r/': The requested URL returned error: 403", 1),
        ("remote: HTTP Basic: Access denied\nfatal: Authentication failed", 1),
        ("ERROR: Repository not found.\nfatal: Could not read from remote repository.", 2),
        ("remote: Not Found\nfatal: repository 'https://h/o/r/' not found", 2),
        ("fatal: '/srv/r' does not appear to be a git repository", 2),
        ("fatal: unable to access 'https://h/o/r/': The requested URL returned error: 404", 2),
        ("fatal: unable to access 'https://h/': Could not resolve host: h", 3),
        ("ssh: connect to host h port 22: Connection refused\nfatal: Could not read from remote repository.", 3),
        ("fatal: unable to access 'https://h/': server certificate verification failed.", 3),
        ("error: cannot run ssh: No such file or directory\nfatal: unable to fork", 3),
        ("ssh: Could not resolve hostname h: Name or service not known", 3),
        ("fatal: unable to access 'https://h/': The requested URL returned error: 502", 3),
        ("", 3),
    ],
)
def test_answers_of_servers_are_classified(stderr, state):
    states = ("host-key-unknown", "needs-auth", "not-found", "unreachable")
    probe, _seen = answer(Outcome(128, "", stderr))
    assert probe.state == states[state]
    assert probe.detail in stderr.replace("@@@\n", "")


def test_open_repository_returns_its_head():
    probe, seen = answer(Outcome(0, "c0ffee\tHEAD\n", ""))
    assert probe == repository_probe.Probe("open", "", "c0ffee")
    assert seen["argv"][-3:] == ["--", "https://h.example/o/r", "HEAD"]


def test_empty_repository_is_open():
    assert answer(Outcome(0, "", ""))[0] == repository_probe.Probe("open")


def test_missing_branch_is_not_found():
    probe, _seen = answer(Outcome(0, "", ""), ref="feature")
    assert (probe.state, probe.detail) == ("not-found", "it does not have a branch or tag feature")
    assert answer(Outcome(0, "", ""), ref="0a1b2c3d")[0].state == "open"
    assert answer(Outcome(0, "c0ffee\trefs/heads/feature\n", ""), ref="feature")[0].head == "c0ffee"


def test_tag_is_peeled():
    said = "111\trefs/tags/v1\n222\trefs/tags/v1^{}\n"
    assert answer(Outcome(0, said, ""), ref="v1")[0].head == "222"


def test_nothing_can_prompt(monkeypatch):
    monkeypatch.setenv("SSH_ASKPASS", "/usr/bin/ksshaskpass")
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -i '/a b/key'")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    _probe, seen = answer(Outcome(0, "", ""), "git@h.example:o/r", known_hosts="h ssh-ed25519 AAAA")
    environ = seen["environ"]
    assert environ["GIT_TERMINAL_PROMPT"] == "0" and environ["LC_ALL"] == "C"
    assert environ["GIT_ASKPASS"] == environ["SSH_ASKPASS"] == ""
    assert environ["SSH_AUTH_SOCK"] == "/run/agent"
    command = environ["GIT_SSH_COMMAND"]
    assert command.startswith("ssh -oBatchMode=yes -oStrictHostKeyChecking=yes -oControlMaster=no -oConnectTimeout=10 ")
    assert command.endswith("-i '/a b/key'") and "GlobalKnownHostsFile=" in command


def test_missing_git_and_timeout_are_reported():
    def missing(argv, environ, timeout):
        raise FileNotFoundError("git")

    repository = Repository.parse("o/r")
    assert repository_probe.probe(repository, runner=missing).detail == "git is not installed on this machine"
    probe, _seen = answer(Outcome(None, "", ""))
    assert (probe.state, probe.detail) == ("unreachable", "no answer within 10 s")


def test_program_and_children_are_killed_at_the_timeout():
    marker = f"3{os.getpid()}.25"
    begun = time.monotonic()
    outcome = repository_probe.run_bounded(["sh", "-c", f"sleep {marker} & sleep {marker}"], dict(os.environ), 0.3)
    assert outcome.status is None and time.monotonic() - begun < 3
    time.sleep(0.1)
    left = subprocess.run(["ps", "-eo", "stat=,args="], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in left if f"sleep {marker}" in line and not line.startswith("Z")] == []


def test_leftover_daemon_does_not_block_the_caller():
    begun = time.monotonic()
    outcome = repository_probe.run_bounded(["sh", "-c", "setsid sleep 2 & echo done"], dict(os.environ), 10)
    assert outcome == Outcome(0, "done\n", "") and time.monotonic() - begun < 1.5


# Local repositories


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    path = tmp_path / "work"
    git(tmp_path, "init", "-q", "-b", "main", str(path))
    return path


def git(path, *arguments) -> str:
    command = ["git", "-C", str(path), "-c", "user.name=A", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(path) -> str:
    (path / "file").write_text("text")
    git(path, "add", "file")
    git(path, "commit", "-q", "-m", "one")
    return git(path, "rev-parse", "HEAD")


def test_local_repository_becomes_a_clonable_bundle(folder, tmp_path):
    head = commit(folder)
    git(folder, "branch", "side")
    repository = Repository.parse(str(folder))
    assert repository_probe.probe(repository) == repository_probe.Probe("open", "", head)
    (tmp_path / "seed.bundle").write_bytes(repository_probe.make_bundle(repository, "side"))
    git(tmp_path, "clone", "-q", "seed.bundle", "copy")
    assert git(tmp_path / "copy", "rev-parse", "HEAD") == head
    assert "origin/side" in git(tmp_path / "copy", "branch", "-r")


def test_bare_and_detached_repositories_are_bundled(folder, tmp_path):
    head = commit(folder)
    git(folder, "checkout", "-q", "--detach")
    git(tmp_path, "clone", "-q", "--bare", str(folder), str(tmp_path / "bare.git"))
    for path in (folder, tmp_path / "bare.git"):
        repository = Repository.parse(str(path))
        assert repository_probe.probe(repository).head == head
        assert repository_probe.make_bundle(repository).startswith(b"# v2 git bundle")


def refusal(path, ref="") -> str:
    repository = Repository.parse(str(path))
    assert repository_probe.probe(repository, ref).state in ("not-found", "unreadable")
    with pytest.raises(errors.NotFound, match="Cannot copy the repository") as caught:
        repository_probe.make_bundle(repository, ref)
    return caught.value.message


def test_repository_that_cannot_be_bundled_is_refused_with_a_message(folder, tmp_path):
    assert "the directory does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "not a git repository" in refusal(tmp_path / "empty")
    assert "does not have a commit yet" in refusal(folder)
    commit(folder)
    commit_two = folder / "sub"
    commit_two.mkdir()
    assert "a directory inside a repository" in refusal(commit_two)
    assert "not have a branch, tag or commit nowhere" in refusal(folder, "nowhere")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{folder}", "shallow")
    assert "shallow clone" in refusal(tmp_path / "shallow")
