# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Output and exit status of whole `ansible-playbook` processes, with a stand-in for our actions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

ACTION = """
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        args = self._task.args
        Display().display("a progress line", stderr=args.get("stderr", False))
        if "error" in args:
            more = {"exit_status": args["exit_status"]} if "exit_status" in args else {}
            return {"failed": True, "changed": False, "msg": args["error"]["message"], "error": args["error"], **more}
        return {"changed": False, "msg": "done", "ansible_stats": {
            "data": {"spt_flow": args["run"]}, "per_host": False, "aggregate": False}}
"""

RUN: dict[str, Any] = {
    "verb": "started",
    "result": {"changed": False, "msg": "demo is running", "workspace": {"name": "demo"}},
    "block": ["", "demo is running", "  shell       ssh demo"],
    "connect": None,
    "output": "text",
}
MESSAGE = "Cannot enter demo: it is not there."
ERROR = {"code": 6, "kind": "not_found", "message": MESSAGE, "hint": "Create it.", "details": {}}

TYPED = "ansible-playbook spt.flow.ssh_config"


@pytest.fixture
def play(tmp_path: Path) -> Any:
    """Write a play whose task returns ``run`` or fails with ``error``; return its command line and environment."""
    (tmp_path / "action_plugins").mkdir()
    (tmp_path / "action_plugins" / "stand_in.py").write_text(ACTION)
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "stand_in.py").write_text("")

    def write(args: dict[str, Any], **environment: str) -> tuple[list[str], dict[str, str]]:
        task = {"name": "Task", "stand_in": args}
        (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SPT_FLOW_", "ANSIBLE_"))}
        env |= {"ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local")}
        program = Path(sys.executable).parent / "ansible-playbook"
        return [str(program), str(tmp_path / "play.yml")], {**env, "HOME": str(tmp_path), **environment}

    return write


Done = subprocess.CompletedProcess


def run(play: Any, args: dict[str, Any], *more: str, stdin: str = "", **environment: str) -> Done[str]:
    argv, env = play(args, **environment)
    return subprocess.run([*argv, *more], env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def connect(*argv: str, always: bool = False) -> dict[str, Any]:
    return {"run": {**RUN, "connect": {"argv": list(argv), "env": {"FROM_RUN": "yes"}, "always": always}}}


def test_closing_block_is_printed_last(play: Any) -> None:
    done = run(play, {"run": RUN})
    assert done.returncode == 0
    assert done.stdout.endswith("\n\ndemo is running\n  shell       ssh demo\n")
    assert "PLAY RECAP" in done.stdout and "a progress line" in done.stdout
    assert "\x1b" not in done.stdout and "\r" not in done.stdout


@pytest.mark.parametrize(
    "args", [{"run": {**RUN, "block": [f"  VS Code  {TYPED}"]}}, {"error": {**ERROR, "hint": TYPED}}]
)
@pytest.mark.parametrize("how", ["on the PATH", "by its path", "by tools/venv"])
def test_printed_commands_start_with_a_program_that_the_users_shell_finds(
    play: Any, args: dict[str, Any], how: str
) -> None:
    program = Path(sys.executable).parent / "ansible-playbook"
    path = f"{program.parent}:{os.environ['PATH']}" if how == "on the PATH" else "/usr/sbin:/sbin"
    launcher = ".venv/bin/ansible-playbook" if how == "by tools/venv" else ""
    done = run(play, args, PATH=path, SPT_FLOW_LAUNCHER=launcher)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "ssh_config" in line]
    expected = {"on the PATH": "ansible-playbook", "by its path": str(program)}.get(how, launcher)
    assert [line.split()[-2:] for line in lines] == [[expected, "spt.flow.ssh_config"]]


def test_failure_is_a_sentence_and_keeps_ansible_status(play: Any) -> None:
    done = run(play, {"error": ERROR})
    assert done.returncode == 2
    assert "FAILED!\nCannot enter demo: it is not there.\nCreate it.\n" in done.stdout
    assert "not_found" not in done.stdout


