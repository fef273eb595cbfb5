# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall of workspaces with real packets, in network namespaces, with each kind of Docker's own rules."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.integration import network_harness
from ansible_collections.spt.flow.tests.integration.network_harness import GATEWAY, HOST, OUTSIDE, WORKSPACES, Network

SOURCE = Path(__file__).resolve().parents[2] / "roles/host_docker/files/spt-flow-firewall"
ONE, TWO = WORKSPACES.values()
NFT = """
table ip docker-bridges {
  chain filter-forward { type filter hook forward priority filter; policy accept; accept; }
  chain filter-input { type filter hook input priority filter; policy accept; accept; }
}
"""
"""Shaped like the tables of an engine with the nftables firewall backend."""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") for name in ("nft", "ip")),
    reason="makes network namespaces: needs root, iproute2 and nftables",
)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with network_harness.network() as made:
        yield made


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The firewall with its own settings, not those of this machine."""
    folder = tmp_path_factory.mktemp("firewall")
    path = folder / "spt-flow-firewall"
    path.write_text(SOURCE.read_text().replace("/etc/spt-flow/firewall.env", str(folder / "firewall.env")))
    path.chmod(0o755)
    return path


@pytest.fixture
def firewall(network: Network, program: Path) -> Iterator[Path]:
    (program.parent / "firewall.env").write_text("ALLOW=''\n")
    network.run("host", str(program), "apply")
    yield program
    network.run("host", str(program), "remove")
    for port in WORKSPACES:
        network.run("host", "bridge", "link", "set", "dev", f"p-{port}", "isolated", "off")


@pytest.fixture(params=["iptables=false", "iptables-nft", "iptables-legacy", "Docker's nftables"])
def backend(request: pytest.FixtureRequest, network: Network) -> Iterator[str]:
    """Load foreign rules that accept everything, like Docker's rules for its own networks."""
    name = str(request.param)
    if name == "Docker's nftables":
        network.run("host", "nft", "-f", "-", text=NFT)
        yield name
        network.run("host", "nft", "delete", "table", "ip", "docker-bridges")
    elif name == "iptables=false":
        yield name
    else:
        chains = [
            (program, chain) for program in (name, name.replace("ip", "ip6", 1)) for chain in ("INPUT", "FORWARD")
        ]
        for program, chain in chains:
            network.run("host", program, "-I", chain, "1", "-j", "ACCEPT")
        yield name
        for program, chain in chains:
            network.run("host", program, "-D", chain, "-j", "ACCEPT")


REFUSED = [
    *(("one", address, 80) for address in (*network_harness.METADATA, *network_harness.METADATA6)),
    ("one", GATEWAY, 80),
    ("one", HOST, 80),
    ("one", "fd00:30::1", 80),
    ("one", "fd00:99::1", 80),
    ("one", TWO, 8080),
    ("one", "fd00:30::3", 8080),
    ("outside", ONE, 8080),
    ("outside", "fd00:30::2", 8080),
]
"""Who connects to what: metadata, the host by each address, the neighbour, a workspace from another machine."""


def test_everything_is_reachable_without_the_firewall(network: Network) -> None:
    """The control of all tests below."""
    assert [case for case in REFUSED if not network.connects(*case)] == []
    assert network.frame_passes("one", "two")


def test_blocks_hold_next_to_rules_that_accept_everything(network: Network, backend: str, firewall: Path) -> None:
    assert [case for case in REFUSED if network.connects(*case, timeout=0.3)] == [], backend
    assert network.connects("one", OUTSIDE, 80), "workspaces reach the network"
    assert network.connects("host", ONE, 8080), "the host reaches what it publishes"
    assert network.connects("outside", HOST, 80), "other machines still reach the host"
    assert network.run("host", str(firewall), "check", check=False).returncode == 0


def test_frames_do_not_pass_between_workspaces(network: Network, firewall: Path) -> None:
    assert not network.frame_passes("one", "two") and not network.frame_passes("two", "one")
    network.run("host", "bridge", "link", "set", "dev", "p-two", "isolated", "off")
    assert network.run("host", str(firewall), "check", check=False).returncode != 0


def test_metadata_resolvers_still_resolve(network: Network, firewall: Path) -> None:
    assert network.connects("one", "169.254.169.254", 53) and network.connects("one", "168.63.129.16", 53)
    assert not network.connects("one", "169.254.169.254", 3000)


