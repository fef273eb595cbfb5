# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`doctor` and `init`: missing requirements are named with their solution; answers are saved, never a token."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pexpect
import pytest
import yaml
from ansible_collections.spt.flow.plugins.action import doctor as action
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError, NotFound
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import doctor as coder_doctor
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import doctor
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import doctor as docker_doctor
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import target as docker_target
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import resolve as settings_resolve
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.checks import Check
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import coder_harness
from ansible_collections.spt.flow.tests.unit.test_docker_body import FACTS

CHECKOUT = Path(__file__).resolve().parents[2]
ADMIN = "c123456789-d123456789012345678901"


@pytest.fixture
def fake() -> Iterator[Fake]:
    # The harness moves its clock two minutes ahead.
    with coder_harness.server(1.0, -120.0) as made:
        made.state.give_token(made.state.user("admin"), ADMIN)
        yield made


def connected(fake: Fake, token: str = coder_harness.TOKEN) -> Any:
    return lambda anonymous: coder_harness.client(fake, "" if anonymous else token).http


def states(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def play(verb: str, home: Path, *more: str, **environment: str) -> dict[str, Any]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), f"playbooks/{verb}.yml", *more],
        cwd=CHECKOUT,
        env={**kept, "HOME": str(home), "NO_PROXY": "127.0.0.1", "SPT_FLOW_OUTPUT": "json", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return {**json.loads(done.stdout), "status": done.returncode, "printed": done.stdout + done.stderr}


def test_working_server_is_reported_in_every_part(fake: Fake) -> None:
    found = coder_doctor.examine("spt-flow", connected(fake))
    assert {check.name for check in found} == {"server", "token", "template", "apps", "coder"}
    assert states(found)["token"] == "ok"
    assert "to ada," in next(check.message for check in found if check.name == "token")


def test_shared_ide_address_is_noted_and_its_own_address_accepted(fake: Fake) -> None:
    def apps() -> Check:
        return next(check for check in coder_doctor.examine("spt-flow", connected(fake)) if check.name == "apps")

    assert apps().state == "note" and "act as you on the Coder server" in apps().message
    assert "coder_server_wildcard" in apps().hint
    fake.state.app_host = "*.apps.example.com"
    assert apps().state == "ok" and "*.apps.example.com" in apps().message


def test_owner_sees_the_codes_of_the_server(fake: Fake) -> None:
    assert states(coder_doctor.examine("spt-flow", connected(fake, ADMIN)))["health"] == "ok"
    fake.state.slots = []
    health = coder_doctor.examine("spt-flow", connected(fake, ADMIN))[-1]
    assert (health.name, health.state) == ("health", "missing")
    assert "EPD01" in health.hint


def test_missing_requirements_are_named_with_their_solution(fake: Fake) -> None:
    found = coder_doctor.examine("spt-flow", connected(fake, "abcdefghij-1234567890123456789012"))
    assert {name: state for name, state in states(found).items() if name != "coder"} == {
        "server": "ok",
        "token": "missing",
    }
    assert "coder login" in found[-1].hint
    assert states(coder_doctor.examine("other", connected(fake)))["template"] == "missing"
    fake.state.build_version = "v2.33.0+abc1234"
    assert "2.34.8" in coder_doctor.examine("spt-flow", connected(fake))[0].message
    fake.stop()
    found = coder_doctor.examine("spt-flow", connected(fake))
    assert states(found) == {"server": "missing"}
    error = doctor.missing(found)
    assert error is not None
    assert error.code == 8


def test_programs_and_agent_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "nobody"))
    assert doctor.agent().state == "note"
    monkeypatch.delenv("SSH_AUTH_SOCK")
    assert "ssh-agent" in doctor.agent().hint
    assert (doctor.git().state, doctor.ssh().state) == ("ok", "ok")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (doctor.git().state, doctor.ssh().state) == ("missing", "missing")
    assert "apt-get install" in doctor.git().hint


def test_doctor_changes_nothing_and_init_saves_answers(fake: Fake, tmp_path: Path) -> None:
    server = {"CODER_URL": fake.url, "CODER_SESSION_TOKEN": coder_harness.TOKEN}
    looked = play("doctor", tmp_path, **server)
    assert (looked["ok"], looked["changed"], looked["target"]) == (True, False, "coder")
    assert not (tmp_path / ".config").exists()
    planned = play("init", tmp_path, "--check", "-e", "default_host=git.example.com", **server)
    assert planned["changed"]
    assert not (tmp_path / ".config").exists()
    done = play("init", tmp_path, "-e", "default_host=git.example.com", SPT_FLOW_CPUS="2", **server)
    path = tmp_path / ".config/spt-flow/config.yml"
    assert done["path"] == str(path)
    assert yaml.safe_load(path.read_text()) == {"default_host": "git.example.com", "target": "coder", "cpus": "2"}
    assert path.stat().st_mode & 0o077 == 0
    assert not play("init", tmp_path, **server)["changed"]
    assert coder_harness.TOKEN not in path.read_text() + done["printed"]


