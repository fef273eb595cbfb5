# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node does after host_snapshots: a volume is stored, comes back, and an old snapshot is a failure."""

from __future__ import annotations

import json

PROGRAM = "/usr/local/lib/spt-flow/spt-flow-snapshots"
HOME = "/var/lib/docker/volumes/spt-flow-mo-lecule-home/_data"


def test_timers_are_waiting(host) -> None:  # type: ignore[no-untyped-def]
    for unit in ("spt-flow-snapshots", "spt-flow-snapshots-verify", "spt-flow-snapshots-status"):
        timer = host.service(f"{unit}.timer")
        assert timer.is_enabled
        assert timer.is_running


def test_password_and_settings_are_roots_alone(host) -> None:  # type: ignore[no-untyped-def]
    for path in ("/etc/spt-flow/snapshots.password", "/etc/spt-flow/snapshots.json"):
        assert host.file(path).mode == 0o600
        assert host.file(path).user == "root"
    password = host.file("/etc/spt-flow/snapshots.password").content_string.strip()
    assert len(password) >= 32
    assert password not in host.check_output("journalctl --no-pager -o cat | tail -n 5000")


def test_the_service_stores_a_volume_that_comes_back(host) -> None:  # type: ignore[no-untyped-def]
    host.check_output(f"mkdir -p {HOME} && echo kept >{HOME}/file && chown -R 1001000:1001000 {HOME}")
    host.run("systemctl start spt-flow-snapshots")
    status = json.loads(host.file("/var/lib/spt-flow/snapshots/status.json").content_string)
    assert status["volumes"]["spt-flow-mo-lecule-home"]["last_good"]
    assert host.run("systemctl start spt-flow-snapshots-verify").succeeded
    listed = json.loads(host.check_output(f"{PROGRAM} --json list spt-flow-mo-lecule-home"))["snapshots"]
    assert listed[0]["good"]


def test_an_old_snapshot_fails_the_status_unit(host) -> None:  # type: ignore[no-untyped-def]
    path = "/var/lib/spt-flow/snapshots/status.json"
    edit = (
        "import json,sys; s=json.load(open(sys.argv[1])); s['volumes']['spt-flow-mo-lecule-home']['last_good']-=97200;"
    )
    edit += "json.dump(s,open(sys.argv[1],'w'))"
    host.check_output("python3 -c %s %s", edit, path)
    assert host.run("systemctl start spt-flow-snapshots-status").failed
    assert "27 h old" in host.check_output("journalctl -u spt-flow-snapshots-status --no-pager -o cat")
