# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`site.yml` before its first change: the example inventory, its variables and groups, and refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import inventory as controller_inventory

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = CHECKOUT / "inventories/example"
ROLES = ("coder_node", "host_audit", "host_docker", "host_images", "host_kvm", "host_snapshots", "workspace_reaper")
PLAYBOOKS = ("site", "preflight", "hosts", "image", "release", "verify", "reset")
PLAYBOOKS += ("coder_server", "coder_nodes", "bootstrap", "servers", "server_health", "rollback")
NAMES = controller_inventory.known(CHECKOUT / "roles")


def playbook(*argv: str, cwd: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "ansible-playbook"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SPT_FLOW_", "ANSIBLE_"))}
    env["ANSIBLE_COLLECTIONS_PATH"] = str(CHECKOUT / ".ansible/collections")
    return subprocess.run([str(program), *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_every_playbook_is_found_and_loads() -> None:
    files = [f"playbooks/{name}.yml" for name in PLAYBOOKS]
    for names in ([*files, "site.yml"], [f"spt.flow.{name}" for name in PLAYBOOKS]):
        done = playbook("--syntax-check", "-i", "inventories/example", *names)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("role", [*ROLES, "image_build"])
def test_example_lists_every_role_variable_with_its_default(role: str) -> None:
    (path,) = (EXAMPLE / "group_vars").glob(f"*/{role}.yml")
    text = path.read_text()
    shown = yaml.safe_load("\n".join(re.findall(rf"^# ({role}_\w+: .*)$", text, re.MULTILINE)))
    specification = yaml.safe_load((CHECKOUT / f"roles/{role}/meta/argument_specs.yml").read_text())
    options = specification["argument_specs"]["main"]["options"]
    own = {name: option.get("default", "") for name, option in options.items() if name.startswith(f"{role}_")}
    assert shown == own
    assert yaml.safe_load(text) is None


def test_example_inventory_is_valid_as_it_is() -> None:
    hosts = yaml.safe_load((EXAMPLE / "hosts.yml").read_text())["all"]["children"]
    assert controller_inventory.groups({name: list(group["hosts"]) for name, group in hosts.items()}, "x") == []
    assert len(hosts["flow_nodes"]["hosts"]) == 2


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("host_kvm_requird", "host_kvm_required"),
        ("host_snapshots_keep_day", "host_snapshots_keep_days"),
        ("hostdocker_remap_base", "host_docker_remap_base"),
        ("flow_bussiness_hours", "flow_business_hours"),
        ("coder_server_acces_url", "coder_server_access_url"),
    ],
)
def test_misspelt_variable_suggests_the_nearest_name(wrong: str, right: str) -> None:
    (said,) = controller_inventory.variables({"node1": [wrong], "node2": [wrong]}, NAMES)
    assert said == f"The variable {wrong} (set for node1 and 1 more) does not exist; did you mean {right}?"


def test_foreign_and_correct_variables_are_accepted() -> None:
    given = [
        "ansible_user",
        "host_kvm_required",
        "flow_cpus",
        "flow_business_hours",
        "nginx_port",
        "inventory_hostname",
    ]
    assert controller_inventory.variables({"node1": given}, NAMES) == []


def test_unknown_variable_without_a_similar_name_is_reported() -> None:
    assert "remove it" in controller_inventory.variables({"node1": ["flow_zzzzqqqq"]}, NAMES)[0]


def test_renamed_variable_is_reported_with_its_new_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(controller_inventory.RENAMED, "host_kvm_old", "host_kvm_required")
    (said,) = controller_inventory.variables({"node1": ["host_kvm_old"]}, NAMES)
    assert said == "The variable host_kvm_old (set for node1) is now called host_kvm_required."


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({"flow_nodes": []}, "group flow_nodes is empty"),
        ({"all": ["a"], "flow_node": ["a"]}, "group flow_node does not exist; did you mean flow_nodes?"),
        ({"all": ["a"]}, "copy the folder somewhere/example"),
    ],
)
def test_wrong_groups_are_reported(groups: dict[str, list[str]], sentence: str) -> None:
    (said,) = controller_inventory.groups(groups, "somewhere/example")
    assert sentence in said


@pytest.mark.parametrize("where", ["checkout", "elsewhere"])
def test_missing_inventory_names_the_folder_to_copy(where: str, tmp_path: Path) -> None:
    done = playbook("site.yml") if where == "checkout" else playbook("spt.flow.site", cwd=tmp_path)
    text = done.stdout + done.stderr
    assert done.returncode == 2
    assert "copy the folder" in text and "inventories/example, list your machines" in text
    assert "Workspace hosts" not in text and "Traceback" not in text


def test_misspelt_variable_stops_the_run_before_any_change(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(
        "flow_nodes: {hosts: {n1: {ansible_connection: local, host_kvm_requird: true}}}\n", encoding="utf-8"
    )
    done = playbook("site.yml", "-i", str(tmp_path / "hosts.yml"))
    assert done.returncode == 2
    assert "did you mean host_kvm_required?" in done.stdout + done.stderr
    assert "changed=0" in done.stdout and "Workspace hosts" not in done.stdout


TWO = """
flow_nodes:
  hosts:
    n1: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
    n2: {ansible_host: 192.0.2.1, ansible_connection: ssh, ansible_timeout: 1, ansible_ssh_retries: 0}
"""


@pytest.mark.parametrize(("limit", "named"), [((), True), (("--limit", "n1"), False)], ids=["all", "limited"])
def test_unreachable_node_is_reported_and_an_excluded_node_is_not(
    limit: tuple[str, ...], named: bool, tmp_path: Path
) -> None:
    (tmp_path / "hosts.yml").write_text(TWO, encoding="utf-8")
    reports = tmp_path / "new/reports"
    done = playbook(
        "playbooks/verify.yml",
        "--check",
        "-i",
        f"{tmp_path}/hosts.yml",
        "-e",
        f"flow_report_directory={reports}",
        *limit,
    )
    found = json.loads((reports / "verify.json").read_text())["hosts"]
    assert "Docker engine" in {row["requirement"] for row in found["n1"]}, done.stdout
    assert ("n2" in found) is named
    if named:
        assert [row["requirement"] for row in found["n2"]] == ["host answers"]
    assert (reports / "verify.xml").exists()


@pytest.mark.parametrize("limit", [(), ("--limit", "n2")], ids=["all", "limited"])
def test_reset_requires_confirmation(limit: tuple[str, ...], tmp_path: Path) -> None:
    # Nothing has these addresses, so that a broken check could do no harm.
    node = "{ansible_host: 192.0.2.1, ansible_connection: ssh, ansible_timeout: 1, ansible_ssh_retries: 0}"
    (tmp_path / "hosts.yml").write_text(f"flow_nodes: {{hosts: {{n1: {node}, n2: {node}}}}}\n", encoding="utf-8")
    done = playbook("playbooks/reset.yml", "-i", f"{tmp_path}/hosts.yml", *limit)
    assert done.returncode == 2
    assert "Nothing was removed." in done.stdout + done.stderr
    assert "Undo each role" not in done.stdout


def test_reset_removes_no_volume_and_no_record() -> None:
    for role in ROLES:
        text = (CHECKOUT / f"roles/{role}/tasks/reset.yml").read_text()
        assert not re.search(r"/var/lib/docker|/var/log/audit|/var/backups|snapshots\.password|volumes/|prune", text), (
            role
        )