def test_init_at_a_terminal_asks_for_missing_settings_and_never_for_a_token(fake: Fake, tmp_path: Path) -> None:
    env = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    env |= {
        "HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
        "SPT_FLOW_DOTFILES": "https://example.com/ada/dots",
        "COLUMNS": "200",
    }
    program = str(Path(sys.executable).parent / "ansible-playbook")
    child = pexpect.spawn(program, ["playbooks/init.yml"], cwd=str(CHECKOUT), env=env, timeout=120, encoding="utf-8")
    log = child.logfile_read = io.StringIO()
    for question, answer in (
        (r"Target on which workspaces run.*\[auto\]", ""),
        (r"Address of your team's Coder server", fake.url),
        (r"Host of repositories given as owner/name \[github\.com\]", "git.example.com"),
        (r"Your name in commits", "Ada Lovelace"),
        (r"Your e-mail address in commits", "ada@example.com"),
    ):
        child.expect(question)
        child.send(f"{answer}\r")
    child.expect(pexpect.EOF)
    child.close()
    shown = log.getvalue()
    assert child.exitstatus == 2, "the missing token is reported"
    assert f"coder login {fake.url}" in shown and f"{fake.url}/cli-auth" in shown
    assert "Traceback" not in shown and "Your dotfiles repository" not in shown
    path = tmp_path / ".config/spt-flow/config.yml"
    assert yaml.safe_load(path.read_text()) == {
        "default_host": "git.example.com",
        "dotfiles": "https://example.com/ada/dots",
        "git_name": "Ada Lovelace",
        "git_email": "ada@example.com",
    }
    assert (tmp_path / ".config/coderv2/url").read_text() == fake.url
    (tmp_path / ".config/coderv2/session").write_text(coder_harness.TOKEN)
    found = play("doctor", tmp_path)
    assert (found["ok"], found["target"]) == (True, "coder")


def test_missing_requirement_is_exit_status_8(tmp_path: Path) -> None:
    url = {"CODER_URL": "http://127.0.0.1:9", "CODER_SESSION_TOKEN": coder_harness.TOKEN}
    result = play("doctor", tmp_path, **url)
    assert (result["status"], result["error"]["kind"]) == (8, "unhealthy")
    assert [check["name"] for check in result["checks"] if check["state"] == "missing"] == ["server"]
    result = play("doctor", tmp_path, SPT_FLOW_TARGET="coder")
    assert result["status"] == 8
    assert "CODER_URL" in result["checks"][-1]["hint"]
    result = play("doctor", tmp_path, DOCKER_HOST="unix:///nowhere.sock", SPT_FLOW_TARGET="docker")
    assert result["status"] == 8
    assert "make quickstart" in next(check["hint"] for check in result["checks"] if check["name"] == "docker")


@pytest.mark.parametrize(
    ("before", "answers", "after"),
    [
        ("", {"cpus": "2"}, "cpus: '2'\n"),
        ("# mine\ncpus: 1\nmemory: 2g", {"cpus": "2"}, "# mine\ncpus: '2'\nmemory: 2g\n"),
        ("# mine\ncpus: 1", {"ref": "x"}, "# mine\ncpus: 1\nref: x\n"),
        ("cpus: 1\n", {"cpus": 1}, "cpus: 1\n"),
        ("{cpus: 1}\n", {"ref": "x"}, "cpus: 1\nref: x\n"),
    ],
)
def test_settings_file_keeps_other_values(before: str, answers: dict[str, Any], after: str) -> None:
    assert action.merged(before, answers).rstrip() == after.rstrip()


def test_no_saved_option_is_a_secret() -> None:
    assert not {"token", "command", "confirm", "repo"} & set(action.LASTING)


@pytest.mark.parametrize(("runtime", "state", "word"), [(True, "ok", "has prepared"), (False, "note", "no firewall")])
def test_unprepared_engine_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, runtime: bool, state: str, word: str
) -> None:
    facts = replace(FACTS, runtime=runtime)
    monkeypatch.setattr(docker_target.DockerTarget, "probe_engine", lambda _self: facts)
    (check,) = docker_doctor.protection()
    assert (check.name, check.state) == ("protection", state)
    assert word in check.message and "\n" not in check.message


# What makes the next `up` on a Docker engine fail


