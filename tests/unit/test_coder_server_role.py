# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program of the role coder_server: what it refuses to install, the switch of versions, a dump that failed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "roles/coder_server/files/spt-flow-coder"


class Machine:
    """Settings below a folder of the test, and programs of its own in front of the PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        self.config = {
            "minimum": "2.34.8",
            "versions": str(root / "versions"),
            "link": str(root / "bin/coder"),
            "unit": "coder",
            "settings": [],
            "health": "http://127.0.0.1:9",
            "dumps": str(root / "dumps"),
            "keep_days": 7,
            "textfile": str(root),
            "database": "postgres://u:secret@db/coder",
        }
        (root / "coder.json").write_text(json.dumps(self.config), encoding="utf-8")
        self.program("pg_dump", "echo data")
        self.program("pg_restore", "exit 0")

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    def release(self, version: str) -> Path:
        inner = self.program("release", f"echo 'Coder v{version}+abc Tue Jan 1'")
        path = self.root / f"coder_{version}_linux_amd64.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(inner, "./coder")
        return path

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "SPT_FLOW_CODER_CONFIG": str(self.root / "coder.json"),
        }
        return subprocess.run(
            [sys.executable, str(PROGRAM), *argv], env=env, capture_output=True, text=True, timeout=30
        )

    def install(self, version: str, wanted: str = "", sha256: str = "") -> subprocess.CompletedProcess[str]:
        source = self.release(version)
        right = hashlib.sha256(source.read_bytes()).hexdigest()
        return self.run("install", str(source), sha256 or right, wanted or version)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"version": "2.35.1", "sha256": "0" * 64}, "expected was 000"),
        ({"version": "2.34.7"}, "Coder 2.34.7 is older than 2.34.8, which has security fixes"),
        ({"version": "2.35.1", "wanted": "2.36.0"}, "is Coder 2.35.1, but 2.36.0 is wanted"),
    ],
    ids=["checksum", "too old", "another version"],
)
def test_what_is_not_the_release_that_was_asked_for_is_not_installed(
    given: dict[str, Any], sentence: str, machine: Machine
) -> None:
    done = machine.install(**given)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not list(machine.root.glob("versions/**/coder"))


def test_a_first_version_is_switched_to_without_a_dump_and_a_second_time_is_no_change(machine: Machine) -> None:
    assert machine.install("2.35.1").returncode == 0
    first, again = (json.loads(machine.run("activate", "2.35.1").stdout) for _ in range(2))
    assert (first["changed"], again["changed"]) == (True, False)
    assert (machine.bin / "coder").resolve().parent.name == "2.35.1"
    assert not (machine.root / "dumps").exists()


def test_an_upgrade_whose_dump_fails_leaves_the_old_version_running(machine: Machine) -> None:
    log = machine.root / "systemctl.log"
    machine.program("systemctl", f"echo $1 >> {log}")
    for version in ("2.35.1", "2.36.0"):
        assert machine.install(version).returncode == 0
    machine.run("activate", "2.35.1")
    machine.program("pg_dump", "echo broken >&2; exit 1")
    done = machine.run("activate", "2.36.0")
    assert done.returncode == 1 and "Dumping the database failed: broken" in done.stderr
    assert (machine.bin / "coder").resolve().parent.name == "2.35.1"
    assert log.read_text().split() == ["stop", "start"]
    assert list((machine.root / "dumps").iterdir()) == []


def test_a_dump_is_private_old_ones_go_and_the_metric_tells_its_time(machine: Machine) -> None:
    dumps = machine.root / "dumps"
    dumps.mkdir()
    for name in ("coder-daily-old.dump", "coder-before-2.36.0-old.dump"):
        (dumps / name).touch()
        os.utime(dumps / name, (0, 0))
    made = Path(json.loads(machine.run("dump").stdout)["dump"])
    assert stat.S_IMODE(made.stat().st_mode) == 0o600 and made.read_text() == "data\n"
    assert {one.name for one in dumps.iterdir()} == {made.name, "coder-before-2.36.0-old.dump"}
    assert (
        f"spt_flow_coder_dump_seconds {int(made.stat().st_mtime)}" in (machine.root / "spt_flow_coder.prom").read_text()
    )


def test_an_external_database_is_named_by_environment_and_its_password_is_in_no_argument(machine: Machine) -> None:
    machine.program("pg_dump", 'echo "$PGUSER $PGPASSWORD $PGHOST $PGDATABASE / $*"')
    made = Path(json.loads(machine.run("dump").stdout)["dump"])
    assert made.read_text() == "u secret db coder / --format=custom\n"


def test_going_back_without_an_upgrade_is_refused(machine: Machine) -> None:
    done = machine.run("rollback")
    assert done.returncode == 1 and "no upgrade on this machine" in done.stderr
