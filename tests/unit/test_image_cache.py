# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The workspace image on a host: when it counts as present, what is refused, and which old images are removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import labels as node_labels
from ansible_collections.spt.flow.plugins.module_utils._node.docker import images as cache
from ansible_collections.spt.flow.plugins.module_utils._node.errors import Conflict, FlowError, InvalidInput, NotFound
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

CHECK = Path(__file__).resolve().parents[2] / "roles/host_images/files/spt-flow-images"
TAG = "spt-flow/workspace:slim-new"
WANTED = cache.Wanted(TAG, "hash")


class FakeEngine:
    """Images by tag, which is also their id, as (label, created); ``used`` has ids of images in use by containers.

    ``names`` has further names of an image: other tags and, with an @, digests.
    """

    def __init__(
        self,
        images: dict[str, tuple[str, int]],
        used: set[str] | None = None,
        names: dict[str, list[str]] | None = None,
    ) -> None:
        self.images = images
        self.used = used or set()
        self.names = names or {}
        self.deleted: list[str] = []

    def get_json(self, path: str, query: Any = None, timeout: float = 60.0) -> Any:
        if path == "/images/json":
            # The engine lists only names that match the filter.
            assert query == {"filters": {"reference": ["spt-flow/workspace"]}}
            return [
                {"Id": tag, "RepoTags": [tag], "Created": created, "Labels": {node_labels.IMAGE: label}}
                for tag, (label, created) in self.images.items()
            ]
        if path == "/containers/json":
            assert query == {"all": True}
            return [{"ImageID": tag} for tag in self.used]
        tag = path.removeprefix("/images/").removesuffix("/json")
        if tag not in self.images:
            raise NotFound("No such image.")
        names = [tag, *self.names.get(tag, [])]
        return {
            "Config": {"Labels": {node_labels.IMAGE: self.images[tag][0]}},
            "RepoTags": [name for name in names if "@" not in name],
            "RepoDigests": [name for name in names if "@" in name],
        }

    def request_json(self, method: str, path: str, timeout: float = 60.0) -> Any:
        assert method == "DELETE"
        name = path.removeprefix("/images/")
        if name in self.used:
            raise Conflict("A container uses it.")
        self.deleted.append(name)
        self.images.pop(name, None)


def old(*numbers: int) -> dict[str, tuple[str, int]]:
    return {f"spt-flow/workspace:slim-{number}": (str(number), number) for number in numbers}


def test_tag_counts_only_with_its_content() -> None:
    assert cache.reconcile(WANTED, engine=FakeEngine({TAG: ("hash", 9)})).present
    assert not cache.reconcile(WANTED, engine=FakeEngine({TAG: ("another", 9)})).present
    assert not cache.reconcile(WANTED, engine=FakeEngine({})).present


@pytest.mark.parametrize(("keep", "gone"), [(-1, []), (0, [3, 2, 1]), (1, [2, 1]), (5, [])])
@pytest.mark.parametrize("check", [False, True])
def test_old_images_except_the_newest_are_removed(keep: int, gone: list[int], check: bool) -> None:
    engine = FakeEngine({TAG: ("hash", 9), **old(1, 2, 3)})
    wanted = cache.Wanted(TAG, "hash", keep=keep)
    outcome = cache.reconcile(wanted, check, engine)
    assert outcome.removed == [f"spt-flow/workspace:slim-{number}" for number in gone]
    assert outcome.changed is bool(gone)
    assert len(engine.images) == (4 if check else 4 - len(gone))


def test_image_in_use_is_kept() -> None:
    engine = FakeEngine({TAG: ("hash", 9), **old(1, 2)}, {"spt-flow/workspace:slim-1"})
    outcome = cache.reconcile(cache.Wanted(TAG, "hash", keep=0), engine=engine)
    assert outcome.removed == ["spt-flow/workspace:slim-2"]


def test_nothing_is_removed_while_the_wanted_image_is_missing() -> None:
    engine = FakeEngine(old(1, 2))
    assert cache.reconcile(cache.Wanted(TAG, "hash", keep=0), engine=engine).removed == []
    assert len(engine.images) == 2


