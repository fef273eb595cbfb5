# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container can prove of host_audit.

The kernel takes audit rules only from its first namespaces, so no container has a trail of its own: here the rules are
put before the tool that would load them, and the reader gets what a kernel recorded. That root's commands arrive is
proven on the machine itself by tests/integration/test_audit.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[4]
RECORDED = CHECKOUT / "tests/unit/data/audit_commands.log"
RULES = ("/etc/audit/rules.d/spt-flow.rules", "/etc/audit/rules.d/spt-flow-lock.rules")
REFUSED = re.compile(
    r"(Error sending .*|Error setting .*)\(Operation not permitted\)|^There was an error in line", re.M
)
ALLOCATE = ". /usr/local/lib/spt-flow/audit-id.sh; key=$1; spt_flow_audit_allocate && echo $number"


def number_of(host, key: str) -> int:  # type: ignore[no-untyped-def]
    return int(host.check_output("sh -c %s sh %s", ALLOCATE, key))


def problems(host, rule: str) -> list[str]:  # type: ignore[no-untyped-def]
    """What auditctl says of a rule, besides that a container may not load it."""
    said = host.run("auditctl " + " ".join(map(shlex.quote, rule.split())))
    return [line for line in (said.stdout + said.stderr).splitlines() if not REFUSED.search(line)]


def test_kernel_accepts_every_rule(host) -> None:  # type: ignore[no-untyped-def]
    for path in RULES:
        lines = host.file(path).content_string.splitlines()
        rules = [line for line in lines if line and not line.startswith("#")]
        assert rules
        for rule in rules:
            assert problems(host, rule) == [], rule
    for wrong in ("-a always,exit -F arch=b64 -S nosuch -k x", "-a always,exit -F nofield=1 -k x"):
        assert problems(host, wrong), wrong


def test_host_rules_are_merged_with_ours_last(host) -> None:  # type: ignore[no-untyped-def]
    merged = host.check_output("cat /etc/audit/rules.d/*.rules | grep -v '^#'").splitlines()
    assert [line for line in merged if line.startswith("-b ")][-1] == "-b 65536"
    assert sum("-F euid!=1001000 -k spt-flow-priv" in line for line in merged) == 2
    assert host.run("augenrules --check").rc in (0, 1)


def test_sudo_log_is_written_and_rotated(host) -> None:  # type: ignore[no-untyped-def]
    assert host.run("visudo -c").succeeded
    host.run("sudo -u nobody true told")
    assert "COMMAND=/usr/bin/true told" in host.file("/var/log/spt-flow-sudo.log").content_string
    assert host.run("logrotate --debug /etc/logrotate.d/spt-flow-sudo").succeeded


def test_workspace_keeps_a_number_that_no_other_has(host) -> None:  # type: ignore[no-untyped-def]
    numbers = [number_of(host, key) for key in ("a/x", "b/x", "a/x")]
    assert numbers[0] == numbers[2] != numbers[1]
    assert all(700_000 <= number <= 799_999 for number in numbers)
    assert host.run("sudo -u nobody ls /var/lib/spt-flow/audit/registry/ids").failed


@pytest.fixture
def trail(host):  # type: ignore[no-untyped-def]
    """What a kernel recorded, as if root of the workspace ada/demo had done it just now."""
    lines = re.sub(r"\bauid=\d+", f"auid={number_of(host, 'ada/demo')}", RECORDED.read_text())
    now = f"{time.time():.3f}"
    lines = re.sub(r"audit\(\d+\.\d+:", f"audit({now}:", lines)
    host.check_output("printf %%s %s >>/var/log/audit/audit.log", lines)
    yield
    host.check_output("rm -f /var/log/audit/audit.log")


def test_commands_of_root_in_a_workspace_are_found_by_owner(host, trail: None) -> None:  # type: ignore[no-untyped-def]
    report = "/usr/local/lib/spt-flow/spt-flow-audit report --since 5m"
    assert "ada/demo  /  /bin/echo hidden words" in host.check_output(f"{report} --owner ada")
    assert host.check_output(f"{report} --owner ada --workspace other") == ""
    assert host.run(f"{report} --owner nobody-here").stdout == ""


def test_playbook_prints_the_trail(trail: None) -> None:
    env = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / ".ansible/collections")}
    argv = ["ansible-playbook", str(CHECKOUT / "playbooks/audit.yml"), "-i", os.environ["MOLECULE_INVENTORY_FILE"]]
    argv += ["-e", "owner=ada", "-e", "since=5m"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ada/demo  /  /bin/echo hidden words" in done.stdout


def test_verdict_is_impossible_and_not_a_failure(host) -> None:  # type: ignore[no-untyped-def]
    rows = {row["requirement"]: row["verdict"] for row in host.ansible("spt.flow.acceptance_info", check=False)["rows"]}
    assert rows["audit trail"] == rows["audit records lost"] == "impossible"
    assert rows["timer spt-flow-audit-status"] == rows["timer spt-flow-audit-archive"] == "met"


def test_status_unit_fails_when_nothing_is_recorded(host) -> None:  # type: ignore[no-untyped-def]
    assert host.run("systemctl start spt-flow-audit-status").failed
    said = host.check_output("journalctl -u spt-flow-audit-status --no-pager -o cat")
    assert "Cannot read the kernel's" in said
    assert "Traceback" not in said
