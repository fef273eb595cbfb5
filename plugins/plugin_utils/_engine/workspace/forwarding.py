# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide which ports of a workspace may be forwarded to the user's own loopback.

A workspace names the ports itself. A malicious one may name a port on which a program of the user expects its own
database or Docker engine, and read what that program sends. So ports of well-known services are never forwarded. Ports
that web applications commonly use (3000, 5000, 8000, 8080 …) are not in the list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..common import untrusted

FIRST, LAST = 1024, 65535
MOST_PORTS = 32
"""Maximum number of forwarded ports of a workspace."""
MOST_TOLD = 10
"""Number of rejected ports that are named."""

PLACES = (".devcontainer/devcontainer.json", ".devcontainer.json")
LARGEST = 262_144

_PORT = r"(?:localhost:|127\.0\.0\.1:)?(\d{1,5})"
_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_COMMA = re.compile(r'"(?:\\.|[^"\\\n])*"|,(?=\s*[\]}])', re.DOTALL)

WELL_KNOWN: dict[str, tuple[tuple[int, int], ...]] = {
    "a proxy": ((1080, 1080), (3128, 3128), (8118, 8118), (9050, 9051), (9150, 9151)),
    "MQTT": ((1883, 1883), (8883, 8883)),
    "Microsoft SQL Server": ((1433, 1434),),
    "Oracle Database": ((1521, 1522), (2483, 2484)),
    "NFS": ((2049, 2049),),
    "ZooKeeper": ((2181, 2181),),
    "a debugger": ((1234, 1234), (2345, 2345), (5005, 5005), (5678, 5678), (9222, 9222), (9229, 9230), (40000, 40000)),
    "Docker": ((2375, 2377),),
    "etcd": ((2379, 2380),),
    "iSCSI": ((3260, 3260),),
    "LDAP": ((3268, 3269),),
    "MySQL": ((3306, 3306), (33060, 33060)),
    "Remote Desktop": ((3389, 3389),),
    "NATS": ((4222, 4222),),
    "Selenium": ((4444, 4444),),
    "Nomad": ((4646, 4648),),
    "an emulator of a cloud": ((4510, 4566), (8085, 8087), (9010, 9010), (9020, 9020), (9099, 9099), (9199, 9199)),
    "Android Debug Bridge": ((5037, 5037), (5554, 5585)),
    "PostgreSQL": ((5432, 5434), (6432, 6432)),
    "RabbitMQ": ((5671, 5672), (15671, 15672), (25672, 25672)),
    "VNC": ((5800, 5999),),
    "X11": ((6000, 6063),),
    "CouchDB": ((5984, 5984), (6984, 6984)),
    "Redis": ((6379, 6380), (16379, 16379), (26379, 26379)),
    "Kubernetes": ((6443, 6443), (8001, 8001), (8443, 8443), (10250, 10259), (16443, 16443)),
    "Pulsar": ((6650, 6651),),
    "Cassandra": ((7000, 7001), (7199, 7199), (9042, 9042), (9160, 9160)),
    "Neo4j": ((7473, 7474), (7687, 7687)),
    "Proxmox": ((8006, 8006),),
    "ClickHouse": ((8123, 8123), (9440, 9440)),
    "Vault": ((8200, 8201), (8250, 8250)),
    "Consul": ((8300, 8302), (8500, 8502), (8600, 8600)),
    "a wallet": ((8332, 8333), (8545, 8546), (18332, 18333), (18443, 18443)),
    "Syncthing": ((8384, 8384),),
    "Cockpit or Prometheus": ((9090, 9090),),
    "Kafka": ((9092, 9094),),
    "Elasticsearch": ((9200, 9200), (9300, 9300)),
    "Portainer": ((9443, 9443),),
    "a cloud's sign-in or storage emulator": ((1455, 1455), (10000, 10010), (18000, 18000), (54545, 54545)),
    "Ollama": ((11434, 11434),),
    "Memcached": ((11211, 11211),),
    "CockroachDB": ((26257, 26257),),
    "MongoDB": ((27017, 27019),),
    "RethinkDB": ((28015, 28015),),
    "ActiveMQ": ((61613, 61616),),
    "a JetBrains IDE": ((63342, 63342),),
}
"""First and last port of each service that programs of a user look for on loopback."""


def service(port: int) -> str:
    """Return the well-known service of ``port``, or nothing."""
    found = (name for name, spans in WELL_KNOWN.items() for first, last in spans if first <= port <= last)
    return next(found, "")


def chosen(reported: object, asked: Iterable[int] | None = None) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the ports of ``reported`` that may be forwarded, and the reasons against the others.

    ``asked`` are the ports of the repository's devcontainer.json, if the client can read it.
    """
    wanted = None if asked is None else set(asked)
    found: list[int] = []
    refused: list[str] = []
    for entry in dict.fromkeys(filter(_is_port, untrusted.items(reported))):
        reason = _refusal(entry, wanted, len(found))
        if reason:
            refused.append(f"{entry} ({reason})")
        else:
            found.append(entry)
    more = len(refused) - MOST_TOLD
    return tuple(found), (*refused[:MOST_TOLD], *([f"{more} more"] if more > 0 else []))


def requested_ports(folder: Path) -> set[int] | None:
    """Return the ports of the devcontainer.json in a clone, or ``None`` without a clone or if the file is damaged."""
    if not (folder / ".git").exists():
        return None
    for name in PLACES:
        place = folder / name
        if not place.is_file():
            continue
        try:
            with place.open("rb") as file:
                text = file.read(LARGEST + 1).decode("utf-8-sig")
            text = _COMMENT.sub(lambda found: found[0] if found[0].startswith('"') else " ", text)
            text = _COMMA.sub(lambda found: found[0] if found[0].startswith('"') else "", text)
            data = untrusted.record(untrusted.parse(text, LARGEST))
        except (OSError, ValueError):
            return None
        entries = untrusted.items(data.get("forwardPorts"))
        words = (re.fullmatch(_PORT, str(entry), re.ASCII) for entry in entries if isinstance(entry, (int, str)))
        return {int(word[1]) for word in words if word}
    return set()


def _is_port(entry: object) -> bool:
    return isinstance(entry, int) and not isinstance(entry, bool) and 0 < entry <= LAST


def _refusal(port: int, wanted: set[int] | None, taken: int) -> str:
    if port < FIRST:
        return f"below {FIRST}"
    if wanted is not None and port not in wanted:
        return "devcontainer.json does not request it"
    if name := service(port):
        return f"the port of {name}"
    return f"more than {MOST_PORTS}" if taken >= MOST_PORTS else ""
