# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the actions take values from, what they refuse and what they return."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible import context
from ansible.utils import vars as ansible_vars
from ansible.utils.context_objects import CLIArgs
from ansible_collections.spt.flow.plugins.module_utils._node.docker import ssh as docker_ssh
from ansible_collections.spt.flow.plugins.module_utils._node.errors import Conflict, FlowError, InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import open as ansible_open
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import results as ansible_results
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import values as ansible_values
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.session import UNREADABLE, to_session
from ansible_collections.spt.flow.plugins.plugin_utils._engine.identity import journal as identity_journal
from ansible_collections.spt.flow.plugins.plugin_utils._engine.identity import record as identity_record
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import author as repository_author
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import probe as repository_probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import resolve as settings_resolve
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import workspace as settings_workspace
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import report as workspace_report
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Session, Step, Workspace
from ansible_collections.spt.flow.tests import hostile
from ansible_collections.spt.flow.tests.unit.fake_target import FakeTarget, ready_lines, step_event

CHECKOUT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


class Templar:
    """A templar that marks what it has templated."""

    def template(self, value: Any) -> Any:
        return value.replace("{{ it }}", "inventory") if isinstance(value, str) else value


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for option in settings_options.OPTIONS.values():
        monkeypatch.delenv(option.environment, raising=False)


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the texts of ``-e`` on the command line."""

    def set_texts(*texts: str) -> None:
        monkeypatch.setattr(context, "CLIARGS", CLIArgs({"extra_vars": texts}))
        monkeypatch.setattr(ansible_vars.load_extra_vars, "extra_vars", None, raising=False)

    set_texts()
    return set_texts


def layers(args: dict[str, Any] | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    return ansible_values.user_layers(args or {}, task_vars or {}, Templar(), None)


def value(name: str, **sources: dict[str, Any]) -> Any:
    return settings_resolve.resolve(layers(sources.get("args"), sources.get("task_vars")))[name]


def test_first_source_in_order_wins(extra: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources: dict[str, dict[str, Any]] = {"task_vars": {}, "args": {}}
    assert value("workspace", **sources) == ""
    sources["task_vars"]["flow_workspace"] = "{{ it }}"
    assert value("workspace", **sources) == "inventory"
    (tmp_path / "spt-flow").mkdir()
    (tmp_path / "spt-flow/config.yml").write_text("workspace: file\n")
    assert value("workspace", **sources) == "file"
    monkeypatch.setenv("SPT_FLOW_WORKSPACE", "environment")
    assert value("workspace", **sources) == "environment"
    extra("workspace=extra")
    assert value("workspace", **sources) == "extra"
    sources["args"]["workspace"] = "task"
    assert value("workspace", **sources) == "task"


@pytest.mark.parametrize("mark", ["{{ lookup('pipe','id') }}", "a{{x}}", "{% if x %}", "{# x #}"])
@pytest.mark.parametrize("form", ["pair", "json"])
def test_template_in_extra_variable_is_refused(extra: Any, mark: str, form: str) -> None:
    extra(f'ref="{mark}"' if form == "pair" else json.dumps({"ref": mark}))
    with pytest.raises(InvalidInput) as refused:
        layers()
    assert "SPT_FLOW_REF" in refused.value.hint
    assert "lookup" not in str(refused.value)


def test_template_in_environment_is_plain_text(extra: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPT_FLOW_REF", "a{{lookup('pipe','id')}}")
    assert layers()["the environment"] == {"ref": "a{{lookup('pipe','id')}}"}


def test_unrelated_extra_variables_may_be_templates(extra: Any) -> None:
    extra("mine={{x}}")
    assert layers()["extra variables"] == {}


@pytest.mark.parametrize(
    "text",
    ["command=ls -la /tmp", "command=make V=1", "command=make target=docker", "workspace=a b", "-la command=ls"],
)
def test_stray_words_are_refused_with_the_right_form(extra: Any, text: str) -> None:
    extra(text)
    with pytest.raises(InvalidInput) as refused:
        layers()
    assert "SPT_FLOW_" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("command='ls -la /tmp'", "ls -la /tmp"),
        ('command="make V=1" workspace=a', "make V=1"),
        ("workspace=a command=ls", "ls"),
        ('{"command": "ls -la"}', "ls -la"),
    ],
)
def test_quoted_command_stays_whole(extra: Any, text: str, wanted: str) -> None:
    extra(text)
    assert value("command") == wanted


@pytest.mark.parametrize("text", [r"command='printf a\nb'", r"command='printf a\tb' workspace=x"])
def test_command_that_ansible_would_change_is_refused(extra: Any, text: str) -> None:
    extra(text)
    with pytest.raises(InvalidInput, match="SPT_FLOW_COMMAND"):
        layers()


@pytest.mark.parametrize(("text", "wanted"), [("connect=false", False), ("connect=no", False), ("connect=true", True)])
def test_boolean_words_are_accepted(extra: Any, text: str, wanted: bool) -> None:
    extra(text)
    assert value("connect") is wanted


def test_values_lose_ansible_trust_tags(extra: Any) -> None:
    extra("workspace=a")
    assert type(layers()["extra variables"]["workspace"]) is str


def test_unexpected_error_is_reported_in_one_sentence() -> None:
    result = ansible_results.failed(ansible_results.unexpected("read the workspaces", ValueError("bad")))
    assert result["msg"].startswith("Cannot read the workspaces: ValueError: bad. ")
    assert result["error"]["code"] == 1


def test_failed_result_contains_no_secret() -> None:
    result = ansible_results.failed(FlowError("Cannot clone https://user:secret@host/x."))
    assert "secret" not in json.dumps(result)
    foreign = ansible_results.failure({"msg": "at https://user:secret@host/x"})
    assert "secret" not in json.dumps(foreign)


# Whole actions, in this process, with a target in memory


class Target(FakeTarget):
    def session(self, workspace: Any) -> Session:
        return Session("http://127.0.0.1:1", "pass", "ssh-ed25519 AAAA", f"/home/coder/{workspace.name}")


@pytest.fixture
def act(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, extra: Any) -> Any:
    """Run an action with values from the environment. ``act.target`` has the workspaces, ``act.said`` the lines."""
    target = Target()
    image = types.SimpleNamespace(tag="spt-flow/workspace:slim-0", hash="f" * 64, profile="slim")
    lacks = "Get it: ansible-playbook spt.flow.image -e profile=fat"
    engine = "ansible_collections.spt.flow.plugins.plugin_utils._engine.image"
    for name, stub in {
        "build": {"ensure": lambda *args: False},
        "identity": {"current": lambda profile, release: image},
        "choice": {"image_for": lambda profile, release: image, "SMALL": "slim", "LACKS": lacks},
    }.items():
        module = types.ModuleType(f"{engine}.{name}")
        vars(module).update(stub)
        monkeypatch.setitem(sys.modules, f"{engine}.{name}", module)
        monkeypatch.setattr(importlib.import_module(engine), name, module, raising=False)
    monkeypatch.setattr(ansible_open, "open_target", lambda values: target)
    monkeypatch.setattr(ansible_action.C, "CALLBACKS_ENABLED", ["spt.flow.connect"])
    monkeypatch.setattr(repository_probe, "probe", lambda *args, **more: repository_probe.Probe("open"))
    monkeypatch.setenv("SPT_FLOW_OWNER", "alice")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def run(
        name: str,
        args: dict[str, Any] | None = None,
        check: bool = False,
        task_vars: dict[str, Any] | None = None,
        **values: str,
    ) -> dict[str, Any]:
        for option, text in values.items():
            monkeypatch.setenv(f"SPT_FLOW_{option.upper()}", text)
        task = types.SimpleNamespace(args=args or {}, check_mode=check, async_val=0, action=name)
        connection = types.SimpleNamespace(_shell=types.SimpleNamespace(tmpdir="/nowhere"))
        action = importlib.import_module(f"ansible_collections.spt.flow.plugins.action.{name}").ActionModule(
            task, connection, None, None, Templar(), None
        )
        monkeypatch.setattr(type(action), "_early_needs_tmp_path", lambda self: False)
        monkeypatch.setattr(type(action), "say", lambda self, line: run.said.append(line))
        result: dict[str, Any] = action.run(None, task_vars or {})
        json.dumps(result)
        return result

    run.target = target
    run.said = []
    return run


def left(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the action passed to the callbacks."""
    data: dict[str, Any] = result["ansible_stats"]["data"]["spt_flow"]
    return data


