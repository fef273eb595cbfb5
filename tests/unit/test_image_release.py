# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release of the image: its steps, its record, and that only verified images are recorded."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.spt.flow.plugins.filter.image import image_identity
from ansible_collections.spt.flow.plugins.module_utils._node import labels as node_labels
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.docker import images as docker_images
from ansible_collections.spt.flow.plugins.module_utils._node.errors import (
    AuthError,
    DeadlineExceeded,
    FlowError,
    InvalidInput,
    NotFound,
    Unhealthy,
)
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import open as ansible_open
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import build as image_build
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity_module
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import release as image_release
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import sbom as image_sbom
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image.identity import Image
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image.release import Order
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import resolve as settings_resolve

REGISTRY = "registry.example.com/team/workspace"
DIGEST = f"{REGISTRY}@sha256:{'d' * 64}"
NEW = Image("slim", "b" * 64)
OLD = Image("slim", "a" * 64)
PACKAGES = "bash\t5.2-1\tamd64\tbash\nlibc6\t2.36\tamd64\tglibc\nlibc6\t2.36\ti386\tglibc\n"
DOCKER = """#!/bin/sh
# A stand-in for the program; files next to it change its behaviour.
here=$(dirname "$0")
echo "$*" >>"$here/calls"
case "$*" in
*dpkg-query*) cat "$here/packages" ;;
*" verify "*) echo "gh passed" >&2; cat "$here/report"; exit $(cat "$here/status") ;;
"push "*) cat "$here/refusal" >&2; [ ! -s "$here/refusal" ] ;;
esac
"""


