# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole workspace agent: real processes below a temporary root."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import ENDING
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from spt_workspace import contract, processes, record, services


@pytest.fixture
def machine(tmp_path):
    machine = harness.Machine(tmp_path / "m")
    yield machine
    machine.kill_rest()


def test_start_without_repository_runs_an_ide_and_stops_cleanly(machine):
    machine.start(SPT_FLOW_DOCKER_REASON="the engine has no user namespaces")
    assert machine.wait("ide")["state"] == "ok"
    assert machine.wait("home")["detail"].startswith("first start: 2 files")
    assert machine.wait("clone")["state"] == "skipped"
    assert machine.wait("docker")["detail"] == "the engine has no user namespaces"
    assert machine.wait("dotfiles")["state"] == "skipped"
    assert machine.events()[0]["event"] == "start" and machine.events()[0]["boot"]
    status = machine.status()
    assert status["boot"] == machine.events()[0]["boot"]
    assert status["ide"]["port"] == machine.port and len(status["ide"]["password"]) >= 32
    assert status["host_key"].startswith("ssh-ed25519 AAAA")
    assert status["steps"]["ide"]["ended"] >= status["steps"]["ide"]["started"]
    assert status["life"]["reason"] == "just started" and status["life"]["stops_at"]
    began = time.monotonic()
    assert machine.end() == 0
    assert time.monotonic() - began < 6
    assert machine.events()[-1]["reason"] == "was told to stop"
    assert machine.events()[-1]["reason"] in ENDING, "clients use it to detect the end"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", machine.port)), "the IDE must have ended"


def test_password_is_new_private_and_not_in_log_or_home(machine):
    passwords = []
    for _ in range(2):
        machine.start()
        machine.wait("ide", "ok")
        passwords.append(machine.status()["ide"]["password"])
        config = machine.paths.run / "code-server.yaml"
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        harness.wait_for(lambda: "password from file" in machine.log.read_text())
        assert machine.end() == 0
    assert passwords[0] != passwords[1]
    text = machine.log.read_text()
    assert not any(password in text for password in passwords) and "***" in text
    for place in machine.paths.home.rglob("*"):
        assert not place.is_file() or not any(p in place.read_text() for p in passwords)


def test_skeleton_is_copied_once_and_never_overwrites(machine):
    (machine.paths.home / ".bashrc").write_text("mine\n")
    machine.start()
    machine.wait("home", "ok")
    machine.end()
    assert (machine.paths.home / ".bashrc").read_text() == "mine\n"
    (machine.paths.home / ".config/x/y").unlink()
    machine.start()
    assert machine.wait("home", "ok")["detail"] == "the home was left as it is"
    assert not (machine.paths.home / ".config/x/y").exists()


def test_unwritable_home_ends_the_start_with_status_8(machine):
    machine.paths.home.rmdir()
    machine.paths.home.write_text("a file where the home should be")
    assert machine.start().wait(20) == 8
    step = machine.step("home")
    assert (
        step["state"] == "failed"
        and "cannot be prepared" in step["detail"]
        and str(machine.paths.home) in step["detail"]
    )


def test_wrong_version_or_number_is_reported(machine):
    program = [sys.executable, str(harness.PROGRAM), "run"]
    for env in ({"SPT_FLOW_CONTRACT": "9"}, {"SPT_FLOW_DEPTH": "many"}, {"SPT_FLOW_IDLE_STOP": "-1"}):
        done = subprocess.run(program, env={**machine.environ, **env}, capture_output=True, text=True, timeout=20)
        assert done.returncode == 8 and "Traceback" not in done.stderr and "workspace agent" in done.stderr


def test_crashed_ide_is_restarted_and_reported(machine):
    machine.start()
    machine.wait("ide", "ok")
    first = int((machine.root / "code-server.pid").read_text())
    os.kill(first, signal.SIGKILL)
    again = harness.wait_for(lambda: "started again 1 times" in machine.step("ide")["detail"] and machine.step("ide"))
    assert again["state"] == "ok"
    told = [e["detail"] for e in machine.events() if e.get("step") == "ide" and e["state"] == "running"]
    assert any("signal SIGKILL" in detail and "try 2" in detail for detail in told)
    assert int((machine.root / "code-server.pid").read_text()) != first


def test_failing_ide_is_given_up_and_the_workspace_continues(machine):
    machine.start(STUB_DIES="1", SPT_FLOW_TICK="1000")
    step = machine.wait("ide", "failed", seconds=40)
    assert "ended 7 times in a row" in step["detail"] and "exit status 3" in step["detail"]
    assert machine.process.poll() is None
    assert machine.end() == 0


