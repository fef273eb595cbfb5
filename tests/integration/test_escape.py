# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways out of a workspace, tried as its user and as its root; none may work.

Every probe has a control that must succeed, so that none passes only because a tool is missing. What each said is
in artifacts/escape-probes.md.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils import _docker_http
from ansible_collections.spt.flow.plugins.module_utils._docker_target import DockerTarget
from ansible_collections.spt.flow.plugins.module_utils._workspace import Workspace
from ansible_collections.spt.flow.tests.integration.lab import Lab

Pair = tuple[DockerTarget, list[Workspace]]
ARTIFACT = Path(__file__).resolve().parents[2] / "artifacts" / "escape-probes.md"
CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "NET_RAW": 13,
    "SYS_CHROOT": 18,
    "AUDIT_WRITE": 29,
    "SETFCAP": 31,
}
"""All that a workspace's root may have: Docker's default without MKNOD (decision B7)."""


@dataclass(frozen=True)
class Probe:
    """``attack`` exits 0 when it got out; ``control`` exits 0 when the means are there. Root unless ``user``."""

    name: str
    attack: str
    control: str = "true"
    user: bool = False


def write(path: str, text: str = "x") -> str:
    return f"echo '{text}' > {path}"


def call(number: int, *arguments: str) -> str:
    """A system call by number; exits 0 when the kernel did it."""
    words = ", ".join(arguments)
    code = f"import ctypes; raise SystemExit(ctypes.CDLL(None).syscall({number}, {words or 0}) < 0)"
    return f"python3 -c '{code}'"


def connects(host: str, port: int | str) -> str:
    return f"timeout 3 bash -c 'exec 3<>/dev/tcp/{host}/{port}'"


PYTHON = "python3 -c 'import ctypes; ctypes.CDLL(None).syscall'"
LISTENING = (
    "python3 -m http.server 9999 --bind 127.0.0.1 >/dev/null 2>&1 & sleep 0.5;"
    " bash -c 'exec 3<>/dev/tcp/127.0.0.1/9999'; s=$?; kill $!; exit $s"
)

