# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clone step against a real HTTPS git server: complete or absent, no prompts, no deletions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from ansible_collections.spt.flow.tests.unit import user_side
from spt_workspace import clone, contract, processes


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(URL prefix, certificate, handler, head of o/r.git, its bare directory)."""
    place = tmp_path_factory.mktemp("served")
    head = harness.make_repository(place / "o/r.git")
    harness.make_repository(place / "o/other.git", 1)
    harness.git("init", "-q", "--bare", str(place / "o/empty.git"))
    with harness.https_git(place, place) as (prefix, certificate, handler):
        yield prefix, certificate, handler, head, place / "o/r.git"


@pytest.fixture
def short_path():
    """A folder with a short path, because socket names are limited to 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="spt-") as folder:
        yield Path(folder)


@pytest.fixture
def machine(short_path, served):
    machine = harness.Machine(short_path / "m")
    machine.trust(served[1])
    machine.environ["SPT_FLOW_REPO"] = f"{served[0]}/o/r.git"
    machine.environ["SPT_FLOW_REPO_ID"] = f"{served[0][8:]}/o/r"
    yield machine
    machine.kill_rest()


def here(machine: harness.Machine) -> Path:
    return machine.paths.home / "demo"


def leftovers(machine: harness.Machine) -> list[str]:
    return [p.name for p in machine.paths.home.iterdir() if p.name.startswith(clone.LEFTOVER)]


def attempt(machine: harness.Machine, **extra: str) -> str:
    """Run only the clone step, in this process; return its message."""
    machine.paths.run.mkdir(parents=True, exist_ok=True)
    (machine.paths.run / "known_hosts").touch()
    environ = {**machine.environ, **extra}
    values = contract.Contract.from_environment(environ)
    return clone.Cloner(values, machine.paths, processes.Children(), environ, lambda line: None).run()


def refused(machine: harness.Machine, **extra: str) -> contract.Failure:
    with pytest.raises(contract.Failure) as caught:
        attempt(machine, **extra)
    assert not leftovers(machine)
    return caught.value


def test_clone_is_complete_and_unchanged_by_a_second_start(machine, served):
    machine.start()
    assert machine.wait("clone")["state"] == "ok"
    machine.end()
    assert harness.git("rev-parse", "HEAD", cwd=here(machine)) == served[3]
    assert harness.git("status", "--porcelain", cwd=here(machine)) == ""
    assert harness.git("config", "remote.origin.url", cwd=here(machine)) == machine.environ["SPT_FLOW_REPO"]
    (here(machine) / "mine").write_text("work in progress\n")
    harness.git("remote", "set-url", "origin", "https://example.org/my/fork.git", cwd=here(machine))
    machine.start()
    assert "left untouched" in machine.wait("clone", "ok")["detail"]
    assert (here(machine) / "mine").exists()


def test_workspace_without_repository_clones_the_one_that_is_named(machine, served):
    url = machine.environ["SPT_FLOW_REPO"]
    machine.start(SPT_FLOW_REPO="", SPT_FLOW_REPO_ID="", SPT_FLOW_DIRECTORY=str(machine.paths.home))
    machine.wait("clone", "skipped")
    done = machine.command("clone", url, "topic/one")
    assert done.returncode == 0, done.stderr
    place = machine.paths.home / machine.environ["SPT_FLOW_WORKSPACE"]
    assert harness.git("branch", "--show-current", cwd=place) == "topic/one"
    assert machine.wait("clone", "ok")
    assert "left untouched" in machine.command("clone", url).stderr
    other = machine.command("clone", "https://example.com/o/other.git")
    assert other.returncode == 7 and "belongs to another repository" in other.stderr