@pytest.mark.parametrize("how", ["extra", "environment", "file"])
def test_json_output_is_exactly_one_object(play: Any, tmp_path: Path, how: str) -> None:
    (tmp_path / ".config/spt-flow").mkdir(parents=True)
    if how == "file":
        (tmp_path / ".config/spt-flow/config.yml").write_text("output: json\n")
    done = run(
        play,
        {"run": RUN, "stderr": True},
        *(["-e", "output=json"] if how == "extra" else []),
        **({"SPT_FLOW_OUTPUT": "json"} if how == "environment" else {}),
    )
    assert json.loads(done.stdout) == {"ok": True, **RUN["result"]}
    assert done.stdout.count("\n") == 1
    assert "a progress line" in done.stderr


def test_failure_in_json_is_an_object_with_its_exit_code(play: Any) -> None:
    done = run(play, {"error": ERROR, "stderr": True}, "-e", "output=json")
    assert json.loads(done.stdout) == {"ok": False, "changed": False, "msg": ERROR["message"], "error": ERROR}
    assert done.returncode == 6


def test_foreign_failure_has_the_general_code_in_json(play: Any) -> None:
    done = run(play, {"stderr": True}, "-e", "output=json")
    result = json.loads(done.stdout)
    assert (result["ok"], result["error"]["code"], done.returncode) == (False, 1, 1)
    assert "Traceback" not in done.stdout + done.stderr


def test_play_without_our_actions_prints_a_json_object(play: Any, tmp_path: Path) -> None:
    argv, env = play({}, SPT_FLOW_OUTPUT="json")
    (tmp_path / "play.yml").write_text('[{"hosts": "localhost", "gather_facts": false, "tasks": []}]')
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout) == {"ok": True, "changed": False}


def test_command_gets_raw_streams_and_its_exit_status_is_returned(play: Any, tmp_path: Path) -> None:
    script = 'cat; printf "\\001%s" "$FROM_RUN"; ls /proc/self/fd | wc -l >&2; exit 7'
    done = run(play, {**connect("sh", "-c", script, always=True), "stderr": True}, "-e", "command=x", stdin="bytes")
    assert (done.returncode, done.stdout) == (7, "bytes\x01yes")
    assert done.stderr.strip().endswith("4")
    assert list((tmp_path / "local").glob("*")) == []


def test_handover_needs_a_terminal(play: Any) -> None:
    done = run(play, connect("sh", "-c", "exit 9"))
    assert done.returncode == 0
    assert done.stdout.endswith("ssh demo\n")


def test_terminal_is_handed_over_with_the_exit_status_of_the_shell(play: Any, tmp_path: Path) -> None:
    argv, env = play(connect("sh", "-c", 'echo "tty: $(tty)"; read line; echo "got $line"; exit 5'))
    child = pexpect.spawn(argv[0], argv[1:], env=env, encoding="utf-8", timeout=60)
    child.expect("tty: /dev/pts/")
    child.sendline("hello")
    child.expect("got hello")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 5
    assert list((tmp_path / "local").glob("*")) == []


def test_json_and_failures_are_never_handed_over(play: Any) -> None:
    args = connect("sh", "-c", "exit 9")
    args["run"]["output"] = "json"
    argv, env = play(args)
    assert pexpect.run(" ".join([*argv, "-e", "output=json"]), env=env, withexitstatus=True, timeout=60)[1] == 0
    argv, env = play({"error": ERROR})
    assert pexpect.run(" ".join(argv), env=env, withexitstatus=True, timeout=60)[1] == 2


def test_missing_program_is_reported(play: Any) -> None:
    done = run(play, connect("no-such-ssh", always=True))
    assert "no-such-ssh is not installed" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout


def test_full_verbosity_hides_extra_variables(play: Any) -> None:
    done = run(play, {"run": RUN}, "-vvvv", "-e", "dotfiles=canary-7f3")
    assert "PLAYBOOK: play.yml" in done.stdout
    assert "canary-7f3" not in done.stdout + done.stderr


@pytest.mark.parametrize("output", ["text", "json"])
def test_run_ends_with_the_exit_status_of_the_job(play: Any, output: str) -> None:
    done = run(play, {"error": ERROR, "exit_status": 77}, SPT_FLOW_OUTPUT=output)
    assert done.returncode == 77
    assert MESSAGE in done.stdout + done.stderr