PROBES = (
    Probe("core_pattern", 'v=$(cat /proc/sys/kernel/core_pattern); echo "$v" > /proc/sys/kernel/core_pattern'),
    Probe(
        "core_pattern through a proc of one's own",
        "unshare -Urmpf --mount-proc sh -c"
        " 'v=$(cat /proc/sys/kernel/core_pattern); echo \"$v\" > /proc/sys/kernel/core_pattern'",
        "unshare -Ur true",
        True,
    ),
    Probe("modprobe path", 'v=$(cat /proc/sys/kernel/modprobe); echo "$v" > /proc/sys/kernel/modprobe'),
    Probe("vm settings", 'v=$(cat /proc/sys/vm/swappiness); echo "$v" > /proc/sys/vm/swappiness'),
    Probe("uevent_helper", "test -e /sys/kernel/uevent_helper && " + write("/sys/kernel/uevent_helper", "/bin/true")),
    Probe(
        "release_agent",
        "find /sys/fs/cgroup -name release_agent -exec sh -c 'echo /bin/true > \"$1\"' _ {} \\; -quit 2>/dev/null;"
        " mkdir -p /tmp/cg && mount -t cgroup -o memory cgroup /tmp/cg && echo /bin/true > /tmp/cg/release_agent",
        "test -d /sys/fs/cgroup",
    ),
    Probe(
        "cgroup limits",
        "for f in $(find /sys/fs/cgroup -name memory.limit_in_bytes -o -name memory.max -o -name pids.max | head -5);"
        " do echo -1 > $f 2>/dev/null && exit 0; echo max > $f 2>/dev/null && exit 0; done; exit 1",
        "find /sys/fs/cgroup -name 'pids.max' -o -name 'memory.max' | grep -q .",
    ),
    Probe("sysrq", "test -e /proc/sysrq-trigger && " + write("/proc/sysrq-trigger", "h")),
    Probe("kernel log", "timeout 2 head -c 1 /dev/kmsg || dmesg", "command -v dmesg"),
    Probe("kernel memory", "head -c 1 /proc/kcore >/dev/null"),
    Probe("raw memory", "test -e /dev/mem && head -c 1 /dev/mem"),
    Probe("device node", "mknod /tmp/sda b 8 0 && head -c 1 /tmp/sda", "command -v mknod"),
    Probe(
        "host disk",
        "for d in /dev/sd* /dev/vd* /dev/nvme* /dev/dm-*; do head -c 1 $d 2>/dev/null && exit 0; done; exit 1",
    ),
    Probe("mount of a host disk", "mkdir -p /tmp/m && mount -t ext4 /dev/vda /tmp/m", "command -v mount"),
    Probe(
        "mount of proc over another", "mkdir -p /tmp/p && mount -t proc proc /tmp/p && echo h > /tmp/p/sysrq-trigger"
    ),
    Probe("mount of sysfs", "mkdir -p /tmp/s && mount -t sysfs sysfs /tmp/s"),
    Probe("mount of debugfs", "mkdir -p /tmp/d && mount -t debugfs debugfs /tmp/d"),
    Probe("bpf", call(321, "0", "ctypes.byref(ctypes.create_string_buffer(128))", "128"), PYTHON),
    Probe(
        "performance counters",
        call(298, "ctypes.byref(ctypes.create_string_buffer(128))", "-1", "0", "-1", "0"),
        PYTHON,
    ),
    Probe("userfaultfd", call(323, "0"), PYTHON),
    Probe("io_uring", call(425, "8", "ctypes.byref(ctypes.create_string_buffer(128))"), PYTHON),
    Probe("module load", call(313, "0", 'b""', "0") + " || " + call(175, "0", "0", 'b""'), PYTHON),
    Probe("kexec", call(246, "0", "0", "0", "0"), PYTHON),
    Probe("I/O ports", call(172, "3"), PYTHON),
    Probe("reboot", call(169, "0xfee1dead", "672274793", "0", "0"), PYTHON),
    Probe("clock", "date -s '2001-01-01 00:00:00'", "date"),
    Probe(
        "swap",
        "dd if=/dev/zero of=/var/tmp/swap bs=1M count=1 2>/dev/null && " + call(167, 'b"/var/tmp/swap"', "0"),
        PYTHON,
    ),
    Probe("open by handle", call(304, "-100", "ctypes.byref(ctypes.create_string_buffer(128))", "0"), PYTHON),
    Probe("process accounting", call(163, 'b"/tmp/acct"'), PYTHON),
    Probe(
        "priority of others",
        'nice -n -20 true 2>&1 | grep -q . && false || [ "$(nice -n -20 nice)" = -20 ]',
        "nice true",
    ),
    Probe("init of the host", "ls /proc/1/root/../../../var/lib/docker >/dev/null", "test -d /proc/1"),
    Probe("namespace of the host", "nsenter -t 1 -m -u -i -n -p -- ls /var/lib/docker", "command -v nsenter"),
    Probe("ptrace of a neighbour", "test -d /proc/{neighbour_pid} && kill -0 {neighbour_pid}", "kill -0 $$"),
    Probe(
        "Docker's socket",
        "for s in /var/run/docker.sock /run/docker.sock /run/containerd/containerd.sock; do"
        " curl -s -m 2 --unix-socket $s http://d/version && exit 0; done; exit 1",
        "command -v curl",
    ),
    Probe(
        "engine's port on the gateway", connects("{gateway}", 2375) + " || " + connects("{gateway}", 2376), LISTENING
    ),
    Probe("host's own service", connects("{gateway}", "{host_port}"), LISTENING),
    Probe("host's own service by its address", connects("{host}", "{host_port}"), LISTENING),
    Probe("metadata address", connects("169.254.169.254", 80), LISTENING),
    Probe("neighbour's IDE", connects("{neighbour}", 8080), connects("127.0.0.1", 8080)),
    Probe("neighbour's ping", "ping -c 1 -W 2 {neighbour}", "ping -c 1 -W 2 127.0.0.1"),
    Probe("neighbour's IDE through the host", connects("{gateway}", "{neighbour_port}"), connects("127.0.0.1", 8080)),
    Probe(
        "neighbour's volume",
        "find / -xdev -name {neighbour_mark} 2>/dev/null | grep -q .",
        "find / -maxdepth 1 | grep -q .",
    ),
    Probe(
        "neighbour's keys",
        "keyctl() { " + call(250, "0", "-4", "1") + "; }; grep -q {neighbour_mark} /proc/keys",
        "true",
    ),
    Probe(
        "audit number",
        "v=$(cat /proc/self/loginuid); echo 0 > /proc/self/loginuid && [ $(cat /proc/self/loginuid) != $v ]"
        " && [ $v != 4294967295 ]",
        "cat /proc/self/loginuid",
    ),
    Probe(
        "module parameters", "for f in /sys/module/*/parameters/*; do echo 1 > $f 2>/dev/null && exit 0; done; exit 1"
    ),
    Probe("firmware variables", "ls /sys/firmware/efi/efivars/* && rm -f /sys/firmware/efi/efivars/x"),
    Probe(
        "security module",
        "for f in /sys/kernel/security/*; do test -w $f -a -f $f && echo x > $f && exit 0; done; exit 1",
    ),
    Probe("device node as user", "mknod /tmp/u c 1 1", "command -v mknod", True),
    Probe("mount as user", "mount -t tmpfs tmpfs /mnt", "command -v mount", True),
    Probe("core_pattern as user", write("/proc/sys/kernel/core_pattern"), user=True),
    Probe("root without sudo", "su -c true </dev/null || setpriv --reuid 0 true", "command -v setpriv", True),
)


