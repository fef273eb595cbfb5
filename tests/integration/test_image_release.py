# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""image.yml and release.yml on the real engine with a real registry; the recipe is a base system and a script.

Nothing is pruned here (keep -1), because the engine is shared. The scenario image_build prunes on its own engine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible_collections.spt.flow.plugins.module_utils._node.docker import images as docker_images
from ansible_collections.spt.flow.tests.integration import playbook_harness, recipe_harness
from ansible_collections.spt.flow.tests.integration.playbook_harness import Playbooks
from ansible_collections.spt.flow.tests.integration.recipe_harness import Copy

REGISTRY = shutil.which("docker-registry")
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a registry on loopback."""
    if REGISTRY is None:
        pytest.skip("needs docker-registry (Debian's package of that name)")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    about = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(about))
    with (folder / "log").open("wb") as log:
        served = subprocess.Popen([REGISTRY, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
        try:
            for _attempt in range(200):
                try:
                    urllib.request.urlopen(f"http://{address}/v2/", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield address
        finally:
            served.terminate()
            served.wait(30)


def digest(address: str, tag: str) -> str:
    """Return the digest that a tag of the registry refers to."""
    request = urllib.request.Request(
        f"http://{address}/v2/team/workspace/manifests/{tag}", headers={"Accept": MANIFEST}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.headers["Docker-Content-Digest"])


@pytest.fixture
def recipe(tmp_path: Path) -> Copy:
    made = recipe_harness.copy(tmp_path / "collections/ansible_collections/spt/flow")
    made.tiny()
    made.gh("1.0")
    made.spare_the_ide(recipe_harness.cache_of_its_own(tmp_path / "cache"))
    return made


@pytest.fixture
def playbooks(tmp_path: Path, recipe: Copy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Playbooks]:
    """The copy's playbooks; the images that they leave on the engine are removed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = set(playbook_harness.docker("images", "--no-trunc", "--quiet", "spt-flow/workspace").split())
    with playbook_harness.playbooks(
        tmp_path / "playbooks", cwd=recipe.root, installed=tmp_path / "collections"
    ) as made:
        yield made
    made_here = {
        identifier
        for identifier in playbook_harness.docker("images", "--no-trunc", "--quiet", "spt-flow/workspace").split()
        if identifier not in before and b"gh version" in _gh(identifier)
    }
    for identifier in made_here:
        subprocess.run(["docker", "rmi", "--force", identifier], capture_output=True, timeout=120, check=False)


