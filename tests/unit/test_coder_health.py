# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The health of a Coder server is reported, and an error in it fails the playbook with the server's own codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import health as coder_health
from ansible_collections.spt.flow.tests.fake_coder.jobs import Clock
from ansible_collections.spt.flow.tests.fake_coder.state import State
from ansible_collections.spt.flow.tests.unit import coder_harness

CHECKOUT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery staple 1"
WARNING = {"code": "EDERP01", "message": "one relay only"}


def test_sections_have_codes_and_dismissed_ones_do_not_fail() -> None:
    report = {
        "database": {"severity": "ok", "warnings": None, "error": None},
        "derp": {"severity": "warning", "warnings": [WARNING], "error": None},
        "access_url": {"severity": "error", "warnings": [], "error": "EACS03: not reachable", "dismissed": True},
        "websocket": {"severity": "error", "error": "EWS02: failed", "warnings": []},
        "coder_version": "v2.35.1",
    }
    found = coder_health.of(report, "v2.35.1")
    assert {one.name: one.severity for one in found.sections} == {
        "access_url": "dismissed",
        "database": "ok",
        "derp": "warning",
        "websocket": "error",
    }
    assert [one.name for one in found.failing] == ["websocket"]
    lines = found.lines()
    assert lines[0] == "Coder v2.35.1"
    assert "derp                 warning   EDERP01: one relay only" in lines
    assert "websocket            error     EWS02: failed" in lines


def told(state: State, folder: Path, book: str) -> tuple[int, str]:
    """Return status and output of the playbook for a server in that state."""
    state.first_user("admin@example.com", "admin", PASSWORD)
    with coder_harness.running(state) as fake:
        (folder / "hosts.yml").write_text(
            f"flow_servers: {{hosts: {{s: {{ansible_connection: local, coder_url: '{fake.url}', "
            f"coder_owner_email: admin@example.com, coder_owner_password: {PASSWORD}}}}}}}\n"
        )
        program = Path(sys.executable).parent / "ansible-playbook"
        env = {name: value for name, value in os.environ.items() if not name.startswith(("SPT_FLOW_", "CODER_"))}
        done = subprocess.run(
            [str(program), book, "-i", str(folder / "hosts.yml")],
            cwd=CHECKOUT,
            env={**env, "HOME": str(folder)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    said = " ".join((done.stdout + done.stderr).split())
    assert PASSWORD not in said and "Traceback" not in said
    return done.returncode, said


def test_playbook_reports_each_section(tmp_path: Path) -> None:
    state = State(Clock(1))
    status, said = told(state, tmp_path, "playbooks/server_health.yml")
    assert status == 0, said
    assert f"Coder {state.build_version}" in said
    assert "access_url ok" in said and "provisioner_daemons ok" in said


def test_section_in_error_fails_with_the_code_of_the_server(tmp_path: Path) -> None:
    state = State(Clock(1))
    state.slots = []
    book = tmp_path / "book.yml"
    book.write_text(
        "- hosts: s\n  gather_facts: false\n  tasks:\n    - spt.flow.coder_server_info: {url: '{{ coder_url }}', "
        "login_email: '{{ coder_owner_email }}', login_password: '{{ coder_owner_password }}', wait: 6}\n"
    )
    status, said = told(state, tmp_path, str(book))
    assert status == 2, said
    assert "is not healthy: provisioner_daemons: EPD01: No provisioner daemons found!" in said
    assert "https://coder.com/docs/admin/monitoring/health-check" in said