@pytest.fixture(scope="module")
def pair(shared_lab: Lab) -> Pair:
    """The workspace that probes run in, and its neighbour, as users get them."""
    if not shared_lab.target.probe_engine().remapped:
        pytest.skip("the engine has no user-namespace remapping")
    made = [
        shared_lab.up(shared_lab.spec(shared_lab.repository(name), docker="auto")) for name in ("inside", "neighbour")
    ]
    return shared_lab.target, made


@pytest.fixture(scope="module")
def places(pair: Pair) -> Iterator[dict[str, str]]:
    """Where probes aim: addresses, a port of a real service of this machine, the neighbour's process and file."""
    import http.server
    import socket
    import threading

    engine, (inside, neighbour) = pair
    http_engine = _docker_http.connect()
    found = http_engine.get_json(f"/containers/{neighbour.id}/json")
    network = found["NetworkSettings"]["Networks"]["spt-flow"]
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mark = f"mark{secrets.token_hex(6)}"
    assert engine.exec(neighbour, ["touch", f"/home/coder/{mark}"]).status == 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        host = probe.getsockname()[0]
    yield {
        "gateway": network["Gateway"],
        "host": host,
        "host_port": str(server.server_address[1]),
        "neighbour": network["IPAddress"],
        "neighbour_port": neighbour.url.rsplit(":", 1)[1].strip("/"),
        "neighbour_pid": str(found["State"]["Pid"]),
        "neighbour_mark": mark,
    }
    server.shutdown()
    server.server_close()


def filled(script: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        script = script.replace(f"{{{name}}}", value)
    return script


def test_there_are_enough_probes() -> None:
    assert len(PROBES) >= 25
    assert len({probe.name for probe in PROBES}) == len(PROBES)


def test_no_probe_gets_out(pair: Pair, places: dict[str, str]) -> None:
    engine, (inside, _neighbour) = pair
    rows = []
    for probe in PROBES:
        user = "1000:1000" if probe.user else "0:0"
        control = engine.exec(inside, ["bash", "-c", filled(probe.control, places)], user=user)
        attack = engine.exec(inside, ["bash", "-c", filled(probe.attack, places)], user=user, timeout=30)
        verdict = "OUT" if attack.status == 0 else "no means" if control.status else "held"
        said = (attack.stderr or attack.stdout or control.stderr).strip().splitlines()
        rows.append(
            (probe.name, "user" if probe.user else "root", verdict, said[-1][:90].replace("|", "/") if said else "")
        )
    ARTIFACT.parent.mkdir(exist_ok=True)
    table = "\n".join(
        [
            "| Probe | As | Verdict | It said |",
            "| --- | --- | --- | --- |",
            *("| " + " | ".join(r) + " |" for r in rows),
        ]
    )
    ARTIFACT.write_text(f"{table}\n")
    assert [row for row in rows if row[2] != "held"] == []


def test_the_host_service_is_there_for_the_host(places: dict[str, str]) -> None:
    """The control of the probes against the host's own service."""
    import socket

    with socket.create_connection((places["host"], int(places["host_port"])), 3):
        pass


def test_sudo_has_the_listed_capabilities(pair: Pair) -> None:
    engine, (inside, _neighbour) = pair
    said = engine.exec(inside, ["sudo", "-n", "cat", "/proc/self/status"]).stdout
    bits = int(next(line.split()[1] for line in said.splitlines() if line.startswith("CapEff")), 16)
    assert {name for name, bit in CAPABILITIES.items() if bits >> bit & 1} == set(CAPABILITIES)
    assert bits == sum(1 << bit for bit in CAPABILITIES.values())


def test_the_host_is_as_it_was(places: dict[str, str]) -> None:
    assert Path("/proc/sys/kernel/core_pattern").read_text().strip() != "x"
    assert os.uname().nodename != "x"


def test_the_workspace_is_not_root_on_the_host(pair: Pair) -> None:
    engine, (inside, _neighbour) = pair
    pid = _docker_http.connect().get_json(f"/containers/{inside.id}/json")["State"]["Pid"]
    if not Path(f"/proc/{pid}").exists():
        pytest.skip("the engine is on another machine")
    uid = int(
        next(line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid"))
    )
    assert uid >= 100000
