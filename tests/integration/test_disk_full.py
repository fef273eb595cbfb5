# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A full disk: a home on a file system of 200 MiB."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError, Unhealthy
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import build as image_build
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import engine as image_engine
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.tests.integration.harness import Harness, git

SIZE = 200 * 2**20


@pytest.mark.full
def test_image_whose_base_does_not_fit_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """debootstrap itself reports a failed download in this case."""
    folder = tmp_path / "spt-flow"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = shutil.copytree(image_identity.FOLDER, tmp_path / "image", symlinks=True)
    versions = recipe / "versions.yml"
    day = image_identity.recipe().base["snapshot"]
    versions.write_text(versions.read_text().replace(day, "20010102T000000Z"))
    image = image_identity.identity(folder=recipe)
    try:
        with pytest.raises(FlowError) as caught:
            image_build._Builder(image, {"image_base": "bootstrap"}, Progress(), recipe).build()
        assert caught.value.message == f"Cannot bootstrap bookworm in {folder / 'base'}: the disk is full."
        assert list((folder / "base").iterdir()) == []
        assert not image_engine.present(image)
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=60)


@pytest.fixture
def small_home(harness: Harness, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """The future home of the workspace ``demo``: a separate disk with a file of ``param`` MiB."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    user = harness.target.probe_engine().remap_base + 1000
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-E", f"root_owner={user}:{user}", str(disk)], check=True, timeout=60)
    found = subprocess.run(["losetup", "--find", "--show", str(disk)], capture_output=True, text=True, timeout=60)
    if found.returncode:
        pytest.skip(f"no loop devices here: {found.stderr.strip()}")
    device = found.stdout.strip()
    name = f"spt-flow-{harness.owner}-demo-home"
    labels = {"spt.flow.owner": harness.owner, "spt.flow.workspace": "demo"}
    options = {"type": "ext4", "device": device}
    body = {"Name": name, "Driver": "local", "DriverOpts": options, "Labels": labels}
    harness.engine.request_json("POST", "/volumes/create", body=body)
    fill = ["docker", "run", "--rm", "-v", f"{name}:/home/coder", "--entrypoint", "fallocate", harness.image.tag]
    try:
        subprocess.run([*fill, "-l", f"{request.param}M", "/home/coder/filler"], check=True, timeout=120)
        yield
    finally:
        harness.clean()
        subprocess.run(["losetup", "--detach", device], check=True, timeout=60)


@pytest.mark.parametrize("small_home", [110], indirect=True)
def test_clone_on_a_full_disk_is_reported_and_can_be_repeated(harness: Harness, small_home: None) -> None:
    source = harness.repository(files=60, size=2**20)
    result = harness.ensure(harness.spec(source))
    workspace = result.workspace
    assert workspace is not None and workspace.step("clone").state == "failed"
    assert [note for note in result.notes if "no space left" in note and "Make room" in note and ".." not in note], (
        result
    )
    assert harness.inside(workspace, "ls -A ~/demo 2>/dev/null || true") == "", "the clone is incomplete"
    made_good(harness, source, workspace)


@pytest.mark.parametrize("small_home", [165], indirect=True)
def test_repository_larger_than_the_disk_is_reported(harness: Harness, small_home: None) -> None:
    source = harness.repository(files=60, size=2**20)
    with pytest.raises(Unhealthy) as caught:
        harness.ensure(harness.spec(source))
    assert "workspace demo: its disk is full" in caught.value.message and "free space" in caught.value.hint
    workspace = harness.up(harness.spec(name="demo"))
    assert "filler" in harness.inside(workspace, "ls ~")
    made_good(harness, source, workspace)


def made_good(harness: Harness, source: Path, workspace: Workspace) -> None:
    harness.inside(workspace, "rm ~/filler")
    harness.ensure(harness.spec(source), "restarted")
    workspace = harness.up(harness.spec(source))
    assert harness.inside(workspace, "git -C ~/demo rev-parse HEAD") == git(source, "rev-parse", "HEAD")
    assert harness.inside(workspace, "git -C ~/demo fsck --strict && git -C ~/demo status --porcelain") == ""
    harness.is_exactly("demo")
