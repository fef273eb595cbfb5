# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Vulnerable engines and versions of runc are recognised by their version or by the distribution's package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.spt.flow.plugins.module_utils._node.docker import holes
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import doctor

CHECKOUT = Path(__file__).resolve().parents[2]
ROLE = CHECKOUT / "roles/host_docker"
LEAKED, CROSSED, GROUPS = "CVE-2024-21626", "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881", "CVE-2022-36109"
GOOD = "27.5.1"
DEBIAN_12 = ("1.1.5+ds1", "1.1.5+ds1-1+deb12u1")


def answer(runc: str, package: str = "v1-0-gabc", engine: str = GOOD) -> dict[str, Any]:
    parts = [("Engine", engine, "5d6db84"), ("runc", runc, package), ("docker-init", "0.19.0", "")]
    return {"Components": [{"Name": n, "Version": v, "Details": {"GitCommit": c}} for n, v, c in parts]}


@pytest.mark.parametrize(
    ("runc", "package", "wanted"),
    [
        ("1.1.11", "v1.1.11-0-g4bccb38", [LEAKED, CROSSED]),
        ("1.1.12", "v1.1.12-0-g51d5e94", [CROSSED]),
        ("1.2.7", "", [CROSSED]),
        ("1.2.8", "", []),
        ("1.3.2", "", [CROSSED]),
        ("1.3.3", "", []),
        ("1.4.0-rc.3", "", []),
        ("1.5.0", "", []),
        (*DEBIAN_12, [CROSSED]),
        ("1.1.5+ds1", "1.1.5+ds1-1", [LEAKED, CROSSED]),
        ("1.1.7-0ubuntu1~22.04.1", "", [LEAKED, CROSSED]),
        ("1.1.7-0ubuntu1~22.04.2", "", [CROSSED]),
        ("1.1.15+ds1", "1.1.15+ds1-2+b1", [CROSSED]),
        ("unknown", "", []),
    ],
)
def test_runc_is_judged_by_version_or_package(runc: str, package: str, wanted: list[str]) -> None:
    assert [hole["cve"] for hole in holes.found(answer(runc, package), remapped=False)] == wanted


@pytest.mark.parametrize(("engine", "wanted"), [("20.10.17", [GROUPS]), ("20.10.24+dfsg1", []), ("29.0.0", [])])
def test_engine_is_judged_by_version(engine: str, wanted: list[str]) -> None:
    assert [hole["cve"] for hole in holes.found(answer("1.3.3", engine=engine), remapped=True)] == wanted


def test_user_namespaces_contain_only_the_listed_vulnerabilities() -> None:
    found = {hole["cve"]: hole["open"] for hole in holes.found(answer("1.1.11"), remapped=True)}
    assert found == {LEAKED: True, CROSSED: False}


def test_every_vulnerability_has_a_date_and_a_program() -> None:
    for hole in holes.HOLES:
        assert date.fromisoformat(hole.date) < date(2026, 11, 30)
        assert hole.cve.startswith("CVE-") and hole.program in {"Engine", "runc"} and hole.fixed


class FakeEngine:
    def __init__(self, versions: dict[str, Any], options: list[str]) -> None:
        self.answers = {"/version": versions, "/info": {"SecurityOptions": options}}

    def get_json(self, path: str, timeout: float) -> Any:
        return self.answers[path]


@pytest.mark.parametrize(
    ("versions", "options", "states"),
    [
        (answer("1.1.11"), ["name=userns"], ["missing", "note"]),
        (answer("1.2.7"), ["name=seccomp,profile=default"], ["missing"]),
        (answer(*DEBIAN_12), ["name=userns"], ["note"]),
        (answer("1.3.3"), [], []),
    ],
)
def test_doctor_refuses_a_vulnerable_engine(
    versions: dict[str, Any], options: list[str], states: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_http, "connect", lambda _engine: FakeEngine(versions, options))
    checks = doctor.holes()
    assert [check.state for check in checks] == states
    assert all("CVE-" in check.message and check.hint for check in checks)


def tasks() -> list[dict[str, Any]]:
    every = yaml.safe_load((ROLE / "tasks/preflight.yml").read_text(encoding="utf-8"))
    return [task for task in every if "known hole" in task["name"]]


@pytest.mark.parametrize(
    ("runc", "remapped", "content", "accepted"),
    [
        (("1.1.11", ""), True, 0, False),
        (DEBIAN_12, True, 5, True),
        (DEBIAN_12, False, 0, True),
        (DEBIAN_12, False, 5, False),
        (("1.3.3", ""), False, 5, True),
    ],
    ids=["escape", "contained", "contained from now on", "content keeps it unmapped", "repaired"],
)
def test_role_refuses_a_vulnerable_engine(
    runc: tuple[str, str], remapped: bool, content: int, accepted: bool, tmp_path: Path
) -> None:
    found = {"info": {"holes": holes.found(answer(*runc), remapped)}, "content": content}
    found["settings"] = {"userns-remap": "spt-flow-remap"} if remapped else {}
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(ROLE / name) for name in ("defaults/main.yml", "vars/main/main.yml")],
        "tasks": [{"vars": {"__host_docker_found": {"engine": found}}, "block": tasks()}],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump(json.loads(json.dumps([play]))))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SPT_FLOW_", "ANSIBLE_"))}
    env["ANSIBLE_COLLECTIONS_PATH"] = str(CHECKOUT / ".ansible/collections")
    program = Path(sys.executable).parent / "ansible-playbook"
    argv = [str(program), "-i", "localhost,", "-c", "local", "play.yml"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert (done.returncode == 0) is accepted, said
    assert ("lets a workspace reach the host" in said) is not accepted
    if runc == DEBIAN_12 and remapped:
        assert "user namespaces keep it from the host" in said
