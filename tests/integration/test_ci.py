# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""CI runs with whole `ansible-playbook` and `ansible-runner` processes on the real engine."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.kvm import probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.target import DockerTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import engine as image_engine
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.tests.integration import ci_harness, playbook_harness
from ansible_collections.spt.flow.tests.integration.ci_harness import record, start, values
from ansible_collections.spt.flow.tests.integration.playbook_harness import CHECKOUT, Playbooks, git

CANARY = f"canary{secrets.token_hex(8)}"


@pytest.fixture(scope="module")
def playbooks(tmp_path_factory: pytest.TempPathFactory, image: Any) -> Iterator[Playbooks]:
    with ci_harness.two_commits(tmp_path_factory.mktemp("ci")) as playbooks:
        yield playbooks


def test_status_commit_artifacts_and_reports_are_returned(playbooks: Playbooks, tmp_path: Path) -> None:
    first = git("rev-parse", "HEAD~1", cwd=playbooks.repository)
    command = (
        "git rev-parse HEAD; test ! -e second.txt; echo missing=$?; mkdir -p out; echo data > out/a.txt; "
        "ln -s /etc/shadow out/link; echo '<testsuite><testcase/></testsuite>' > r.xml; echo oops >&2; exit 7"
    )
    done = playbooks.run("ci", **values(playbooks, tmp_path, command, commit=first, artifacts="out/*", junit="r.xml"))
    assert done.returncode == 7, done.stdout + done.stderr
    assert done.stdout.splitlines() == [first, "missing=0", "oops"]
    found = record(tmp_path)
    assert (found["kind"], found["reason"], found["commit"], found["ran"]) == ("job", "failed", first, True)
    assert found["artifacts"] == ["artifacts/out/a.txt", "reports/r.xml"] and found["reports"]["tests"] == 1
    assert Path(found["folder"], "artifacts/out/a.txt").read_text() == "data\n"
    assert Path(found["folder"], "job.log").read_text() == done.stdout
    assert playbook_harness.belongings(playbooks.owner) == []


def test_up_reproduces_the_workspace_of_a_run_and_reports_differences(playbooks: Playbooks, tmp_path: Path) -> None:
    first = git("rev-parse", "HEAD~1", cwd=playbooks.repository)
    done = playbooks.run("ci", **values(playbooks, tmp_path, "true", commit=first, cpus="1"))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = record(tmp_path)["folder"]
    made = playbooks.json("up", "-e", f"from_run={folder}", SPT_FLOW_CONNECT="false", SPT_FLOW_CPUS="2")
    try:
        assert made["ok"], made
        container = f"spt-flow-{playbooks.owner}-{made['workspace']['name']}"
        assert playbook_harness.docker("inspect", container, "--format", "{{.HostConfig.NanoCpus}}") == "1000000000"
        where = f"/home/coder/{made['workspace']['name']}"
        assert playbook_harness.docker("exec", container, "git", "-C", where, "rev-parse", "HEAD") == first
        assert not [note for note in made["notes"] if "differs from the CI run" in note]
        playbooks.run("ci", **values(playbooks, tmp_path / "other", "true", commit=first, cpus="3"))
        other = record(tmp_path / "other")["folder"]
        again = playbooks.json("up", "-e", f"from_run={other}", SPT_FLOW_CONNECT="false")
        assert [note for note in again["notes"] if "differs from the CI run: settings" in note], again["notes"]
        both = playbooks.json("up", "-e", f"from_run={other}", "-e", "ref=main", SPT_FLOW_CONNECT="false")
        assert both["status"] != 0 and "combined with ref" in both["error"]["message"]
    finally:
        playbooks.json("delete", "-e", f"workspace={made['workspace']['name']}", "-e", "confirm=true")


TOOLS = """set -e
docker version --format 'docker {{.Server.Version}}'
kvm-ok >/dev/null && echo kvm
printf 'all:\n\tcc -x c -o hello hello.c && ./hello\n' >Makefile
printf '#include <stdio.h>\nint main(void) { puts("compiled"); }\n' >hello.c
make -s
if test "$SPT_FLOW_PROFILE" = fat; then go version && rustc --version && node --version && gh --version; fi
"""


