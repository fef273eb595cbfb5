# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The session owner: the command behaves as without it, and the user's SSH agent is reached through its socket."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import struct
import subprocess
import time
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.identity import serve as identity_serve
from ansible_collections.spt.flow.tests.unit import identity_harness as harness


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return harness.private(tmp_path)


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9), ("kill -TERM $$", -15), ("exit 255", 255)]
)
def test_status_is_that_of_the_command(path, script, status):
    assert subprocess.run(harness.argv(path, "sh", "-c", script), timeout=30).returncode == status


def test_missing_command_is_reported(path):
    done = subprocess.run(harness.argv(path, "missing-program"), capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (127, "Cannot run missing-program: No such file or directory\n")


def test_bytes_pass_unchanged(path):
    data = os.urandom(1 << 20)
    done = subprocess.run(harness.argv(path, "cat"), input=data, capture_output=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == (data, b"", 0)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
def test_signals_reach_the_command(path, number):
    script = f"trap 'echo got; exit 3' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.05; done"
    # Tests that run under nohup would pass on an ignored SIGHUP.
    argv = ["env", f"--default-signal={number.name.removeprefix('SIG')}", *harness.argv(path, "sh", "-c", script)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        harness.wait_for(path.exists, "the owner serves")
        process.send_signal(number)
        output, _error = process.communicate(timeout=30)
        assert (output, process.returncode) == (b"got\n", 3)
    finally:
        process.kill()


@pytest.mark.parametrize("wrapper", [[], ["nohup"]])
def test_command_inherits_signals_and_descriptors_as_without_owner(path, wrapper):
    script = ("sh", "-c", "grep -E 'SigIgn|SigBlk' /proc/self/status; ls /proc/self/fd")

    def inherited(argv):
        done = subprocess.run([*wrapper, *argv], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
        blocked, ignored, *descriptors = done.stdout.splitlines()
        # Signals above 31 are the C library's own.
        return blocked, int(ignored.split()[1], 16) & 0x7FFFFFFF, descriptors

    assert inherited(harness.argv(path, *script)) == inherited(script)


def test_end_of_output_is_seen_while_the_command_runs(path):
    process = subprocess.Popen(harness.argv(path, "sh", "-c", "exec >&-; exec sleep 60"), stdout=subprocess.PIPE)
    begun = time.monotonic()
    assert process.stdout is not None and process.stdout.read() == b""
    assert time.monotonic() - begun < 50
    process.terminate()
    process.wait(20)


def test_keys_of_the_users_agent_are_reached(path, tmp_path):
    with harness.agent(tmp_path) as (place, public), harness.owner(path, SSH_AUTH_SOCK=str(place)):
        assert harness.keys(path) == public
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert not path.exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["demo.lock"]


def test_without_an_agent_there_are_no_keys(path):
    with harness.owner(path):
        assert harness.keys(path) == "The agent has no identities."
        with harness.Inside(path) as inside:
            assert inside.ask(b"\x0d" + struct.pack(">I", 0)) == b"\x05"
            assert inside.ask(b"\x1b" + struct.pack(">I", 4) + b"what") == b"\x05"


def test_agent_that_disappears_answers_like_one_without_keys(path, tmp_path):
    with harness.agent(tmp_path) as (place, public), harness.owner(path, SSH_AUTH_SOCK=str(place)):
        assert harness.keys(path) == public
        place.unlink()
        assert harness.keys(path) == "The agent has no identities."


def test_agent_of_the_users_ssh_configuration_is_preferred(path, tmp_path):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/ssh"
    with harness.agent(tmp_path) as (place, public):
        program.write_text(f"#!/bin/sh\necho user ada\necho identityagent {place}\n")
        program.chmod(0o755)
        with harness.owner(path, PATH=f"{program.parent}:{os.environ['PATH']}", SSH_AUTH_SOCK="/nowhere"):
            assert harness.keys(path) == public


def test_second_session_takes_over(path, tmp_path):
    with (
        harness.agent(tmp_path) as (place, public),
        harness.owner(path, SSH_AUTH_SOCK=str(place)) as first,
        harness.owner(path, SSH_AUTH_SOCK=str(place)),
    ):
        first.kill()
        first.wait(20)
        harness.wait_for(lambda: harness.keys(path) == public, "the second owner serves", 5)


def test_session_without_an_agent_does_not_hide_that_of_another(path, tmp_path):
    with harness.agent(tmp_path) as (place, public), harness.owner(path):
        with harness.owner(path, SSH_AUTH_SOCK=str(place)):
            harness.wait_for(lambda: harness.keys(path) == public, "the other session's agent", 5)
        assert harness.keys(path) == "The agent has no identities."


def test_own_socket_in_the_environment_is_no_endless_loop(path):
    with harness.owner(path, SSH_AUTH_SOCK=str(path)):
        assert harness.keys(path) == "The agent has no identities."


@pytest.mark.parametrize("length", [0, 256 * 1024 + 1, 2**32 - 1])
def test_impossible_length_closes_the_connection(path, length):
    with harness.owner(path), harness.Inside(path) as inside:
        inside.socket.sendall(struct.pack(">I", length))
        assert inside.read() == b""
        assert harness.keys(path) == "The agent has no identities."


def test_flood_of_connections_leaves_the_owner_small_and_alive(path):
    with harness.owner(path) as process:
        held = []
        try:
            for _number in range(4 * identity_serve.MOST_CONNECTIONS):
                held.append(harness.Inside(path))
                with contextlib.suppress(OSError):  # closed, because there are too many
                    held[-1].socket.sendall(b"\0\0")
        finally:
            for inside in held:
                inside.socket.close()
        harness.wait_for(lambda: "no identities" in harness.keys(path), "the owner answers again", 15)
        assert int(harness.status(process.pid)["VmRSS"].split()[0]) < 40 * 1024


def test_folder_of_others_is_not_used_and_the_command_runs(path):
    path.parent.chmod(0o755)
    with harness.owner(path, served=False):
        time.sleep(1)
        assert not path.exists()