@pytest.mark.parametrize(
    ("ref", "branch", "commit"),
    [
        ("topic/one", "topic/one", "topic/one"),
        ("refs/heads/topic/one", "topic/one", "topic/one"),
        ("v1", "", "v1"),
        ("refs/tags/v1", "", "v1"),
        ("{first}", "", "v1"),
        ("{short}", "", "v1"),
    ],
)
@pytest.mark.parametrize("depth", ["0", "1"])
def test_branch_tag_and_commit_are_cloned_with_and_without_depth(machine, served, ref, branch, commit, depth):
    first = harness.git("rev-parse", "v1", cwd=served[4])
    if ref == "{short}" and depth == "1":
        pytest.skip("no server gives a shortened commit alone")
    attempt(machine, SPT_FLOW_REF=ref.format(first=first, short=first[:10]), SPT_FLOW_DEPTH=depth)
    assert harness.git("rev-parse", "HEAD", cwd=here(machine)) == harness.git("rev-parse", commit, cwd=served[4])
    assert harness.git("branch", "--show-current", cwd=here(machine)) == branch
    if branch:
        assert harness.git("rev-parse", "--abbrev-ref", "@{u}", cwd=here(machine)) == f"origin/{branch}"
    if depth == "1":
        assert harness.git("rev-list", "--count", "HEAD", cwd=here(machine)) == "1"


def test_empty_repository_is_cloned_and_reported(machine, served):
    said = attempt(machine, SPT_FLOW_REPO=f"{served[0]}/o/empty.git", SPT_FLOW_REPO_ID="")
    assert said.endswith("the repository is empty") and (here(machine) / ".git").is_dir()


def test_empty_directory_is_used(machine):
    here(machine).mkdir()
    assert attempt(machine).startswith("cloned to")


@pytest.mark.parametrize("content", ["file", "other", "is-file"])
def test_directory_with_other_content_is_kept_and_refused(machine, served, content):
    if content == "is-file":
        here(machine).write_text("precious")
    elif content == "file":
        here(machine).mkdir()
        (here(machine) / "precious").write_text("x")
    else:
        attempt(machine, SPT_FLOW_REPO=f"{served[0]}/o/other.git", SPT_FLOW_REPO_ID="host/o/other")
    before = harness.git("hash-object", "--", str(Path(__file__)))
    failure = refused(machine)
    assert failure.status == 7 and str(here(machine)) in failure.sentence and "nothing was deleted" in failure.sentence
    assert here(machine).exists() and before


def test_https_without_login_needs_auth_and_other_steps_continue(machine, served):
    secret = "hunter2-canary"
    (machine.paths.home / ".netrc.unused").write_text(secret)
    began = time.monotonic()
    machine.start(SPT_FLOW_REPO=f"{served[0]}/private/o/r.git", GIT_ASKPASS="/bin/false")
    step = machine.wait("clone")
    assert step["state"] == "needs-auth" and time.monotonic() - began < 10
    assert "ansible-playbook spt.flow.ssh -e workspace=demo" in step["detail"] and step["detail"].count("\n") == 0
    assert machine.wait("ide")["state"] == "ok"
    assert not here(machine).exists() and not leftovers(machine)


def test_clone_in_a_session_says_why_its_credentials_do_not_suffice(machine, served):
    machine.start(SPT_FLOW_REPO=f"{served[0]}/private/o/r.git")
    assert "without your keys. Run on your own machine:" in machine.wait("clone", "needs-auth")["detail"]
    program = harness.COMMAND.format(library=str(harness.LIBRARY), root=str(machine.root))
    machine.stub("spt-workspace", f"#!{sys.executable}\n{program}")
    refused = {"ok": False, "error": "localhost may not be asked.", "hint": "See credential_hosts."}
    with user_side.session(machine.root, lambda request: refused):
        done = machine.command("clone")
    assert done.returncode == 4
    assert "with your keys. localhost may not be asked. See credential_hosts. Check on your own" in done.stderr
    with user_side.session(machine.root, user_side.credentials(password="wrong")) as user:
        done = machine.command("clone")
    assert done.returncode == 4 and "with your keys. fatal: Authentication failed for" in done.stderr
    assert [request["operation"] for request in user.asked if request["kind"] == "git"] == ["get", "erase"]


