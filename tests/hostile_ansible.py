# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a checkout by which Ansible or Python would run the checkout's programs when started in that directory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_PLAYBOOK = "- hosts: localhost\n  gather_facts: false\n  tasks:\n    - ansible.builtin.command: {script} {name}\n"
_PIPE = "flow_cpus: \"{{{{ lookup('pipe', '{script} {name}') }}}}\"\n"
_PYTHON = "import subprocess\nsubprocess.run(['{script}', '{name}'])\n"
_SHELL = "#!/bin/sh\n{script} {name}\necho {{}}\n"
_FAKE = "ansible_collections/spt/flow/playbooks/ci.yml"


@dataclass(frozen=True)
class Lure:
    """``files`` by path, with {script} and {name} in them; ``works``: plain Ansible in the checkout runs it."""

    name: str
    files: dict[str, str] = field(default_factory=dict)
    configuration: str = ""
    works: bool = True

    def plant(self, folder: Path, script: Path) -> None:
        for path, text in self.files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.format(script=script, name=self.name))
            file.chmod(0o755)


LURES = (
    Lure("callback", {"evil/callback/zz.py": _PYTHON}, "callback_plugins = ./evil/callback"),
    Lure(
        "stdout", {"evil/stdout/evil_out.py": _PYTHON}, "callback_plugins = ./evil/stdout\nstdout_callback = evil_out"
    ),
    Lure("inventory", {"evil/hosts.sh": _SHELL}, "inventory = ./evil/hosts.sh"),
    Lure("strategy", {"evil/strategy/evil.py": _PYTHON}, "strategy_plugins = ./evil/strategy\nstrategy = evil"),
    Lure("vars", {"evil/vars/evil.py": _PYTHON}, "vars_plugins = ./evil/vars"),
    Lure("connection", {"evil/conn/evil.py": _PYTHON}, "connection_plugins = ./evil/conn\ntransport = evil"),
    Lure("filter", {"evil/filter/evil.py": _PYTHON}, "filter_plugins = ./evil/filter", False),
    Lure("library", {"evil/library/ci.py": _PYTHON}, "library = ./evil/library", False),
    Lure("action", {"evil/action/ci.py": _PYTHON}, "action_plugins = ./evil/action", False),
    Lure("cache", {"evil/cache/evil.py": _PYTHON}, "cache_plugins = ./evil/cache\nfact_caching = evil"),
    Lure("vault", {"evil/pass.sh": _SHELL}, "vault_password_file = ./evil/pass.sh"),
    Lure("collections", {f"evil/collections/{_FAKE}": _PLAYBOOK}, "collections_path = ./evil/collections"),
    Lure("home", {f"evil/home/collections/{_FAKE}": _PLAYBOOK}, "home = ./evil/home"),
    Lure("roles", {"evil/roles/x/tasks/main.yml": "- command: {script} {name}\n"}, "roles_path = ./evil/roles", False),
    Lure("collections-here", {f"collections/{_FAKE}": _PLAYBOOK}, works=False),
    Lure("library-here", {"library/ci.py": _PYTHON, "action_plugins/ci.py": _PYTHON}, works=False),
    Lure("variables-here", {"group_vars/all.yml": _PIPE, "host_vars/localhost.yml": _PIPE}, works=False),
    Lure("inventory-here", {"hosts": _SHELL, "inventory/hosts": _SHELL}, works=False),
    Lure("playbook-here", {"spt.flow.ci": _PLAYBOOK, "ci.yml": _PLAYBOOK}, works=False),
    Lure("python", dict.fromkeys(("sitecustomize.py", "usercustomize.py", "yaml.py"), _PYTHON), works=False),
    Lure("module", {"ansible/__init__.py": _PYTHON, "ansible_runner.py": _PYTHON}, works=False),
    Lure(
        "dotenv", {".env": "ANSIBLE_CONFIG=./ansible.cfg\nPYTHONPATH=.\n", ".ansible.cfg": "[defaults]\n"}, works=False
    ),
    Lure(
        "runner",
        {
            "env/envvars": '{{"ANSIBLE_CALLBACK_PLUGINS": "evil/callback"}}\n',
            "project/ansible.cfg": "[defaults]\nvault_password_file = ../evil/pass.sh\n",
            "run-1/project/ansible.cfg": "[defaults]\nvault_password_file = ../../evil/pass.sh\n",
            "run-2/project/ansible.cfg": "[defaults]\nvault_password_file = ../../evil/pass.sh\n",
            "evil/pass.sh": _SHELL,
        },
        works=False,
    ),
)
"""Ansible's configuration first, then other files."""


def plant(folder: Path, script: Path, lures: Iterable[Lure] = LURES) -> None:
    """Put ``lures`` into ``folder``, with one ``ansible.cfg`` for all; if two set a key, the last one applies."""
    keys: dict[str, str] = {}
    for lure in lures:
        lure.plant(folder, script)
        for line in lure.configuration.splitlines():
            key, _equals, value = line.partition(" = ")
            # Search paths add up; of a single value the first stays.
            keys[key] = f"{keys[key]}:{value}" if key.endswith("_plugins") and key in keys else keys.get(key, value)
    if keys:
        text = "".join(f"{key} = {value}\n" for key, value in keys.items())
        (folder / "ansible.cfg").write_text(f"[defaults]\n{text}")
