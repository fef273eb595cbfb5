# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dotfiles of a workspace: fetched, installed, updated, and waiting for the user's keys."""

from __future__ import annotations

import sys
import time

import pytest
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from ansible_collections.spt.flow.tests.unit import user_side
from spt_workspace import contract, dotfiles, processes


@pytest.fixture
def machine(tmp_path):
    machine = harness.Machine(tmp_path / "m")
    yield machine
    machine.kill_rest()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    place = tmp_path_factory.mktemp("dotfiles")
    with harness.https_git(place, place) as (prefix, certificate, _handler):
        yield place, prefix, certificate


def publish(served, name: str, files: dict[str, str], branch: str = "main") -> str:
    work = served[0] / f"{name}.work"
    harness.git("init", "-q", "-b", branch, str(work))
    for path, text in files.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text)
        (work / path).chmod(0o755 if text.startswith("#!") else 0o644)
    harness.git("add", ".", cwd=work)
    harness.git("commit", "-q", "-m", "x", cwd=work)
    harness.git("clone", "-q", "--bare", str(work), str(served[0] / f"{name}.git"))
    return f"{served[1]}/{name}.git"


def start_with(machine, served, url: str, **extra: str) -> dict:
    machine.trust(served[2])
    machine.start(SPT_FLOW_DOTFILES=url, **extra)
    return machine.wait("dotfiles")


def test_dotfiles_script_runs_last_and_again_at_the_next_start(machine, served):
    script = "#!/bin/sh\necho told to the log\necho $PWD >> ~/ran\n"
    url = publish(served, "script", {"install.sh": script, "setup.sh": "#!/bin/sh\ntouch ~/wrong\n", ".vimrc": "x"})
    step = start_with(machine, served, url)
    assert (step["state"], step["detail"]) == ("ok", f"install.sh ran; log: {machine.paths.state}/dotfiles.log")
    assert step["started"] >= machine.step("ide")["ended"]
    assert not (machine.paths.home / "wrong").exists() and not (machine.paths.home / ".vimrc").exists()
    assert "told to the log" in (machine.paths.state / "dotfiles.log").read_text()
    assert "told to the log" not in machine.log.read_text()
    machine.end()
    assert start_with(machine, served, url)["state"] == "ok"
    assert (machine.paths.home / "ran").read_text().count("\n") == 2


def test_dotfiles_without_a_script_are_linked_and_existing_files_kept(machine, served):
    url = publish(served, "plain", {".vimrc": "theirs", ".config/a": "b", "README.md": "x", ".gitignore": "y"})
    (machine.paths.home / ".vimrc").write_text("mine")
    assert start_with(machine, served, url)["detail"].startswith("2 files linked; ")
    assert (machine.paths.home / ".vimrc").read_text() == "theirs"
    assert (machine.paths.home / ".vimrc.bak").read_text() == "mine"
    assert not (machine.paths.home / "README.md").exists() and not (machine.paths.home / ".gitignore").exists()
    machine.end()
    assert start_with(machine, served, url)["detail"].startswith("0 files linked; ")


def commit(served, name: str, files: dict[str, str], *branch: str) -> None:
    """Add a commit to the repository of ``publish``."""
    work = served[0] / f"{name}.work"
    harness.git("checkout", "-q", *branch, cwd=work)
    for path, text in files.items():
        (work / path).write_text(text)
    harness.git("add", ".", cwd=work)
    harness.git("commit", "-q", "-m", "more", cwd=work)
    harness.git("push", "-q", str(served[0] / f"{name}.git"), "HEAD", cwd=work)


def test_dotfiles_switch_to_another_branch(machine, served):
    url = publish(served, "branch", {".one": "1"}, "special")
    assert start_with(machine, served, f"{url}#special")["state"] == "ok"
    machine.end()
    commit(served, "branch", {".two": "2"}, "-b", "topic/new")
    commit(served, "branch", {".three": "3"}, "special")
    assert start_with(machine, served, f"{url}#topic/new")["detail"].startswith("1 files linked")
    assert (machine.paths.home / ".two").read_text() == "2" and not (machine.paths.home / ".three").exists()


def test_next_start_updates_dotfiles(machine, served):
    url = publish(served, "grows", {".one": "1"})
    assert start_with(machine, served, url)["state"] == "ok"
    machine.end()
    commit(served, "grows", {".one": "2", ".more": "x"}, "main")
    assert start_with(machine, served, url)["detail"].startswith("1 files linked")
    assert (machine.paths.home / ".one").read_text() == "2"


def test_dotfiles_of_a_tag_are_installed(machine, served):
    url = publish(served, "tagged", {".one": "1"})
    harness.git("tag", "v1", cwd=served[0] / "tagged.git")
    for _ in range(2):
        assert start_with(machine, served, f"{url}#v1")["state"] == "ok"
        machine.end()


