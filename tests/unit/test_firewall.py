# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What spt-flow-firewall passes to nft, here a recorder. Real packets: tests/integration/test_firewall.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "roles/host_docker/files/spt-flow-firewall"
NFT = """#!/bin/sh
[ ! -e {folder}/broken ] || exit 4
echo "$*" >>{folder}/calls
[ "$1" != -f ] || cat >{folder}/rules
"""


class Firewall:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "spt-flow-firewall"
        text = SOURCE.read_text()
        for old, new in {
            "PATH=/usr/sbin:": f"PATH={folder}:/usr/sbin:",
            "/etc/spt-flow/": f"{folder}/",
            "/sys/class/net/": f"{folder}/net/",
            "/proc/sys/": f"{folder}/proc/",
        }.items():
            assert old in text
            text = text.replace(old, new)
        self.program.write_text(text)
        for name, content in {
            "nft": NFT.replace("{folder}", str(folder)),
            "iptables": "#!/bin/sh\nexit 1\n",
            "ip6tables": "#!/bin/sh\nexit 1\n",
        }.items():
            (folder / name).write_text(content)
            (folder / name).chmod(0o755)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = ["/bin/sh", str(self.program), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=20)

    def rules(self) -> list[str]:
        return [line.strip() for line in (self.folder / "rules").read_text().splitlines()]


@pytest.fixture
def firewall(tmp_path: Path) -> Firewall:
    return Firewall(tmp_path)


def test_table_is_replaced_in_one_transaction(firewall: Firewall) -> None:
    assert firewall.run("apply").returncode == 0
    assert (firewall.folder / "calls").read_text() == "-f -\n"
    assert firewall.rules()[:3] == ["table inet spt-flow", "delete table inet spt-flow", "table inet spt-flow {"]


def test_every_metadata_address_is_in_both_rules_and_comments_are_not(firewall: Firewall) -> None:
    firewall.run("apply")
    found = [rule for rule in firewall.rules() if "ip daddr" in rule]
    addresses = "{ 169.254.0.0/16,168.63.129.16,100.100.100.200,192.0.0.192 }"
    assert found == [
        f'iifname "spt-flow0" ip daddr {addresses} meta l4proto {{ tcp, udp }} th dport 53 accept',
        f'iifname "spt-flow0" ip daddr {addresses} reject',
    ]


def test_allowed_port_is_opened_before_all_others_are_refused(firewall: Firewall) -> None:
    (firewall.folder / "firewall.env").write_text("ALLOW='3000 3443'\n")
    firewall.run("apply")
    rules = firewall.rules()
    assert rules.index("tcp dport { 3000,3443 } accept") < rules.index("reject")
    (firewall.folder / "firewall.env").write_text("ALLOW=''\n")
    firewall.run("apply")
    assert not any("tcp dport" in rule for rule in firewall.rules())


def test_connections_of_a_workspace_are_limited_before_any_is_accepted(firewall: Firewall) -> None:
    (firewall.folder / "firewall.env").write_text("ALLOW='3000'\nCONNECTIONS=77\n")
    firewall.run("apply")
    rules = firewall.rules()
    assert "add @connections { ip saddr ct count over 77 } reject" in rules
    first, second = (number for number, rule in enumerate(rules) if rule.endswith("jump connections"))
    assert first < rules.index("tcp dport { 3000 } accept") < second
    assert not any(rule.endswith("accept") and rule.startswith("iifname") for rule in rules[first + 4 : second])


@pytest.mark.parametrize(("before", "after"), [("262144", "1048576"), ("2000000", "2000000")])
def test_connection_table_is_enlarged_and_never_reduced(firewall: Firewall, before: str, after: str) -> None:
    limit = firewall.folder / "proc/net/netfilter/nf_conntrack_max"
    limit.parent.mkdir(parents=True)
    limit.write_text(f"{before}\n")
    assert firewall.run("apply").returncode == 0
    assert limit.read_text().strip() == after


def test_bridge_ports_are_isolated(firewall: Firewall) -> None:
    port = firewall.folder / "net/spt-flow0/brif/veth1/isolated"
    port.parent.mkdir(parents=True)
    port.write_text("0\n")
    firewall.run("apply")
    assert port.read_text() == "1\n"


def test_failed_rules_are_a_failure(firewall: Firewall) -> None:
    (firewall.folder / "broken").touch()
    assert firewall.run("apply").returncode != 0
    assert firewall.run("check").returncode != 0


@pytest.mark.parametrize("words", [[], ["status"], ["--help"], [""]])
def test_usage_is_checked(firewall: Firewall, words: list[str]) -> None:
    done = firewall.run(*words)
    assert (done.returncode, done.stderr) == (2, "usage: spt-flow-firewall apply|remove|check\n")
    assert not (firewall.folder / "calls").exists()