def test_waiting_clone_is_finished_with_the_session_credentials(machine, served):
    machine.start(SPT_FLOW_REPO=f"{served[0]}/private/o/r.git")
    machine.wait("clone", "needs-auth")
    assert machine.command("clone").returncode == 4
    # The credential helper of gitconfig, with the root of this test.
    program = harness.COMMAND.format(library=str(harness.LIBRARY), root=str(machine.root))
    machine.stub("spt-workspace", f"#!{sys.executable}\n{program}")
    with user_side.session(machine.root, user_side.credentials()) as user:
        done = machine.command("clone")
    assert done.returncode == 0, done.stderr
    asked = [request for request in user.asked if request["kind"] == "git"]
    assert asked[0]["input"].startswith("protocol=https\nhost=localhost:")
    harness.wait_for(lambda: machine.step("clone")["state"] == "ok", 5)
    assert harness.git("rev-parse", "HEAD", cwd=here(machine)) == served[3]
    assert "password" not in (here(machine) / ".git/config").read_text()


def test_network_failures_are_retried_and_then_reported(machine, served):
    served[2].failures = 2
    assert attempt(machine).startswith("cloned to")
    served[2].failures = 0
    said = refused(
        machine,
        SPT_FLOW_REPO=f"https://localhost:{harness.free_port()}/o/r.git",
        SPT_FLOW_DIRECTORY=f"{machine.paths.home}/x",
    )
    assert "cannot be reached from the workspace, 4 attempts" in said.sentence and said.state == "failed"


def test_missing_repository_missing_ref_and_untrusted_server_have_their_own_messages(machine, served):
    assert "no repository" in refused(machine, SPT_FLOW_REPO=f"{served[0]}/o/nothing.git", SPT_FLOW_REPO_ID="").sentence
    for depth in ("0", "1"):
        said = refused(machine, SPT_FLOW_REF="nope", SPT_FLOW_DEPTH=depth).sentence
        assert "has no branch, tag or commit 'nope'" in said
    (machine.paths.home / ".gitconfig").unlink()
    assert "could not be verified" in refused(machine).sentence


@pytest.mark.parametrize(
    "url",
    [
        "-x",
        "--upload-pack=touch /tmp/spt-owned",
        "ext::sh -c 'touch /tmp/spt-owned'",
        "file:///etc",
        "/etc",
        "http://example.org/o/r.git",
        "git://example.org/o/r.git",
        "ssh://-oProxyCommand=touch${IFS}/tmp/spt-owned/x",
        "-oProxyCommand=x@host:o/r",
        "git@-oProxyCommand=x:o/r",
        "git@host:-x",
        "https://user:secret@example.org/o/r.git",
        "https://example.org/o/r\n.git",
        "https://example.org/o/r\x00.git",
        "https://-example/x",
        "https://example.org/" + "a" * 5000,
        "ssh://git@host",
        "host:path",
        "transport::https://example.org/x",
    ],
)
def test_hostile_urls_never_reach_git(machine, url):
    machine.stub("git", "#!/bin/sh\ntouch /tmp/spt-owned\n")
    environ = dict(machine.environ)
    environ["SPT_FLOW_REPO"] = url
    values = contract.Contract.from_environment(environ)
    machine.paths.run.mkdir(parents=True)
    with pytest.raises(contract.Failure) as caught:
        clone.Cloner(values, machine.paths, processes.Children(), environ, lambda line: None).run()
    assert "secret" not in caught.value.sentence and caught.value.sentence.isprintable()
    assert not os.path.exists("/tmp/spt-owned")


@pytest.mark.parametrize(
    "ref", ["-x", "--upload-pack=x", "a..b", "a@{1}", "a b", "a\nb", "a:b", "a^", "/a", "a.lock", "$(id);`x`:"]
)
def test_hostile_refs_are_refused(machine, ref):
    assert "not allow" in refused(machine, SPT_FLOW_REF=ref).sentence


@pytest.mark.parametrize("ref", ["a{{lookup('pipe','touch${IFS}x')}}", "a;b$(id)`id`", "ünï"])
def test_unusual_but_valid_refs_are_plain_names(machine, served, ref):
    harness.git("branch", "-f", ref, "v1", cwd=served[4])
    try:
        attempt(machine, SPT_FLOW_REF=ref)
    finally:
        harness.git("branch", "-D", ref, cwd=served[4])
    assert harness.git("branch", "--show-current", cwd=here(machine)) == ref
    assert harness.git("rev-parse", "HEAD", cwd=here(machine)) == harness.git("rev-parse", "v1", cwd=served[4])


