# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container can prove of host_audit: rules that parse, numbers that are given out, a report that explains
itself."""

from __future__ import annotations


def test_rules_are_what_the_loader_would_take(host) -> None:  # type: ignore[no-untyped-def]
    assert host.run("augenrules --check").rc == 0 or "should be updated" in host.run("augenrules --check").stdout
    rules = host.file("/etc/audit/rules.d/spt-flow.rules").content_string
    assert rules.count("-F euid=1000000 -k spt-flow-priv") == 2
    assert "{{" not in rules


def test_sudo_writes_its_own_log(host) -> None:  # type: ignore[no-untyped-def]
    assert host.run("visudo -c").succeeded
    host.run("sudo -u nobody true")
    assert "COMMAND=" in host.file("/var/log/spt-flow-sudo.log").content_string


def test_a_workspace_keeps_its_number_and_two_never_share_one(host) -> None:  # type: ignore[no-untyped-def]
    script = ". /usr/local/lib/spt-flow/audit-id.sh; key=$1; spt_flow_audit_allocate && echo $number"
    numbers = [host.check_output("sh -c %s sh %s", script, key) for key in ("a/x", "b/x", "a/x")]
    assert numbers[0] == numbers[2] != numbers[1]
    assert all(700_000 <= int(number) <= 799_999 for number in numbers)
    assert host.file("/var/lib/spt-flow/audit/registry").mode in (0o700, 0o755)


def test_the_status_unit_fails_where_nothing_is_recorded(host) -> None:  # type: ignore[no-untyped-def]
    assert host.run("systemctl start spt-flow-audit-status").failed
    assert host.service("spt-flow-audit-archive.timer").is_enabled
