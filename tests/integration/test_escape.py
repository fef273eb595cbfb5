# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Escape attempts from a workspace as its user and as its root; none may succeed.

Every probe has a control that must succeed, so that a missing tool cannot hide a failure. The output of all probes is
in artifacts/escape-probes.md.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.target import DockerTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.tests.integration.harness import Harness

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
    "SYS_CHROOT": 18,
    "AUDIT_WRITE": 29,
}
"""The capabilities of a workspace's root: Docker's default without three (docs/decisions/seccomp.md)."""


@dataclass(frozen=True)
class Probe:
    """``attack`` exits with 0 when it escaped, and with ``WRONG`` when it failed for another reason and proves nothing.

    ``control`` exits with 0 when the same method works where it is allowed. ``target`` is the attacked path of this
    machine: where it is missing, the probe does not count. It runs as root unless ``user`` is set.
    """

    name: str
    attack: str
    control: str
    target: str = ""
    user: bool = False


WRONG = 3


def call(number: int, *arguments: str, refused: str = "EPERM EACCES") -> str:
    """A system call by number, which must be refused for a missing permission and not for its arguments."""
    words = "".join(f", {argument}" for argument in arguments)
    code = (
        "import ctypes, errno; l = ctypes.CDLL(None, use_errno=True); "
        f"r = l.syscall({number}{words}); e = ctypes.get_errno(); w = errno.errorcode.get(e, e); "
        f'print(w); raise SystemExit(0 if r >= 0 else 1 if w in "{refused}".split() else {WRONG})'
    )
    return f"python3 -c '{code}'"


def rewrite(path: str) -> str:
    """Write the current content of a kernel file back to it."""
    return f'v=$(cat {path}) && echo "$v" > {path}'


def connects(host: str, port: int | str) -> str:
    return f"timeout 3 bash -c 'exec 3<>/dev/tcp/{host}/{port}'"


def mounts(kind: str, source: str = "none", options: str = "") -> str:
    return f"d=$(mktemp -d) && mount -t {kind} {options} {source} $d"


CALLS = call(39)
"""getpid by the same method, which is allowed."""
BUFFER = "ctypes.byref(ctypes.create_string_buffer(128))"
LISTENING = (
    "python3 -m http.server 9999 --bind 127.0.0.1 >/dev/null 2>&1 &"
    " for i in $(seq 50); do bash -c 'exec 3<>/dev/tcp/127.0.0.1/9999' && break; sleep 0.2; done; s=$?;"
    " kill $!; exit $s"
)
MOUNTS = (
    "[ $(id -u) = 0 ] && as='setpriv --reuid 1000 --regid 1000 --clear-groups';"
    " $as unshare -Urm sh -c 'd=$(mktemp -d) && mount -t tmpfs none $d'"
)
"""A mount by the same program where it is allowed: in a user namespace of the user. Root cannot create one,
because that needs SETFCAP."""
NAMESPACES = "ipc mnt net pid user uts"