class World:
    """An engine with images by tag, and the program `docker`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: dict[str, str] = {}
        self.built: list[str] = []
        self.say(packages=PACKAGES, report=json.dumps({"checks": []}), status="0", refusal="", calls="")
        (folder / "docker").write_text(DOCKER)
        (folder / "docker").chmod(0o755)

    def say(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name).write_text(text)

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def fails(self, name: str, detail: str) -> None:
        self.say(report=json.dumps({"checks": [{"name": name, "state": "failed", "detail": detail}]}), status="1")

    # Requests to the engine

    def get_json(self, path: str, query: Any = None, timeout: float = 60.0) -> Any:
        if path == "/containers/json":
            return []
        if path == "/images/json":
            return [
                {"Id": f"id-{tag}", "RepoTags": [tag], "Created": 1, "Labels": {node_labels.IMAGE: label}}
                for tag, label in self.images.items()
            ]
        tag = path.removeprefix("/images/").removesuffix("/json")
        if tag not in self.images:
            raise NotFound("No such image.")
        return {
            "Id": f"id-{tag}",
            "Created": "2026-11-20T01:02:03.456789Z",
            "Config": {"Labels": {node_labels.IMAGE: self.images[tag]}},
            "RepoTags": [tag],
            "RepoDigests": [DIGEST] if any(call.startswith("push") for call in self.calls) else [],
        }

    def request_json(self, method: str, path: str, timeout: float = 60.0) -> Any:
        assert method == "DELETE"
        self.images.pop(path.removeprefix("/images/"), None)

    def ensure(self, image: Image, options: Any, progress: Any) -> bool:
        if image.tag in self.images:
            return False
        self.images[image.tag] = image.hash
        self.built.append(image.tag)
        return True


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    programs = tmp_path / "bin"
    programs.mkdir()
    made = World(programs)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(docker_http, "connect", lambda host="": made)
    monkeypatch.setattr(docker_images, "connect", lambda host="": made)
    monkeypatch.setattr(image_build, "ensure", made.ensure)
    yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "releases" / "image.json"


def release(order: Order, image: Image = NEW, check: bool = False) -> image_release.Release:
    return image_release.make(image, {}, order, Progress(), check)


def test_release_is_built_verified_described_pushed_and_then_recorded(world: World, file: Path) -> None:
    made = release(Order(file, REGISTRY))
    assert made.steps == ["build", "verify", "describe", "push", "record"]
    entry = json.loads(file.read_text())["slim"]
    assert entry == made.after
    assert (entry["hash"], entry["reference"], entry["sbom"]) == (NEW.hash, DIGEST, "slim-bbbbbbbbbbbb.spdx.json")
    assert entry["verified"]
    assert json.loads((file.parent / entry["sbom"]).read_text())["spdxVersion"] == "SPDX-2.3"
    pushed = [call.split()[-1] for call in world.calls if call.startswith("push")]
    assert pushed == [f"{REGISTRY}:slim-bbbbbbbbbbbb", f"{REGISTRY}:slim"]
    # A registry name would protect the image from pruning.
    assert [call.split()[-1] for call in world.calls if call.startswith("image rm")] == pushed


def test_second_run_does_nothing(world: World, file: Path) -> None:
    release(Order(file, REGISTRY))
    before, calls = file.read_bytes(), world.calls
    made = release(Order(file, REGISTRY))
    assert (made.steps, file.read_bytes(), world.calls) == ([], before, calls)


def test_published_image_is_not_built_again_on_a_new_machine(world: World, file: Path) -> None:
    release(Order(file, REGISTRY))
    world.images.clear()
    assert release(Order(file, REGISTRY)).steps == []


def test_check_mode_lists_the_steps_and_changes_nothing(world: World, file: Path) -> None:
    made = release(Order(file, REGISTRY, archive=True), check=True)
    assert made.steps == ["build", "verify", "describe", "push", "archive", "record"]
    assert made.after == {"tag": NEW.tag, "hash": NEW.hash}
    assert (world.calls, world.built, file.parent.exists()) == ([], [], False)


def test_failed_verification_replaces_nothing(world: World, file: Path) -> None:
    release(Order(file, REGISTRY), OLD)
    before, done = file.read_bytes(), len(world.calls)
    world.fails("gh", "gh --version ended with 1")
    with pytest.raises(Unhealthy) as raised:
        release(Order(file, REGISTRY))
    assert f"{NEW.tag} failed its verification: gh: gh --version ended with 1." in raised.value.message
    assert f"{OLD.tag} stays current" in raised.value.hint
    assert file.read_bytes() == before
    assert not [call for call in world.calls[done:] if call.startswith(("push", "tag"))]
    assert json.loads((file.parent / "slim-bbbbbbbbbbbb.verify.json").read_text())["checks"]
    # The next run verifies it again and releases it once it passes.
    world.say(report=json.dumps({"checks": []}), status="0")
    assert release(Order(file, REGISTRY)).steps == ["verify", "describe", "push", "record"]


def test_image_without_a_report_is_not_verified(world: World, file: Path) -> None:
    world.say(report="not JSON", status="127")
    with pytest.raises(Unhealthy, match="did not return a report: gh passed"):
        release(Order(file))
    assert not file.exists()


def test_hanging_verification_is_ended(world: World, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.folder / "docker").write_text("#!/bin/sh\n[ $1 = rm ] || exec sleep 60\n")
    monkeypatch.setattr(image_release, "VERIFY_LIMIT", 0.2)
    with pytest.raises(DeadlineExceeded, match="the verification did not end"):
        release(Order(file))
    assert not file.exists()


def test_each_check_is_shown_as_progress(world: World, file: Path) -> None:
    said: list[str] = []
    image_release.make(NEW, {}, Order(file), Progress(said.append))
    assert any("verify: gh passed" in line for line in said)


@pytest.mark.parametrize("call", range(8))
def test_run_after_a_kill_at_any_step_resumes(
    world: World, file: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    release(Order(file, REGISTRY), OLD)
    before = file.read_bytes()
    seen: list[Any] = []

    class Dying(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, argv: Any, *words: Any, **named: Any) -> None:
            seen.append(argv)
            if len(seen) > call:
                raise Killed
            super().__init__(argv, *words, **named)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(subprocess, "Popen", Dying)
        release(Order(file, REGISTRY))
    assert file.read_bytes() == before
    assert release(Order(file, REGISTRY)).steps[-1] == "record"
    assert json.loads(file.read_text())["slim"]["hash"] == NEW.hash


@pytest.mark.parametrize(
    ("refusal", "kind", "hint"),
    [
        ("denied: requested access to the resource is denied", AuthError, "docker login registry.example.com"),
        ("dial tcp: connection refused", Unhealthy, "Check that registry.example.com answers"),
    ],
)
def test_refusing_registry_is_reported_and_nothing_is_recorded(
    world: World, file: Path, refusal: str, kind: type[FlowError], hint: str
) -> None:
    world.say(refusal=refusal)
    with pytest.raises(kind, match=refusal) as raised:
        release(Order(file, REGISTRY))
    assert hint in raised.value.hint
    assert not file.exists()


@pytest.mark.parametrize(
    "name", ["workspace", "team/workspace", "https://r.example.com/w", "r.example.com/w:tag", "r/w@sha256:0", "-x/y"]
)
def test_invalid_registry_repository_is_refused(file: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="not the name of a repository"):
        Order(file, name)


def test_archive_is_stored_next_to_the_record_and_found_there(
    world: World, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "cached.tar"
    cached.write_text("layers")
    monkeypatch.setattr(image_build, "archived", lambda *_words: cached)
    assert "archive" in release(Order(file, archive=True)).steps
    found = image_identity_module.current("slim", str(file))
    assert (found.hash, Path(found.archive).read_text()) == (NEW.hash, "layers")
    assert release(Order(file, archive=True)).steps == []
    Path(found.archive).unlink()
    assert release(Order(file, archive=True)).steps == ["archive", "record"]


@pytest.mark.parametrize(("keep", "stays"), [(-1, {"1", "2", "3"}), (0, set()), (1, {"3"}), (5, {"1", "2", "3"})])
@pytest.mark.parametrize("check", [False, True])
def test_old_images_are_pruned_by_policy_except_the_current_one(
    world: World, file: Path, keep: int, stays: set[str], check: bool
) -> None:
    fat = Image("fat", "c" * 64)
    release(Order(file), fat)
    release(Order(file))
    for digit in "123":
        for kind in ("spdx.json", "tar"):
            path = file.parent / f"slim-{digit * 12}.{kind}"
            path.write_text("old")
            os.utime(path, (int(digit), int(digit)))
    removed = release(Order(file, keep=keep), check=check).removed
    left = {path.name[5] for path in file.parent.glob("slim-*.tar")}
    assert left == ({"1", "2", "3"} if check else stays)
    assert len(removed) == 2 * (3 - len(stays))
    assert {fat.tag, NEW.tag} <= set(world.images)
    assert (file.parent / "fat-cccccccccccc.spdx.json").exists()


# Readers of the record


def test_readers_get_the_recorded_image_and_not_the_described_one(world: World, file: Path) -> None:
    release(Order(file, REGISTRY), OLD)
    found = image_identity("slim", str(file))
    assert (found["hash"], found["tag"], found["reference"]) == (OLD.hash, OLD.tag, DIGEST)
    assert image_identity("slim")["hash"] == image_identity_module.identity("slim").hash != OLD.hash


def test_workspaces_get_the_recorded_image(world: World, file: Path) -> None:
    release(Order(file, REGISTRY), OLD)
    values = settings_resolve.resolve({"test": {"workspace": "demo", "target": "docker", "image_release": str(file)}})
    spec = ansible_open.make_spec(values)
    assert (spec.image, spec.image_hash) == (OLD.tag, OLD.hash)


def test_unrecorded_profile_explains_how_to_release_it(world: World, file: Path) -> None:
    release(Order(file))
    with pytest.raises(
        AnsibleFilterError, match="does not record an image of the profile fat. Release one: .* profile=fat"
    ):
        image_identity("fat", str(file))


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"slim": 1}', '{"slim": {}}', '{"slim": {"hash": "short"}}', "\0"]
)
def test_broken_record_is_reported(tmp_path: Path, content: str) -> None:
    file = tmp_path / "image.json"
    file.write_text(content)
    with pytest.raises(InvalidInput, match="does not record images"):
        image_identity_module.current("slim", str(file))


def test_up_pulls_a_recorded_image_from_its_registry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image("slim", OLD.hash, DIGEST)
    run = docker_images.docker

    def pulls(*words: str) -> str:
        world.images[image.tag] = image.hash
        return run(*words)

    monkeypatch.setattr(docker_images, "docker", pulls)
    assert image_release.taken(image, Progress())
    assert world.calls == [f"pull --quiet {DIGEST}", f"tag {DIGEST} {OLD.tag}"]
    assert image_release.taken(image, Progress())
    assert len(world.calls) == 2


def test_up_never_builds_under_a_recorded_name(world: World) -> None:
    with pytest.raises(NotFound, match=f"does not have the image {OLD.tag}. A release records it,"):
        image_release.taken(OLD, Progress())
    assert image_release.taken(image_identity_module.identity("slim"), Progress()) is False


# The list of packages


def document(profile: str = "fat") -> dict[str, Any]:
    packages = [image_sbom.Package.of(line) for line in PACKAGES.splitlines()]
    image = image_identity_module.identity(profile)
    return image_sbom.sbom(image, image_identity_module.recipe(profile), packages, "2026-11-20T01:02:03Z", "0.1.0")


def test_package_list_names_every_package_and_file_with_its_checksum() -> None:
    found = document()
    named = {(package["name"], package["versionInfo"]) for package in found["packages"]}
    made = image_identity_module.recipe("fat")
    assert {
        ("bash", "5.2-1"),
        ("gh", made.tools["gh"]["version"]),
        ("code-server", made.ide["code-server"]["version"]),
    } <= named
    sums = {entry["checksumValue"] for package in found["packages"] for entry in package.get("checksums", [])}
    assert sums == {file["sha256"] for tool in made.tools.values() for file in tool["files"]} | {
        entry["sha256"] for entry in made.ide.values()
    }
    purls = [
        reference["referenceLocator"] for package in found["packages"] for reference in package.get("externalRefs", [])
    ]
    assert "pkg:deb/ubuntu/libc6@2.36?arch=i386&distro=jammy" in purls


def test_package_list_is_complete_and_reproducible() -> None:
    found = document()
    identifiers = [package["SPDXID"] for package in found["packages"]]
    assert len(set(identifiers)) == len(identifiers)
    contained = {r["relatedSpdxElement"] for r in found["relationships"] if r["relationshipType"] == "CONTAINS"}
    assert contained == set(identifiers[1:])
    assert json.dumps(found) == json.dumps(document())
