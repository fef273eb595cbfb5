# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program of the role coder_server: refused installations, switching versions, failed dumps."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "roles/coder_server/files/spt-flow-coder"


class Machine:
    """Settings below a temporary folder, and stand-in programs first on PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        self.config = {
            "minimum": "2.34.8",
            "versions": str(root / "versions"),
            "link": str(root / "bin/coder"),
            "unit": "coder",
            "units": {},
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
def test_other_release_than_requested_is_not_installed(given: dict[str, Any], sentence: str, machine: Machine) -> None:
    done = machine.install(**given)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not list(machine.root.glob("versions/**/coder"))


def test_first_version_needs_no_dump_and_a_second_run_changes_nothing(machine: Machine) -> None:
    assert machine.install("2.35.1").returncode == 0
    first, again = (json.loads(machine.run("activate", "2.35.1").stdout) for _ in range(2))
    assert (first["changed"], again["changed"]) == (True, False)
    assert (machine.bin / "coder").resolve().parent.name == "2.35.1"
    assert not (machine.root / "dumps").exists()


def test_failed_dump_keeps_the_old_version_running(machine: Machine) -> None:
    log = machine.root / "systemctl.log"
    machine.program("systemctl", f"echo $1 >> {log}")
    for version in ("2.35.1", "2.36.0"):
        assert machine.install(version).returncode == 0
    machine.run("activate", "2.35.1")
    machine.program("pg_dump", "echo broken >&2; exit 1")
    done = machine.run("activate", "2.36.0")
    assert done.returncode == 1 and "Cannot dump the database: broken" in done.stderr
    assert (machine.bin / "coder").resolve().parent.name == "2.35.1"
    assert log.read_text().split() == ["stop", "start"]
    assert list((machine.root / "dumps").iterdir()) == []


def test_dump_is_private_old_dumps_are_deleted_and_the_metric_is_written(machine: Machine) -> None:
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


def test_external_database_uses_the_environment_and_no_password_argument(machine: Machine) -> None:
    machine.program("pg_dump", 'echo "$PGUSER $PGPASSWORD $PGHOST $PGDATABASE / $*"')
    made = Path(json.loads(machine.run("dump").stdout)["dump"])
    assert made.read_text() == "u secret db coder / --format=custom\n"


def test_rollback_without_an_upgrade_is_refused(machine: Machine) -> None:
    done = machine.run("rollback")
    assert done.returncode == 1 and "no upgrade on this machine" in done.stderr


def test_interrupted_rollback_keeps_its_first_dump(machine: Machine) -> None:
    """Data since the upgrade is dumped once, because later the database may hold the old data."""
    machine.program("systemctl", "exit 0")
    for version in ("2.35.1", "2.36.0"):
        assert machine.install(version).returncode == 0
    assert machine.run("activate", "2.36.0").returncode == 0
    dumps = machine.root / "dumps"
    dumps.mkdir()
    (dumps / "before").touch()
    kept_by_upgrade = {"version": "2.35.1", "dump": str(dumps / "before")}
    (machine.root / "coder-previous.json").write_text(json.dumps(kept_by_upgrade), encoding="utf-8")
    machine.program("psql", "kill -9 $PPID")
    assert machine.run("rollback").returncode == -9
    (kept,) = dumps.glob("coder-before-rollback-*.dump")
    machine.program("psql", "echo refused >&2; exit 3")
    done = machine.run("rollback")
    assert done.returncode == 1 and "psql ended with 3: refused" in done.stderr
    assert list(dumps.glob("coder-before-rollback-*.dump")) == [kept]
    assert (machine.bin / "coder").resolve().parent.name == "2.36.0"


def test_restore_is_one_transaction_of_a_complete_script(machine: Machine) -> None:
    log = machine.root / "psql.log"
    machine.program("psql", f'echo "$@" >> {log}; cat >> {log}')
    machine.program("pg_restore", '[ "$1" = --list ] || { echo "SELECT 1;"; exit "${BROKEN:-0}"; }')
    (machine.root / "dumps").mkdir()
    dump = machine.root / "dumps/one.dump"
    dump.touch()
    assert machine.run("restore", str(dump)).returncode == 0
    said = log.read_text()
    assert said.startswith("-Xq1 --set=ON_ERROR_STOP=1") and said.endswith("SELECT 1;\n") and "secret" not in said
    log.unlink()
    machine.program("pg_restore", '[ "$1" = --list ] || { echo "SELECT 1;"; echo cut >&2; exit 1; }')
    done = machine.run("restore", str(dump))
    assert done.returncode == 1 and f"Cannot read the dump {dump}: cut" in done.stderr
    assert not log.exists(), "nothing was restored"


@pytest.mark.parametrize(("number", "ends"), [("120011", 1), ("130000", 0), ("170002", 0)])
def test_outdated_database_is_refused(number: str, ends: int, machine: Machine) -> None:
    machine.program("psql", f"echo {number}")
    done = machine.run("database")
    assert done.returncode == ends
    assert ends == 0 or "Coder needs PostgreSQL 13 or newer, but the server has 12" in done.stderr


def test_unit_older_than_its_files_is_reported(machine: Machine) -> None:
    old, new = machine.root / "old", machine.root / "new"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    units = {"coder": [str(old), str(machine.root / "none")], "caddy": [str(new)]}
    (machine.root / "coder.json").write_text(json.dumps({**machine.config, "units": units}), encoding="utf-8")
    machine.program("systemctl", "echo 1")
    assert json.loads(machine.run("state").stdout) == {"changed": False, "version": "", "stale": ["caddy"]}
    machine.program("systemctl", "echo 0")
    assert json.loads(machine.run("state").stdout)["stale"] == [], "a stopped unit starts with them"


# As a container


def test_image_is_added_as_a_version(machine: Machine) -> None:
    log = machine.root / "docker.log"
    machine.program(
        "docker",
        f'echo "$*" >> {log}\ncase "$1" in image) echo sha256:1234;; run) echo \'Coder v2.35.1+abc\';; esac',
    )
    done = machine.run("image", "ghcr.io/coder/coder@sha256:abc", "2.35.1")
    assert json.loads(done.stdout)["version"] == "2.35.1-container", done.stderr
    launcher = (machine.root / "versions/2.35.1-container/coder").read_text()
    assert launcher.endswith('spt-flow-coder-container sha256:1234 "$@"\n')
    asked = log.read_text()
    assert "pull --quiet -- ghcr.io/coder/coder@sha256:abc" in asked
    assert "--entrypoint=/opt/coder sha256:1234 version" in asked
    for words in ("--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=host"):
        assert words in asked
    assert "privileged=" not in asked.replace("no-new-privileges", "") and "--name" not in asked


def test_image_archive_with_another_checksum_is_not_loaded(machine: Machine) -> None:
    machine.program("docker", f"touch {machine.root}/asked")
    archive = machine.root / "image.tar"
    archive.touch()
    done = machine.run("image", "coder:x", "2.35.1", str(archive), "0" * 64)
    assert done.returncode == 1 and "expected was 000" in done.stderr
    assert not (machine.root / "asked").exists()


def test_container_gets_settings_by_name_and_notifies_systemd(tmp_path: Path) -> None:
    """Values of coder.env are in no argument; a leftover container is removed first."""
    log, place = tmp_path / "docker.log", tmp_path / "notify"
    binary = tmp_path / "bin"
    binary.mkdir()
    docker = binary / "docker"
    docker.write_text(
        f'#!/bin/sh\necho "$*" >> {log}\n[ "$1" = rm ] || {{ trap "exit 7" INT; while :; do sleep 0.1; done; }}\n'
    )
    docker.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, health_server() as port:
        channel.bind(str(place))
        channel.settimeout(20)
        env = {
            "PATH": f"{binary}:{os.environ['PATH']}",
            "NOTIFY_SOCKET": str(place),
            "CODER_HTTP_ADDRESS": f"0.0.0.0:{port}",
            "CODER_PG_CONNECTION_URL": "postgres://u:secret@db/coder",
            "OTHER": "x",
        }
        # Background jobs of a shell, such as a whole test run, ignore SIGINT, and children inherit that.
        command = ["env", "--default-signal=INT", sys.executable, f"{PROGRAM}-container", "sha256:1", "server", "--x"]
        child = subprocess.Popen(command, env=env)
        assert channel.recv(100) == b"READY=1"
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 7
    first, second = log.read_text().splitlines()
    assert first == "rm --force spt-flow-coder"
    assert second.endswith("--name=spt-flow-coder --entrypoint=/opt/coder sha256:1 server --x")
    assert "--env=CODER_PG_CONNECTION_URL " in second and "secret" not in second and "OTHER" not in second


@contextmanager
def health_server() -> Iterator[int]:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