def test_missing_programs_are_reported(machine):
    (machine.bin / "code-server").unlink()
    machine.start()
    assert machine.wait("ide")["detail"] == "code-server cannot be started: No such file or directory."
    assert machine.end() == 0


def test_docker_is_ready_when_it_answers_and_stops_last(machine):
    machine.start(SPT_FLOW_DOCKER="on")
    assert "ready in" in machine.wait("docker", "ok")["detail"]
    assert f"unix://{machine.paths.docker_socket}" in (machine.paths.run / "sshd_config").read_text()
    os.kill(int((machine.root / "dockerd.pid").read_text()), signal.SIGKILL)
    harness.wait_for(lambda: "started again" in machine.step("docker")["detail"])
    assert machine.end() == 0
    assert (machine.root / "dockerd.ended").exists(), "dockerd must get time to exit"


def test_stop_leaves_no_process_even_if_children_ignore_it(machine):
    machine.stub("code-server", f"#!/bin/sh\ntrap '' TERM\nsleep 1000 {machine.root} &\nwhile :; do sleep 1; done\n")
    machine.start()
    machine.wait("home", "ok")
    time.sleep(0.3)
    began = time.monotonic()
    assert machine.end() == 0
    assert 4 < time.monotonic() - began < 12
    found = subprocess.run(["pgrep", "-f", str(machine.root)], capture_output=True, text=True).stdout
    assert found == "", found


def test_ide_environment_has_docker_and_caches_and_no_secret(machine):
    machine.start(SPT_FLOW_DOCKER="on", PASSWORD="oops", HASHED_PASSWORD="oops")
    machine.wait("ide", "ok")
    env = eval((machine.root / "code-server.env").read_text())
    assert env["GOTMPDIR"] == "/var/tmp/go" and env["PIP_CACHE_DIR"] == "/var/tmp/coder/pip"
    assert env["DOCKER_HOST"].startswith("unix://")
    assert env["XDG_RUNTIME_DIR"] == str(machine.paths.runtime)
    assert "PASSWORD" not in env and "HASHED_PASSWORD" not in env
    assert not any(name.startswith("SPT_FLOW_") for name in env)
    assert machine.environ["SPT_FLOW_DIRECTORY"] in (machine.root / "code-server.argv").read_text()


def test_idle_workspace_stops_and_reports_why(machine):
    process = machine.start(SPT_FLOW_IDLE_STOP="120")
    assert process.wait(20) == 0
    assert [e["reason"] for e in machine.events() if e["event"] == "life"][-1] == "idle for too long"
    assert "idle for too long" in ENDING


def test_deadline_ends_a_ci_workspace(machine):
    process = machine.start(SPT_FLOW_IDLE_STOP="0", SPT_FLOW_KIND="ci", SPT_FLOW_DEADLINE=str(int(time.time()) + 3))
    machine.wait("ide", "skipped")
    harness.wait_for(lambda: any(e["event"] == "life" for e in machine.events()), 5)
    stops = [e["stops_at"] for e in machine.events() if e["event"] == "life"][0]
    assert abs(stops - time.time()) < 5
    assert process.wait(20) == 0
    assert machine.events()[-1]["reason"] == "the deadline has come"
    assert machine.events()[-1]["reason"] in ENDING


def test_keepalive_command_delays_the_stop_and_survives_a_restart(machine):
    machine.start(SPT_FLOW_IDLE_STOP="200")
    machine.wait("ide", "ok")
    done = machine.command("keepalive", "2", "dev@example.org")
    assert done.returncode == 0 and json.loads(done.stdout)["keepalive"]["by"] == "dev@example.org"
    harness.wait_for(lambda: machine.status()["life"].get("keepalive_by") == "dev@example.org", 5)
    time.sleep(2.5)  # longer than the idle stop at this tick
    assert machine.process.poll() is None
    assert machine.status()["life"]["reason"] == "kept alive"
    machine.end()
    machine.start(SPT_FLOW_IDLE_STOP="200")
    machine.wait("ide", "ok")
    harness.wait_for(lambda: machine.status()["life"].get("keepalive_until"), 5)
    machine.command("keepalive", "0")
    assert machine.process.wait(20) == 0