def test_dotfiles_with_local_changes_are_installed_unchanged(machine, served):
    url = publish(served, "changed", {"install.sh": "#!/bin/sh\necho old >> ~/ran\n"})
    assert start_with(machine, served, url)["state"] == "ok"
    machine.end()
    commit(served, "changed", {"install.sh": "#!/bin/sh\necho new >> ~/ran\n"}, "main")
    (machine.paths.home / ".dotfiles/install.sh").write_text("#!/bin/sh\necho mine >> ~/ran\n")
    step = start_with(machine, served, url)
    assert step["state"] == "failed" and "could not be updated" in step["detail"]
    assert "What was there before was installed: install.sh ran." in step["detail"]
    assert (machine.paths.home / "ran").read_text() == "old\nmine\n"


def test_private_dotfiles_wait_for_a_session_with_the_users_keys(machine, served):
    url = publish(served, "secret", {"install.sh": "#!/bin/sh\ntouch ~/installed\n"})
    private = url.replace("/secret.git", "/private/secret.git")
    step = start_with(machine, served, private)
    assert step["state"] == "needs-auth" and "spt-workspace dotfiles" in step["detail"]
    assert machine.step("ide")["state"] == "ok" and machine.process.poll() is None
    without = machine.command("dotfiles", "waiting")
    assert without.returncode == 4 and "without your keys" in without.stderr
    program = harness.COMMAND.format(library=str(harness.LIBRARY), root=str(machine.root))
    machine.stub("spt-workspace", f"#!{sys.executable}\n{program}")
    refused = {"ok": False, "error": "This machine has no credentials for localhost."}
    with user_side.session(machine.root, lambda request: refused):
        done = machine.command("dotfiles", "waiting")
    assert (
        done.returncode == 4 and "with your keys. This machine has no credentials for localhost. Check" in done.stderr
    )
    with user_side.session(machine.root, user_side.credentials(password="canary-91")):
        done = machine.command("dotfiles", "waiting")
    assert (done.returncode, "install.sh ran" in done.stderr) == (0, True), done.stderr
    harness.wait_for(lambda: machine.step("dotfiles")["state"] == "ok")
    assert (machine.paths.home / "installed").exists()
    everything = [place for place in machine.paths.home.rglob("*") if place.is_file()]
    assert not any(b"canary-91" in place.read_bytes() for place in [machine.log, *everything])
    assert machine.command("dotfiles", "waiting").stderr == "", "nothing is waiting any more"


def test_new_session_ignores_dotfiles_that_do_not_wait(machine, served):
    machine.start()
    machine.wait("dotfiles", "skipped")
    done = machine.command("dotfiles", "waiting")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.command("dotfiles").returncode == 6
    assert machine.command("dotfiles", "now").returncode == 2


@pytest.mark.parametrize(
    ("files", "said"),
    [({"install": "#!/bin/sh\nexit 9\n"}, "install ended with status 9"), (None, "could not be cloned")],
)
def test_failing_dotfiles_are_reported_and_do_not_fail_the_start(machine, served, files, said):
    url = publish(served, "fails", files) if files else f"{served[1]}/nothing.git"
    step = start_with(machine, served, url)
    assert step["state"] == "failed" and said in step["detail"] and "dotfiles.log" in step["detail"]
    assert machine.step("ide")["state"] == "ok" and machine.process.poll() is None


@pytest.mark.parametrize(
    "url", ["-x", "ext::id", "/etc", "https://user:secret@h/x", "https://h/x#--upload-pack=x", "https://h/x#a b"]
)
def test_hostile_dotfiles_are_refused(machine, served, url):
    step = start_with(machine, served, url)
    assert step["state"] == "failed" and "secret" not in machine.log.read_text()


def test_endless_dotfiles_are_timed_out(machine, served, monkeypatch):
    url = publish(served, "endless", {"install": "#!/bin/sh\nsleep 600\n"})
    machine.trust(served[2])
    machine.paths.run.mkdir(parents=True)
    monkeypatch.setattr(dotfiles, "SECONDS", 2.0)
    began = time.monotonic()
    with pytest.raises(contract.Failure, match="more than 2 s"):
        dotfiles.Dotfiles(url, machine.paths, processes.Children(), machine.environ).run()
    assert time.monotonic() - began < 6


def test_foreign_directory_at_dotfiles_is_kept(machine, served):
    (machine.paths.home / ".dotfiles").mkdir()
    (machine.paths.home / ".dotfiles/precious").touch()
    step = start_with(machine, served, publish(served, "mine", {".a": "b"}))
    assert step["state"] == "failed" and "left untouched" in step["detail"]
    assert (machine.paths.home / ".dotfiles/precious").exists()
