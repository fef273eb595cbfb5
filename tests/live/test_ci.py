# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""CI runs on a real Coder server: the playbook as a pipeline calls it, and the cleanup after killed clients."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.reaper import coder as reaper_coder
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.tests.live.conftest import LiveServer
from ansible_collections.spt.flow.tests.live.test_workspace_playbooks import CHECKOUT, Playbooks

BEGINS = 300.0
"""Seconds until a job starts on a busy machine."""
TTL = 180
"""Seconds in which five runs begin at once on a busy machine."""
GIT = ["git", "-c", "user.name=Grace", "-c", "user.email=grace@example.com"]


@pytest.fixture(scope="module")
def playbooks(live_server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playbooks]:
    assert live_server.admin is not None
    settings = Settings(profile="slim", cpus=1.0, memory=1 << 30, kvm="disabled", docker="disabled")
    for kind, name in (("dev", "spt-flow"), ("ci", "spt-flow-ci")):
        coder_template.roll_out(live_server.admin, live_server.wanted(settings, kind, name))
    yield Playbooks(live_server, tmp_path_factory.mktemp("ci"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout without a remote, as in some pipelines."""
    folder = tmp_path_factory.mktemp("work") / "Demo App"
    subprocess.run(["git", "init", "-q", "-b", "main", str(folder)], check=True)
    (folder / "greeting").write_text("hello\n")
    subprocess.run(["git", "-C", str(folder), "add", "."], check=True)
    subprocess.run([*GIT, "-C", str(folder), "commit", "-qm", "first"], check=True)
    return folder


def left(live_server: LiveServer) -> tuple[list[str], list[str]]:
    """Return the CI workspaces of this server, and their containers and volumes on the engine."""
    client = live_server.client(live_server.token)
    names = [w["name"] for page in client.workspaces() for w in page if w["template_name"] == "spt-flow-ci"]
    things = []
    for words in (["ps", "--all", "--format", "{{.Names}}"], ["volume", "ls", "--format", "{{.Name}}"]):
        ours = ["--filter", f"label=coder.owner_id={client.me()['id']}", "--filter", "label=spt.flow.kind=ci"]
        argv = ["docker", *words, *ours]
        things += subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    return sorted(names), things


def environment(playbooks: Playbooks, source: Path, folder: Path, command: str, **more: str) -> dict[str, str]:
    values = {"REPO": str(source), "COMMAND": command, "ARTIFACTS_DIR": str(folder), **more}
    return playbooks.environment(**{f"SPT_FLOW_{name}": value for name, value in values.items()})


def run(
    playbooks: Playbooks, source: Path, folder: Path, command: str, **more: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["ansible-playbook", "playbooks/ci.yml"],
        cwd=CHECKOUT,
        env=environment(playbooks, source, folder, command, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert playbooks.live_server.token.split("-")[1] not in done.stdout + done.stderr
    return done


def test_run_has_the_commit_streams_output_and_leaves_nothing(
    playbooks: Playbooks, source: Path, tmp_path: Path, live_server: LiveServer
) -> None:
    command = "cat greeting; pwd; git rev-parse HEAD; echo made >made.txt; exit 7"
    done = run(playbooks, source, tmp_path, command, ARTIFACTS="made.txt", TTL="5m")
    assert done.returncode == 7, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    commit = subprocess.run(["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert (folder / "job.log").read_text().split() == ["hello", "/home/coder/demo-app", commit.strip()]
    record = json.loads((folder / "run.json").read_text())
    assert (record["kind"], record["reason"], record["target"]) == ("job", "failed", "coder")
    assert (folder / "artifacts/made.txt").read_text() == "made\n"
    print(dict(record["stages"]), record["seconds"])
    assert left(live_server) == ([], [])


def test_cancelled_run_leaves_nothing(
    playbooks: Playbooks, source: Path, tmp_path: Path, live_server: LiveServer
) -> None:
    process = subprocess.Popen(
        ["ansible-playbook", "playbooks/ci.yml"],
        cwd=CHECKOUT,
        env=environment(playbooks, source, tmp_path, "echo begun; sleep 300"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(lambda: any("begun" in log.read_text() for log in tmp_path.glob("*/job.log")), BEGINS)
    process.send_signal(signal.SIGTERM)
    said, _none = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "cancelled sigterm" in said
    assert left(live_server) == ([], [])


def test_runner_keeps_neither_the_token_nor_the_secret_of_the_job(
    playbooks: Playbooks, source: Path, tmp_path: Path, live_server: LiveServer
) -> None:
    """As in docs/ci.md: a clean environment, the token in files of a memory disk, the secret in a deleted file."""
    private, memory = tmp_path / "private", Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        (memory / "url").write_text(live_server.url)
        (memory / "session").write_text(live_server.token)
        (memory / "job.env").touch(0o600)
        (memory / "job.env").write_text("TOKEN=canary-of-the-job\n")
        subprocess.run([str(CHECKOUT / "tools/runner-dir"), str(private)], check=True, capture_output=True, timeout=60)
        env = environment(playbooks, source, tmp_path / "runs", 'echo "${#TOKEN}"; echo "$TOKEN"; exit 4')
        env |= {"CODER_CONFIG_DIR": str(memory), "SPT_FLOW_ENV_FILE": str(memory / "job.env")}
        del env["CODER_SESSION_TOKEN"], env["CODER_URL"]
        program = str(Path(sys.executable).parent / "ansible-runner")
        words = [program, "run", str(private), "-p", "spt.flow.ci"]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 4, done.stdout + done.stderr
        assert "17" in done.stdout and "***" in done.stdout
        secrets = [live_server.token.split("-")[1], "canary-of-the-job"]
        assert not [secret for secret in secrets if secret in done.stdout + done.stderr]
        for secret in secrets:
            kept = subprocess.run(
                ["grep", "-rl", secret, str(tmp_path), str(playbooks.home)], capture_output=True, text=True
            )
            assert kept.stdout == ""
        assert not (memory / "job.env").exists()
    finally:
        shutil.rmtree(memory)
    assert left(live_server) == ([], [])


def test_up_reproduces_a_run_and_reports_differences(
    playbooks: Playbooks, source: Path, tmp_path: Path, live_server: LiveServer
) -> None:
    settings = Settings(profile="slim", cpus=1.0, memory=1 << 30, kvm="disabled", docker="disabled")
    assert live_server.admin is not None
    coder_template.roll_out(live_server.admin, live_server.wanted(settings))
    origin = "https://oauth2:canary@git.invalid/team/demo.git"
    subprocess.run(["git", "-C", str(source), "config", "remote.origin.url", origin], check=True)
    done = run(playbooks, source, tmp_path, "true")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["origin"] == "https://git.invalid/team/demo.git" and "canary" not in (folder / "run.json").read_text()
    try:
        made = playbooks.json("up", "-e", f"from_run={folder}", "-e", "workspace=like-ci")
        assert made["changed"], made
        shown = playbooks.json("status")["workspaces"]
        (workspace,) = [one for one in shown if one["name"] == "like-ci"]
        assert workspace["settings_hash"] == record["settings_hash"] and workspace["image_hash"] == record["image_hash"]
        assert workspace["repo"] == "git.invalid/team/demo"
        found = live_server.client(live_server.token).workspace("like-ci")
        assert found is not None
        parameters = live_server.client(live_server.token).build_parameters(found["latest_build"]["id"])
        assert parameters["ref"] == record["commit"]
        assert not [note for note in made["notes"] if "differs from the CI run" in note], made["notes"]
        (folder / "run.json").write_text(json.dumps({**record, "settings_hash": "f" * 64}))
        again = playbooks.json("up", "-e", f"from_run={folder}", "-e", "workspace=like-ci")
        assert [note for note in again["notes"] if "differs from the CI run: settings" in note], again["notes"]
    finally:
        playbooks.json("delete", "-e", "workspace=like-ci", "-e", "confirm=true")


class Run:
    """`ci.yml` in a session of its own, until its job has started."""

    def __init__(self, playbooks: Playbooks, source: Path, folder: Path, ttl: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.process = subprocess.Popen(
            ["ansible-playbook", "playbooks/ci.yml"],
            cwd=CHECKOUT,
            env=environment(playbooks, source, folder, "echo begun; sleep 600", TTL=f"{ttl}s"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.created = time.time()

    def begun(self) -> None:
        until(lambda: any("begun" in log.read_text() for log in self.folder.glob("*/job.log")), BEGINS)
        self.name = next(self.folder.iterdir()).name

    def kill(self) -> None:
        for pid in family(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


def reaper(live_server: LiveServer) -> reaper_coder.Report:
    """Run a pass like the timer on the server, with the token that bootstrap created for it."""
    api = reaper_coder.Api(live_server.url, (live_server.folder / "etc/reaper.token").read_text().strip())
    return reaper_coder.sweep(api, path=str(live_server.folder / "reaper.json"))


@pytest.mark.full
@pytest.mark.parametrize("reaped", [True, False], ids=["with the reaper", "without the reaper"])
def test_runs_of_five_killed_clients_are_deleted_two_minutes_after_their_deadline(
    playbooks: Playbooks, source: Path, tmp_path: Path, live_server: LiveServer, reaped: bool
) -> None:
    """Client killed, server restarted, agent dead, kept busy by an open session, own deadline disabled."""
    client = live_server.client(live_server.token)
    runs = [Run(playbooks, source, tmp_path / str(number), TTL) for number in range(5)]
    person: subprocess.Popen[bytes] | None = None
    try:
        for run_ in runs:
            run_.begun()
        found = {run_.name: client.workspace(run_.name) for run_ in runs}
        person = subprocess.Popen(
            ["coder", "ssh", "--wait=no", runs[3].name, "sleep 900"],
            env={**os.environ, "CODER_URL": live_server.url, "CODER_SESSION_TOKEN": live_server.token},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for run_ in runs:
            run_.kill()
        for number, words in ((2, ["pkill", "-KILL", "coder"]), (4, ["pkill", "-STOP", "-f", "spt-workspace"])):
            container = f"spt-flow-{found[runs[number].name]['id']}"  # type: ignore[index]
            subprocess.run(["docker", "exec", container, *words], capture_output=True, check=False)
        live_server.stop()
        live_server.start()
        last = max(run_.created for run_ in runs) + TTL
        gone: dict[str, float] = {}
        passed = time.time()
        while len(gone) < 5:
            assert time.time() < last + 120, (set(found) - set(gone), left(live_server))
            if reaped and time.time() - passed >= 60:
                passed = time.time()
                print("reaped", reaper(live_server).reaped)
            things = left(live_server)[1]
            for name, workspace in found.items():
                if name not in gone and not any(str(workspace["id"]) in thing for thing in things):  # type: ignore[index]
                    gone[name] = time.time()
            time.sleep(1)
        late = sorted(gone[run_.name] - run_.created - TTL for run_ in runs)
        print("seconds after the TTL until nothing costs any more:", [round(one) for one in late])
    finally:
        for run_ in runs:
            run_.kill()
        if person is not None:
            person.kill()
            person.wait()
        time.sleep(5)
        for name in left(live_server)[0]:
            workspace = client.workspace(name)
            if workspace is not None:
                client.create_build(workspace, "delete")
    until(lambda: left(live_server) == ([], []), 120)


@pytest.mark.full
def test_each_cleanup_mechanism_is_sufficient_alone_despite_extensions(
    playbooks: Playbooks, source: Path, tmp_path: Path, live_server: LiveServer
) -> None:
    """The client, the workspace's own deadline, and the reaper; each workspace was extended by 12 hours."""
    runs = [Run(playbooks, source, tmp_path / str(number), 90) for number in range(3)]
    for run_ in runs:
        run_.begun()
    client = live_server.client(live_server.token)
    found = [client.workspace(run_.name) for run_ in runs]
    containers = [f"spt-flow-{one['id']}" for one in found if one]
    for one in found:
        assert one is not None
        client.extend(one["id"], datetime.now(UTC) + timedelta(hours=12))
    for number in (0, 2):
        words = ["docker", "exec", containers[number], "pkill", "-STOP", "-f", "spt-workspace"]
        subprocess.run(words, capture_output=True, check=False)
    for number in (1, 2):
        runs[number].kill()
    last = max(run_.created for run_ in runs) + 90
    running = ["docker", "ps", "--format", "{{.Names}}", "--filter", "label=spt.flow.coder"]
    until(
        lambda: not set(containers[:2]) & set(subprocess.run(running, capture_output=True, text=True).stdout.split()),
        last + 120 - time.time(),
    )
    assert runs[0].process.wait(120) == 124, "the run has ended by its TTL and deleted its workspace"
    assert containers[2] in subprocess.run(running, capture_output=True, text=True).stdout, (
        "nothing but the reaper is left"
    )
    # The workspace's own deadline leaves a stopped container and a home, which the reaper deletes like the last one.
    until(lambda: set(reaper(live_server).reaped) >= {f"ada/{runs[2].name}"} or left(live_server) == ([], []), 130)
    until(lambda: reaper(live_server) is not None and left(live_server) == ([], []), 180)


def family(pid: int) -> list[int]:
    """Return a process and all its descendants, in any session."""
    table = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            table[int(path.parent.name)] = int(fields[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in table.items() if parent == one]
    return found


def until(look: object, seconds: float) -> None:
    end = time.monotonic() + max(seconds, 1)
    while not look():  # type: ignore[operator]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.5)