PROBES = (
    Probe("core_pattern", rewrite("/proc/sys/kernel/core_pattern"), rewrite("/proc/self/oom_score_adj")),
    Probe(
        "core_pattern as user", rewrite("/proc/sys/kernel/core_pattern"), rewrite("/proc/self/oom_score_adj"), user=True
    ),
    Probe(
        "core_pattern through a proc of one's own",
        "unshare -Urmpf --mount-proc sh -c"
        " 'v=$(cat /proc/sys/kernel/core_pattern); echo \"$v\" > /proc/sys/kernel/core_pattern'",
        "unshare -Urmpf --mount-proc cat /proc/sys/kernel/core_pattern",
        user=True,
    ),
    Probe("vm settings", rewrite("/proc/sys/vm/swappiness"), rewrite("/proc/self/oom_score_adj")),
    Probe("kernel's limit of threads", rewrite("/proc/sys/kernel/threads-max"), rewrite("/proc/self/oom_score_adj")),
    Probe("modprobe path", rewrite("/proc/sys/kernel/modprobe"), "true", "/proc/sys/kernel/modprobe"),
    Probe("uevent_helper", "echo /bin/true > /sys/kernel/uevent_helper", "true", "/sys/kernel/uevent_helper"),
    Probe("sysrq", "echo h > /proc/sysrq-trigger", "true", "/proc/sysrq-trigger"),
    Probe("kernel memory", "head -c 1 /proc/kcore >/dev/null", "true", "/proc/kcore"),
    Probe("raw memory", "head -c 1 /dev/mem >/dev/null", "true", "/dev/mem"),
    Probe("firmware variables", "touch /sys/firmware/efi/efivars/x", "true", "/sys/firmware/efi/efivars"),
    Probe(
        "release_agent",
        mounts("cgroup", "cgroup", "-o memory") + " && echo /bin/true > $d/release_agent",
        MOUNTS,
    ),
    Probe(
        "cgroup limits",
        "for f in $(find /sys/fs/cgroup -name memory.limit_in_bytes -o -name memory.max -o -name pids.max);"
        " do { echo -1 > $f || echo max > $f; } 2>/dev/null && exit 0; done; exit 1",
        "find /sys/fs/cgroup -name pids.max -o -name memory.max | grep -q .",
    ),
    Probe("kernel log", "timeout 2 head -c 1 /dev/kmsg || dmesg", "command -v dmesg", "/dev/kmsg"),
    Probe("device node", "mknod $(mktemp -u) b 8 0", "mknod $(mktemp -u) p"),
    Probe("device node as user", "mknod $(mktemp -u) c 1 1", "mknod $(mktemp -u) p", user=True),
    Probe("host disk", "head -c 1 {disk} >/dev/null", "head -c 1 /dev/zero >/dev/null", "{disk}"),
    Probe("mount of a host disk", mounts("ext4", "{disk}"), MOUNTS, "{disk}"),
    Probe("mount of memory", mounts("tmpfs"), MOUNTS),
    Probe("mount of proc", mounts("proc"), MOUNTS),
    Probe("mount of sysfs", mounts("sysfs"), MOUNTS),
    Probe("mount of debugfs", mounts("debugfs"), MOUNTS),
    Probe("mount as user", mounts("tmpfs"), MOUNTS, user=True),
    Probe("bpf", call(321, "0", BUFFER, "128"), CALLS),
    Probe("performance counters", call(298, BUFFER, "0", "-1", "-1", "0"), CALLS),
    Probe("userfaultfd", call(323, "0"), CALLS),
    Probe("io_uring", call(425, "8", BUFFER), CALLS),
    Probe("module load", call(175, BUFFER, "128", 'b""'), CALLS),
    Probe("module load from a file", call(313, "0", 'b""', "0"), CALLS),
    Probe("kexec", call(246, "0", "0", "0", "0"), CALLS),
    Probe("I/O ports", call(172, "3"), CALLS),
    # If it were allowed, it would only disable Ctrl-Alt-Del.
    Probe("reboot", call(169, "0xfee1dead", "672274793", "0", "0"), CALLS),
    Probe("clock", call(227, "0", "0"), CALLS),
    Probe("swap", call(167, 'b"/nowhere"', "0"), CALLS),
    Probe("open by handle", call(304, "-100", BUFFER, "0"), CALLS),
    Probe("process accounting", call(163, 'b"/nowhere"'), CALLS),
    Probe("quota", call(179, "0x800007", "0", "0", "0"), CALLS),
    Probe("priority of others", "nice -n -20 true 2>&1 | grep -q denied && exit 1; nice -n -20 true", "nice -n 5 true"),
    Probe(
        "namespaces of the host",
        f"for n in {NAMESPACES}; do"
        " echo '{namespaces}' | grep -qF $(readlink /proc/self/ns/$n) && exit 0; done; exit 1",
        f"for n in {NAMESPACES}; do readlink /proc/self/ns/$n | grep -q : || exit 1; done",
    ),
    Probe("ids of the host", "grep -Eq '^ +0 +0 ' /proc/self/uid_map", "grep -Eq '^ +0 +[0-9]+' /proc/self/uid_map"),
    Probe(
        "processes of a neighbour",
        "grep -lqa '{neighbour_process}' /proc/[0-9]*/cmdline",
        "sleep 7{own_number} & sleep 0.2; grep -lqa '[7]{own_number}' /proc/[0-9]*/cmdline",
    ),
    Probe(
        "Docker's socket",
        "find / -xdev -type s \\( -name docker.sock -o -name containerd.sock \\) 2>/dev/null | grep -q .",
        "find / -maxdepth 1 | grep -q .",
    ),
    Probe("engine's port", connects("{gateway}", 2375) + " || " + connects("{gateway}", 2376), LISTENING),
    Probe("host's own service", connects("{gateway}", "{host_port}"), LISTENING),
    Probe("host's own service by its address", connects("{host}", "{host_port}"), LISTENING),
    Probe("metadata address", connects("169.254.169.254", 80), LISTENING),
    Probe("neighbour's IDE", connects("{neighbour}", 8080), connects("127.0.0.1", 8080)),
    Probe("neighbour's ping", "ping -c 1 -W 2 {neighbour}", "ping -c 1 -W 2 127.0.0.1"),
    Probe("neighbour's IDE through the host", connects("{gateway}", "{neighbour_port}"), connects("127.0.0.1", 8080)),
    Probe(
        "neighbour's files",
        "find / -path /proc -prune -o -name {neighbour_mark} -print 2>/dev/null | grep -q .",
        "touch /home/coder/{own_mark}; find / -path /proc -prune -o -name {own_mark} -print 2>/dev/null | grep -q .",
    ),
    # All workspaces share one range of ids, to which the kernel's keys belong.
    Probe("kernel's keys", call(248, 'b"user"', 'b"mark"', 'b"x"', "1", "-4", refused="ENOSYS"), CALLS, user=True),
    Probe("kernel's keys of root", call(250, "0", "-3", "1", refused="ENOSYS"), CALLS),
    Probe(
        "audit number",
        "[ $(cat /proc/self/loginuid) != 4294967295 ] && echo 0 > /proc/self/loginuid",
        "cat /proc/self/loginuid",
        "/usr/local/lib/spt-flow/audit-id.sh",
    ),
    Probe(
        "module parameters",
        "for f in /sys/module/*/parameters/*; do { cat $f > $f; } 2>/dev/null && exit 0; done; exit 1",
        "ls /sys/module/*/parameters/* | grep -q .",
        "/sys/module",
    ),
    Probe("root without sudo", "setpriv --reuid 0 true", "setpriv --reuid 1000 true", user=True),
)


