# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verdicts about hosts: what counts as a failure, and the reports as table, JSON and JUnit XML."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as etree

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.acceptance import checks as acceptance_checks
from ansible_collections.spt.flow.plugins.module_utils._node.acceptance import report as acceptance_report
from ansible_collections.spt.flow.plugins.module_utils._node.errors import Unhealthy

CHECKOUT = Path(__file__).resolve().parents[2]
ROWS = [
    {"requirement": "systemd", "value": "no", "limit": "yes", "verdict": "impossible"},
    {"requirement": "firewall", "value": "rules are <missing>", "limit": "in place", "verdict": "failed"},
    {"requirement": "seccomp", "value": "name=seccomp", "limit": "name=seccomp", "verdict": "met"},
]


def report() -> acceptance_report.Report:
    return acceptance_report.gather(
        {"node1": {"rows": ROWS}, "node2": {"unreachable": True, "msg": "No route to host\nx"}}
    )


def test_only_unmet_requirements_count_as_failures() -> None:
    assert acceptance_report.failures(report()) == [
        "node1: firewall: rules are <missing> (needed: in place)",
        "node2: host answers: No route to host (needed: yes)",
    ]


def test_table_lists_every_host_and_wraps_long_cells() -> None:
    long = acceptance_report.rate("audit trail", "a sentence that is long " * 5, "whole", False)
    lines = acceptance_report.lines({**report(), "node3": [long]})
    assert {"node1", "node2", "node3"} <= set(lines)
    assert max(map(len, lines)) <= sum(acceptance_report.WIDTHS.values()) + 2 * 3
    assert lines[-1] == "5 requirements of 3 hosts: 1 met, 3 failed, 1 impossible."
    assert next(line for line in lines if line.startswith("firewall")).endswith("failed")


def test_skipped_host_is_reported_as_a_failure() -> None:
    assert "skipped" in acceptance_report.failures(acceptance_report.gather({"node1": {}}))[0]


def test_json_contains_rows_and_failures() -> None:
    found = json.loads(acceptance_report.as_json(report()))
    assert found["hosts"]["node1"] == ROWS
    assert len(found["failures"]) == 2


def test_junit_counts_and_escapes_host_text() -> None:
    odd = acceptance_report.rate("x", "bell \x07 & <b>", "y", False)
    root = etree.fromstring(acceptance_report.as_junit({**report(), "node3": [odd]}))
    suites = {suite.get("name"): suite for suite in root}
    assert (suites["node1"].get("tests"), suites["node1"].get("failures"), suites["node1"].get("skipped")) == (
        "3",
        "1",
        "1",
    )
    failure = suites["node3"].find("testcase/failure")
    assert failure is not None and failure.get("message") == "bell ? & <b> (needed: y)"


def test_host_without_any_feature_is_measured_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise Unhealthy("The Docker engine does not answer.")

    monkeypatch.setattr(acceptance_checks.Engine, "get_json", refuse)
    monkeypatch.setattr(acceptance_checks.machine_audit, "kernel", refuse)
    monkeypatch.setattr(acceptance_checks.snapshots_config.Config, "load", refuse)
    monkeypatch.setattr(acceptance_checks, "LIBRARY", "/nonexistent")
    rows = {row.requirement: row for row in acceptance_checks.collect()}
    assert rows["Docker engine"].verdict == rows["firewall"].verdict == "failed"
    assert rows["snapshots of home volumes"].verdict == "failed"


@pytest.mark.parametrize(("script", "verdict"), [("echo hash", "met"), ("exit 1", "failed")], ids=["there", "gone"])
def test_image_row_names_node_and_image(
    script: str, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "image.json").write_text(json.dumps({"tag": "w:slim-1", "hash": "hash", "node": "n1", "textfile": ""}))
    monkeypatch.setenv("SPT_FLOW_IMAGE_RECORD", str(tmp_path / "image.json"))
    monkeypatch.setattr(acceptance_checks, "LIBRARY", str(CHECKOUT / "roles/host_images/files"))
    row = acceptance_checks.images(systemd=False)[0]
    assert row.verdict == verdict
    assert row.value == f"n1 {'has' if verdict == 'met' else 'does not have'} the image w:slim-1."
    shown = " ".join(" ".join(acceptance_report.lines({"n1": [row]})).split())
    assert "n1" in shown
    assert "w:slim-1" in shown


@pytest.mark.parametrize(("systemd", "verdict"), [(True, "failed"), (False, "impossible")])
def test_audit_and_timers_are_impossible_only_without_systemd(
    systemd: bool, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance_checks.machine_audit, "kernel", lambda: {"enabled": 0, "lost": 0})
    monkeypatch.setattr(acceptance_checks.machine_audit, "problems", lambda *_: ["Auditing is disabled in the kernel."])
    monkeypatch.setattr(acceptance_checks, "_run", lambda *_: (3, "inactive"))
    assert {row.verdict for row in acceptance_checks.audit(systemd, container=False)} == {verdict}


def test_container_has_no_audit_trail_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance_checks.machine_audit, "kernel", lambda: {"enabled": 0, "lost": 0})
    monkeypatch.setattr(acceptance_checks.machine_audit, "problems", lambda *_: ["Auditing is disabled in the kernel."])
    monkeypatch.setattr(acceptance_checks, "_run", lambda *_: (0, "active"))
    verdicts = {row.requirement: row.verdict for row in acceptance_checks.audit(True, container=True)}
    assert verdicts["audit trail"] == verdicts["audit records lost"] == "impossible"
    assert verdicts["timer spt-flow-audit-status"] == "met"


def test_missing_kvm_is_a_failure_only_where_required(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    none = acceptance_checks.kvm_probe.verdict(str(tmp_path / "kvm"))
    monkeypatch.setattr(acceptance_checks.kvm_probe, "verdict", lambda: none)
    assert [row.verdict for row in acceptance_checks.kvm(True)] == ["failed"]
    assert [row.verdict for row in acceptance_checks.kvm(False)] == ["impossible"]
