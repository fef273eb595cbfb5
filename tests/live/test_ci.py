# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""CI runs on a real Coder server: the playbook as a pipeline calls it, and what is left when its client is gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils import _coder_reaper, _coder_template
from ansible_collections.spt.flow.plugins.module_utils._settings import Settings
from ansible_collections.spt.flow.tests.live.conftest import House
from ansible_collections.spt.flow.tests.live.test_doors import CHECKOUT, Doors

GIT = ["git", "-c", "user.name=Grace", "-c", "user.email=grace@example.com"]


@pytest.fixture(scope="module")
def doors(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    assert house.admin is not None
    settings = Settings(cpus=1.0, memory=1 << 30, kvm="disabled", docker="disabled")
    _coder_template.roll_out(house.admin, house.wanted(settings, "ci", "spt-flow-ci"))
    yield Doors(house, tmp_path_factory.mktemp("ci"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout without a remote, as a pipeline may have it."""
    folder = tmp_path_factory.mktemp("work") / "Demo App"
    subprocess.run(["git", "init", "-q", "-b", "main", str(folder)], check=True)
    (folder / "greeting").write_text("hello\n")
    subprocess.run(["git", "-C", str(folder), "add", "."], check=True)
    subprocess.run([*GIT, "-C", str(folder), "commit", "-qm", "first"], check=True)
    return folder


def left(house: House) -> tuple[list[str], list[str]]:
    """CI workspaces that the server still has, and containers and volumes of them on its engine."""
    client = house.client(house.token)
    names = [w["name"] for page in client.workspaces() for w in page if w["template_name"] == "spt-flow-ci"]
    things = []
    for words in (["ps", "--all", "--format", "{{.Names}}"], ["volume", "ls", "--format", "{{.Name}}"]):
        argv = ["docker", *words, "--filter", "label=spt.flow.coder", "--filter", "label=spt.flow.kind=ci"]
        things += subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    return sorted(names), things


def environment(doors: Doors, source: Path, folder: Path, command: str, **more: str) -> dict[str, str]:
    values = {"REPO": str(source), "COMMAND": command, "ARTIFACTS_DIR": str(folder), **more}
    return doors.environment(**{f"SPT_FLOW_{name}": value for name, value in values.items()})


def run(doors: Doors, source: Path, folder: Path, command: str, **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["ansible-playbook", "playbooks/ci.yml"],
        cwd=CHECKOUT,
        env=environment(doors, source, folder, command, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert doors.house.token.split("-")[1] not in done.stdout + done.stderr
    return done


def test_a_run_has_the_commit_streams_collects_and_is_gone(
    doors: Doors, source: Path, tmp_path: Path, house: House
) -> None:
    command = "cat greeting; pwd; git rev-parse HEAD; echo made >made.txt; exit 7"
    done = run(doors, source, tmp_path, command, ARTIFACTS="made.txt", TTL="5m")
    assert done.returncode == 7, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    commit = subprocess.run(["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert (folder / "job.log").read_text().split() == ["hello", "/home/coder/demo-app", commit.strip()]
    record = json.loads((folder / "run.json").read_text())
    assert (record["kind"], record["reason"], record["target"]) == ("job", "failed", "coder")
    assert (folder / "artifacts/made.txt").read_text() == "made\n"
    print(dict(record["stages"]), record["seconds"])
    assert left(house) == ([], [])


def test_a_cancelled_run_is_gone(doors: Doors, source: Path, tmp_path: Path, house: House) -> None:
    process = subprocess.Popen(
        ["ansible-playbook", "playbooks/ci.yml"],
        cwd=CHECKOUT,
        env=environment(doors, source, tmp_path, "echo begun; sleep 300"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(lambda: any("begun" in log.read_text() for log in tmp_path.glob("*/job.log")), 90)
    process.send_signal(signal.SIGTERM)
    said, _none = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "cancelled sigterm" in said
    assert left(house) == ([], [])


class Run:
    """`ci.yml` in a session of its own, until its job has begun."""

    def __init__(self, doors: Doors, source: Path, folder: Path, ttl: str = "60s") -> None:
        folder.mkdir()
        self.folder = folder
        self.process = subprocess.Popen(
            ["ansible-playbook", "playbooks/ci.yml"],
            cwd=CHECKOUT,
            env=environment(doors, source, folder, "echo begun; sleep 600", TTL=ttl),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.created = time.time()

    def begun(self) -> None:
        until(lambda: any("begun" in log.read_text() for log in self.folder.glob("*/job.log")), 90)
        self.name = next(self.folder.iterdir()).name

    def kill(self) -> None:
        for pid in family(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


def reaper(house: House) -> _coder_reaper.Report:
    """A pass as the timer on the server does it, with the token that bootstrap made for it."""
    api = _coder_reaper.Api(house.url, (house.folder / "etc/reaper.token").read_text().strip())
    return _coder_reaper.sweep(api, path=str(house.folder / "reaper.json"))


@pytest.mark.full
@pytest.mark.parametrize("reaped", [True, False], ids=["with the reaper", "without the reaper"])
def test_five_whose_clients_are_gone_cost_nothing_two_minutes_after_their_time(
    doors: Doors, source: Path, tmp_path: Path, house: House, reaped: bool
) -> None:
    """Client killed, server restarted, agent dead, kept busy by an open session, its own end taken away."""
    runs = [Run(doors, source, tmp_path / str(number)) for number in range(5)]
    for run_ in runs:
        run_.begun()
    client = house.client(house.token)
    found = {run_.name: client.workspace(run_.name) for run_ in runs}
    person = subprocess.Popen(
        ["coder", "ssh", "--wait=no", runs[3].name, "sleep 900"],
        env={**os.environ, "CODER_URL": house.url, "CODER_SESSION_TOKEN": house.token},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for run_ in runs:
            run_.kill()
        for number, words in ((2, ["pkill", "-KILL", "coder"]), (4, ["pkill", "-STOP", "-f", "spt-workspace"])):
            container = f"spt-flow-{found[runs[number].name]['id']}"  # type: ignore[index]
            subprocess.run(["docker", "exec", container, *words], capture_output=True, check=False)
        house.stop()
        house.start()
        last = max(run_.created for run_ in runs) + 60
        gone: dict[str, float] = {}
        passed = time.time()
        while len(gone) < 5:
            assert time.time() < last + 120, (set(found) - set(gone), left(house))
            if reaped and time.time() - passed >= 60:
                passed = time.time()
                print("reaped", reaper(house).reaped)
            things = left(house)[1]
            for name, workspace in found.items():
                if name not in gone and not any(str(workspace["id"]) in thing for thing in things):  # type: ignore[index]
                    gone[name] = time.time()
            time.sleep(1)
        late = sorted(gone[run_.name] - run_.created - 60 for run_ in runs)
        print("seconds after the TTL until nothing costs any more:", [round(one) for one in late])
    finally:
        person.kill()
        person.wait()
        time.sleep(5)
        for name in left(house)[0]:
            workspace = client.workspace(name)
            if workspace is not None:
                client.create_build(workspace, "delete")
    until(lambda: left(house) == ([], []), 120)


def family(pid: int) -> list[int]:
    """A process and all that came of it, whatever sessions they are in."""
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
