# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The result of coder_server and the operator's tasks: proxy, dumps, upgrade, rollback, server in a container.

Tests run in the order of the file; each test leaves the server as it found it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[4]
FOLDER = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
PROGRAM = "/usr/local/lib/spt-flow/spt-flow-coder"
DUMPS = "/var/backups/spt-flow-coder"
NEWER = "2.35.99"
ALWAYS = "flow_business_hours=00:00-24:00"


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """What the machine got: version, programs, and its address."""
    read = json.loads((FOLDER / "server.json").read_text())
    (address,) = read.pop("addresses").values()
    return {**read, "address": address}


def play(playbook: str, *more: str) -> tuple[int, str]:
    """Status and words, as one line."""
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / ".ansible/collections"),
        "ANSIBLE_STDOUT_CALLBACK": "default",
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_NOCOLOR": "1",
    }
    argv = ["ansible-playbook", str(CHECKOUT / playbook), "-i", os.environ["MOLECULE_INVENTORY_FILE"], *more]
    done = subprocess.run(argv, cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=900, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def run_role(*values: str, more: tuple[str, ...] = ()) -> tuple[int, str]:
    return play("playbooks/coder_server.yml", *(word for value in values for word in ("-e", value)), *more)


def program(host: Any, *words: str) -> dict[str, Any]:
    return dict(json.loads(host.check_output(shlex.join([PROGRAM, *words]))))


def until(look: Any, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it took too long"
        time.sleep(1)


def sql(host: Any, text: str) -> str:
    return str(host.check_output("runuser -u coder -- psql -XtAqc %s", text))


def newer(found: dict[str, str]) -> list[str]:
    """Another version, which is the same program under another name, as only one is at hand."""
    script = FOLDER / "newer"
    words = ('[ "$1" != version ] || { echo "Coder v2.35.99+test"; exit; }', f'exec {home(found)} "$@"')
    script.write_text("\n".join(("#!/bin/sh", *words, "")))
    sha256 = hashlib.sha256(script.read_bytes()).hexdigest()
    return [f"coder_server_version={NEWER}", f"coder_server_source={script}", f"coder_server_sha256={sha256}"]


def home(found: dict[str, str]) -> str:
    return f"/usr/local/lib/spt-flow/coder/{found['version']}/coder"


# As it is


def test_server_runs_and_reports_its_version(host, found: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    unit = host.service("coder")
    assert unit.is_running and unit.is_enabled
    assert program(host, "health")["version"].startswith(f"v{found['version']}")
    process = host.check_output("systemctl show --value --property=MainPID coder")
    assert host.check_output(f"stat --format=%U /proc/{process}") == "coder"


def test_settings_are_private_and_contact_no_outside_service(host, found: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    file = host.file("/etc/coder.d/coder.env")
    assert (file.mode, file.user) == (0o640, "root")
    values = dict(line.split("=", 1) for line in file.content_string.splitlines() if line.startswith("CODER_"))
    assert values["CODER_ACCESS_URL"] == f'"https://{found["address"]}"'
    assert values["CODER_DERP_SERVER_STUN_ADDRESSES"] == '"disable"'
    for name in ("CODER_TELEMETRY_ENABLE", "CODER_UPDATE_CHECK"):
        assert values[name] == '"false"'


def test_unit_is_the_packages_with_a_drop_in(host) -> None:  # type: ignore[no-untyped-def]
    said = host.check_output("systemctl show --property=DropInPaths,ExecStart,TimeoutStartUSec coder")
    assert "/etc/systemd/system/coder.service.d/spt-flow.conf" in said
    assert "argv[]=/usr/local/bin/coder server" in said and "TimeoutStartUSec=15min" in said


UPGRADE = (
    "GET /derp HTTP/1.1",
    "Host: {host}",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Protocol: derp",
    "Sec-WebSocket-Key: {key}",
    "",
    "",
)


def test_caddy_serves_tls_and_passes_websockets(host, found: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    """Only Caddy's own authority is trusted; the relay's first message arrives."""
    root = host.file("/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt").content_string
    context = ssl.create_default_context(cadata=root)
    key = base64.b64encode(b"0123456789abcdef").decode()
    with (
        socket.create_connection((found["address"], 443), 20) as line,
        context.wrap_socket(line, server_hostname=found["address"]) as connection,
    ):
        connection.sendall("\r\n".join(UPGRADE).format(host=found["address"], key=key).encode())
        said = b""
        while not said.partition(b"\r\n\r\n")[2]:
            more = connection.recv(1000)
            assert more, said
            said += more
    accepted = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()  # noqa: S324
    assert said.startswith(b"HTTP/1.1 101") and base64.b64encode(accepted) in said
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"https://{found['address']}/healthz", timeout=20)
    assert host.check_output("systemctl show --value --property=User caddy") == "caddy"


def test_builds_use_providers_from_the_mirror_only(host, found: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    """Without a network, as the server's user and with its settings; nothing else could be asked anyway."""
    assert "direct" not in host.file("/etc/coder.d/terraformrc").content_string
    if not found["terraform"]:
        pytest.skip("no Terraform and providers on this machine")
    host.check_output("cp -r /etc/coder.d/providers /tmp/init && chown -R coder /tmp/init")
    init = (
        "cd /tmp/init && TF_CLI_CONFIG_FILE=/etc/coder.d/terraformrc"
        " terraform init -input=false -no-color -lockfile=readonly"
    )
    said = host.check_output(f"unshare --net -- runuser -u coder -- sh -c {shlex.quote(init)}")
    assert "successfully initialized" in said
    host.check_output("rm -r /tmp/init")


# Dumps


def test_daily_dump_is_private_and_readable(host) -> None:  # type: ignore[no-untyped-def]
    assert host.service("spt-flow-coder-dump.timer").is_enabled
    host.check_output("systemctl start spt-flow-coder-dump.service")
    (path,) = host.check_output(f"ls -t {DUMPS}/coder-daily-*.dump").split()[:1]
    assert host.file(path).mode == 0o600 and host.file(DUMPS).mode == 0o700
    assert "dumped from database version" in host.check_output(f"pg_restore --list {path}").lower()
    assert "spt_flow_coder_dump_bytes" in host.file("/run/spt_flow_coder.prom").content_string


def test_expired_dumps_are_removed_with_the_next_dump(host) -> None:  # type: ignore[no-untyped-def]
    for name, age in (("daily-old", 8), ("daily-young", 6), ("before-1.0.0-old", 80)):
        host.check_output(f"touch --date='{age} days ago' {DUMPS}/coder-{name}.dump")
    host.check_output("systemctl start spt-flow-coder-dump.service")
    left = host.check_output(f"ls {DUMPS}")
    assert "daily-old" not in left and "daily-young" in left and "before-1.0.0-old" in left
    host.check_output(f"rm {DUMPS}/coder-daily-young.dump {DUMPS}/coder-before-1.0.0-old.dump")


def test_restore_is_complete_and_a_failed_one_changes_nothing(host) -> None:  # type: ignore[no-untyped-def]
    sql(host, "create table flow_test (word text); insert into flow_test values ('kept')")
    dump = program(host, "dump")["dump"]
    sql(host, "update flow_test set word = 'lost'")
    host.check_output("systemctl stop coder")
    host.check_output(f"head -c -200 {dump} >{DUMPS}/broken.dump")
    broken = host.run(f"{PROGRAM} restore {DUMPS}/broken.dump")
    assert broken.rc == 1 and "Traceback" not in broken.stderr and f"{DUMPS}/broken.dump" in broken.stderr
    assert sql(host, "select word from flow_test") == "lost"
    for _twice in range(2):
        program(host, "restore", dump)
        assert sql(host, "select word from flow_test") == "kept"
    host.check_output("systemctl start coder")
    program(host, "health")
    sql(host, "drop table flow_test")
    host.check_output(f"rm {DUMPS}/broken.dump")


# Refusals


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (("coder_server_access_url=",), "coder_server_access_url ('') is not an http or https URL"),
        (
            ("coder_server_version=2.34.7",),
            "coder_server_version 2.34.7 lacks security fixes",
        ),
        (
            ("coder_server_image=ghcr.io/coder/coder:latest", "coder_server_source="),
            "coder_server_image (ghcr.io/coder/coder:latest) has no digest",
        ),
        (("coder_server_access_url=http://x.test",), "coder_server_access_url (http://x.test) is not an https URL"),
    ],
    ids=["no access URL", "too old", "an image without digest", "a proxy without TLS"],
)
def test_invalid_values_are_refused_before_any_change(values: tuple[str, ...], sentence: str) -> None:
    status, said = run_role(*values)
    assert status == 2 and sentence in said and "changed=0" in said


def test_release_with_a_wrong_checksum_is_not_installed(host, found: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    version, source, _sum = newer(found)
    status, said = run_role(version, source, f"coder_server_sha256={'0' * 64}")
    assert status == 2 and f"expected was {'0' * 64}. Download it again." in said
    assert NEWER not in host.check_output("ls /usr/local/lib/spt-flow/coder")
    assert program(host, "state")["version"] == found["version"]


# Upgrade and rollback


def test_upgrade_waits_for_the_window_dumps_first_and_can_be_rolled_back(  # type: ignore[no-untyped-def]
    host, found: dict[str, str]
) -> None:
    sql(host, "create table flow_test (word text); insert into flow_test values ('before')")
    values = newer(found)
    status, said = run_role(*values, more=("--check",))
    assert status == 0 and f"would go from {found['version']} to {NEWER}" in said
    status, said = run_role(*values, ALWAYS)
    assert status == 0 and "update Coder on" in said and NEWER in said
    assert program(host, "state")["version"] == found["version"]
    status, said = run_role(*values, ALWAYS, "flow_maintenance_now=true")
    assert status == 0, said
    assert program(host, "state")["version"] == NEWER and host.service("coder").is_running
    sql(host, "update flow_test set word = 'since'")
    status, said = play("playbooks/rollback.yml")
    assert status == 2 and "pass -e confirm=true" in said
    status, said = play("playbooks/rollback.yml", "-e", "confirm=true")
    assert status == 0, said
    assert program(host, "state")["version"] == found["version"] and host.service("coder").is_running
    assert sql(host, "select word from flow_test") == "before"
    # What was stored since the upgrade is in a dump of its own.
    kept = host.check_output(f"ls {DUMPS}/coder-before-rollback-*.dump")
    assert "since" in host.check_output(f"pg_restore --data-only --table flow_test --file=- {kept}")
    status, said = play("playbooks/rollback.yml", "-e", "confirm=true")
    assert status == 2 and "there was no upgrade on this machine" in said
    sql(host, "drop table flow_test")
    host.check_output(f"rm -r /usr/local/lib/spt-flow/coder/{NEWER} {DUMPS}/coder-before-*")
    assert run_role()[0] == 0


def test_interrupted_rollback_is_resumed(host, found: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    """Killed at moments of its own choice; what it had dumped is not overwritten by what it has restored."""
    status, said = run_role(*newer(found))
    assert status == 0, said
    sql(host, "create table flow_test (word text); insert into flow_test values ('since')")
    for seconds in (0.5, 1, 2, 4):
        host.run(f"timeout --signal=KILL {seconds} {PROGRAM} rollback")
    if program(host, "state")["version"] != found["version"] or host.file("/etc/spt-flow/coder-previous.json").exists:
        program(host, "rollback")
    assert program(host, "health")["version"].startswith(f"v{found['version']}")
    kept = host.check_output(f"ls {DUMPS}/coder-before-rollback-*.dump").split()
    assert any("since" in host.run(f"pg_restore --data-only --table flow_test --file=- {one}").stdout for one in kept)
    host.check_output(f"rm -r /usr/local/lib/spt-flow/coder/{NEWER} {DUMPS}/coder-before-*")


# Death


def test_server_restarts_after_a_crash(host) -> None:  # type: ignore[no-untyped-def]
    before = host.check_output("systemctl show --value --property=MainPID coder")
    host.check_output(f"kill -9 {before}")
    until(lambda: host.run(f"{PROGRAM} health").rc == 0 and host.service("coder").is_running)
    assert host.check_output("systemctl show --value --property=MainPID coder") != before


# As a container


@pytest.fixture
def archive(host, found: dict[str, str]) -> list[str]:  # type: ignore[no-untyped-def]
    """An image that is like Coder's own: the program at its place, and what this machine has."""
    folder = "/var/tmp/image"  # noqa: S108
    host.check_output(f"install -D {home(found)} {folder}/opt/coder && install -d -m 1777 {folder}/tmp")  # noqa: S108
    tops = "bin lib lib64 usr/bin usr/lib usr/lib64 usr/local/bin/terraform etc/ssl etc/ssh etc/ld.so.cache"
    host.check_output(
        f"tar c --ignore-failed-read -C / {tops} -C {folder} opt tmp | docker import - coder/coder:test"
        f" && docker save --output {folder}.tar coder/coder:test && docker rmi coder/coder:test && rm -r {folder}"
    )
    local = FOLDER / "image-coder.tar"
    name = os.environ.get("SPT_FLOW_MACHINES", "spt-flow-molecule") + "-coder_server"
    subprocess.run(["docker", "cp", "--quiet", f"{name}:{folder}.tar", str(local)], check=True)
    host.check_output(f"rm {folder}.tar")
    sha256 = hashlib.sha256(local.read_bytes()).hexdigest()
    return ["coder_server_image=coder/coder:test", f"coder_server_source={local}", f"coder_server_sha256={sha256}"]


def test_container_runs_restarts_and_can_be_rolled_back(host, found: dict[str, str], archive: list[str]) -> None:  # type: ignore[no-untyped-def]
    sql(host, "create table flow_test (word text); insert into flow_test values ('before')")
    status, said = run_role(*archive)
    assert status == 0, said
    assert program(host, "state")["version"] == f"{found['version']}-container"
    assert program(host, "health")["version"].startswith(f"v{found['version']}")
    about = "{{.Config.User}} {{.HostConfig.NetworkMode}} {{.HostConfig.Privileged}}"
    look = host.check_output("docker inspect --format %s spt-flow-coder", about)
    user = host.check_output("id --user coder")
    assert look.startswith(f"{user}:") and look.endswith("host false")
    status, said = run_role(*archive)
    assert status == 0 and "changed=0" in said, said
    process = host.check_output("systemctl show --value --property=MainPID coder")
    host.check_output(f"kill -9 {process}")
    until(lambda: host.run(f"{PROGRAM} health").rc == 0 and host.service("coder").is_running)
    status, said = play("playbooks/rollback.yml", "-e", "confirm=true")
    assert status == 0, said
    assert program(host, "state")["version"] == found["version"]
    assert host.check_output("docker ps --quiet --all --filter name=spt-flow-coder") == ""
    assert sql(host, "select word from flow_test") == "before"
    sql(host, "drop table flow_test")


def test_caddy_is_stopped_when_disabled(host, found: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    url = f"coder_server_access_url=http://{found['address']}:3000"
    status, said = run_role(url, "coder_server_caddy=disabled", "coder_server_address=0.0.0.0:3000")
    assert status == 0, said
    assert not host.service("caddy").is_running and not host.service("caddy").is_enabled
    assert program(host, "health")["version"]
    status, said = run_role()
    assert status == 0, said
    assert host.service("caddy").is_running