@pytest.mark.parametrize("named", ["spt-flow/workspace:slim-1", "1"], ids=["by tag", "by identity"])
def test_image_referenced_by_a_template_is_kept(named: str) -> None:
    engine = FakeEngine({TAG: ("hash", 9), **old(1, 2)})
    outcome = cache.reconcile(cache.Wanted(TAG, "hash", keep=0, in_use=[named]), engine=engine)  # type: ignore[arg-type]
    assert outcome.removed == ["spt-flow/workspace:slim-2"]


def test_pulled_image_is_removed_completely_unless_tagged_by_others() -> None:
    one, two = old(1, 2)
    names = {one: ["registry/w@sha256:1"], two: ["registry/w@sha256:2", "somebody/else:kept"]}
    engine = FakeEngine({TAG: ("hash", 9), **old(1, 2)}, names=names)
    outcome = cache.reconcile(cache.Wanted(TAG, "hash", keep=0), engine=engine)  # type: ignore[arg-type]
    assert engine.deleted == outcome.removed == [two, "registry/w@sha256:1", one]


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_archive_is_loaded_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine({})
    program(tmp_path, monkeypatch, f'echo "$*" > {tmp_path}/said')
    wanted = cache.Wanted(TAG, "hash", archive="/srv/image.tar")
    with pytest.raises(FlowError, match="/srv/image.tar: it does not contain the image"):
        cache.reconcile(wanted, engine=engine)  # type: ignore[arg-type]
    assert (tmp_path / "said").read_text() == "load --quiet --input /srv/image.tar\n"
    outcome = cache.reconcile(wanted, check=True, engine=engine)  # type: ignore[arg-type]
    assert outcome.present
    assert outcome.changed


def test_messages_of_docker_reach_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "echo first >&2; echo 'no space left on device' >&2; exit 1")
    with pytest.raises(FlowError, match="no space left on device"):
        cache.reconcile(cache.Wanted(TAG, "hash", archive="/a"), engine=FakeEngine({}))  # type: ignore[arg-type]


def test_registry_reference_without_digest_is_refused_before_anything_runs() -> None:
    wanted = cache.Wanted(TAG, "hash", reference="registry.example.com/spt-flow/workspace:latest")
    with pytest.raises(InvalidInput, match="does not have a digest"):
        cache.reconcile(wanted, engine=FakeEngine({}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "status", "words", "metric"),
    [
        ("echo hash", 0, f"node1 has the image {TAG}.", 1),
        ("echo another", 1, f"node1 does not have the image {TAG}.", 0),
        ("exit 1", 1, "--limit node1 --tags host_images", 0),
    ],
    ids=["there", "another", "gone"],
)
def test_check_of_the_node_is_reported(
    script: str, status: int, words: str, metric: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, script)
    record = tmp_path / "image.json"
    record.write_text(json.dumps({"tag": TAG, "hash": "hash", "node": "node1", "textfile": str(tmp_path)}))
    monkeypatch.setenv("SPT_FLOW_IMAGE_RECORD", str(record))
    done = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == status
    assert words in done.stdout + done.stderr
    assert f'spt_flow_image_present{{image="{TAG}"}} {metric}\n' in (tmp_path / "spt_flow_images.prom").read_text()


def checked(record: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.CompletedProcess[str]:
    monkeypatch.setenv("SPT_FLOW_IMAGE_RECORD", str(record))
    return subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("script", ["echo hash", "exit 1"], ids=["there", "gone"])
def test_check_of_the_node_reports_an_unwritable_metric(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, script)
    record = tmp_path / "image.json"
    record.write_text(json.dumps({"tag": TAG, "hash": "hash", "node": "node1", "textfile": str(tmp_path / "no")}))
    done = checked(record, monkeypatch)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert f"the image {TAG}." in said
    assert "host_images_textfile_directory" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_check_of_the_node_fails_without_a_record(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "image.json"
    if content is not None:
        record.write_text(content)
    done = checked(record, monkeypatch)
    assert done.returncode == 1
    assert done.stderr == f"{record} does not name an image. Run ansible-playbook site.yml --tags host_images.\n"


def test_node_and_refused_user_read_the_same_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "exit 1")
    record = tmp_path / "image.json"
    record.write_text(json.dumps({"tag": TAG, "hash": "hash", "node": "node1", "textfile": ""}))
    words = f"{image_identity.missing('node1', TAG)} {image_identity.install_hint('node1')}\n"
    assert checked(record, monkeypatch).stderr == words
    assert words.endswith("ansible-playbook site.yml --limit node1 --tags host_images\n")
