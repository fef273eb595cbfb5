# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the actions take values from, what they refuse, what they return."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible import context
from ansible.utils import vars as ansible_vars
from ansible.utils.context_objects import CLIArgs
from ansible_collections.spt.flow.plugins.module_utils import _ansible, _settings
from ansible_collections.spt.flow.plugins.module_utils._errors import FlowError, InvalidInput

CHECKOUT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Templar:
    """Inventory variables are trusted and templated; this one shows that they were."""

    def template(self, value: Any) -> Any:
        return value.replace("{{ it }}", "inventory") if isinstance(value, str) else value


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for option in _settings.OPTIONS.values():
        monkeypatch.delenv(option.environment, raising=False)


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the command line's `-e` texts."""

    def set_texts(*texts: str) -> None:
        monkeypatch.setattr(context, "CLIARGS", CLIArgs({"extra_vars": texts}))
        monkeypatch.setattr(ansible_vars.load_extra_vars, "extra_vars", None, raising=False)

    set_texts()
    return set_texts


def layers(args: dict[str, Any] | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    return _ansible.user_layers(args or {}, task_vars or {}, Templar(), None)


def value(name: str, **sources: dict[str, Any]) -> Any:
    return _settings.resolve(layers(sources.get("args"), sources.get("task_vars")))[name]


def test_the_strongest_source_wins(extra: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
def test_a_template_in_an_extra_variable_is_refused(extra: Any, mark: str, form: str) -> None:
    extra(f'ref="{mark}"' if form == "pair" else json.dumps({"ref": mark}))
    with pytest.raises(InvalidInput) as refused:
        layers()
    assert "SPT_FLOW_REF" in refused.value.hint
    assert "lookup" not in str(refused.value)


def test_a_template_in_the_environment_is_only_text(extra: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPT_FLOW_REF", "a{{lookup('pipe','id')}}")
    assert layers()["the environment"] == {"ref": "a{{lookup('pipe','id')}}"}


def test_extra_variables_of_others_may_be_templates(extra: Any) -> None:
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
def test_a_quoted_command_is_whole(extra: Any, text: str, wanted: str) -> None:
    extra(text)
    assert value("command") == wanted


@pytest.mark.parametrize(("text", "wanted"), [("connect=false", False), ("connect=no", False), ("connect=true", True)])
def test_words_for_true_and_false_are_read(extra: Any, text: str, wanted: bool) -> None:
    extra(text)
    assert value("connect") is wanted


def test_values_carry_no_trust_of_ansibles(extra: Any) -> None:
    extra("workspace=a")
    assert type(layers()["extra variables"]["workspace"]) is str


def test_an_unforeseen_fault_is_one_sentence() -> None:
    result = _ansible.failed(_ansible.unexpected("read the workspaces", ValueError("bad")))
    assert result["msg"].startswith("Cannot read the workspaces: ValueError: bad. ")
    assert result["error"]["code"] == 1


def test_a_failed_result_shows_no_secret() -> None:
    result = _ansible.failed(FlowError("Cannot clone https://user:secret@host/x."))
    assert "secret" not in json.dumps(result)
    foreign = _ansible.failure({"msg": "at https://user:secret@host/x"})
    assert "secret" not in json.dumps(foreign)


def documentation(name: str) -> dict[str, Any]:
    argv = [str(BIN / "ansible-doc"), "-j", f"spt.flow.{name}"]
    said = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, check=True, timeout=60).stdout
    doc: dict[str, Any] = json.loads(said)[f"spt.flow.{name}"]["doc"]
    return doc


@pytest.mark.parametrize("name", ["workspace", "workspace_info", "workspace_exec", "ssh_config"])
def test_documentation_is_what_the_action_takes(name: str) -> None:
    import importlib

    action = importlib.import_module(f"ansible_collections.spt.flow.plugins.action.{name}").ActionModule
    options = documentation(name)["options"]
    assert set(options) == {*action.OWN, *action.VALUES}
    for option, spec in action.OWN.items():
        assert options[option].get("default") == spec.get("default"), option
        assert options[option].get("choices") == spec.get("choices"), option
    for option in action.VALUES:
        known = _settings.OPTIONS[option]
        documented = options[option]
        assert (documented["type"], documented["default"]) == (known.ansible_type, known.default), option
        assert tuple(documented.get("choices", ())) == known.choices, option
