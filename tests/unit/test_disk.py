# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk limits on the node: which mounts of a bundle get which sizes, and when they are released."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.disk import image, kernel, layer, limits, quota
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError

ROOT = "/var/lib/docker/1000.1000"
HOME = f"{ROOT}/volumes/spt-flow-ada-demo-home/_data"
DATA = f"{ROOT}/volumes/spt-flow-ada-demo-docker/_data"
MERGED = f"{ROOT}/overlay2/0a1b/merged"


def bundle(*env: str, mounts: dict[str, str] | None = None) -> dict[str, Any]:
    """Return a config.json with mounts as (destination, source)."""
    found = {"/home/coder": HOME, "/var/lib/spt-flow-docker": DATA} if mounts is None else mounts
    return {
        "process": {"env": list(env)},
        "root": {"path": MERGED},
        "mounts": [{"destination": path, "type": "bind", "source": source} for path, source in found.items()],
    }


def planned(config: dict[str, Any]) -> list[tuple[str, int, bool]]:
    return [(disk.path, disk.size, disk.volume) for disk in limits.wanted(config)]


def test_home_docker_data_and_container_get_their_sizes() -> None:
    found = planned(bundle("SPT_FLOW_DISK=1000", "SPT_FLOW_DOCKER_DISK=2000"))
    assert found == [(HOME, 1000, True), (DATA, 2000, True), (MERGED, 1000, False)]


def test_volumes_without_sizes_are_tracked() -> None:
    """Another container may have given them file systems of their own."""
    assert planned(bundle()) == [(HOME, 0, True), (DATA, 0, True)]


def test_ci_workspace_has_no_volumes() -> None:
    assert planned(bundle("SPT_FLOW_DISK=1000", mounts={})) == [(MERGED, 1000, False)]


@pytest.mark.parametrize(
    "source",
    [
        "/home/ada",
        f"{ROOT}/volumes/other-home/_data",
        f"{ROOT}/volumes/spt-flow-ada-demo-home",
        f"{ROOT}/volumes/spt-flow-a/../../x/_data",
        "volumes/spt-flow-a-home/_data",
    ],
)
def test_other_mounts_are_ignored(source: str) -> None:
    assert planned(bundle("SPT_FLOW_DISK=1000", mounts={"/home/coder": source, "/mnt": HOME})) == [
        (MERGED, 1000, False)
    ]


@pytest.mark.parametrize("text", ["", "-1", "1e9", "20g", "²", "9" * 19, " 1"])
def test_invalid_size_sets_no_limit(text: str) -> None:
    assert planned(bundle(f"SPT_FLOW_DISK={text}"))[0] == (HOME, 0, True)


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["--root", "/run/x", "create", "c1"], "/run/x/c1"),
        (["--root=/run/x", "create", "c1"], "/run/x/c1"),
        (["create", "c1"], "/run/runc/c1"),
    ],
)
def test_runc_container_directory_is_found(argv: list[str], found: str) -> None:
    assert limits.state(argv, "c1") == found