@pytest.mark.parametrize("directory", ["", "/etc/x", "relative", "{home}", "{home}/../../x"])
def test_directories_outside_the_home_are_refused(machine, directory):
    failure = refused(machine, SPT_FLOW_DIRECTORY=directory.format(home=machine.paths.home))
    assert "is not below" in failure.sentence


COMMANDS = ("clone", "check-ref-format", "for-each-ref", "checkout", "rev-parse", "fsck")
BOUNDARIES = [f"{when}:{command}" for command in COMMANDS for when in ("before", "during", "after")]


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_kill_at_any_step_leaves_nothing_or_a_complete_clone(machine, served, boundary):
    machine.start(KILL_AT=boundary, SPT_FLOW_REF="topic/one").wait(20)
    assert machine.process.returncode == -9
    assert not here(machine).exists() or harness.git("fsck", cwd=here(machine)) == ""
    machine.start(SPT_FLOW_REF="topic/one")
    assert machine.wait("clone")["state"] == "ok"
    assert harness.git("rev-parse", "HEAD", cwd=here(machine)) == harness.git("rev-parse", "topic/one", cwd=served[4])
    assert (
        harness.git("fsck", cwd=here(machine)) == "" and harness.git("status", "--porcelain", cwd=here(machine)) == ""
    )
    assert not leftovers(machine)


def test_kill_between_rename_and_state_file(machine, served, monkeypatch):
    """The clone is renamed, but the state file is not written yet."""
    attempt(machine)
    (machine.paths.state / "clone").unlink()
    assert "left untouched" in attempt(machine)


def test_stop_during_a_slow_clone_is_quick_and_leaves_nothing(machine, served):
    machine.start(SPT_FLOW_REPO=f"{served[0]}/slow/o/r.git")
    harness.wait_for(lambda: leftovers(machine))
    began = time.monotonic()
    assert machine.end() == 0
    assert time.monotonic() - began < 8 and not here(machine).exists()


def test_parallel_clones_do_not_disturb_each_other(machine, served):
    machine.start(SPT_FLOW_REPO=f"{served[0]}/slow/o/r.git")
    harness.wait_for(lambda: leftovers(machine))
    done = machine.command("clone")
    assert done.returncode == 0 and "left untouched" in done.stderr
    assert machine.wait("clone")["state"] == "ok"


def bundle(machine, served, origin="/home/me/project"):
    seed = machine.paths.home / ".cache/spt-flow/seed.bundle"
    seed.parent.mkdir(parents=True)
    harness.git("bundle", "create", "-q", str(seed), "HEAD", "--branches", "--tags", cwd=served[4])
    return {"SPT_FLOW_SEED": str(seed), "SPT_FLOW_REPO": origin, "SPT_FLOW_REPO_ID": "local/home/me/project"}


def test_seed_bundle_is_cloned_and_removed(machine, served):
    extra = bundle(machine, served)
    machine.start(**extra)
    assert machine.wait("clone")["state"] == "ok"
    assert not Path(extra["SPT_FLOW_SEED"]).exists()
    assert harness.git("rev-parse", "HEAD", cwd=here(machine)) == served[3]
    assert harness.git("config", "remote.origin.url", cwd=here(machine)) == "/home/me/project"
    machine.end()
    machine.start(**extra)
    assert "left untouched" in machine.wait("clone", "ok")["detail"]


def test_damaged_or_missing_bundle_is_reported(machine, served):
    extra = bundle(machine, served)
    seed = Path(extra["SPT_FLOW_SEED"])
    seed.write_bytes(seed.read_bytes()[:-40])
    assert refused(machine, **extra).sentence.startswith("The copy of local/home/me/project is damaged: ")
    assert seed.exists()
    seed.unlink()
    assert "does not exist" in refused(machine, **extra).sentence
    # With an agent as main process, the client uploads it only once the workspace runs.
    follows = refused(machine, SPT_FLOW_AGENT="1 1", **extra)
    assert (follows.state, follows.sentence) == ("needs-auth", "The copy of the local repository follows.")


