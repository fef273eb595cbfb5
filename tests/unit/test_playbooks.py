# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks for workspaces: their form, and that both ways of calling them work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options

CHECKOUT = Path(__file__).resolve().parents[2]
VERBS = (
    "up",
    "ssh",
    "status",
    "stop",
    "restart",
    "delete",
    "keepalive",
    "logs",
    "validate",
    "ssh_config",
    "workspaces",
    "drain",
    "undrain",
    "doctor",
    "init",
)


def text(verb: str) -> str:
    return (CHECKOUT / "playbooks" / f"{verb}.yml").read_text()


def tasks(verb: str) -> list[dict[str, Any]]:
    (play,) = yaml.safe_load(text(verb))
    assert (play["hosts"], play["gather_facts"]) == ("localhost", False)
    found: list[dict[str, Any]] = play["tasks"]
    return found


def playbook(*argv: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "ansible-playbook"
    env = {k: v for k, v in os.environ.items() if not k.startswith("SPT_FLOW_")}
    return subprocess.run([str(program), *argv], cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("verb", VERBS)
def test_header_shows_both_invocations_and_existing_values(verb: str) -> None:
    header = text(verb).split("---")[0]
    assert f"{verb}.yml" in header and f"ansible-playbook spt.flow.{verb}" in header
    (values,) = re.findall(r"^# Values: (.*)$", header, re.MULTILINE)
    named = re.findall(r"\b[a-z_]+\b", re.sub(r"\([^)]*\)|;.*", "", values))
    words = {"or", "and", "every", "setting", "settings", "of", "spt", "flow"}
    assert set(named) - words <= set(settings_options.OPTIONS)


@pytest.mark.parametrize("verb", VERBS)
def test_playbook_is_short_and_never_templates_a_users_value(verb: str) -> None:
    body = text(verb).split("---")[1]
    assert len(body.strip().splitlines()) <= 22
    for expression in re.findall(r"\{\{(.*?)\}\}|when: (.*)", body):
        assert set(re.findall(r"(?<![.\w'])[a-z_]+", "".join(expression))) & set(settings_options.OPTIONS) == set()


@pytest.mark.parametrize("verb", VERBS)
def test_playbook_only_calls_our_actions(verb: str) -> None:
    allowed = {"ansible.builtin.pause"} if verb in ("delete", "drain", "init") else set()
    for task in tasks(verb):
        assert {key for key in task if "." in key} <= {*allowed, *(k for k in task if k.startswith("spt.flow."))}


@pytest.mark.parametrize("way", ["checkout", "installed"])
def test_every_playbook_is_found_and_loads(way: str) -> None:
    names = [f"playbooks/{v}.yml" if way == "checkout" else f"spt.flow.{v}" for v in VERBS]
    done = playbook("--syntax-check", *names, *(["up.yml"] if way == "checkout" else []))
    assert done.returncode == 0, done.stderr


def test_up_without_a_repository_shows_the_command() -> None:
    done = playbook("up.yml", "-e", "owner=spt-flow-nobody")
    assert done.returncode == 2
    assert "-e repo=https://" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
