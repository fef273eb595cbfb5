# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""tools/quickstart: what it detects, announces and refuses."""

from __future__ import annotations

import importlib.util
import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/quickstart"


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> Any:
    loader = SourceFileLoader("quickstart_tool", str(TOOL))
    spec = importlib.util.spec_from_loader("quickstart_tool", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    for name in ("DOCKER_HOST", "REPO", "SPT_FLOW_REPO", "SPT_FLOW_IN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def ran(quickstart: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    """Return (command, all output before it) of each command that would have run."""
    commands: list[tuple[str, str]] = []
    said: list[str] = []

    def record(command: list[str]) -> None:
        said.append(capsys.readouterr().err)
        commands.append((" ".join(command), "".join(said)))

    monkeypatch.setattr(quickstart, "run", record)
    monkeypatch.setattr(quickstart, "root", list)
    return commands


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket at ``tmp_path``/docker.sock that does not answer yet."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "docker.sock"))
        server.listen()
        server.settimeout(10)
        yield server


def answer(server: socket.socket, words: bytes) -> threading.Thread:
    def serve() -> None:
        connection = server.accept()[0]
        with connection:
            connection.recv(4096)
            connection.sendall(words)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


# The engine


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK", "answers"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "absent"),
    ],
)
def test_answering_socket_is_an_engine(
    quickstart: Any, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, words: bytes, state: str
) -> None:
    monkeypatch.setattr(quickstart, "SOCKET", listener.getsockname())
    thread = answer(listener, words)
    assert quickstart.engine() == state
    thread.join(10)


def test_silent_socket_is_not_an_engine(quickstart: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "SOCKET", str(tmp_path / "none.sock"))
    assert quickstart.engine() == "absent"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "left.sock"))
    monkeypatch.setattr(quickstart, "SOCKET", str(tmp_path / "left.sock"))
    assert quickstart.engine() == "absent"


def test_forbidden_socket_is_reported_separately(quickstart: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(socket.socket):
        def connect(self, address: Any) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(quickstart.socket, "socket", Closed)
    assert quickstart.engine() == "forbidden"


def test_engine_named_by_the_user_is_used(quickstart: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://elsewhere")
    assert quickstart.engine() == "answers"


# Packages


def test_missing_packages_are_found(quickstart: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "environment", lambda: {"PATH": str(tmp_path)})
    (tmp_path / "git").write_text("")
    (tmp_path / "git").chmod(0o755)
    assert quickstart.missing() == ["debootstrap", "openssh-client"]


def test_venv_package_is_installed_where_it_is_separate(
    quickstart: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(quickstart.sys, "executable", str(python))
    assert quickstart.missing()[-1:] == ["python3-venv"]


# Changes


def test_changes_are_announced_before_the_first(quickstart: Any, ran: list[tuple[str, str]]) -> None:
    quickstart.prepare(["git", "debootstrap"], "absent")
    commands = [command for command, _ in ran]
    assert [command.split()[0] for command in commands] == ["apt-get", "env", "tools/venv"]
    assert commands[1].endswith("git debootstrap")
    before = ran[0][1]
    assert "quickstart will change this machine" in before
    for words in ("git, debootstrap", "docker.io", "user-namespace remapping", "/dev/kvm", "firewall"):
        assert words in before


def test_user_without_root_is_warned_about_the_docker_group(
    quickstart: Any, ran: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart.os, "geteuid", lambda: 1000)
    quickstart.prepare([], "absent")
    assert "makes you root on this machine" in ran[0][1]
    assert "host_docker_users" in ran[0][0]


@pytest.mark.parametrize("state", ["answers", "forbidden"])
def test_complete_machine_is_unchanged(
    quickstart: Any, ran: list[tuple[str, str]], capsys: pytest.CaptureFixture[str], state: str
) -> None:
    quickstart.prepare([], state)
    assert ran == []
    assert capsys.readouterr().err == ""


def test_missing_packages_do_not_change_the_engine(quickstart: Any, ran: list[tuple[str, str]]) -> None:
    quickstart.prepare(["git"], "answers")
    assert [command.split()[0] for command, _ in ran] == ["apt-get", "env"]
    assert "Docker" not in ran[0][1]


def test_failed_command_ends_it_with_its_status(quickstart: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        quickstart.run(["sh", "-c", "exit 3"])
    assert ended.value.code == 3
    assert "ended with 3" in capsys.readouterr().err


# The repository


def test_first_repository_is_created_once(quickstart: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = Path(quickstart.demo())
    assert folder == tmp_path / "data/spt-flow/hello-flow"
    head = subprocess.check_output(["git", "-C", str(folder), "rev-parse", "HEAD"])
    (folder / "README.md").write_text("mine")
    assert quickstart.demo() == str(folder)
    assert subprocess.check_output(["git", "-C", str(folder), "rev-parse", "HEAD"]) == head
    assert (folder / "README.md").read_text() == "mine"
    assert os.listdir(folder.parent) == ["hello-flow"]


@pytest.mark.parametrize(("given", "expected"), [("https://example.com/o/r", "https://example.com/o/r"), ("", "made")])
def test_repository_of_the_user_has_priority(
    quickstart: Any, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    started: list[tuple[str, list[str]]] = []
    monkeypatch.setenv("REPO", given)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv("SPT_FLOW_REPO", "")
    monkeypatch.delenv("SPT_FLOW_REPO")
    monkeypatch.setattr(quickstart, "demo", lambda: "made")
    monkeypatch.setattr(quickstart.os, "chdir", lambda path: None)
    monkeypatch.setattr(quickstart.os, "execv", lambda path, argv: started.append((path, argv)))
    quickstart.workspace()
    assert os.environ["SPT_FLOW_REPO"] == expected
    assert started[0][1][-2:] == ["ansible-playbook", "up.yml"]


# What it prints


def test_printed_commands_start_with_a_program_that_the_users_shell_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv: Any = runpy.run_path(str(TOOL.with_name("venv")))["launcher"].__globals__
    monkeypatch.setitem(venv, "CHECKOUT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert venv["launcher"]() == {}, "there is no environment yet"
    for folder in (".venv/bin", "bin"):
        program = tmp_path / folder / "ansible-playbook"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        expected = {"SPT_FLOW_LAUNCHER": ".venv/bin/ansible-playbook"} if folder == ".venv/bin" else {}
        assert venv["launcher"]() == expected


# The command


@pytest.mark.parametrize("words", [["--help"], ["--engine-only", "--engine-stop"], ["https://example.com/o/r"]])
def test_unknown_arguments_show_the_usage_and_change_nothing(words: list[str]) -> None:
    done = subprocess.run([sys.executable, str(TOOL), *words], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "--engine-only" in done.stderr
    assert done.stdout == ""


def test_engine_only_starts_no_workspace(
    quickstart: Any, ran: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart.sys, "argv", ["quickstart", "--engine-only"])
    monkeypatch.setattr(quickstart, "engine", lambda: "answers")
    monkeypatch.setattr(quickstart, "missing", list)
    monkeypatch.setattr(quickstart, "workspace", lambda: pytest.fail("a workspace was started"))
    quickstart.main()
    assert ran == []
    assert "used without changes" in capsys.readouterr().err


def test_stop_removes_only_what_was_installed(
    quickstart: Any, ran: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quickstart.sys, "argv", ["quickstart", "--engine-stop"])
    monkeypatch.setattr(quickstart, "ENGINE", tmp_path / "spt-flow-engine")
    quickstart.main()
    assert ran == []
    (tmp_path / "spt-flow-engine").touch()
    quickstart.main()
    assert [command for command, _ in ran] == [f"{tmp_path}/spt-flow-engine stop"]
