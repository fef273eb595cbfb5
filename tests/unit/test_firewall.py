# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall of workspaces against an iptables that keeps its chains in files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "roles/host_docker/files/spt-flow-firewall"
IPTABLES = """#!/bin/sh
# Chains are files of one rule a line. $0 says which family is meant.
tables={folder}/$(basename "$0")
echo "$(basename "$0") $*" >>{folder}/calls
[ -e {folder}/broken ] && exit 4
[ "$1 $2" = "-w 10" ] && shift 2
what=$1 chain=$2; shift 2
file=$tables.$chain
case "$what" in
  -N) [ ! -e "$file" ] && : >"$file" ;;
  -F) [ -e "$file" ] && : >"$file" ;;
  -X) [ -e "$file" ] && rm "$file" ;;
  -S) [ -e "$file" ] ;;
  -A) [ -e "$file" ] && echo "$*" >>"$file" ;;
  -I) [ -e "$file" ] && shift && { echo "$*"; cat "$file"; } >"$file.new" && mv "$file.new" "$file" ;;
  -C) grep -qxF -- "$*" "$file" ;;
  -D) grep -qxF -- "$*" "$file" && { grep -vxF -- "$*" "$file" >"$file.new"; mv "$file.new" "$file"; } ;;
  *) exit 2 ;;
esac
"""


class Firewall:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "spt-flow-firewall"
        text = SOURCE.read_text()
        assert "PATH=/usr/sbin:" in text
        text = text.replace("PATH=/usr/sbin:", f"PATH={folder}:/usr/sbin:").replace("/etc/spt-flow/", f"{folder}/")
        self.program.write_text(text)
        for name in ("iptables", "ip6tables"):
            (folder / name).write_text(IPTABLES.replace("{folder}", str(folder)))
            (folder / name).chmod(0o755)
            (folder / f"{name}.INPUT").write_text("-i lo -j ACCEPT\n")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = ["/bin/sh", str(self.program), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=20)

    def state(self) -> dict[str, list[str]]:
        return {path.name: path.read_text().splitlines() for path in self.folder.glob("ip*tables.*")}


@pytest.fixture
def firewall(tmp_path: Path) -> Firewall:
    return Firewall(tmp_path)


def test_workspaces_reach_neither_the_host_nor_the_metadata(firewall: Firewall) -> None:
    assert firewall.run("apply").returncode == 0
    assert firewall.state() == {
        "iptables.INPUT": ["-i spt-flow0 -j SPT-FLOW-HOST", "-i lo -j ACCEPT"],
        "iptables.SPT-FLOW-HOST": ["-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN", "-j REJECT"],
        "iptables.DOCKER-USER": ["-i spt-flow0 -j SPT-FLOW-OUT"],
        "iptables.SPT-FLOW-OUT": [
            "-d 169.254.0.0/16 -j REJECT",
            "-d 100.100.100.200/32 -j REJECT",
            "-d 192.0.0.192/32 -j REJECT",
        ],
        "ip6tables.INPUT": ["-i spt-flow0 -j DROP", "-i lo -j ACCEPT"],
    }


def test_a_port_that_is_allowed_is_open_before_all_others_are_refused(firewall: Firewall) -> None:
    firewall.run("apply")
    (firewall.folder / "firewall.env").write_text("ALLOW='3000 3443'\n")
    assert firewall.run("check").returncode != 0
    assert firewall.run("apply").returncode == 0
    assert firewall.run("check").returncode == 0
    assert firewall.state()["iptables.SPT-FLOW-HOST"] == [
        "-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN",
        "-p tcp --dport 3000 -j RETURN",
        "-p tcp --dport 3443 -j RETURN",
        "-j REJECT",
    ]
    (firewall.folder / "firewall.env").write_text("ALLOW=''\n")
    firewall.run("apply")
    assert "-p tcp --dport 3000 -j RETURN" not in firewall.state()["iptables.SPT-FLOW-HOST"]


def test_applying_twice_is_applying_once_and_keeps_docker_users_rules(firewall: Firewall) -> None:
    (firewall.folder / "iptables.DOCKER-USER").write_text("-j RETURN\n")
    firewall.run("apply")
    once = firewall.state()
    assert firewall.run("apply").returncode == 0
    assert firewall.state() == once
    assert once["iptables.DOCKER-USER"] == ["-i spt-flow0 -j SPT-FLOW-OUT", "-j RETURN"]


def test_remove_leaves_what_was_there_before(firewall: Firewall) -> None:
    before = firewall.state()
    firewall.run("apply")
    assert firewall.run("remove").returncode == 0
    assert firewall.state() == {**before, "iptables.DOCKER-USER": []}
    assert firewall.run("remove").returncode == 0


def test_check_says_whether_the_rules_hold(firewall: Firewall) -> None:
    assert firewall.run("check").returncode != 0
    firewall.run("apply")
    assert firewall.run("check").returncode == 0
    for chain in ("INPUT", "DOCKER-USER", "SPT-FLOW-HOST"):
        firewall.run("apply")
        (firewall.folder / f"iptables.{chain}").write_text("")
        assert firewall.run("check").returncode != 0, chain


def test_a_host_without_ipv6_needs_no_rule_for_it(firewall: Firewall) -> None:
    (firewall.folder / "ip6tables.INPUT").unlink()
    assert firewall.run("apply").returncode == 0
    assert "ip6tables.INPUT" not in firewall.state()


def test_every_call_waits_for_the_lock_of_others(firewall: Firewall) -> None:
    for verb in ("apply", "check", "remove"):
        firewall.run(verb)
    calls = (firewall.folder / "calls").read_text().splitlines()
    assert [call for call in calls if call.split()[1:3] != ["-w", "10"]] == []


def test_rules_that_cannot_be_set_are_a_failure(firewall: Firewall) -> None:
    (firewall.folder / "broken").touch()
    assert firewall.run("apply").returncode != 0


@pytest.mark.parametrize("words", [[], ["status"], ["--help"], [""]])
def test_usage(firewall: Firewall, words: list[str]) -> None:
    done = firewall.run(*words)
    assert (done.returncode, done.stderr) == (2, "usage: spt-flow-firewall apply|remove|check\n")
    assert not (firewall.folder / "calls").exists()
