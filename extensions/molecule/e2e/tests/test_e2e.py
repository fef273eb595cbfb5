# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole site.yml on two nodes, one of them the Coder server: what an operator does after the first run, and what
is left when it is undone.

In the order of the file: each test leaves the nodes as it found them, but the last one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[4]
MACHINES = os.environ.get("SPT_FLOW_MACHINES", "spt-flow-molecule")  # as in .config/molecule/config.yml
NODES = (f"{MACHINES}-e2e-1", f"{MACHINES}-e2e-2")
SERVER = NODES[1]
VOLUME = "spt-flow-ada-demo-home"
testinfra_hosts = ["local://"]
"""These tests speak of both nodes; testinfra would run them for each."""


FOREIGN_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0JkT4YQnT3m2sH0yV0b0m1c2l3d4e5f6g7h8i9j0k1 somebody@elsewhere"


def command(reports: Path, playbook: str, *more: str) -> list[str]:
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    report = f"flow_report_directory={reports}"
    return ["ansible-playbook", str(CHECKOUT / playbook), "-i", inventory, "-e", report, *more]


def environment() -> dict[str, str]:
    more = {"ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / ".ansible/collections"), "ANSIBLE_STDOUT_CALLBACK": "default"}
    return {**os.environ, **more, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}


def play(reports: Path, playbook: str, *more: str) -> tuple[int, str, dict[str, dict[str, int]]]:
    """Status, words and the recap by host."""
    done = subprocess.run(
        command(reports, playbook, *more),
        cwd=reports,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = re.findall(r"^(\S+)\s+: (ok=.*)$", done.stdout, re.MULTILINE)
    recap = {name: {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", words)} for name, words in lines}
    return done.returncode, done.stdout + done.stderr, recap


def docker(node: str, *words: str) -> str:
    argv = ["docker", "exec", node, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout.strip()


def server() -> dict[str, Any]:
    """What the Coder server got, and the machines' addresses."""
    return dict(json.loads(Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "server.json").read_text()))


def templates() -> set[str]:
    """Names, told to the token that bootstrap made for the templates' user."""
    token = docker(SERVER, "cat", "/etc/spt-flow/coder.token")
    url = f"http://{server()['addresses'][SERVER]}:3000/api/v2/templates"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Coder-Session-Token": token})) as answer:
        return {one["name"] for one in json.load(answer)}


def test_limited_run_changes_nothing_and_skips_the_other_node(tmp_path: Path) -> None:
    status, said, recap = play(tmp_path, "site.yml", "--limit", NODES[0])
    assert status == 0, said
    assert set(recap) == {NODES[0]}
    assert recap[NODES[0]]["changed"] == 0


def test_every_role_and_tag_alone_changes_nothing(tmp_path: Path) -> None:
    roles = ("host_kvm", "host_docker", "host_images", "host_audit", "host_snapshots")
    for tag in (f"{role}{phase}" for role in roles for phase in ("", "_install", "_configure", "_verify")):
        status, said, recap = play(tmp_path, "playbooks/hosts.yml", "--limit", NODES[0], "--tags", tag)
        assert (tag, status) == (tag, 0), said
        assert (tag, recap[NODES[0]]["changed"]) == (tag, 0), said


def test_verdict_lists_every_requirement_of_both_nodes(tmp_path: Path) -> None:
    status, said, _recap = play(tmp_path, "playbooks/verify.yml")
    assert status == 0, said
    report = json.loads((tmp_path / "verify.json").read_text())
    rows = {host: {row["requirement"]: row["verdict"] for row in found} for host, found in report["hosts"].items()}
    assert set(rows) == set(NODES)
    assert " requirements of 2 hosts: " in said
    for found in rows.values():
        assert "failed" not in found.values()
        assert found["audit trail"] == "impossible"
        assert found["timer spt-flow-images"] == "met"
        for name in ("Docker engine", "workspace image", "user-namespace remapping", "firewall", "systemd"):
            assert found[name] == "met", name


def test_coder_server_has_users_templates_and_reapers() -> None:
    print(server()["said"])
    assert templates() == {"spt-flow", "spt-flow-ci"}
    for name in ("coder.token", "reaper.token"):
        assert docker(SERVER, "stat", "--format=%a %U", f"/etc/spt-flow/{name}") == "600 root"
    for name in ("spt-flow-reaper", "spt-flow-coder-reaper"):
        assert docker(SERVER, "systemctl", "is-enabled", f"{name}.timer") == "enabled"
        docker(SERVER, "systemctl", "start", f"{name}.service")


def test_server_health_is_reported_by_section(tmp_path: Path) -> None:
    status, said, _recap = play(tmp_path, "playbooks/server_health.yml")
    assert status == 0, said
    assert f"Coder v{server()['version']}" in said
    for section in ("access_url", "database", "provisioner_daemons"):
        assert re.search(rf"{section} +(ok|warning)", said), said
    assert "only-for-this-machine" not in said


def test_server_reaches_only_the_engine_of_the_other_node() -> None:
    """As Terraform's provider does: by SSH as coder, whose key opens the engine's proxy alone."""
    address = server()["addresses"][NODES[0]]
    as_coder = ("runuser", "-u", "coder", "--")
    engine = docker(SERVER, *as_coder, "docker", "--host", f"ssh://coder@{address}", "info", "--format", "{{.Name}}")
    assert engine == docker(NODES[0], "hostname")
    for host in (f"ssh://coder@{address}", "unix:///run/spt-flow-coder/engine.sock"):
        shell = (*as_coder, "sh", "-c", f"docker --host {host} volume ls 2>&1 || true")
        assert "spt.flow refuses GET /volumes on this node" in docker(SERVER, *shell)
    assert "docker" not in docker(NODES[0], "id", "--name", "--groups", "coder").split()
    assert "docker" not in docker(SERVER, "id", "--name", "--groups", "coder").split()
    journal = docker(
        NODES[0], "journalctl", "--unit", "spt-flow-engine-proxy", "--grep", "refused: GET /volumes", "--output", "cat"
    )
    assert len(journal.splitlines()) == 1
    other = docker(SERVER, *as_coder, "timeout", "20", "ssh", "-n", "-o", "BatchMode=yes", f"coder@{address}", "id")
    assert "uid=" not in other


def test_token_with_a_missing_file_is_recreated(tmp_path: Path) -> None:
    """Rotation by hand: the lost one is revoked."""
    before = docker(SERVER, "cat", "/etc/spt-flow/coder.token")
    docker(SERVER, "rm", "/etc/spt-flow/coder.token")
    status, said, _recap = play(tmp_path, "playbooks/bootstrap.yml")
    assert status == 0, said
    after = docker(SERVER, "cat", "/etc/spt-flow/coder.token")
    assert after != before and before not in said and after not in said
    assert templates() == {"spt-flow", "spt-flow-ci"}


def test_node_without_the_image_is_reported_and_repaired(tmp_path: Path) -> None:
    tag = json.loads(docker(NODES[1], "cat", "/etc/spt-flow/image.json"))["tag"]
    docker(NODES[1], "docker", "image", "rm", tag)
    status, said, _recap = play(tmp_path, "playbooks/verify.yml")
    assert status == 2
    assert f"{NODES[1]}: workspace image: {NODES[1]} does not have the image {tag}" in " ".join(said.split())
    status, said, recap = play(tmp_path, "site.yml", "--tags", "host_images")
    assert status == 0, said
    assert recap[NODES[1]]["changed"] > 0
    assert recap[NODES[0]]["changed"] == 0
    docker(NODES[1], "docker", "image", "inspect", tag)


def test_unreachable_node_does_not_stop_the_others(tmp_path: Path) -> None:
    gone = tmp_path / "gone.yml"
    gone.write_text(
        "flow_nodes: {hosts: {gone: {ansible_connection: community.docker.docker, ansible_host: spt-flow-no-such}}}\n"
    )
    docker(NODES[0], "rm", "/etc/spt-flow/snapshots.json")
    status, said, recap = play(tmp_path, "playbooks/hosts.yml", "-i", str(gone))
    assert status == 4, said
    assert recap["gone"]["unreachable"] == 1
    assert recap[NODES[0]]["failed"] == recap[NODES[1]]["failed"] == 0
    docker(NODES[0], "test", "-s", "/etc/spt-flow/snapshots.json")


def test_next_run_repairs_a_killed_run(tmp_path: Path) -> None:
    for path in ("/etc/spt-flow/image.json", "/etc/systemd/system/spt-flow-snapshots.timer"):
        docker(NODES[0], "rm", path)
    run = subprocess.Popen(
        command(tmp_path, "site.yml", "--limit", NODES[0]),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(6)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait(timeout=30)
    status, said, _recap = play(tmp_path, "site.yml", "--limit", NODES[0])
    assert status == 0, said
    _status, _said, recap = play(tmp_path, "site.yml", "--limit", NODES[0])
    assert recap[NODES[0]]["changed"] == 0
    assert docker(NODES[0], "systemctl", "is-active", "spt-flow-snapshots.timer") == "active"


def test_reset_asks_and_keeps_only_user_data(tmp_path: Path) -> None:
    add = f"printf '%s\\n' '{FOREIGN_KEY}' >> /home/coder/.ssh/authorized_keys"
    docker(NODES[0], "sh", "-c", add)
    docker(NODES[0], "docker", "volume", "create", "--label", "spt.flow.owner=ada", VOLUME)
    status, said, _recap = play(tmp_path, "playbooks/reset.yml", "--limit", NODES[0])
    assert status == 2
    assert "Nothing was removed" in said
    status, said, _recap = play(tmp_path, "playbooks/reset.yml", "--limit", NODES[0], "-e", "confirm=true")
    assert status == 0, said
    left = docker(
        NODES[0], "find", "/etc/systemd/system", "/usr/local/lib", "-name", "spt-flow*", "!", "-name", "spt-flow"
    )
    assert left == ""
    assert docker(NODES[0], "docker", "volume", "ls", "--quiet") == VOLUME
    keys = docker(NODES[0], "cat", "/home/coder/.ssh/authorized_keys")
    assert keys == FOREIGN_KEY
    status, said, recap = play(tmp_path, "playbooks/reset.yml", "--limit", NODES[0], "-e", "confirm=true")
    assert status == 0, said
    assert recap[NODES[0]]["changed"] == 0