def test_up_creates_a_workspace_and_hands_over_the_terminal(act: Any) -> None:
    result = act("workspace", repo="https://example.com/o/demo")
    assert (result["changed"], result["workspace"]["name"]) == (True, "demo")
    connect = left(result)["connect"]
    assert connect["argv"][0] == "ssh" and "-t" in connect["argv"] and not connect["always"]
    assert connect["argv"][-2:] == ["spt-flow-alice-demo", "cd -- /home/coder/demo 2>/dev/null; " + workspace_ssh.SHELL]
    assert left(result)["result"]["session"]["password"] == "pass"
    assert any(line.endswith(" spt-flow-alice-demo") and "ssh -F" in line for line in left(result)["block"])


def test_second_up_changes_nothing(act: Any) -> None:
    act("workspace", repo="https://example.com/o/demo")
    result = act("workspace")
    assert (result["changed"], result["actions"]) == (False, [])
    assert "(unchanged)" in result["msg"]


def test_check_mode_writes_nothing_and_does_not_connect(act: Any) -> None:
    act.target.read_only = True
    result = act("workspace", check=True, repo="https://example.com/o/demo")
    assert result["changed"] and result["msg"].startswith("Check mode: ")
    assert result["diff"]["before"] != result["diff"]["after"]
    assert left(result)["connect"] is None


def test_value_without_effect_is_noted(act: Any) -> None:
    assert (
        "template has no effect on target docker." not in act("workspace", repo="https://example.com/o/demo")["notes"]
    )
    assert "template has no effect on target docker." in act("workspace", template="other")["notes"]