@pytest.fixture(scope="module")
def pair(shared_harness: Harness) -> Pair:
    """The workspace that probes run in, and its neighbour, with default settings."""
    if not shared_harness.target.probe_engine().remapped:
        pytest.skip("the engine has no user-namespace remapping")
    made = [
        shared_harness.up(shared_harness.spec(shared_harness.repository(name), docker="auto"))
        for name in ("inside", "neighbour")
    ]
    return shared_harness.target, made


@pytest.fixture(scope="module")
def places(pair: Pair) -> Iterator[dict[str, str]]:
    """Targets of probes: addresses, a port of a real service, the neighbour's process and file."""
    import http.server
    import socket
    import threading

    engine, (inside, neighbour) = pair
    http_engine = docker_http.connect()
    found = http_engine.get_json(f"/containers/{neighbour.id}/json")
    network = found["NetworkSettings"]["Networks"]["spt-flow"]
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mark = f"mark{secrets.token_hex(6)}"
    number = secrets.randbelow(10**6) + 10**6
    leave = f"touch /home/coder/{mark}; sleep 7{number} >/dev/null 2>&1 & disown"
    assert engine.exec(neighbour, ["bash", "-c", leave]).status == 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        host = probe.getsockname()[0]
    yield {
        "gateway": network["Gateway"],
        "host": host,
        "host_port": str(server.server_address[1]),
        "neighbour": network["IPAddress"],
        "neighbour_port": neighbour.url.rsplit(":", 1)[1].strip("/"),
        "neighbour_process": f"[7]{number}",
        "neighbour_mark": mark,
        "own_mark": f"own{mark}",
        "own_number": str(number + 10**7),
        "disk": host_disk(),
        "namespaces": " ".join(os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES.split()),
    }
    server.shutdown()
    server.server_close()


def host_disk() -> str:
    """A block device of this machine."""
    lines = Path("/proc/partitions").read_text().splitlines()[2:]
    return next((f"/dev/{line.split()[3]}" for line in lines if Path(f"/dev/{line.split()[3]}").exists()), "")


def filled(script: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        script = script.replace(f"{{{name}}}", value)
    return script


def test_enough_probes_are_counted() -> None:
    assert len(PROBES) >= 25
    assert len({probe.name for probe in PROBES}) == len(PROBES)


NOT_HERE = "not on this machine"


def compare(target: str, control: int, attack: int) -> str:
    """Return the verdict on a probe: it held, it proves nothing because ..., or it escaped."""
    if attack == 0:
        return "OUT"
    if target and not Path(target).exists():
        return NOT_HERE
    if control != 0:
        return "no means"
    return "no proof: refused for its arguments" if attack == WRONG else "held"


def test_probe_is_judged_by_what_it_proves() -> None:
    assert compare("", 0, 0) == compare("/nowhere", 1, 0) == "OUT"
    assert compare("/nowhere", 0, 1) == NOT_HERE
    assert compare("/proc", 1, 1) == "no means"
    assert compare("", 0, WRONG).startswith("no proof")
    assert compare("/proc", 0, 1) == "held"


def test_no_probe_escapes(pair: Pair, places: dict[str, str]) -> None:
    engine, (inside, _neighbour) = pair
    rows = []
    for probe in PROBES:
        user = "1000:1000" if probe.user else "0:0"
        control = engine.exec(inside, ["bash", "-c", filled(probe.control, places)], user=user)
        attack = engine.exec(inside, ["bash", "-c", filled(probe.attack, places)], user=user, timeout=30)
        verdict = compare(filled(probe.target, places), control.status, attack.status)
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
    assert [row for row in rows if row[2] not in ("held", NOT_HERE)] == []
    assert len([row for row in rows if row[2] == "held"]) >= 40, "too few probes count"


def test_host_service_is_reachable_from_the_host(places: dict[str, str]) -> None:
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


def test_workspace_is_unprivileged_on_the_host(pair: Pair) -> None:
    engine, (inside, _neighbour) = pair
    pid = docker_http.connect().get_json(f"/containers/{inside.id}/json")["State"]["Pid"]
    if not Path(f"/proc/{pid}").exists():
        pytest.skip("the engine is on another machine")
    uid = int(
        next(line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid"))
    )
    assert uid >= 100000