def _gh(image: str) -> bytes:
    argv = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "/usr/local/bin/gh", image]
    return subprocess.run(argv, capture_output=True, timeout=120, check=False).stdout


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where releases are recorded."""
    return tmp_path / "release/image.json"


@pytest.fixture
def inventory(tmp_path: Path, file: Path, registry: str) -> Path:
    """An inventory without hosts: built here, pushed to the registry."""
    folder = tmp_path / "inventory"
    (folder / "group_vars/all").mkdir(parents=True)
    (folder / "hosts.yml").write_text("all: {}\n")
    values = {
        "flow_image_release": str(file),
        "image_build_registry": f"{registry}/team/workspace",
        "image_build_keep": -1,
    }
    (folder / "group_vars/all/flow.yml").write_text(yaml.safe_dump(values))
    return folder


def command(workflow: str, job: str, checkout: Path) -> tuple[str, dict[str, str]]:
    """Return what a job of an offered pipeline runs, and its variables; programs are those of the copy."""
    document = yaml.safe_load((playbook_harness.CHECKOUT / "templates/pipelines" / workflow).read_text())
    if "jobs" in document:
        steps = document["jobs"][job]["steps"]
        variables = {"GITHUB_WORKSPACE": str(checkout)}
    else:
        steps = [{"run": line, "env": document["variables"]} for line in document[job]["script"]]
        variables = {"CI_PROJECT_DIR": str(checkout)}
    (step,) = [step for step in steps if "ansible-playbook" in step.get("run", "")]
    for name, text in step["env"].items():
        variables[name] = re.sub(r"\$\{\{ github.workspace \}\}|\$CI_PROJECT_DIR", str(checkout), text)
    return re.sub(r'"\$\w+/tools/venv" --\s', "", str(step["run"])), variables


def pipeline(playbooks: Playbooks, workflow: str, job: str, inventory: Path) -> subprocess.CompletedProcess[str]:
    line, variables = command(workflow, job, playbooks.cwd)
    # tools/venv, which the pipeline calls, links the checkout as a collection.
    link = playbooks.cwd / ".ansible/collections/ansible_collections/spt/flow"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to("../../../..")
    environment = playbooks.environment(**variables | {"INVENTORY": os.path.relpath(inventory, playbooks.cwd)})
    return subprocess.run(
        ["sh", "-ec", line],
        cwd=playbooks.cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_pipeline_plans_applies_and_keeps_the_image_when_verification_fails(
    playbooks: Playbooks, recipe: Copy, inventory: Path, file: Path, registry: str
) -> None:
    """Planned, applied, nothing left to do; gh is updated: planned, applied; a broken version replaces nothing."""
    planned = pipeline(playbooks, "github.yml", "plan", inventory)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "current: built, verified, described, pushed, recorded" in planned.stdout
    assert not file.exists()

    applied = pipeline(playbooks, "github.yml", "apply", inventory)
    assert applied.returncode == 0, applied.stdout + applied.stderr
    first = json.loads(file.read_text())["slim"]
    assert first["reference"] == f"{registry}/team/workspace@{digest(registry, 'slim')}"
    bill = json.loads((file.parent / first["sbom"]).read_text())
    assert {"bash", "gh", "libc6"} <= {package["name"] for package in bill["packages"]}
    report = json.loads((file.parent / f"slim-{first['hash'][:12]}.verify.json").read_text())
    assert report["checks"] == [{"name": "gh", "state": "passed", "detail": "gh version 1.0"}]

    again = pipeline(playbooks, "gitlab.yml", "workspace image", inventory)
    assert "changed=0" in again.stdout and again.returncode == 0, again.stdout + again.stderr
    assert json.loads(file.read_text())["slim"] == first

    recipe.gh("1.1")
    assert pipeline(playbooks, "gitlab.yml", "workspace image plan", inventory).returncode == 0
    assert json.loads(file.read_text())["slim"] == first
    assert pipeline(playbooks, "gitlab.yml", "workspace image", inventory).returncode == 0
    second = json.loads(file.read_text())["slim"]
    assert second["hash"] != first["hash"]
    assert digest(registry, f"slim-{first['hash'][:12]}") == first["reference"].partition("@")[2]

    recipe.gh("1.2", works=False)
    failed = pipeline(playbooks, "github.yml", "apply", inventory)
    assert failed.returncode != 0
    said = failed.stdout + failed.stderr
    assert "failed its verification: gh: gh version 1.2" in said and f"{second['tag']} stays current" in said
    assert "Traceback" not in said
    assert json.loads(file.read_text())["slim"] == second
    assert digest(registry, "slim") == second["reference"].partition("@")[2]

    # A node without a recorded image gets the recorded one.
    wanted = docker_images.Wanted(second["tag"], second["hash"], reference=second["reference"])
    subprocess.run(["docker", "rmi", "--force", second["tag"]], capture_output=True, timeout=120, check=True)
    assert docker_images.reconcile(wanted).changed
    assert _gh(second["tag"]) == b"gh version 1.1\n"
    subprocess.run(["docker", "rmi", second["reference"]], capture_output=True, timeout=120, check=False)


def test_unreachable_registry_is_reported_and_nothing_is_recorded(
    playbooks: Playbooks, inventory: Path, file: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        extra = json.dumps({"image_build_registry": f"127.0.0.1:{port}/team/workspace"})
        done = playbooks.run("image", "-i", str(inventory), "-e", extra)
    assert done.returncode != 0
    assert f"Check that 127.0.0.1:{port} answers" in done.stdout + done.stderr
    assert not file.exists()


def test_archive_works_without_a_registry(playbooks: Playbooks, inventory: Path, file: Path) -> None:
    extra = json.dumps({"image_build_registry": "", "image_build_archive": True})
    done = playbooks.run("image", "-i", str(inventory), "-e", extra)
    assert done.returncode == 0, done.stdout + done.stderr
    entry = json.loads(file.read_text())["slim"]
    assert "reference" not in entry
    listed = subprocess.run(
        ["tar", "-tf", str(file.parent / entry["archive"])], capture_output=True, check=True, timeout=60
    )
    assert b"manifest.json" in listed.stdout


def test_release_without_a_record_file_is_refused(playbooks: Playbooks) -> None:
    done = playbooks.run("release")
    assert done.returncode != 0
    assert "Set it in group_vars/all of the inventory" in done.stdout + done.stderr


def test_image_alone_builds_and_records_nothing(playbooks: Playbooks, tmp_path: Path) -> None:
    assert playbooks.run("image").returncode == 0
    again = playbooks.run("image")
    assert "changed=0" in again.stdout, again.stdout
    assert not [path for path in tmp_path.rglob("*.spdx.json") if os.path.isfile(path)]