class Disks:
    """Records attached paths instead of mounting them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.attached, self.refuses = folder, set(), ""
        self.runc = folder / "runc"
        self.runc.mkdir()
        monkeypatch.setattr(limits, "RECORDS", str(folder / "records"))
        monkeypatch.setattr(quota, "available", lambda path: False)
        for module in (image, layer):
            monkeypatch.setattr(module, "attach", self.attach)
            monkeypatch.setattr(module, "detach", lambda path: self.attached.discard(str(path)))
        (folder / "config.json").write_text(json.dumps(bundle("SPT_FLOW_DISK=1000", "SPT_FLOW_DOCKER_DISK=2000")))

    def attach(self, path: Path, size: int, files: Any = ()) -> Any:
        if str(path) == self.refuses:
            raise FlowError("It is full.")
        self.attached.add(str(path))
        return True if files == () else {}

    def create(self, container: str, process: int = 0) -> None:
        limits.attach(process or os.getpid(), str(self.folder), container, ["--root", str(self.runc), "create"])

    def records(self) -> list[str]:
        folder = self.folder / "records"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disks:
    return Disks(tmp_path, monkeypatch)


def test_attached_paths_are_detached_once_runc_has_deleted_the_container(disks: Disks) -> None:
    disks.create("c1")
    (disks.runc / "c1").mkdir()
    assert disks.attached == {HOME, DATA, MERGED}
    limits.detach("c1")
    assert disks.attached == {HOME, DATA, MERGED}, "runc still has it"
    (disks.runc / "c1").rmdir()
    limits.detach("c1")
    assert (disks.attached, disks.records()) == (set(), [])
    limits.detach("c1")


def test_partial_attachment_is_undone(disks: Disks) -> None:
    disks.refuses = DATA
    with pytest.raises(FlowError):
        disks.create("c1")
    assert (disks.attached, disks.records()) == (set(), [])


def test_volume_stays_while_another_container_uses_it(disks: Disks) -> None:
    for container in ("c1", "c2"):
        disks.create(container)
        (disks.runc / container).mkdir()
    (disks.runc / "c1").rmdir()
    limits.detach("c1")
    assert disks.attached == {HOME, DATA, MERGED} and disks.records() == ["c2"]


def test_leftovers_of_a_lost_container_are_removed_at_the_next_start(disks: Disks) -> None:
    disks.create("lost", process=2**22 + 1)
    (disks.folder / "config.json").write_text(json.dumps(bundle(mounts={})))
    disks.create("c2")
    assert disks.attached == set() and "lost" not in disks.records()


def test_container_in_creation_is_not_treated_as_lost(disks: Disks) -> None:
    disks.create("c1")
    (disks.folder / "config.json").write_text(json.dumps(bundle(mounts={})))
    disks.create("c2")
    assert disks.attached == {HOME, DATA, MERGED} and "c1" in disks.records()


def test_structures_match_the_kernel() -> None:
    assert (kernel.INFO.size, quota.ATTRIBUTES.size, quota.LIMITS.size) == (232, 28, 72)


def test_mark_in_a_home_counts_only_if_root_of_the_node_owns_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / image.MARKER
    assert not image.marked(tmp_path)
    mark.symlink_to("/etc/passwd")
    assert not image.marked(tmp_path), "a link"
    mark.unlink()
    mark.touch()
    real = os.lstat(mark)
    owned = {uid: os.stat_result((*real[:4], uid, *real[5:])) for uid in (0, 1000000)}
    for uid, found in owned.items():
        monkeypatch.setattr(os, "lstat", lambda path, found=found: found)
        assert image.marked(tmp_path) is (uid == 0)


def test_usage_counts_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    before = image.usage(tmp_path)
    os.link(tmp_path / "a", tmp_path / "b")
    assert image.usage(tmp_path) == before and before[0] >= 100_000


@pytest.mark.parametrize(
    ("options", "kind", "there"),
    [
        ("rw,prjquota", "xfs", True),
        ("rw,prjquota", "ext4", True),
        ("rw,noquota", "xfs", False),
        ("rw,prjquota", "btrfs", False),
    ],
)
def test_quotas_are_used_where_the_file_system_supports_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: str, kind: str, there: bool
) -> None:
    monkeypatch.setattr(kernel, "mounts", lambda: [kernel.Mount("/", "/", kind, "/dev/x", options)])
    assert quota.available(tmp_path) is there


def test_escaped_names_in_the_mount_table_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "1 2 7:0 /a\\040b /mnt/c\\134d\\040e rw shared:1 - ext4 /dev/loop0 rw,x\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **words: line)
    (found,) = kernel.mounts()
    assert (found.point, found.root, found.kind, found.source) == ("/mnt/c\\d e", "/a b", "ext4", "/dev/loop0")


def test_refused_quota_is_not_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The volume then gets a file system of its own, and the start does not fail."""

    def refused(*words: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(quota, "available", lambda path: True)
    monkeypatch.setattr(quota, "apply", refused)
    assert quota.attempt([tmp_path], 1000) is False
