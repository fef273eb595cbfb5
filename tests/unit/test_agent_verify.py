# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``spt-workspace verify`` below a temporary root: verdicts on working, broken, missing and unavailable tools."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from spt_workspace.contract import Contract, Failure, Paths
from spt_workspace.verify import place, report

DPKG = '#!/bin/sh\nshift 2\nfor name; do echo "$name installed"; done\n'
JQ = "#!/bin/sh\necho jq-1.7: the answer is 42\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    machine = harness.Machine(tmp_path / "m")
    machine.stub("dpkg-query", DPKG)
    machine.stub("jq", JQ)
    (machine.root / "var/tmp/coder").mkdir(parents=True)
    yield machine
    machine.kill_rest()


def holds(machine, packages=("git", "jq"), **tools):
    """Declare that the image contains ``packages`` and ``tools``."""
    about = machine.root / place.ABOUT
    about.parent.mkdir(parents=True, exist_ok=True)
    groups = {"workspace": list(packages)}
    about.write_text(json.dumps({"profile": "slim", "hash": "ab" * 32, "tools": tools, "packages": groups}))


def present(version="1.0"):
    return {"version": version, "state": "present"}


def names(machine):
    """Return the image's checks that run anywhere; others start an IDE or search /etc and are tested one by one."""
    try:
        about = json.loads((machine.root / place.ABOUT).read_text())
    except OSError:
        return ("image",)
    return ("image", "packages", *about["packages"]["workspace"], *about["tools"])


def verify(machine, *words):
    """Return (exit status, rows by name, the object)."""
    done = machine.command("verify", "--format", "json", *(words or names(machine)))
    found = json.loads(done.stdout)
    return done.returncode, {row["name"]: row for row in found["checks"]}, found


def left(machine):
    return list((machine.root / "var/tmp/coder").iterdir())


def test_working_tool_passes_and_leaves_nothing(machine):
    machine.stub("hyperfine", "#!/bin/sh\necho hyperfine 1.20.0\n")
    holds(machine, hyperfine=present("1.20.0"))
    status, rows, found = verify(machine)
    assert (status, found["ok"], found["where"], found["profile"]) == (0, True, "image", "slim")
    assert rows["git"]["state"] == "passed" and rows["git"]["detail"].startswith("committed and cloned: git version")
    assert rows["hyperfine"]["detail"] == "hyperfine 1.20.0", "a tool without its own check prints its version"
    assert found["counts"]["failed"] == 0 and found["counts"]["passed"] == len(rows)
    assert left(machine) == []


def test_broken_tool_is_found_and_the_other_checks_continue(machine):
    machine.stub("jq", "#!/bin/sh\necho 'jq: error while loading shared libraries: libonig.so.5' >&2\nexit 127\n")
    holds(machine)
    status, rows, found = verify(machine)
    assert (status, found["ok"]) == (1, False)
    assert rows["jq"]["state"] == "failed"
    assert "'jq --null-input' ended with exit status 127: jq: error while loading" in rows["jq"]["detail"]
    assert rows["git"]["state"] == "passed"


def test_wrong_answer_of_a_tool_is_found(machine):
    machine.stub("jq", "#!/bin/sh\necho the answer is 41\n")
    holds(machine)
    status, rows, _found = verify(machine, "jq")
    assert (status, list(rows)) == (1, ["jq"])
    assert rows["jq"]["detail"] == "'jq --null-input' did not print 'the answer is 42' but: the answer is 41"


def test_missing_tool_is_found(machine):
    holds(machine, packages=(), wasmtime=present(), nothing=present())
    _status, rows, _found = verify(machine)
    assert rows["wasmtime"]["detail"] == "wasmtime is not installed, or not in the PATH."
    assert rows["nothing"]["state"] == "failed"


def test_missing_package_is_found(machine):
    machine.stub("dpkg-query", "#!/bin/sh\necho git installed\necho jq deinstall\nexit 1\n")
    holds(machine)
    assert verify(machine)[1]["packages"]["detail"] == "The image names packages that are not installed: jq."


def test_unavailable_tool_is_named_with_its_reason_and_does_not_fail(machine):
    holds(machine, firecracker={"version": "", "state": "unavailable", "reason": "released on GitHub only"})
    status, rows, found = verify(machine)
    assert status == 0 and found["counts"]["unavailable"] == 1
    assert (rows["firecracker"]["state"], rows["firecracker"]["detail"]) == ("unavailable", "released on GitHub only")


def test_undeclared_tool_is_not_checked(machine):
    holds(machine, packages=("git",))
    done = machine.command("verify", "jq")
    assert done.returncode == 2 and "There is no check jq here." in done.stderr


def test_image_without_a_description_fails(machine):
    status, rows, _found = verify(machine)
    assert status == 1 and "/usr/share/spt-flow/image.json says nothing" in rows["image"]["detail"]


def test_table_has_a_row_for_each_check_and_a_count(machine):
    holds(machine, firecracker={"version": "", "state": "unavailable", "reason": "why"})
    done = machine.command("verify", *names(machine))
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr
    assert lines[-1].endswith("checks of the image (profile slim): 4 passed, 0 failed, 1 unavailable, 0 skipped.")
    assert any(line.startswith("firecracker      unavailable") for line in lines)


