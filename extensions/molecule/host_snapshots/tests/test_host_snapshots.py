# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node does after host_snapshots: volumes are stored, come back equal, and what is lost or old is a failure."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

PROGRAM = "/usr/local/lib/spt-flow/spt-flow-snapshots"
STATUS = "/var/lib/spt-flow/snapshots/status.json"
VOLUME = "spt-flow-mo-lecule-home"
FILL = (
    "mkdir -p src && head -c 300000 /dev/urandom >src/data && echo kept >src/file && ln -s /etc way-out &&"
    " printf 'odd' >'odd *[x]? name' && chown -R -h 1001000:1001000 . && chmod 0750 src && chown 1000000 src/data"
)
"""A home as a remapped workspace leaves it."""
TELL = "find . -printf '%p %y %m %U:%G %l\\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum"


def home(host, volume: str) -> str:  # type: ignore[no-untyped-def]
    return host.check_output("docker volume inspect --format '{{.Mountpoint}}' %s", volume)


def tell(host, volume: str) -> str:  # type: ignore[no-untyped-def]
    """Names, kinds, modes, numeric owners, links and content."""
    return host.check_output(f"cd {home(host, volume)} && {TELL}")


@pytest.fixture(scope="module")
def volume(host) -> Iterator[str]:  # type: ignore[no-untyped-def]
    host.check_output("docker volume create --label spt.flow.owner=mo --label spt.flow.repo=h/o/r %s", VOLUME)
    host.check_output(f"cd %s && {FILL}", home(host, VOLUME))
    host.check_output("systemctl start spt-flow-snapshots")
    yield VOLUME
    host.run("docker volume ls --quiet --filter name=spt-flow-mo- | xargs docker volume rm")


def test_timers_catch_up_on_missed_runs(host) -> None:  # type: ignore[no-untyped-def]
    for unit in ("spt-flow-snapshots", "spt-flow-snapshots-verify", "spt-flow-snapshots-status"):
        timer = host.service(f"{unit}.timer")
        assert timer.is_enabled
        assert timer.is_running
        assert host.check_output(f"systemctl show --property Persistent --value {unit}.timer") == "yes"


def test_only_root_can_read_password_and_settings(host) -> None:  # type: ignore[no-untyped-def]
    for path in ("/etc/spt-flow/snapshots.password", "/etc/spt-flow/snapshots.json"):
        assert host.file(path).mode == 0o600
        assert host.file(path).user == "root"
    password = host.file("/etc/spt-flow/snapshots.password").content_string.strip()
    assert len(password) >= 32
    assert password not in host.check_output("journalctl --no-pager -o cat | tail -n 5000")


def test_timer_service_stores_a_volume(host, volume: str) -> None:  # type: ignore[no-untyped-def]
    assert json.loads(host.file(STATUS).content_string)["volumes"][volume]["last_good"]
    (stored,) = json.loads(host.check_output(f"{PROGRAM} --json list {volume}"))["snapshots"]
    assert stored["good"]
    assert host.run("systemctl start spt-flow-snapshots-verify").succeeded
    assert host.run("systemctl start spt-flow-snapshots-status").succeeded


def test_one_file_is_restored_next_to_the_others(host, volume: str) -> None:  # type: ignore[no-untyped-def]
    where = home(host, volume)
    before = host.check_output("sha256sum <%s", f"{where}/src/data")
    host.check_output("echo spoilt >%s", f"{where}/src/data")
    path = json.loads(host.check_output(f"{PROGRAM} --json restore {volume} --path src/data"))["path"]
    assert host.check_output("sha256sum <%s", f"{where}/{path}") == before
    assert host.check_output("stat --format %%u:%%g %s", f"{where}/{path}") == "1000000:1001000"
    assert host.file(f"{where}/src/data").content_string == "spoilt\n"
    host.check_output("mv -- %s %s", f"{where}/{path}", f"{where}/src/data")
    for outside in ("../../etc/passwd", "way-out/passwd", "/etc/passwd"):
        assert host.run(f"{PROGRAM} restore {volume} --path %s", outside).failed


def test_lost_volume_is_restored_with_owners_and_labels(host, volume: str) -> None:  # type: ignore[no-untyped-def]
    host.check_output("systemctl start spt-flow-snapshots")
    before = tell(host, volume)
    host.check_output("docker volume rm %s", volume)
    assert json.loads(host.check_output(f"{PROGRAM} --json restore {volume}"))["into"] == volume
    assert tell(host, volume) == before
    label = '{{index .Labels "spt.flow.repo"}}'
    assert host.check_output("docker volume inspect --format %s %s", label, volume) == "h/o/r"


def test_one_changed_byte_in_the_repository_is_detected(host, volume: str) -> None:  # type: ignore[no-untyped-def]
    repository = json.loads(host.file("/etc/spt-flow/snapshots.json").content_string)["repository"]
    pack = host.check_output(
        "find %s -type f -printf '%%s %%p\\n' | sort -n | tail -n 1", f"{repository}/data"
    ).split()[1]
    host.check_output("cp -a -- %s /root/pack", pack)
    flip = "import sys; f=open(sys.argv[1],'r+b'); f.seek(4096); b=f.read(1); f.seek(4096); f.write(bytes([b[0]^1]))"
    host.check_output("chmod u+w %s && python3 -c %s %s", pack, flip, pack)
    try:
        assert host.run("systemctl start spt-flow-snapshots-verify").failed
        assert host.run("systemctl start spt-flow-snapshots-status").failed
        said = host.check_output("journalctl -u spt-flow-snapshots-status --no-pager -o cat")
        assert "The last verification failed" in said
    finally:
        host.check_output("mv -f /root/pack %s", pack)
    assert host.run("systemctl start spt-flow-snapshots-verify").succeeded
    assert host.run("systemctl start spt-flow-snapshots-status").succeeded


def test_old_snapshot_fails_the_status_unit(host, volume: str) -> None:  # type: ignore[no-untyped-def]
    edit = f"import json,sys; s=json.load(open(sys.argv[1])); s['volumes']['{volume}']['last_good']-=97200;"
    edit += "json.dump(s,open(sys.argv[1],'w'))"
    host.check_output("python3 -c %s %s", edit, STATUS)
    assert host.run("systemctl start spt-flow-snapshots-status").failed
    assert "27 h old" in host.check_output("journalctl -u spt-flow-snapshots-status --no-pager -o cat")
    host.check_output("systemctl start spt-flow-snapshots")
    assert host.run("systemctl start spt-flow-snapshots-status").succeeded