def test_new_workspace_with_the_small_image_names_the_command_that_gets_the_other(act: Any) -> None:
    notes = act("workspace", repo="https://example.com/o/demo")["notes"]
    assert [note for note in notes if "spt.flow.image -e profile=fat" in note]
    assert not act("workspace")["notes"]
    assert not act("workspace", repo="https://example.com/o/other", profile="slim")["notes"]


def test_case_does_not_matter_in_names(act: Any) -> None:
    act.target.add("demo", "example.com/o/demo")
    assert act("workspace", {"state": "stopped"}, workspace="DeMo", owner="Alice")["workspace"]["name"] == "demo"


def test_up_without_repository_shows_the_command(act: Any) -> None:
    result = act("workspace")
    assert result["failed"] and "-e repo=https://" in result["msg"]
    assert act.target.calls == []


def test_playbook_without_a_name_uses_the_only_workspace(act: Any) -> None:
    act.target.add("demo", "example.com/o/demo")
    assert act("workspace", {"state": "stopped"})["workspace"]["state"] == "stopped"
    act.target.add("other", "example.com/o/other")
    result = act("workspace", {"state": "stopped"})
    assert result["error"]["kind"] == "invalid_input" and "demo, other" in result["msg"]


def test_ssh_never_creates_a_workspace(act: Any) -> None:
    result = act("workspace", {"create": False}, repo="https://example.com/o/demo")
    assert (result["error"]["code"], act.target.writes) == (6, [])


def test_run_ends_with_the_given_command(act: Any) -> None:
    act.target.add("demo", "example.com/o/demo")
    result = act("workspace", {"create": False}, command="make test")
    connect = left(result)["connect"]
    assert connect["argv"][-2:] == ["spt-flow-alice-demo", "cd -- /home/coder/demo 2>/dev/null; make test"]
    assert connect["always"] and "-t" not in connect["argv"]


def test_command_is_refused_when_nothing_would_run_it(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ansible_action.C, "CALLBACKS_ENABLED", [])
    act.target.add("demo", "example.com/o/demo")
    result = act("workspace", {"create": False}, command="make test")
    assert result["failed"] and act.target.writes == []
    assert "ANSIBLE_CALLBACKS_ENABLED=spt.flow.connect" in result["msg"]
    named = result["error"]["hint"].partition("ANSIBLE_CONFIG=")[2].split()[0]
    assert "callbacks_enabled = spt.flow.connect" in Path(named).read_text()
    assert "failed" not in act("workspace", {"create": False}, command="")
    assert "failed" not in act("workspace", {"state": "stopped"}, command="make test")


