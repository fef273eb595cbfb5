# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small network inside network namespaces, without a route to the real one.

It has a host with the bridge of workspaces, two workspaces on it, and another machine that also owns every metadata
address. No packet leaves the test machine.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

BRIDGE = "spt-flow0"
GATEWAY = "172.30.0.1"
WORKSPACES = {"one": "172.30.0.2", "two": "172.30.0.3"}
HOST = "192.0.2.1"
OUTSIDE = "192.0.2.2"
METADATA = ("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192")
METADATA6 = ("fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe")
PORTS = (53, 80, 3000, 8080)

_SERVER = """
import select, socket, sys
listening = []
for port in map(int, sys.argv[1:]):
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        one = socket.socket(family)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((address, port))
        one.listen(64)
        listening.append(one)
print("ready", flush=True)
while True:
    for one in select.select(listening, [], [])[0]:
        one.accept()[0].close()
"""
_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])).close()
except OSError as error:
    print(error)
    sys.exit(1)
"""
SEND = """
import socket, sys
one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
one.bind(("eth0", 0))
one.send(bytes.fromhex("ffffffffffff 02deadbeef01 88b5") + sys.argv[1].encode().ljust(60, b"."))
"""
HEAR = """
import socket, sys
one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5))
one.bind(("eth0", 0x88b5))
one.settimeout(float(sys.argv[1]))
print("ready", flush=True)
try:
    print(one.recv(200)[14:].rstrip(b".").decode())
except TimeoutError:
    print("silence")
"""


class Network:
    """``run`` and ``connects`` act inside one of the machines: host, outside, one, two."""

    def __init__(self) -> None:
        self.prefix = f"spt{secrets.token_hex(3)}"
        self.servers: list[subprocess.Popen[str]] = []

    def argv(self, machine: str, *words: str) -> list[str]:
        return ["ip", "netns", "exec", f"{self.prefix}-{machine}", *words]

    def run(self, machine: str, *words: str, check: bool = True, text: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(machine, *words), input=text, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def connects(self, machine: str, address: str, port: int = 8080, timeout: float = 1.0) -> bool:
        return not self.run(
            machine, sys.executable, "-c", _CONNECT, address, str(port), str(timeout), check=False
        ).returncode

    def frame_passes(self, sender: str, receiver: str) -> bool:
        """Return whether a broadcast Ethernet frame, like ARP or a router advertisement, gets from one to the other."""
        argv = self.argv(receiver, sys.executable, "-c", HEAR, "1")
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as hearing:
            assert hearing.stdout and hearing.stdout.readline() == "ready\n"
            self.run(sender, sys.executable, "-c", SEND, "hello")
            heard = hearing.stdout.readline().strip()
        assert heard in ("hello", "silence"), heard
        return heard == "hello"

    def script(self, lines: Sequence[str]) -> None:
        for line in lines:
            done = subprocess.run(["ip", *line.split()], capture_output=True, text=True, timeout=20, check=False)
            assert done.returncode == 0, (line, done.stderr)

    def make(self) -> None:
        name = {machine: f"{self.prefix}-{machine}" for machine in ("host", "outside", *WORKSPACES)}
        self.script([f"netns add {machine}" for machine in name.values()])
        self.script([f"-n {machine} link set lo up" for machine in name.values()])
        self._bridge(name)
        self._beyond(name)
        for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            self.run("host", "sysctl", "-qw", setting)
        for machine in name:
            argv = self.argv(machine, sys.executable, "-c", _SERVER, *map(str, PORTS))
            self.servers.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
        for server in self.servers:
            assert server.stdout and server.stdout.readline() == "ready\n"
        self._settle()

    def _settle(self) -> None:
        """Wait until the first IPv6 packets get through: a new link drops some."""
        for machine, address in (("one", "fd00:99::2"), ("outside", "fd00:30::2"), ("one", "fd00:30::3")):
            assert any(self.connects(machine, address) for _ in range(10)), (machine, address)

    def _bridge(self, name: dict[str, str]) -> None:
        host = f"-n {name['host']}"
        self.script(
            [
                f"{host} link add {BRIDGE} type bridge",
                f"{host} addr add {GATEWAY}/24 dev {BRIDGE}",
                f"{host} addr add fd00:30::1/64 dev {BRIDGE} nodad",
                f"{host} link set {BRIDGE} up",
            ]
        )
        for number, (machine, address) in enumerate(WORKSPACES.items(), 2):
            inside = f"-n {name[machine]}"
            self.script(
                [
                    f"{host} link add p-{machine} type veth peer name eth0 netns {name[machine]}",
                    f"{host} link set p-{machine} master {BRIDGE} up",
                    f"{inside} addr add {address}/24 dev eth0",
                    f"{inside} addr add fd00:30::{number}/64 dev eth0 nodad",
                    f"{inside} link set eth0 up",
                    f"{inside} route add default via {GATEWAY}",
                    f"{inside} -6 route add default via fd00:30::1",
                ]
            )

    def _beyond(self, name: dict[str, str]) -> None:
        host, outside = f"-n {name['host']}", f"-n {name['outside']}"
        self.script(
            [
                f"{host} link add up0 type veth peer name eth0 netns {name['outside']}",
                f"{host} addr add {HOST}/24 dev up0",
                f"{host} addr add fd00:99::1/64 dev up0 nodad",
                f"{host} link set up0 up",
                f"{outside} addr add {OUTSIDE}/24 dev eth0",
                f"{outside} addr add fd00:99::2/64 dev eth0 nodad",
                f"{outside} link set eth0 up",
                f"{outside} route add 172.30.0.0/24 via {HOST}",
                f"{outside} -6 route add fd00:30::/64 via fd00:99::1",
                *(f"{outside} addr add {address}/32 dev lo" for address in METADATA),
                *(f"{outside} addr add {address}/128 dev lo nodad" for address in METADATA6),
                *(f"{host} route add {address}/32 via {OUTSIDE}" for address in METADATA),
                *(f"{host} -6 route add {address}/128 via fd00:99::2" for address in METADATA6),
            ]
        )

    def clean(self) -> None:
        for server in self.servers:
            server.kill()
            server.wait()
            if server.stdout:
                server.stdout.close()
        for path in Path("/run/netns").glob(f"{self.prefix}-*"):
            subprocess.run(["ip", "netns", "delete", path.name], capture_output=True, timeout=20, check=False)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    made = Network()
    try:
        made.make()
        yield made
    finally:
        made.clean()