def test_junit_counts_failures_and_skips(machine):
    machine.stub("jq", "#!/bin/sh\nprintf '\\001 <broken>\\n'\nexit 1\n")
    holds(machine, firecracker={"version": "", "state": "unavailable", "reason": "why"})
    done = machine.command("verify", "--format", "junit", *names(machine))
    suite = ElementTree.fromstring(done.stdout.encode()).find("testsuite")
    assert (done.returncode, suite.get("failures"), suite.get("skipped")) == (1, "1", "1")
    assert suite.find("testcase[@name='jq']/failure").get("message").endswith("<broken>")
    assert suite.find("testcase[@name='firecracker']/skipped").get("message") == "unavailable: why"
    assert "jq               failed" in done.stderr, "progress is printed meanwhile"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nonsense",), "There is no check nonsense here. There are: image, packages, git, jq, start,"),
        (("--format", "x"), ""),
    ],
)
def test_wrong_usage_ends_with_2(machine, words, said):
    holds(machine)
    done = machine.command("verify", *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_help_explains_exit_statuses_and_checking_an_image(machine):
    done = machine.command("verify", "--help")
    assert done.returncode == 0
    assert "1 a check failed" in done.stdout and "--entrypoint spt-workspace IMAGE verify" in done.stdout


def test_interrupted_run_leaves_nothing_and_a_killed_one_is_cleaned_up(machine):
    machine.stub("jq", f"#!/bin/sh\necho $$ >{machine.root}/jq.pid\nexec sleep 60\n")
    holds(machine)
    program = harness.COMMAND.format(library=str(harness.LIBRARY), root=str(machine.root))
    for number in (signal.SIGTERM, signal.SIGKILL):
        (machine.root / "jq.pid").unlink(missing_ok=True)
        argv = [sys.executable, "-c", program, "verify", "jq"]
        child = subprocess.Popen(argv, env=machine.environ, stdout=subprocess.DEVNULL)
        harness.wait_for((machine.root / "jq.pid").exists)
        child.send_signal(number)
        status = child.wait(20)
        assert status == (130 if number == signal.SIGTERM else -signal.SIGKILL)
        assert len(left(machine)) == (0 if number == signal.SIGTERM else 1)
    machine.stub("jq", JQ)
    assert verify(machine, "jq")[0] == 0
    assert left(machine) == []


def test_hanging_command_is_ended_and_named(tmp_path):
    there = place.Place(Paths(tmp_path), Contract(), dict(os.environ), {}, False, tmp_path)
    with pytest.raises(Failure, match=r"'sleep 60' did not end within 0 s; it said last: it printed nothing"):
        there.run(["sleep", "60"], timeout=0.2)


def test_caches_of_the_user_are_unchanged(machine):
    machine.stub("jq", f"#!/bin/sh\nenv >{machine.root}/env\necho the answer is 42\n")
    holds(machine)
    verify(machine, "jq")
    env = dict(line.split("=", 1) for line in (machine.root / "env").read_text().splitlines() if "=" in line)
    scratch = Path(env["GOPATH"]).parent
    assert scratch.parent == machine.root / "var/tmp/coder"
    assert {Path(env[name]).parent for name in ("CARGO_HOME", "UV_CACHE_DIR", "npm_config_cache")} == {scratch}
    assert env["HOME"] == str(machine.paths.home) and env["GOPROXY"] == "off"


def test_output_forms_agree():
    rows = [report.Row("a", "passed", "fine", 1.0), report.Row("b", "failed", "Broken.", 0.1)]
    subject = report.Subject("image", "slim", "")
    assert json.loads(report.as_json(rows, subject))["counts"] == report.counts(rows)
    assert report.as_table(rows, subject).count("\n") == 3
    assert report.as_junit(rows, subject).startswith("<?xml")


def test_workspace_checks_are_skipped_in_an_image_alone(machine):
    holds(machine)
    _status, rows, _found = verify(machine, "start", "home", "clone", "hooks")
    assert {row["state"] for row in rows.values()} == {"skipped"}


def test_started_workspace_is_verified_as_a_workspace(machine):
    holds(machine)
    machine.start()
    machine.wait("ide", "ok")
    _status, rows, found = verify(machine, "start", "home", "clone", "ide", "docker", "repository-hooks")
    assert found["where"] == "workspace"
    assert "is not a volume: what is in it goes with the container." in rows["home"]["detail"]
    assert "IDE's password lies in" in rows["ide"]["detail"], "a test folder is not a memory file system"
    assert (rows["clone"]["state"], rows["clone"]["detail"]) == ("skipped", "no repository was named")
    assert rows["repository-hooks"]["state"] == "passed"


def test_failed_step_is_named_and_dotfiles_are_not(machine):
    holds(machine)
    machine.start(SPT_FLOW_REPO="https://localhost:1/x/y.git", SPT_FLOW_REPO_ID="localhost/x/y")
    machine.wait("clone", "failed")
    machine.wait("ide", "ok")
    status, rows, _found = verify(machine, "start")
    assert status == 1 and rows["start"]["detail"].startswith("A step of the start failed. clone: ")


def test_clone_is_the_right_one_and_belongs_to_the_user(machine, tmp_path):
    holds(machine)
    harness.make_repository(tmp_path / "git/one.git")
    with harness.https_git(tmp_path / "git", tmp_path) as (prefix, authority, _handler):
        machine.trust(authority)
        machine.start(SPT_FLOW_REPO=f"{prefix}/one.git", SPT_FLOW_REPO_ID=f"{prefix[8:]}/one")
        machine.wait("clone", "ok")
        machine.wait("ide", "ok")
    assert verify(machine, "clone")[1]["clone"]["detail"] == f"{machine.paths.home}/demo is whole and the user's"
    os.chown(machine.paths.home / "demo/second", 12345, 12345)
    assert "1 files that are not the user's" in verify(machine, "clone")[1]["clone"]["detail"]
    os.chown(machine.paths.home / "demo/second", os.getuid(), os.getgid())
    harness.git("remote", "set-url", "origin", "https://elsewhere/x/y", cwd=machine.paths.home / "demo")
    assert "a clone of https://elsewhere/x/y, not of" in verify(machine, "clone")[1]["clone"]["detail"]