class StandIn:
    """An engine that answers by path; a path without an answer is not found."""

    def __init__(self, answers: dict[str, Any], ahead: float = 0.0) -> None:
        self.answers = answers
        self.clock = time.time() + ahead
        self.local = True

    def get_json(self, path: str, query: Any = None, timeout: float = 0.0) -> Any:
        found = self.answers.get(path)
        if isinstance(found, FlowError):
            raise found
        if found is None:
            raise NotFound(f"There is no {path}.", details={"status": 404, "said": "no such thing"})
        return found


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the engine of this machine; call it with what differs from a healthy one."""

    def make(ahead: float = 0.0, facts: Any = FACTS, **answers: Any) -> dict[str, Any]:
        values = {**settings_resolve.resolve({}), "profile": "slim"}
        tag = image_identity.identity(values["profile"]).tag
        healthy = {"/version": {"Version": "28.1.0", "MinAPIVersion": "1.24"}, "/info": {}, f"/images/{tag}/json": {}}
        stand_in = StandIn(
            {**healthy, **{path.replace("IMAGE", tag): answer for path, answer in answers.items()}}, ahead
        )
        monkeypatch.setattr(docker_http, "connect", lambda host="": stand_in)
        monkeypatch.setattr(docker_target.DockerTarget, "probe_engine", lambda _self: facts)
        return {**values, "engine": "", "kvm": "disabled"}

    return make


def results(values: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {check.name: (check.state, f"{check.message} {check.hint}") for check in docker_doctor.examine(values)}


def test_healthy_engine_lacks_nothing(engine: Any, tmp_path: Path) -> None:
    found = results(engine(facts=replace(FACTS, root=str(tmp_path))))
    assert {name for name, (state, _said) in found.items() if state != "ok"} <= {"protection", "disk"}


def test_image_that_is_missing_is_noted_and_named_as_missing_without_the_package(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert docker_doctor.image(engine()).state == "ok"
    values = engine(**{"/images/IMAGE/json": None})
    found = docker_doctor.image(values)
    assert (found.state, "spt.flow.image -e profile=" in found.hint) == ("note", True)
    monkeypatch.setattr(docker_doctor.importlib.util, "find_spec", lambda name: None)
    found = docker_doctor.image(values)
    assert (found.state, found.hint) == ("missing", "Install it in the environment of ansible-core: pip install docker")
    far = docker_doctor.image({**values, "engine": "ssh://node1", "node": "node1"})
    assert (far.state, "--limit node1 --tags host_images" in far.hint) == ("missing", True)


def test_engine_that_is_too_old_or_too_new_is_named(engine: Any) -> None:
    refusal = "client version 1.41 is too new. Maximum supported API version is 1.40"
    values = engine(**{"/version": FlowError(f"The Docker engine refused GET /version: {refusal}.")})
    (only,) = docker_doctor.examine(values)
    assert (only.name, only.state) == ("docker", "missing") and "too old" in only.message
    values = engine(**{"/version": {"Version": "40.0.0", "MinAPIVersion": "1.60"}})
    state, said = results(values)["docker"]
    assert state == "note" and "1.60" in said


def test_full_disk_is_named(engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = engine(facts=replace(FACTS, root=str(tmp_path)))
    usage = types.SimpleNamespace(total=100 << 30, free=512 << 20)
    monkeypatch.setattr(docker_doctor.shutil, "disk_usage", lambda path: usage)
    assert results(values)["disk"][0] == "missing"
    usage.free = 5 << 30
    assert results(values)["disk"][0] == "note"
    values = engine(facts=replace(FACTS, root=str(tmp_path)), **{"/images/IMAGE/json": None})
    assert results(values)["disk"][0] == "missing"


def test_drained_engine_and_unmet_demands_are_named(engine: Any) -> None:
    drained = {"/volumes/spt-flow-drained": {"Labels": {"spt.flow.created": "noon", "spt.flow.by": "bob"}}}
    state, said = results(engine(**drained))["engine"]
    assert state == "missing" and "by bob" in said and "spt.flow.undrain" in said
    values = {**engine(facts=replace(FACTS, remapped=False)), "docker": "required"}
    assert results(values)["settings"][0] == "missing"


def test_missing_docker_program_is_named(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = engine()
    monkeypatch.setattr(docker_doctor.shutil, "which", lambda name: None)
    assert results(values)["docker CLI"][0] == "missing"


def test_wrong_clocks_are_named(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "clock" not in results(engine(ahead=20))
    assert results(engine(ahead=300))["clock"][0] == "note"
    state, said = results(engine(ahead=-7200))["clock"]
    assert state == "missing" and "ahead of the engine's" in said
    assert doctor.clock() == []
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    assert doctor.clock()[0].state == "missing"


def test_clock_that_differs_from_the_servers_is_named(fake: Fake) -> None:
    fake.state.clock.advance(200)
    clock = next(check for check in coder_doctor.examine("spt-flow", connected(fake)) if check.name == "clock")
    assert clock.state == "note" and "behind the server's" in clock.message


def test_template_of_another_release_is_named(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for made in fake.state.versions.values():
        made.name = "9.0.0-abcdefabcdef"
    monkeypatch.setattr(coder_doctor, "release", lambda: "0.1.0")
    template = next(check for check in coder_doctor.examine("spt-flow", connected(fake)) if check.name == "template")
    assert template.state == "missing" and "comes from spt.flow 9.0.0" in template.message