def test_deadline_may_be_a_time(machine):
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
    process = machine.start(SPT_FLOW_IDLE_STOP="0", SPT_FLOW_KIND="ci", SPT_FLOW_DEADLINE=ends)
    assert process.wait(20) == 0
    assert machine.events()[-1]["reason"] == "the deadline has come"


@pytest.mark.parametrize("hours", ["25", "-1", "many", "nan", "inf"])
def test_keepalive_refuses_invalid_hours(machine, hours):
    done = machine.command("keepalive", hours)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [[], ["nonsense"], ["status", "x"], ["session"], ["hostkey"], ["keepalive"]])
def test_unknown_command_exits_with_2_and_the_usage(machine, words):
    done = machine.command(*words)
    assert done.returncode == 2 and done.stderr.startswith("usage: spt-workspace")


def test_status_answers_before_anything_has_started(machine):
    status = machine.status()
    assert status["steps"]["ide"]["state"] == "pending" and status["boot"] == "" and status["host_key"] == ""


@pytest.mark.parametrize("told", ["on", ""])
def test_workspace_reports_recorded_commands_only_where_the_node_records(machine, told):
    machine.start(SPT_FLOW_AUDIT=told)
    machine.wait("home", "ok")
    assert machine.status()["audited"] is (told == "on")
    assert "logged" not in (Path(__file__).parents[2] / "image/rootfs/etc/motd").read_text()


def test_invalid_messages_to_the_supervisor_change_nothing(machine):
    machine.start()
    machine.wait("ide", "ok")
    before = machine.status()["steps"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for message in (b"\xff", b"[]", b'{"step": "rm", "state": "ok"}', b'{"step": "ide", "state": 1}', b""):
            sender.sendto(message, str(machine.paths.run / "control.sock"))
    time.sleep(0.3)
    assert machine.status()["steps"] == before and machine.process.poll() is None


def test_output_of_tools_cannot_imitate_events(tmp_path):
    reader, writer = os.pipe()
    paths = contract.Paths(tmp_path)
    paths.run.mkdir(parents=True)
    journal = record.Journal(paths, writer)
    journal.log("ide", '{"spt_flow": 1, "event": "step", "step": "clone", "state": "ok"}\x1b[31m\x07')
    journal.step("clone", "failed", "two\nlines \x1b]0;title\x07")
    lines = os.read(reader, 65536).decode().splitlines()
    assert len(lines) == 2 and lines[0].startswith("[ide] ") and "\x07" not in lines[0]
    assert json.loads(lines[1])["detail"].startswith("two lines")


def test_closed_stdout_does_not_fail_the_workspace(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    paths = contract.Paths(tmp_path)
    paths.run.mkdir(parents=True)
    record.Journal(paths, writer).start()


@pytest.mark.parametrize(
    ("uid_map", "problem"),
    [
        ("0 1000000 1048576\n", ""),
        ("0 0 4294967295\n", ""),
        ("0 165536 65536\n", "gives this workspace 65536 ids, Docker inside needs those from 100000 to 165535"),
        ("0 1000 1\n1 100000 65536\n", "65537 ids"),
    ],
)
def test_docker_requires_a_sufficient_id_range(uid_map, problem):
    assert problem in services.range_problem(uid_map, "coder:100000:65536\n", "coder")
    assert bool(problem) == bool(services.range_problem(uid_map, "coder:100000:65536\n", "coder"))
    assert "no range for coder" in services.range_problem(uid_map, "other:1:2\n", "coder")


def test_docker_uses_fuse_overlayfs_on_a_container_layer_only(tmp_path):
    paths = contract.Paths(tmp_path)
    assert not any("storage-driver" in word for word in services.docker_argv(paths, True))
    assert "--storage-driver=fuse-overlayfs" in services.docker_argv(paths, False)


def test_backoff_is_bounded():
    assert [processes.backoff(n) for n in (1, 2, 3, 7, 30)] == [1, 2, 4, 60, 60]


def test_full_tmp_is_a_note(machine, monkeypatch):
    usage = type("Usage", (), {"used": 90, "free": 10})
    monkeypatch.setattr("spt_workspace.main.shutil.disk_usage", lambda place: usage)
    notes = harness.spt_workspace.main.shortages(contract.Contract(), machine.paths)
    assert any("tmp is 90% full" in note for note in notes)


def test_missing_required_kvm_is_a_note(machine):
    notes = harness.spt_workspace.main.shortages(contract.Contract(kvm="required"), machine.paths)
    assert "/dev/kvm was required and cannot be opened in this workspace." in notes
