# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What coder_server leaves: a server that answers and reaches out to nobody, its dump, an upgrade and the way back."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

PROGRAM = "/usr/local/lib/spt-flow/spt-flow-coder"
URL = "http://127.0.0.1:3000"


def fake(host: Any) -> bool:
    return "+fake" in host.check_output("/usr/local/bin/coder version")


def ask(host: Any, path: str, method: str = "GET") -> Any:
    """The server's answer to the token that bootstrap made for its template's user."""
    lines = (
        "import json, urllib.request as u",
        "token = open('/etc/spt-flow/coder.token').read().strip()",
        f"request = u.Request('{URL}/api/v2{path}', headers={{'Coder-Session-Token': token}}, method='{method}')",
        "print(u.urlopen(request).read().decode())",
    )
    return json.loads(host.check_output(f"python3 -c {shlex.quote(chr(10).join(lines))}"))


def templates(host: Any) -> dict[str, str]:
    """Ids by name."""
    return {one["name"]: one["id"] for one in ask(host, "/templates")}


def until(look: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it took too long"
        time.sleep(1)


def test_the_server_runs_and_says_its_version(host) -> None:  # type: ignore[no-untyped-def]
    unit = host.service("coder")
    assert unit.is_running and unit.is_enabled
    said = json.loads(host.check_output(f"{PROGRAM} health"))
    assert said["version"].startswith("v2.35.1")
    process = host.check_output("systemctl show --value --property=MainPID coder")
    assert host.check_output(f"stat --format=%U /proc/{process}") == "coder"


def test_its_settings_reach_out_to_nobody_and_are_its_own(host) -> None:  # type: ignore[no-untyped-def]
    file = host.file("/etc/coder.d/coder.env")
    assert (file.mode, file.user) == (0o640, "root")
    text = file.content_string
    wanted = ("CODER_ACCESS_URL", "CODER_TELEMETRY_ENABLE", "CODER_UPDATE_CHECK", "CODER_DERP_SERVER_STUN_ADDRESSES")
    values = dict(line.split("=", 1) for line in text.splitlines() if line.startswith("CODER_"))
    assert values[wanted[0]].startswith('"http://')
    assert [values[name] for name in wanted[1:]] == ['"false"', '"false"', '"disable"']


def test_its_templates_are_there_and_its_reapers_run(host) -> None:  # type: ignore[no-untyped-def]
    assert set(templates(host)) == {"spt-flow", "spt-flow-ci"}
    for name in ("spt-flow-reaper", "spt-flow-coder-reaper"):
        assert host.service(f"{name}.timer").is_enabled
        host.check_output(f"systemctl start {name}.service")
    for name in ("coder.token", "reaper.token"):
        assert host.file(f"/etc/spt-flow/{name}").mode == 0o600


def test_a_dump_is_made_every_day_and_can_be_read(host) -> None:  # type: ignore[no-untyped-def]
    assert host.service("spt-flow-coder-dump.timer").is_enabled
    host.check_output("systemctl start spt-flow-coder-dump.service")
    (path,) = host.check_output("ls -t /var/backups/spt-flow-coder/coder-daily-*.dump").split()[:1]
    assert host.file(path).mode == 0o600
    tables = host.check_output(f"pg_restore --list {path}")
    assert fake(host) or "workspaces" in tables
    assert "spt_flow_coder_dump_bytes" in host.file("/run/spt_flow_coder.prom").content_string


def test_an_upgrade_dumps_first_and_its_way_back_brings_version_and_data(host) -> None:  # type: ignore[no-untyped-def]
    """The newer version is the same program under another name, as only one is at hand."""
    begun = json.loads(host.check_output(f"{PROGRAM} state"))["version"]
    program = host.file("/usr/local/bin/coder").linked_to
    words = ('[ "$1" != version ] || { echo "Coder v2.35.99+test"; exit; }', f'exec {program} "$@"')
    lines = " ".join(shlex.quote(line) for line in ("#!/bin/sh", *words))
    host.check_output(f"printf '%s\\n' {lines} >/var/tmp/newer")
    digest = host.check_output("sha256sum /var/tmp/newer").split()[0]
    wrong = host.run(f"{PROGRAM} install /var/tmp/newer {'0' * 64} 2.35.99")
    assert wrong.rc == 1 and digest in wrong.stderr, "a wrong sum installs nothing"
    host.check_output(f"{PROGRAM} install /var/tmp/newer {digest} 2.35.99")
    done = json.loads(host.check_output(f"{PROGRAM} activate 2.35.99"))
    assert done["previous"] == begun and host.file(done["dump"]).size > 0
    assert host.service("coder").is_running
    ask(host, f"/templates/{templates(host)['spt-flow-ci']}", "DELETE")
    assert set(templates(host)) == {"spt-flow"}
    back = json.loads(host.check_output(f"{PROGRAM} rollback"))
    assert back["restored"] == done["dump"]
    assert json.loads(host.check_output(f"{PROGRAM} state"))["version"] == begun
    until(lambda: host.service("coder").is_running)
    # What was stored since the upgrade is in the dump that was kept; the fake one keeps its data elsewhere.
    assert fake(host) or set(templates(host)) == {"spt-flow", "spt-flow-ci"}
    assert host.file(back["kept"]).size > 0
    again = host.run(f"{PROGRAM} rollback")
    assert again.rc == 1 and "no upgrade" in again.stderr


def test_the_server_comes_back_when_it_dies(host) -> None:  # type: ignore[no-untyped-def]
    before = host.check_output("systemctl show --value --property=MainPID coder")
    host.check_output(f"kill -9 {before}")
    until(lambda: host.run(f"{PROGRAM} health").rc == 0 and host.service("coder").is_running, 90)
    assert host.check_output("systemctl show --value --property=MainPID coder") != before
