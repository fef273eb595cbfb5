# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A secret in every input must appear nowhere: output, processes, engine, image, volumes, logs."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.integration import playbook_harness
from ansible_collections.spt.flow.tests.integration.playbook_harness import Playbooks
from ansible_collections.spt.flow.tests.unit.processes import Processes

CANARY = f"canary{secrets.token_hex(8)}"
TOKENS = ("CODER_SESSION_TOKEN", "GITHUB_TOKEN", "GH_TOKEN", "GITLAB_TOKEN", "AWS_SECRET_ACCESS_KEY", "VAULT_TOKEN")
TOKENS += ("ANSIBLE_VAULT_PASSWORD", "DOCKER_AUTH_CONFIG", "NPM_TOKEN", "SPT_FLOW_UNKNOWN", "BORG_PASSPHRASE")
URL = f"https://user:{CANARY}@git.example.com/o/r.git"


@pytest.fixture(scope="module")
def playbooks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playbooks]:
    """A caller with secrets in the environment, in git and in the home directory."""
    with playbook_harness.playbooks(tmp_path_factory.mktemp("canary")) as playbooks:
        header = f'[http "https://git.example.com/"]\n\textraHeader = Authorization: Bearer {CANARY}\n'
        (playbooks.home / ".gitconfig").write_text(f"{header}[credential]\n\thelper = store\n")
        (playbooks.home / ".git-credentials").write_text(f"{URL}\n")
        (playbooks.home / ".netrc").write_text(f"machine git.example.com login user password {CANARY}\n")
        (playbooks.home / ".docker").mkdir()
        auth = {"auths": {"registry.example.com": {"identitytoken": CANARY}}}
        (playbooks.home / ".docker/config.json").write_text(json.dumps(auth))
        yield playbooks


def environment() -> dict[str, str]:
    return dict.fromkeys(TOKENS, CANARY)


def test_no_output_or_file_of_a_whole_life_contains_the_secret(playbooks: Playbooks) -> None:
    watcher = Processes(CANARY)
    watcher.start()
    said = ""
    try:
        for playbook, values in (
            ("up", {"SPT_FLOW_REPO": str(playbooks.repository)}),
            ("up", {"SPT_FLOW_REPO": str(playbooks.repository), "SPT_FLOW_OUTPUT": "json"}),
            ("status", {}),
            ("logs", {}),
            ("ssh", {"SPT_FLOW_COMMAND": "env; cat /proc/self/environ"}),
            ("restart", {"SPT_FLOW_WORKSPACE": playbooks.name}),
        ):
            done = playbooks.run(playbook, "-vvvv", **environment(), **values)
            assert done.returncode == 0, done.stdout + done.stderr
            said += done.stdout + done.stderr
        time.sleep(0.3)
    finally:
        found = watcher.stop()
    assert CANARY not in said
    assert found == set()


def test_engine_and_workspace_do_not_contain_the_secret(playbooks: Playbooks) -> None:
    name = f"spt-flow-{playbooks.owner}-{playbooks.name}"
    image = playbook_harness.docker("inspect", "--format", "{{.Image}}", name)
    for argv in (
        ["inspect", name],
        ["volume", "inspect", f"{name}-home"],
        ["image", "inspect", image],
        ["history", "--no-trunc", image],
        ["logs", name],
        ["top", name, "-eo", "pid,args"],
    ):
        assert CANARY not in playbook_harness.docker(*argv)
    find = ["grep", "-rlFs", "--devices=skip", "--exclude-dir=proc", "--exclude-dir=sys", "-f", "-", "/"]
    argv = ["docker", "exec", "-i", "--user", "0", name, *find]
    done = subprocess.run(argv, input=CANARY + "\n", capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "", done.stdout


@pytest.mark.parametrize("option", ["repo", "dotfiles", "mirror_npm"])
@pytest.mark.parametrize("way", ["environment", "extra", "file", "inventory"])
def test_credentials_in_a_url_are_refused_and_not_repeated(
    playbooks: Playbooks, tmp_path: Path, option: str, way: str
) -> None:
    values = {"repo": str(playbooks.repository), option: URL}
    before = playbook_harness.belongings(playbooks.owner)
    variables, more = {}, []
    if way == "environment":
        variables = {f"SPT_FLOW_{name.upper()}": value for name, value in values.items()}
    elif way == "extra":
        (tmp_path / "values.json").write_text(json.dumps(values))
        more = ["-e", f"@{tmp_path / 'values.json'}"]
    elif way == "file":
        (tmp_path / "spt-flow").mkdir(mode=0o700)
        (tmp_path / "spt-flow/config.yml").write_text(json.dumps(values))
        variables = {"XDG_CONFIG_HOME": str(tmp_path)}
    else:
        (tmp_path / "hosts.json").write_text(
            json.dumps({"all": {"hosts": {"localhost": {f"flow_{n}": v for n, v in values.items()}}}})
        )
        more = ["-i", str(tmp_path / "hosts.json")]
    done = playbooks.run("up", "-vvvv", *more, **variables)
    assert done.returncode == 2
    assert CANARY not in done.stdout + done.stderr
    assert playbook_harness.belongings(playbooks.owner) == before


def test_unknown_option_in_the_settings_file_is_named_without_its_value(playbooks: Playbooks, tmp_path: Path) -> None:
    (tmp_path / "spt-flow").mkdir(mode=0o700)
    (tmp_path / "spt-flow/config.yml").write_text(f"password: {CANARY}\n")
    done = playbooks.run("up", "-vvvv", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 2 and "password" in done.stdout
    assert CANARY not in done.stdout + done.stderr