def test_only_an_allowed_port_of_the_host_is_reachable(network: Network, firewall: Path) -> None:
    (firewall.parent / "firewall.env").write_text("ALLOW='3000 443'\n")
    assert network.run("host", str(firewall), "check", check=False).returncode != 0
    network.run("host", str(firewall), "apply")
    assert network.run("host", str(firewall), "check", check=False).returncode == 0
    assert network.connects("one", GATEWAY, 3000)
    assert not network.connects("one", GATEWAY, 80) and not network.connects("one", "fd00:30::1", 3000)


BREAKS = {
    "the table is gone": ["nft", "delete", "table", "inet", "spt-flow"],
    "everything was flushed": ["nft", "flush", "ruleset"],
    "the rules are gone": ["nft", "flush", "chain", "inet", "spt-flow", "forward"],
    "a rule accepts first": ["nft", "insert", "rule", "inet", "spt-flow", "input", "accept"],
    "the table is switched off": ["nft", "add", "table", "inet", "spt-flow", "{ flags dormant; }"],
}


@pytest.mark.parametrize("name", BREAKS)
def test_check_finds_rules_that_do_not_apply_to_packets(network: Network, firewall: Path, name: str) -> None:
    network.run("host", *BREAKS[name])
    assert network.run("host", str(firewall), "check", check=False).returncode != 0
    network.run("host", str(firewall), "apply")
    assert network.run("host", str(firewall), "check", check=False).returncode == 0


def test_apply_is_idempotent_and_remove_is_complete(network: Network, firewall: Path) -> None:
    once = network.run("host", "nft", "list", "ruleset").stdout
    network.run("host", str(firewall), "apply")
    assert network.run("host", "nft", "list", "ruleset").stdout == once
    for _ in range(2):
        network.run("host", str(firewall), "remove")
    assert "spt-flow" not in network.run("host", "nft", "list", "ruleset").stdout
    assert network.run("host", str(firewall), "check", check=False).returncode != 0


def test_rules_of_the_first_version_are_removed(network: Network, firewall: Path) -> None:
    for words in (
        "-N SPT-FLOW-HOST",
        "-A SPT-FLOW-HOST -j REJECT",
        "-I INPUT 1 -i spt-flow0 -j SPT-FLOW-HOST",
        "-N SPT-FLOW-OUT",
        "-N DOCKER-USER",
        "-I DOCKER-USER 1 -i spt-flow0 -j SPT-FLOW-OUT",
    ):
        network.run("host", "iptables", "-w", "10", *words.split())
    network.run("host", str(firewall), "apply")
    assert "SPT-FLOW" not in network.run("host", "iptables", "-S").stdout
    network.run("host", "iptables", "-X", "DOCKER-USER")


def entries(network: Network, address: str) -> int:
    """Return the number of ``address``'s entries in the host's connection table."""
    table = Path(f"/proc/{network.servers[0].pid}/net/nf_conntrack")
    if not table.exists():
        return int(network.run("host", "cat", "/proc/sys/net/netfilter/nf_conntrack_count").stdout)
    return table.read_text().count(f"src={address} ")


SPREAD = """
import socket, sys
for number in range(int(sys.argv[2])):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        one.sendto(b"x", (sys.argv[1], 10000 + number))
    except OSError:
        pass
"""


def test_one_workspace_cannot_fill_the_connection_table_of_the_host(network: Network, firewall: Path) -> None:
    (firewall.parent / "firewall.env").write_text("ALLOW=''\nCONNECTIONS=50\n")
    network.run("host", str(firewall), "apply")
    network.run("one", sys.executable, "-c", SPREAD, OUTSIDE, "1000")
    assert 40 <= entries(network, ONE) <= 120
    assert not network.connects("one", OUTSIDE, 80), "refused at once, not left waiting"
    assert network.connects("two", OUTSIDE, 80), "the neighbour still connects"
    assert network.connects("outside", HOST, 80), "and so does the host"
    assert network.run("host", str(firewall), "check", check=False).returncode == 0


def test_closed_connections_of_a_workspace_are_limited_by_their_rate(network: Network, firewall: Path) -> None:
    (firewall.parent / "firewall.env").write_text("ALLOW=''\nCONNECTIONS=20\n")
    network.run("host", str(firewall), "apply")
    script = (
        "import socket, sys, time\ngot, begun = 0, time.monotonic()\nwhile time.monotonic() < begun + 1:\n"
        " try: socket.create_connection((sys.argv[1], 80), 1).close(); got += 1\n except OSError: pass\n"
        "print(got / (time.monotonic() - begun))"
    )
    rate = float(network.run("one", sys.executable, "-c", script, OUTSIDE).stdout)
    assert rate < 700, "500 a second and the burst"
    assert network.connects("two", OUTSIDE, 80)