@pytest.mark.parametrize("name", ["workspace", "ci", "workspace_info"])
def test_run_configured_by_its_repository_is_refused(
    act: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    folder, other = tmp_path / "work", tmp_path / "other"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/ansible.cfg").touch()
    other.mkdir()
    (other / "link").symlink_to(folder / "deep")
    (tmp_path / "alias").symlink_to(folder)
    for repo, file in ((folder, folder / "deep/ansible.cfg"), (tmp_path / "alias", other / "link/ansible.cfg")):
        monkeypatch.setattr(ansible_action.C, "CONFIG_FILE", str(file))
        result = act(name, repo=str(repo))
        assert result["failed"] and act.target.writes == []
        assert "a file of the repository" in result["msg"] and "playbooks/ansible.cfg" in result["error"]["hint"]


def test_list_with_a_repository_that_configures_the_run_is_refused(
    act: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ansible_action.C, "CONFIG_FILE", str(tmp_path / "work/ansible.cfg"))
    result = act("workspaces", {"workspaces": [{"repo": str(tmp_path / "work")}]})
    assert result["failed"] and act.target.writes == []
    assert "a file of the repository" in result["workspaces"][0]["msg"]


def test_other_configurations_are_accepted(act: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    for file, repo in (
        (tmp_path / "ansible.cfg", tmp_path / "work"),
        (tmp_path / "work2/ansible.cfg", tmp_path / "work"),
        (CHECKOUT / "ansible.cfg", CHECKOUT),
        (None, tmp_path / "work"),
    ):
        monkeypatch.setattr(ansible_action.C, "CONFIG_FILE", str(file) if file else None)
        assert "a file of the repository" not in act("workspace_info", repo=str(repo))["msg"], file


def test_dev_container_is_not_written_into_a_folder_that_configures_ansible(
    act: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ansible_action.C, "CONFIG_FILE", str(tmp_path / "ansible.cfg"))
    assert "a file of the repository" in act("devcontainer", {"path": str(tmp_path)})["msg"]
    assert not (tmp_path / ".devcontainer").exists()


def test_results_are_not_written_through_a_symbolic_link(act: Any, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "work/spt-flow-ci").symlink_to(tmp_path / "elsewhere")
    result = act("ci", repo=str(tmp_path / "work"), command="true", artifacts_dir=str(tmp_path / "work/spt-flow-ci/x"))
    assert "leads out of the repository by a link" in result["msg"] and list((tmp_path / "elsewhere").iterdir()) == []


def test_git_author_is_not_read_from_the_current_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hostile.git(tmp_path, "init", "-q", str(tmp_path / "work"))
    hostile.git(tmp_path / "work", "config", "user.name", "Somebody Else")
    (tmp_path / ".gitconfig").write_text("[user]\n\temail = me@example.com\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "work/.git"))
    monkeypatch.chdir(tmp_path / "work")
    assert repository_author.git_identity({"git_name": "", "git_email": ""}) == {"name": "", "email": "me@example.com"}


def test_delete_requires_a_name_and_confirmation(act: Any) -> None:
    act.target.add("demo", "example.com/o/demo")
    assert act("workspace", {"state": "absent"}, confirm="true")["error"]["kind"] == "invalid_input"
    assert act("workspace", {"state": "absent"}, confirm="false", workspace="demo")["error"]["code"] == 2
    plan = act("workspace", {"state": "absent"}, check=True, workspace="demo", confirm="false")
    assert (plan["ask"], plan["confirmed"]) == (True, False) and act.target.writes == []
    assert act("workspace", {"state": "absent", "confirm": True})["changed"]
    assert act.target.workspaces == {}
    assert act("workspace", {"state": "absent"}, check=True)["ask"] is False
    assert act("workspace", {"state": "absent"})["changed"] is False


def test_clone_without_access_ends_with_code_4(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(workspace_ssh, "argv", lambda *args: ["sh", "-c", "echo no credentials; exit 4"])
    act.target._script = lambda workspace, boot: ready_lines(boot, clone="needs-auth")
    result = act("workspace", repo="git@example.com:o/demo", connect="false")
    assert result["failed"] and result["changed"] and result["error"]["code"] == 4
    assert "without your credentials: no credentials." in result["msg"]
    assert "spt.flow.ssh -e workspace=demo" in result["error"]["hint"]
    assert result["workspace"]["state"] == "running" and act.target.workspaces
    assert any("IDE" in line for line in act.said)


@pytest.mark.parametrize(("program", "state"), [("true", "ok"), ("false", "needs-auth")])
def test_clone_without_access_is_retried_in_a_session(
    act: Any, monkeypatch: pytest.MonkeyPatch, program: str, state: str
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    act.target._script = lambda workspace, boot: ready_lines(boot, clone="needs-auth")
    monkeypatch.setattr(workspace_ssh, "argv", lambda *args: [program])
    result = act("workspace", repo="git@example.com:o/demo", connect="false")
    clone = next(step for step in result["workspace"]["steps"] if step["name"] == "clone")
    assert clone["state"] == state
    assert ("error" in result) == ("failed" in result) == (state != "ok")


@pytest.mark.parametrize("connect", ["true", "false"])
@pytest.mark.parametrize("terminal", [True, False])
def test_up_fails_when_the_clone_failed(
    act: Any, monkeypatch: pytest.MonkeyPatch, connect: str, terminal: bool
) -> None:
    monkeypatch.setattr(ansible_action, "at_terminal", lambda: terminal)
    detail = "host.example has no branch, tag or commit nope."
    failed = step_event("clone", "failed", detail=detail)
    act.target._script = lambda workspace, boot: [*ready_lines(boot)[:-2], failed]
    result = act("workspace", repo="https://host.example/o/demo", connect=connect)
    assert result["failed"] and (result["error"]["code"], result["error"]["kind"]) == (9, "clone")
    assert f"Cannot clone host.example/o/demo into workspace demo: {detail}" in result["msg"]
    assert "spt.flow.restart -e workspace=demo" in result["error"]["hint"]
    assert result["workspace"]["state"] == "running" and result["session"]["url"]
    restarted = act("workspace", {"state": "restarted"}, workspace="demo")
    assert restarted["failed"] and restarted["error"]["code"] == 9


def test_up_again_fails_while_the_clone_is_missing(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    act.target.add("demo", "example.com/o/demo")
    steps = '{"steps": {"clone": {"state": "failed", "detail": "No space is left."}}}'
    session = to_session("", f'{{"ide": {{}}, "directory": "/home/coder/demo"}}\n{steps}')
    monkeypatch.setattr(act.target, "session", lambda workspace: session)
    result = act("workspace", repo="https://example.com/o/demo")
    assert result["error"]["code"] == 9 and "demo: No space is left." in result["msg"] and not result["changed"]
    entered = act("workspace", {"create": False}, workspace="demo")
    assert "failed" not in entered and entered["error"]["code"] == 9 and left(entered)["connect"]


def test_command_is_not_run_without_its_clone(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(ansible_action, "at_terminal", lambda: True)
    act.target._script = lambda workspace, boot: ready_lines(boot, clone="needs-auth")
    result = act("workspace", repo="git@example.com:o/demo", command="make")
    assert result["failed"] and result["error"]["code"] == 4 and "ansible_stats" not in result


def test_list_entry_fails_when_its_clone_failed(act: Any) -> None:
    act.target._script = lambda workspace, boot: ready_lines(boot, clone="failed")
    result = act("workspaces", {"workspaces": [{"repo": "https://example.com/o/demo"}]})
    assert result["failed"] and result["workspaces"][0]["error"]["code"] == 9


def test_new_shell_finishes_the_clone(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ansible_action, "at_terminal", lambda: True)
    act.target._script = lambda workspace, boot: ready_lines(boot, clone="needs-auth")
    result = act("workspace", repo="git@example.com:o/demo")
    assert left(result)["connect"]["argv"][-1].startswith("spt-workspace clone; cd -- ")


def test_waiting_clone_of_a_running_workspace_is_finished(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    act.target.add("demo", "example.com/o/demo")
    waiting = to_session(
        "", '{"ide": {}, "directory": "/home/coder/demo"}\n{"steps": {"clone": {"state": "needs-auth"}}}'
    )
    monkeypatch.setattr(act.target, "session", lambda workspace: waiting)
    monkeypatch.setattr(ansible_action, "at_terminal", lambda: True)
    assert left(act("workspace", workspace="demo"))["connect"]["argv"][-1].startswith("spt-workspace clone; ")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    assert act("workspace", connect="false")["error"]["code"] == 4


def test_stopping_workspace_is_waited_for_and_started(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another client requested the stop and was killed; the workspace is reported as running for some seconds."""
    running = act.target.add("demo", "example.com/o/demo")
    said = '{"ide": {}, "directory": "/home/coder/demo"}\n{"steps": {}}\n{"reason": "was told to stop"}'
    monkeypatch.setattr(
        act.target,
        "session",
        lambda workspace: to_session("", said if workspace.started == 1.0 else said.replace("was told to", "")),
    )

    def end() -> None:
        act.target.workspaces["alice", "demo"] = replace(running, state="stopped")

    act.target.before["logs"] = end
    result = act("workspace", workspace="demo")
    assert (result["changed"], result["actions"]) == (True, ["start"])
    assert any("is stopping; waiting for its end" in line for line in act.said)


def test_workspace_that_stops_between_two_requests_is_started(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = act.target.add("demo", "example.com/o/demo")
    known = type(act.target).session

    def session(workspace: Any) -> Session:
        if workspace.started == 1.0:
            act.target.workspaces["alice", "demo"] = replace(running, state="stopped")
            raise Conflict("Container spt-flow-alice-demo is not running.")
        return known(act.target, workspace)

    monkeypatch.setattr(act.target, "session", session)
    assert act("workspace", workspace="demo")["actions"] == ["start"]


@pytest.mark.parametrize(
    ("state", "first"),
    [("pending", True), ("running", True), ("needs-auth", True), ("ok", False), ("skipped", False), ("failed", False)],
)
def test_new_shell_installs_dotfiles_that_wait_for_keys(act: Any, state: str, first: bool) -> None:
    dotfiles = step_event("dotfiles", state)
    act.target._script = lambda workspace, boot: [*ready_lines(boot)[:2], dotfiles, *ready_lines(boot)[2:]]
    shell = left(act("workspace", repo="https://example.com/o/demo"))["connect"]["argv"][-1]
    assert shell.startswith("spt-workspace dotfiles waiting; cd -- ") == first


def test_waiting_dotfiles_of_a_running_workspace_are_installed(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    act.target.add("demo", "example.com/o/demo")
    waiting = to_session("", '{"ide": {}, "steps": {"dotfiles": {"state": "needs-auth"}, "clone": {"state": "ok"}}}')
    monkeypatch.setattr(act.target, "session", lambda workspace: waiting)
    assert left(act("workspace", workspace="demo"))["connect"]["argv"][-1].startswith(
        "spt-workspace dotfiles waiting; "
    )


def test_dotfiles_branch_is_used(act: Any) -> None:
    seen: list[str] = []
    create = act.target.create
    act.target.create = lambda spec, progress: seen.append(spec.dotfiles) or create(spec, progress)
    act("workspace", repo="https://example.com/o/demo", dotfiles="ada/dotfiles#team/one")
    assert seen == ["https://github.com/ada/dotfiles#team/one"]


def test_shell_forwards_the_repository_ports_that_are_unused(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    act.target.add("demo", "example.com/o/demo")
    with socket.socket() as taken, socket.socket() as other:
        for place in (taken, other):
            place.bind(("127.0.0.1", 0))
        taken.listen()
        (first, second) = (place.getsockname()[1] for place in (taken, other))
        other.close()
        text = json.dumps({"ide": {}, "ports": [first, second]})
        monkeypatch.setattr(act.target, "session", lambda workspace: to_session("", text))
        argv = left(act("workspace", workspace="demo"))["connect"]["argv"]
    assert [word for word in argv if word.startswith("127.0.0.1:")] == [f"127.0.0.1:{second}:127.0.0.1:{second}"]
    assert "-L" not in left(act("workspace", workspace="demo", command="id"))["connect"]["argv"]


@pytest.mark.parametrize("ports", ['["x"]', "[null]", "7"])
def test_invalid_ports_are_not_forwarded(ports: str) -> None:
    assert to_session("", f'{{"ide": {{}}, "ports": {ports}}}').ports == ()


@pytest.mark.parametrize("text", ["", "[]", '{"ide": ', '{"a":' * 5000])
def test_damaged_session_file_is_reported(text: str) -> None:
    if text:
        with pytest.raises(UNREADABLE):
            to_session("", text)
    else:
        assert to_session("", text).password == ""


@pytest.mark.parametrize(
    ("said", "changed"), [("its postCreateCommand ran; log: x", True), ("its postCreateCommand ran earlier", False)]
)
def test_trust_runs_the_repository_command_and_reports_it(
    act: Any, monkeypatch: pytest.MonkeyPatch, said: str, changed: bool
) -> None:
    act.target.add("demo", "example.com/o/demo")
    asked: list[str] = []
    monkeypatch.setattr(workspace_ssh, "argv", lambda workspace, *words, **more: asked.extend(words) or ["echo", said])
    result = act("workspace", workspace="demo", trust="true", connect="false")
    assert (result["changed"], result["notes"][-1], asked[0]) == (changed, said, "spt-workspace trust")


def test_trusting_all_repositories_is_refused(act: Any) -> None:
    act.target.add("demo", "example.com/o/demo")
    result = act("workspace", task_vars={"flow_trust": True}, workspace="demo")
    assert result["error"]["kind"] == "invalid_input" and "every repository" in result["msg"]
    assert act.target.calls == []


def test_status_reports_failed_steps() -> None:
    steps = (Step("dotfiles", "failed", detail="install ended with status 9; see ~/x.log."), Step("clone", "ok"))
    lines = workspace_report.status([Workspace("ada", "demo", "h/o/r", state="running", steps=steps)], 200, 0.0)
    assert lines[-1] == "  note: demo: dotfiles failed: install ended with status 9; see ~/x.log."
    assert len(lines) == 3


# A list of workspaces


COURSE = [{"repo": f"https://example.com/o/{name}"} for name in ("one", "two", "three")]


def test_inventory_list_is_created_and_then_unchanged(act: Any) -> None:
    result = act("workspaces", task_vars={"flow_workspaces": COURSE})
    assert [(row["index"], row["name"], row["changed"]) for row in result["workspaces"]] == [
        (1, "one", True),
        (2, "two", True),
        (3, "three", True),
    ]
    assert set(act.target.workspaces) == {("alice", "one"), ("alice", "two"), ("alice", "three")}
    again = act("workspaces", task_vars={"flow_workspaces": COURSE})
    assert again["changed"] is False and again["msg"] == "3 workspaces: 3 ok, 0 changed, 0 failed."
    assert left(again)["connect"] is None


def test_failed_workspace_does_not_stop_the_others(act: Any) -> None:
    act.target.add("two", "example.com/other/two")
    result = act("workspaces", {"workspaces": [COURSE[0], {**COURSE[1], "workspace": "two"}, COURSE[2]]})
    assert result["failed"] and result["changed"]
    assert result["error"]["message"] == "1 of 3 workspaces failed: two."
    assert "two (alice): Workspace two belongs to example.com/other/two" in result["error"]["hint"]
    assert [row.get("error", {}).get("code") for row in result["workspaces"]] == [None, 7, None]
    assert ("alice", "three") in act.target.workspaces


def test_invalid_list_changes_nothing(act: Any) -> None:
    result = act("workspaces", {"workspaces": [*COURSE, {"repos": "x"}]})
    assert result["error"]["kind"] == "invalid_input" and "Did you mean repo?" in result["msg"]
    assert act.target.calls == []


def test_check_mode_of_a_list_writes_nothing(act: Any) -> None:
    act.target.read_only = True
    result = act("workspaces", {"workspaces": COURSE}, check=True)
    assert result["changed"] and result["msg"].startswith("3 workspaces: 0 ok, 3 changed")
    assert len(result["diff"]) == 3 and all(row["msg"].startswith("Check mode: ") for row in result["workspaces"])


def test_list_deletes_only_with_confirmation(act: Any) -> None:
    act.target.add("one", "example.com/o/one")
    gone = {"workspaces": [{"workspace": "one", "state": "absent"}]}
    assert act("workspaces", gone)["workspaces"][0]["error"]["code"] == 2
    assert ("alice", "one") in act.target.workspaces
    assert act("workspaces", gone, confirm="true")["changed"] and not act.target.workspaces
    assert act("workspaces", gone, confirm="false")["changed"] is False


def test_missing_list_is_reported_with_its_location(act: Any, extra: Any) -> None:
    assert "flow_workspaces is not set" in act("workspaces")["msg"]
    assert act("workspaces", {"workspaces": []})["changed"] is False
    extra(json.dumps({"flow_workspaces": [{"repo": "{{ lookup('pipe', 'id') }}"}]}))
    result = act("workspaces", task_vars={"flow_workspaces": [{"repo": "uid=0"}]})
    assert result["failed"] and "run as a template" in result["msg"] and act.target.calls == []


# Hosts


LOOP = {"groups": {"flow_nodes": ["loop"]}, "hostvars": {"loop": {"ansible_host": "127.0.0.1", "ansible_user": "u"}}}


def test_drained_host_starts_nothing_until_undrained(act: Any) -> None:
    for owner in ("alice", "bob"):
        act.target.add("demo", "example.com/o/demo", owner=owner, id=owner)
    act.target.add("rests", "example.com/o/rests", "stopped")
    plan = act("node", {"state": "drained"}, check=True, task_vars=LOOP, node="loop")
    assert plan["ask"] and plan["changed"] and "2 workspaces stopped: alice-demo, bob-demo." in plan["question"]
    assert act("node", {"state": "drained"}, task_vars=LOOP)["error"]["code"] == 2
    assert act.target.writes == []
    done = act("node", {"state": "drained", "confirm": True}, task_vars=LOOP)
    assert done["changed"] and done["msg"] == "loop is drained, 2 workspaces stopped."
    assert [row["owner"] for row in done["workspaces"]] == ["alice", "bob"]
    assert {workspace.state for workspace in act.target.workspaces.values()} == {"stopped"}
    again = act("node", {"state": "drained", "confirm": True}, task_vars=LOOP)
    assert again["changed"] is False and "(unchanged)" in again["msg"]
    for verb in ({}, {"state": "restarted"}):
        assert act("workspace", verb, task_vars=LOOP, workspace="demo")["error"]["code"] == 8
    assert act("workspace", check=True, task_vars=LOOP, repo="o/new", workspace="")["error"]["code"] == 8
    assert act("node", {"state": "open"}, task_vars=LOOP)["changed"]
    assert act("node", {"state": "open"}, task_vars=LOOP)["changed"] is False
    assert act("workspace", task_vars=LOOP, repo="", workspace="demo")["changed"]


def test_workspace_that_does_not_stop_is_named_and_the_others_stop(act: Any) -> None:
    for name in ("one", "two"):
        act.target.add(name, f"example.com/o/{name}", id=name)
    stop = act.target.stop

    def stuck(workspace: Any, progress: Any) -> Any:
        if workspace.name == "one":
            raise FlowError("It hangs.")
        return stop(workspace, progress)

    act.target.stop = stuck
    result = act("node", {"state": "drained"}, task_vars=LOOP, node="loop", confirm="true")
    assert result["error"]["message"] == "1 of 2 workspaces failed: one." and "It hangs." in result["error"]["hint"]
    assert act.target.workspaces["alice", "two"].state == "stopped" and act.target.mark


def test_drain_requires_a_host(act: Any) -> None:
    assert "-e node=name" in act("node", {"state": "drained"})["msg"]


def test_ssh_config_contains_hosts_of_the_inventory(act: Any, tmp_path: Path) -> None:
    assert act("ssh_config", task_vars=LOOP)["changed"] and not act("ssh_config", task_vars=LOOP)["changed"]
    config = tmp_path / "spt-flow/ssh_config"
    for host, wanted in (("spt-flow-alice-demo.loop", "u@127.0.0.1 docker exec"), ("spt-flow-alice-demo", "docker ex")):
        said = subprocess.run(["ssh", "-G", "-F", str(config), host], capture_output=True, text=True, timeout=30).stdout
        assert f"{wanted}" in said and ("u@127.0.0.1" in said) == host.endswith("loop") and "user coder\n" in said


def test_status_marks_outdated_workspaces(act: Any) -> None:
    settings = settings_workspace.Settings(profile="slim").hash()
    act.target.add("old", "example.com/o/old", image_hash="0" * 64, settings_hash=settings)
    act.target.add("new", "example.com/o/new", image_hash="f" * 64, settings_hash=settings)
    result = act("workspace_info")
    assert [(w["name"], w["outdated"]) for w in result["workspaces"]] == [("new", ()), ("old", ("image",))]
    assert act("workspace_info", workspace="gone")["error"]["code"] == 6


def test_logs_are_printed_line_by_line(act: Any) -> None:
    act.target.add("demo", "example.com/o/demo")
    act.target.log["alice", "demo"] = ["one", "two"]
    assert act("workspace_info", {"logs": True})["lines"] == ["one", "two"]
    assert act.said == ["one", "two"]


def test_status_counts_requests_for_credentials(act: Any) -> None:
    demo = act.target.add("demo", "example.com/o/demo")
    act.target.add("other", "example.com/o/other")
    for verdict in (identity_journal.GIVEN, identity_journal.REFUSED, identity_journal.GIVEN):
        identity_journal.write(workspace_ssh.alias(demo), "git", "get example.com", verdict)
    result = act("workspace_info")
    assert result["credentials"] == {"demo": {"given": 2, "refused": 1}}
    block = result["ansible_stats"]["data"]["spt_flow"]["block"]
    assert "  note: demo: requests for credentials: 2 given, 1 refused" in block


def test_entered_workspace_may_ask_for_its_repositorys_host(act: Any, extra: Any) -> None:
    result = act("workspace", repo="https://git.example.com:8443/o/demo", dotfiles="https://dots.example.com/a/b")
    name = result["workspace"]["name"]
    key = next(iter(act.target.workspaces))
    workspace = act.target.workspaces[key]
    found = identity_record.read(workspace_ssh.alias(workspace))
    assert found.own and found.hosts == ("dots.example.com", "git.example.com:8443") and name == "demo"
    act("workspace", {"state": "absent", "confirm": True}, workspace="demo")
    assert identity_record.read(workspace_ssh.alias(workspace)) == identity_record.Record()


def test_exec_streams_lines_and_fails_with_the_exit_status(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    act.target.add("demo", "example.com/o/demo")
    monkeypatch.setattr(workspace_ssh, "argv", lambda workspace, command: ["sh", "-c", command])
    result = act("workspace_exec", {"argv": ["sh", "-c", "echo a b; echo c >&2; exit 3"]})
    assert (result["rc"], result["stdout_lines"], result["failed"]) == (3, ["a b", "c"], True)
    assert act.said == ["a b", "c"]
    assert act("workspace_exec", {"argv": ["true"]}, check=True)["changed"]
    assert act("workspace_exec")["error"]["kind"] == "invalid_input"


def test_internal_error_is_reported_in_one_sentence(act: Any) -> None:
    def broken() -> None:
        raise KeyError("x")

    act.target.before["list"] = broken
    result = act("workspace_info")
    assert result["failed"] and "KeyError" in result["msg"] and "Traceback" not in json.dumps(result)


def test_json_output_requires_our_callback(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ansible_action.C, "DEFAULT_STDOUT_CALLBACK", "default")
    result = act("workspace_info", output="json")
    assert "ANSIBLE_STDOUT_CALLBACK=spt.flow.output" in result["msg"]


def test_ssh_block_is_valid_and_creates_one_key(act: Any, tmp_path: Path) -> None:
    argv = workspace_ssh.argv(Workspace("alice", "demo", "example.com/o/demo"))
    for _time in range(2):
        said = subprocess.run(["ssh", "-G", *argv[1:]], capture_output=True, text=True, timeout=30, check=True).stdout
        assert "user coder\n" in said and "stricthostkeychecking true\n" in said
        assert f"identityfile {tmp_path}/spt-flow/id_ed25519\n" in said
    assert sorted(p.name for p in (tmp_path / "spt-flow").iterdir()) == ["id_ed25519", "id_ed25519.pub", "ssh_config"]
    other = subprocess.run(["ssh", "-G", *argv[1:-1], "example.com"], capture_output=True, text=True, timeout=30).stdout
    assert "docker" not in other


def test_key_directory_is_private(act: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "open/spt-flow").mkdir(parents=True)
    (tmp_path / "open/spt-flow").chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "open"))
    folder = docker_ssh.runtime_folder()
    assert folder != tmp_path / "open/spt-flow" and folder.stat().st_mode & 0o077 == 0


def test_ssh_config_adds_and_removes_one_line(act: Any, tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / "real").write_text("Host a\n")
    config = tmp_path / ".ssh/config"
    config.symlink_to(tmp_path / "real")
    assert act("ssh_config", check=True)["changed"] and config.read_text() == "Host a\n"
    assert act("ssh_config")["changed"] and not act("ssh_config")["changed"]
    assert config.is_symlink() and config.read_text().endswith('ssh_config"\nHost a\n')
    assert act("ssh_config", {"state": "absent"})["changed"]
    assert config.read_text() == "Host a\n"
    assert not (tmp_path / "spt-flow/ssh_config").exists()


def documentation(name: str) -> dict[str, Any]:
    argv = [str(BIN / "ansible-doc"), "-j", f"spt.flow.{name}"]
    said = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, check=True, timeout=60).stdout
    doc: dict[str, Any] = json.loads(said)[f"spt.flow.{name}"]["doc"]
    return doc


@pytest.mark.parametrize(
    "name", ["ci", "workspace", "workspace_info", "workspace_exec", "workspaces", "node", "ssh_config"]
)
def test_documentation_matches_the_accepted_arguments(name: str) -> None:
    action = importlib.import_module(f"ansible_collections.spt.flow.plugins.action.{name}").ActionModule
    options = documentation(name)["options"]
    assert set(options) == {*action.OWN, *action.VALUES}
    for option, spec in action.OWN.items():
        assert options[option].get("default") == spec.get("default"), option
        assert options[option].get("choices") == spec.get("choices"), option
    for option in action.VALUES:
        known = settings_options.OPTIONS[option]
        documented = options[option]
        assert (documented["type"], documented["default"]) == (known.ansible_type, known.default), option
        assert tuple(documented.get("choices", ())) == known.choices, option


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"repo": "https://git.example.com/o/r.git"},
        {"repo": "https://git.example.com/o/r.git", "command": " "},
        {"repo": "https://git.example.com/o/r.git", "command": "true", "commit": "main"},
        {"repo": "https://git.example.com/o/r.git", "command": "true", "artifacts": "../x"},
        {"repo": "https://git.example.com/o/r.git", "command": "true", "ttl": "1s"},
        {"repo": "https://git.example.com/o/r.git", "command": "true", "env": "A=b"},
    ],
)
def test_invalid_ci_job_is_refused_before_anything_starts(act: Any, args: dict[str, Any]) -> None:
    result = act("ci", args)
    assert result["error"]["kind"] == "invalid_input" and result["exit_status"] == 125
    assert act.target.calls == []
