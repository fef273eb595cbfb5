# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Coder template with the real Terraform, its providers and the real engine, without a server.

Coder's provider reads from the environment what a server would say (docs/decisions/coder-server-behaviour.md).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.tests.integration.harness import Harness
from ansible_collections.spt.flow.tests.integration.proxy_harness import Proxied, proxy

FOLDER = Path(__file__).resolve().parents[2] / "templates/coder/spt-flow"
PLUGINS = Path("/usr/local/share/terraform/plugins/registry.terraform.io")
SETTINGS = Settings(profile="slim", cpus=1.0, memory=1 << 30, kvm="disabled")
AGENT = "spt-workspace start; sleep 3600"


def variables(**more: str) -> dict[str, str]:
    return {**coder_template.ours(SETTINGS, "dev", "spt-flow", {}).variables, **more}


class Terraform:
    """The template for one workspace, unpacked like the server does."""

    def __init__(self, folder: Path, owner: str) -> None:
        self.folder = folder
        self.id = str(uuid.uuid4())
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CODER_", "TF_"))},
            "CODER_WORKSPACE_ID": self.id,
            "CODER_WORKSPACE_NAME": "demo",
            "CODER_WORKSPACE_OWNER": owner,
            "CODER_WORKSPACE_OWNER_NAME": "Ada Lovelace",
            "CODER_WORKSPACE_OWNER_EMAIL": "ada@example.com",
            "CODER_AGENT_SCRIPT_linux_amd64": AGENT,
        }
        shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
        shutil.copy(docker_container.SECCOMP, folder / "seccomp.json")
        self.run("init", "-input=false")

    def run(self, *words: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        argv = ["terraform", *words, "-no-color"]
        done = subprocess.run(
            argv, cwd=self.folder, env={**self.env, **env}, capture_output=True, text=True, timeout=180, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def apply(self, transition: str = "start", check: bool = True, **more: str) -> str:
        words = [f"-var={name}={value}" for name, value in variables(**more).items()]
        verb = ["destroy"] if transition == "destroy" else ["apply"]
        done = self.run(
            *verb, "-auto-approve", "-input=false", *words, check=check, CODER_WORKSPACE_TRANSITION=transition
        )
        return done.stdout + done.stderr

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("show", "-json").stdout)
        return found


@pytest.fixture
def terraform(harness: Harness, tmp_path: Path) -> Iterator[Terraform]:
    missing = [name for name in ("coder/coder", "kreuzwerker/docker") if not (PLUGINS / name).is_dir()]
    if missing or not shutil.which("terraform"):
        pytest.skip(f"needs Terraform and its providers in {PLUGINS}: {', '.join(missing) or 'no terraform'}")
    harness.target._ensure_network()
    made = Terraform(tmp_path / "template", harness.owner)
    yield made
    made.apply("destroy")


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def belongings(terraform: Terraform) -> dict[str, list[str]]:
    label = f"label=spt.flow.coder={terraform.id}"
    return {
        "containers": docker("ps", "--all", "--quiet", "--filter", label).split(),
        "volumes": sorted(docker("volume", "ls", "--quiet", "--filter", label).split()),
    }


def test_variables_are_declared_and_all_are_sent() -> None:
    declared = set(re.findall(r'^variable "(\w+)"', (FOLDER / "variables.tf").read_text(), re.MULTILINE))
    assert declared == set(variables())
    assert (FOLDER / "variables.tf").read_text().count('  default = ""') == sum(
        not value for value in variables().values()
    )


def test_archive_is_small_and_contains_plain_files() -> None:
    assert len(coder_template.pack(FOLDER, {"seccomp.json": docker_container.SECCOMP.read_bytes()})) < 1 << 17


def test_workspace_from_the_dashboard_is_ready_stops_and_is_deleted(terraform: Terraform) -> None:
    terraform.apply()
    (container,) = belongings(terraform)["containers"]
    name = f"spt-flow-{terraform.id}"
    assert belongings(terraform)["volumes"] == [f"{name}-docker", f"{name}-home"]
    found = json.loads(docker("inspect", container))[0]
    host = found["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (10**9, 1 << 30, 1 << 30)
    assert host["Runtime"] == "spt-flow"
    assert not host["Privileged"]
    assert host["CapDrop"] == ["CAP_MKNOD", "CAP_NET_RAW", "CAP_SETFCAP"]
    assert host["Tmpfs"] == SETTINGS.tmpfs()
    assert any(option.startswith("seccomp={") for option in host["SecurityOpt"])
    assert "docker.sock" not in json.dumps(found["Mounts"])
    assert found["Config"]["User"] == "1000:1000"
    for step in ("ide", "docker"):
        ready = f'spt-workspace status | grep -q \'"{step}": {{"state": "ok"\''
        docker("exec", container, "sh", "-c", f"for i in $(seq 100); do {ready} && exit; sleep .1; done; exit 1")
    assert docker("exec", container, "curl", "-fsS", "http://127.0.0.1:8080/healthz")
    docker("exec", container, "sh", "-c", "echo kept > /home/coder/kept")
    items = {
        item["key"]: item["value"]
        for resource in terraform.state()["values"]["root_module"]["resources"]
        if resource["type"] == "coder_metadata"
        for item in resource["values"]["item"]
    }
    assert items["settings"] == SETTINGS.hash()
    assert items["image"] == image_identity.identity("slim").hash

    terraform.apply("stop")
    assert belongings(terraform) == {"containers": [], "volumes": [f"{name}-docker", f"{name}-home"]}
    terraform.apply("start", settings_hash="0" * 64)
    (again,) = belongings(terraform)["containers"]
    assert again != container
    assert docker("exec", again, "cat", "/home/coder/kept") == "kept"

    terraform.apply("destroy")
    assert belongings(terraform) == {"containers": [], "volumes": []}


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Proxied]:
    with proxy(tmp_path / "proxy", docker_container.NETWORK, kvm=str(tmp_path / "no-kvm")) as made:
        yield made


def behind(proxied: Proxied, **more: str) -> dict[str, str]:
    return {"nodes": json.dumps({"node1": f"unix://{proxied.socket}"}), **more}


def lose_state(terraform: Terraform) -> None:
    """Lose what the server keeps of a build, as in an outage of its database."""
    for path in terraform.folder.glob("terraform.tfstate*"):
        path.unlink()


def test_start_without_state_replaces_the_container_and_keeps_the_home(terraform: Terraform, proxied: Proxied) -> None:
    terraform.apply(**behind(proxied))
    before = belongings(terraform)
    docker("exec", before["containers"][0], "sh", "-c", "echo precious > /home/coder/kept")
    lose_state(terraform)
    terraform.apply(**behind(proxied))
    (again,) = belongings(terraform)["containers"]
    assert [again] != before["containers"] and belongings(terraform)["volumes"] == before["volumes"]
    assert docker("exec", again, "cat", "/home/coder/kept") == "precious"
    terraform.apply("destroy", **behind(proxied))
    assert belongings(terraform) == {"containers": [], "volumes": []}
    assert proxied.refused() == []


def test_stop_and_deletion_without_state_leave_nothing(terraform: Terraform, proxied: Proxied) -> None:
    """What `delete` does after a start that failed: the stop finds the volumes, the deletion removes the container."""
    terraform.apply(**behind(proxied))
    lose_state(terraform)
    terraform.apply("stop", **behind(proxied))
    terraform.apply("destroy", **behind(proxied))
    assert belongings(terraform) == {"containers": [], "volumes": []}


def test_default_size_fits_a_node_with_less_and_without_kvm(terraform: Terraform, proxied: Proxied) -> None:
    """By one click with the template's own defaults; a second plan of what runs is not needed and not made."""
    sizes = coder_template.ours(Settings(), "dev", "spt-flow", {}).variables
    default = {name: sizes[name] for name in ("cpus", "memory", "kvm", "environment", "tmpfs")}
    assert (default["cpus"], default["memory"], default["kvm"]) == ("4", "8192", "true")
    terraform.apply(**behind(proxied, **default))
    (container,) = belongings(terraform)["containers"]
    found = json.loads(docker("inspect", container))[0]
    cpus, memory = (int(docker("info", "--format", f"{{{{.{name}}}}}")) for name in ("NCPU", "MemTotal"))
    assert found["HostConfig"]["NanoCpus"] == min(4, cpus) * 10**9
    assert found["HostConfig"]["Memory"] == min(8 << 30, memory - (1 << 30))
    assert "/dev/kvm" not in json.dumps(found["HostConfig"]["Devices"])
    assert any(word.startswith("SPT_FLOW_NOTE=") and "software emulation" in word for word in found["Config"]["Env"])
    terraform.apply("stop", **behind(proxied, **default))
    required = {**default, "environment": json.dumps(Settings(kvm="required").environment())}
    said = " ".join(terraform.apply(check=False, **behind(proxied, **required)).replace("│", " ").split())
    assert "the workspace requires KVM and the node has no" in said
    terraform.apply("stop", **behind(proxied, **default))


def test_stopped_ci_workspace_is_deleted(terraform: Terraform) -> None:
    terraform.apply(kind="ci")
    assert [len(found) for found in belongings(terraform).values()] == [1, 1]
    terraform.apply("stop", kind="ci")
    assert belongings(terraform) == {"containers": [], "volumes": []}


def test_missing_image_on_a_node_is_reported_and_not_pulled(terraform: Terraform) -> None:
    said = " ".join(terraform.apply(check=False, image="spt-flow/workspace:none").replace("│", " ").split())
    assert "spt-flow/workspace:none" in said
    assert belongings(terraform)["containers"] == []


def test_lock_file_restricts_builds_to_the_checksums_of_the_mirror(terraform: Terraform) -> None:
    lock = terraform.folder / coder_template.LOCK
    lock.unlink()
    terraform.run("providers", "lock", f"-fs-mirror={PLUGINS.parent}", "-platform=linux_amd64")
    terraform.run("init", "-input=false", "-lockfile=readonly")
    sums = lock.read_text()
    lock.write_text(re.sub('"h1:....', '"h1:AAAA', sums))
    said = terraform.run("init", "-input=false", "-lockfile=readonly", check=False)
    lock.write_text(sums)
    assert said.returncode != 0
    assert "checksum" in said.stdout + said.stderr