@pytest.mark.parametrize("profile", ["slim", pytest.param("fat", marks=pytest.mark.full)])
def test_job_has_docker_kvm_make_and_compilers(playbooks: Playbooks, tmp_path: Path, profile: str) -> None:
    if not image_engine.present(image_identity.identity(profile)):
        pytest.skip(f"the image {profile} is not on this engine")
    if not probe.verdict().works:
        pytest.skip("guest code does not run on this machine")
    command = f"SPT_FLOW_PROFILE={profile}\n{TOOLS}"
    wanted = values(playbooks, tmp_path, command, docker="required", kvm="required", profile=profile)
    done = playbooks.run("ci", **wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.split()
    assert said[0] == "docker" and {"kvm", "compiled"} <= set(said), done.stdout
    assert profile == "slim" or {"go", "rustc", "gh"} <= set(said), done.stdout


def test_output_is_one_json_object(playbooks: Playbooks, tmp_path: Path) -> None:
    result = playbooks.json("ci", **values(playbooks, tmp_path, "echo hello"))
    assert result["ok"] and result["kind"] == "job" and result["exit_status"] == 0
    assert result["counts"] == {"job": 1, "environment": 0, "cancelled": 0}
    failed = playbooks.run("ci", SPT_FLOW_OUTPUT="json", **values(playbooks, tmp_path, "exit 9"))
    assert failed.returncode == 9 and json.loads(failed.stdout)["exit_status"] == 9


def test_failure_before_the_job_has_its_own_exit_status(playbooks: Playbooks, tmp_path: Path) -> None:
    done = playbooks.run("ci", **values(playbooks, tmp_path, "true", commit="f" * 40))
    assert done.returncode == 125 and record(tmp_path)["kind"] == "job"
    assert playbook_harness.belongings(playbooks.owner) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_cancelled_run_is_reported_and_leaves_nothing(
    playbooks: Playbooks, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    run = start(playbooks, values(playbooks, tmp_path, "echo started; sleep 300"))
    late = threading.Timer(120, run.kill)
    late.start()
    # Its line appears while it runs, not at the end.
    assert run.stdout is not None and any(line.startswith("started") for line in run.stdout)
    late.cancel()
    run.send_signal(number)
    said, _nothing = run.communicate(timeout=60)
    assert run.returncode == status, said
    assert f"cancelled {number.name.lower()}, exit status {status}" in said and "workspace deleted" in said
    assert record(tmp_path)["kind"] == "cancelled"
    assert playbook_harness.belongings(playbooks.owner) == []


@pytest.mark.parametrize("command", ["echo begun; sleep 300", "echo begun; seq 100000000"], ids=["quiet", "chatty"])
def test_killed_ansible_is_noticed_by_its_worker(playbooks: Playbooks, tmp_path: Path, command: str) -> None:
    """ansible-runner cancels like this. A worker with much output does not block."""
    run = start(playbooks, values(playbooks, tmp_path, command))
    ci_harness.begun(tmp_path)
    run.kill()
    run.wait()
    ci_harness.until(lambda: list(tmp_path.glob("*/run.json")), 60)
    assert record(tmp_path)["kind"] == "cancelled"
    deadline = time.monotonic() + 30
    while playbook_harness.belongings(playbooks.owner) and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(1)
    assert playbook_harness.belongings(playbooks.owner) == []


def test_run_without_a_reader_ends(playbooks: Playbooks, tmp_path: Path) -> None:
    run = start(playbooks, values(playbooks, tmp_path, "for i in $(seq 200); do echo $i; sleep 0.5; done"))
    assert run.stdout is not None and run.stdout.readline() is not None
    run.stdout.close()
    assert run.wait(60) != 0
    deadline = time.monotonic() + 30
    while playbook_harness.belongings(playbooks.owner) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert playbook_harness.belongings(playbooks.owner) == []


@pytest.mark.parametrize(("runs", "ttl"), [(6, 20), pytest.param(20, 60, marks=pytest.mark.full)])
def test_killed_clients_leave_nothing_after_the_ttl(playbooks: Playbooks, tmp_path: Path, runs: int, ttl: int) -> None:
    """The whole client is killed, so that only the workspace itself cleans up; a `dev` workspace next to them stays."""
    assert playbooks.up(SPT_FLOW_DOCKER="disabled", SPT_FLOW_CONNECT="false")["ok"]
    before, networks = playbook_harness.belongings(playbooks.owner), ci_harness.networks()
    made: dict[str, float] = {}
    gone: dict[str, float] = {}

    def look() -> set[str]:
        there = set(playbook_harness.belongings(playbooks.owner)) - set(before)
        for name in there:
            made.setdefault(name, time.time())
        for name in set(made) - there:
            gone.setdefault(name, time.time())
        return there

    def one(number: int) -> None:
        folder = tmp_path / str(number)
        run = start(playbooks, values(playbooks, folder, "sleep 300", ttl=str(ttl)))
        # Its folder is created just before its workspace.
        ci_harness.until(lambda: list(folder.glob("*")), 120)
        time.sleep(random.uniform(0, 6))
        ci_harness.kill(run)

    with ThreadPoolExecutor(4) as pool:
        killed = [pool.submit(one, number) for number in range(runs)]
        while not all(task.done() for task in killed):
            look()
            time.sleep(0.5)
    for task in killed:
        task.result()
    end = time.time() + ttl + 120
    while look() and time.time() < end:
        # A container that never started cannot end itself; every run and the reaper sweep it.
        DockerTarget().sweep()
        time.sleep(0.5)
    late = max((gone[name] - made[name] - ttl for name in gone), default=0)
    left = len(set(playbook_harness.belongings(playbooks.owner)) - set(before))
    print(f"{runs} runs, {len(made)} workspaces made, gone {late:.0f} s after the TTL at the latest, left: {left}")
    assert playbook_harness.belongings(playbooks.owner) == before, sorted(made)
    assert not [name for name in ci_harness.networks() - networks if playbooks.owner in name]
    names = playbook_harness.docker(
        "ps", "--filter", f"label=spt.flow.owner={playbooks.owner}", "--format", "{{.Names}}"
    )
    assert names == f"spt-flow-{playbooks.owner}-{playbooks.name}", "the dev workspace keeps running"


def test_secret_appears_nowhere(playbooks: Playbooks, tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.touch(0o600)
    path.write_text(f"SECOND={CANARY}2\n")
    seen: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    if CANARY.encode() in file.read_bytes():
                        seen.append(file.read_text(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    command = 'echo "${#TOKEN} ${#SECOND}"; echo "$TOKEN"; env; hostname >&2; sleep 2; env | wc -c > size.txt'
    run = start(
        playbooks,
        {
            "TOKEN": CANARY,
            **values(playbooks, tmp_path / "runs", command, env="TOKEN", env_file=str(path), artifacts="*.txt"),
        },
    )
    described = ""
    while run.poll() is None:
        for name in playbook_harness.belongings(playbooks.owner):
            for words in (["inspect", name], ["logs", name], ["top", name, "-eo", "pid,args"]):
                done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=30, check=False)
                described += done.stdout + done.stderr
        time.sleep(0.1)
    said = run.stdout.read() if run.stdout else ""
    over.set()
    watcher.join()
    assert run.returncode == 0 and f"{len(CANARY)} {len(CANARY) + 1}" in said and "***" in said, said
    assert "ci-" in described and CANARY not in described and CANARY not in said and seen == []
    kept = subprocess.run(["grep", "-rl", CANARY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert kept.stdout == "" and not path.exists()


def test_ansible_runner_works(playbooks: Playbooks, tmp_path: Path) -> None:
    """As CI calls it: a fresh directory, a clean environment, and the secret in a file that is deleted."""
    folder = tmp_path / "private"
    subprocess.run(
        ["make", "--no-print-directory", "runner-dir", f"DIR={folder}"], cwd=CHECKOUT, check=True, timeout=60
    )
    path = tmp_path / "env"
    path.touch(0o600)
    path.write_text(f"TOKEN={CANARY}\n")
    command = 'for i in $(seq 3000); do echo "line $i"; done; echo "$TOKEN"; echo x > a.txt; exit 5'
    done = subprocess.run(
        [str(playbooks.programs / "ansible-runner"), "run", str(folder), "-p", "spt.flow.ci"],
        env=playbooks.environment(
            **values(playbooks, tmp_path / "runs", command, artifacts="a.txt", env_file=str(path))
        ),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 5, done.stdout + done.stderr
    assert "line 3000" in done.stdout and record(tmp_path / "runs")["artifacts"] == ["artifacts/a.txt"]
    (events,) = folder.glob("artifacts/*/job_events")
    assert len(list(events.iterdir())) < 100
    kept = subprocess.run(["grep", "-rl", CANARY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert kept.stdout == "" and CANARY not in done.stdout + done.stderr
    again = subprocess.run(
        [str(CHECKOUT / "tools/runner-dir"), str(folder)], capture_output=True, check=False, timeout=60
    )
    assert again.returncode == 7
    assert [name for name in playbook_harness.belongings(playbooks.owner) if "-ci-" in name] == []