def test_submodules_are_opt_in_and_never_cloned_from_files(machine, served):
    work = served[4].parent / "with-sub.work"
    if not work.exists():
        harness.git("init", "-q", "-b", "main", str(work))
        (work / ".gitmodules").write_text(f'[submodule "s"]\n\tpath = s\n\turl = {served[0]}/o/r.git\n')
        harness.git("add", ".", cwd=work)
        harness.git("update-index", "--add", "--cacheinfo", f"160000,{served[3]},s", cwd=work)
        harness.git("commit", "-q", "-m", "sub", cwd=work)
        harness.git("clone", "-q", "--bare", str(work), str(served[4].parent / "with-sub.git"))
    extra = {"SPT_FLOW_REPO": f"{served[0]}/o/with-sub.git", "SPT_FLOW_REPO_ID": ""}
    attempt(machine, **extra)
    assert not list((here(machine) / "s").iterdir())
    other = f"{machine.paths.home}/other"
    attempt(machine, **extra, SPT_FLOW_SUBMODULES="1", SPT_FLOW_DIRECTORY=other)
    assert harness.git("rev-parse", "HEAD", cwd=Path(other) / "s") == served[3]


def test_clone_cache_is_filled_used_and_optional(machine, served, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("one", "two"):
        attempt(machine, SPT_FLOW_CLONE_CACHE=str(cache), SPT_FLOW_DIRECTORY=f"{machine.paths.home}/{name}")
    stored = list(cache.glob("*.git"))
    assert len(stored) == 1 and harness.git("rev-parse", "main", cwd=stored[0]) == served[3]
    harness.subprocess.run(["rm", "-r", str(cache)], check=True)
    assert harness.git("fsck", cwd=machine.paths.home / "two") == ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.", "auth"),
        ("fatal: could not read Username for 'https://h': terminal prompts disabled", "auth"),
        ("Host key verification failed.\nfatal: Could not read from remote repository.", "host-key"),
        ("ssh: connect to host h port 22: Connection refused\nfatal: Could not read from remote", "network"),
        ("fatal: unable to access 'https://h/': Could not resolve host: h", "network"),
        ("ERROR: Repository not found.\nfatal: Could not read from remote repository.", "missing"),
        ("error: unable to write file x: No space left on device", "disk"),
        ("fatal: something new", "other"),
    ],
)
def test_messages_of_git_are_classified(text, kind):
    assert clone.classify(text) == kind


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://H.org/o/r.git", "git@h.org:o/r", True),
        ("ssh://git@h.org:2222/o/r.git", "git@h.org:/o/r.git", True),
        ("https://h.org/o/r", "https://h.org/o/R", False),
        ("", "", False),
        ("https://h.org/o/r", "https://i.org/o/r", False),
    ],
)
def test_addresses_of_one_repository_are_equal(one, other, same):
    assert clone.same_repository(one, other) is same


def test_full_disk_is_reported(machine):
    small = machine.paths.home
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], capture_output=True)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        machine.trust(Path(machine.environ.get("CERT", "/dev/null")))
        (small / ".gitconfig").write_text("[http]\n\tsslVerify = false\n")
        (small / "fill").write_bytes(b"x" * 40_000)
        assert "no space left" in refused(machine).sentence
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("times", [1, clone.TRIES])
def test_killed_git_is_run_again(machine, served, tmp_path, times):
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_text(
        f"#!/bin/sh\ncase \"$*\" in *' clone '*)\n echo . >>{tmp_path}/kills\n"
        f' [ "$(wc -l <{tmp_path}/kills)" -gt {times} ] || kill -9 $$\nesac\nexec {shutil.which("git")} "$@"\n'
    )
    git.chmod(0o755)
    path = f"{git.parent}:{os.environ['PATH']}"
    if times < clone.TRIES:
        assert "cloned" in attempt(machine, PATH=path)
        assert harness.git("rev-parse", "HEAD", cwd=here(machine)) == served[3]
    else:
        assert "git was killed" in refused(machine, PATH=path).sentence
        assert not here(machine).exists()
