# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Release the workspace image: build, verify, describe and publish it, then record it.

One file records the current image of each profile; nodes, templates and `up` read it. It is written last and
atomically, so a failed verification or a killed run does not change it. Next to it are the package list, the
verification report and, if requested, the archive, named by profile and identity.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from ....module_utils._node import atomic
from ....module_utils._node.docker import http as docker_http
from ....module_utils._node.docker import images as docker_images
from ....module_utils._node.errors import AuthError, DeadlineExceeded, FlowError, InvalidInput, NotFound, Unhealthy
from ..common.progress import Progress
from ..common.version import release as collection_release
from . import build as image_build
from . import engine as image_engine
from . import identity as image_identity
from . import sbom as image_sbom
from .identity import Image

VERIFY_LIMIT = 1800.0
"""Seconds that the verification of an image may take: it runs compilers of several languages."""
REPORT, SBOM, ARCHIVE = "verify.json", "spdx.json", "tar"
_FILES = re.compile(r"(?P<image>.+-[0-9a-f]{12})\.(verify\.json|spdx\.json|tar)")
_REPOSITORY = re.compile(r"(?=[^/]*[.:]|localhost/)[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)+")


@dataclass(frozen=True)
class Order:
    """What to release: the file that records it, and how others get the image.

    ``registry`` is the repository to push to (``registry.example.com/team/workspace``). ``keep`` is how many unused
    older images and their files are kept, -1 keeps all; ``in_use`` are further tags or identities to keep.
    """

    file: Path
    registry: str = ""
    archive: bool = False
    keep: int = -1
    in_use: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.registry and not _REPOSITORY.fullmatch(self.registry):
            raise InvalidInput(
                f"Cannot push the image to {self.registry!r}: this is not the name of a repository in a registry.",
                "For example: registry.example.com/team/workspace, without a tag.",
            )

    def path(self, image: Image, kind: str) -> Path:
        return self.file.parent / f"{image.profile}-{image.hash[:12]}.{kind}"


@dataclass
class Release:
    """``steps``: the steps that ran, or would run in check mode; ``before``, ``after``: the file's contents."""

    steps: list[str]
    before: dict[str, Any]
    after: dict[str, Any]
    removed: list[str] = field(default_factory=list)


def make(image: Image, options: Mapping[str, Any], order: Order, progress: Progress, check: bool = False) -> Release:
    """Carry out the missing steps of the release. Raise ``FlowError``; the current image stays current then."""
    before = image_identity.recorded(order.file).get(image.profile, {})
    steps = due(image, before, order, _identifier(image))
    made = Release(steps, before, before if not steps else {"tag": image.tag, "hash": image.hash})
    if steps and not check:
        with _locked(order.file.parent, progress):
            brought = ["build"] if image_build.ensure(image, options, progress) else []
            before = image_identity.recorded(order.file).get(image.profile, {})
            made.steps = brought + due(image, before, order, _identifier(image))
            made.after = _carry_out(image, before, order, made.steps, progress)
    made.removed = _prune(image, order, check) if order.keep >= 0 else []
    return made


@contextlib.contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Allow one release at a time, of any profile: the file is read, then rewritten."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            progress.note("image: another run is releasing one, waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def taken(image: Image, progress: Progress) -> bool:
    """Return whether the engine has an image that a release records, pulled from where it was published.

    False for an unpublished image that this collection describes: it can be built.
    """
    wanted = docker_images.Wanted(image.tag, image.hash, "" if image.reference else image.archive, image.reference)
    if wanted.archive or wanted.reference:
        if not image_engine.present(image):
            with progress.stage("image", f"{image.tag} comes from {image.reference or image.archive}"):
                docker_images.reconcile(wanted)
        return True
    if image_engine.present(image) or image.hash == image_identity.identity(image.profile).hash:
        return False
    raise NotFound(
        f"{image_identity.missing('This engine', image.tag)} A release records it, but this collection describes "
        "another image.",
        "Release the new one: ansible-playbook spt.flow.image. Or use the collection version of the release.",
    )


def due(image: Image, before: Mapping[str, Any], order: Order, identifier: str) -> list[str]:
    """Return the steps to do, in order.

    ``identifier`` is the engine's own id of the image, empty if it does not have it. A recorded and published image is
    not built again, so a machine without a cache need not build it.
    """
    same = before.get("hash") == image.hash
    known = same and before.get("id") == identifier
    publish = []
    if order.registry and not (same and str(before.get("reference", "")).startswith(f"{order.registry}@")):
        publish.append("push")
    if order.archive and not (same and order.path(image, ARCHIVE).exists()):
        publish.append("archive")
    if not publish and (known or (same and (order.registry or order.archive))):
        return []
    return [*([] if identifier else ["build"]), *([] if known else ["verify", "describe"]), *publish, "record"]


def _identifier(image: Image) -> str:
    if not image_engine.present(image):
        return ""
    return str(_about(image)["Id"])


def _about(image: Image) -> dict[str, Any]:
    return dict(docker_http.connect().get_json(f"/images/{image.tag}/json"))


def _carry_out(
    image: Image, before: Mapping[str, Any], order: Order, steps: Sequence[str], progress: Progress
) -> dict[str, Any]:
    about = _about(image)
    entry = {
        "profile": image.profile,
        "tag": image.tag,
        "hash": image.hash,
        "id": about["Id"],
        "release": collection_release(),
        "verified": before.get("verified", ""),
        "sbom": order.path(image, SBOM).name,
    }
    if "verify" in steps:
        with progress.stage("verify", f"{image.tag} in a separate container"):
            _passed(image, verify(image, progress), order, before)
        entry["verified"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if "describe" in steps:
        with progress.stage("describe", f"packages of {image.tag}"):
            _write(order.path(image, SBOM), describe(image, about))
    if order.registry:
        entry["reference"] = before.get("reference")
        if "push" in steps:
            with progress.stage("push", f"to {order.registry}"):
                entry["reference"] = push(image, order.registry)
    if order.archive:
        entry["archive"] = order.path(image, ARCHIVE).name
        if "archive" in steps:
            with progress.stage("archive", f"to {order.path(image, ARCHIVE)}"):
                _archive(image, order.path(image, ARCHIVE), progress)
    if "record" in steps:
        _write(order.file, {**image_identity.recorded(order.file), image.profile: entry})
    return entry


# Steps


def verify(image: Image, progress: Progress) -> dict[str, Any]:
    """Return the image's report about itself, made in a new container without a network.

    Each check is shown as progress.
    """
    name = f"spt-flow-verify-{secrets.token_hex(4)}"
    of_container = ["--rm", "--name", name, "--label", "spt.flow.build=verify", "--network", "none"]
    program = ["--entrypoint", "/usr/local/bin/spt-workspace", image.tag, "verify", "--format", "json"]
    by_hand = f"Try it: docker run --rm -it --entrypoint spt-workspace {image.tag} verify"
    last = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out:
        try:
            with _running(["docker", "run", *of_container, *program], out) as child:
                for line in child.stderr or ():
                    last = line.strip() or last
                    progress.note(f"verify: {last}")
        finally:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(["docker", "rm", "--force", name], capture_output=True, timeout=60, check=False)
        out.seek(0)
        said = out.read()
    if child.returncode == -signal.SIGKILL:
        minutes = f"{VERIFY_LIMIT / 60:.0f} minutes"
        raise DeadlineExceeded(
            f"Cannot verify the image {image.tag}: the verification did not end within {minutes}.", by_hand
        )
    try:
        return {**dict(json.loads(said)), "status": child.returncode}
    except (TypeError, ValueError):
        what = last or said.strip() or f"status {child.returncode}"
        raise Unhealthy(f"Cannot verify the image {image.tag}: it did not return a report: {what}", by_hand) from None


@contextlib.contextmanager
def _running(argv: Sequence[str], out: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Read a program's output line by line. Kill it at the limit, or when reading ends early."""
    try:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True, errors="replace"
        )
    except OSError as error:
        raise FlowError(f"Cannot run {argv[0]}: {error}.", "Install Docker's client.") from None
    limit = threading.Timer(VERIFY_LIMIT, child.kill)
    limit.start()
    try:
        with child:
            try:
                yield child
            except BaseException:
                child.kill()
                raise
    finally:
        limit.cancel()


def _passed(image: Image, report: Mapping[str, Any], order: Order, before: Mapping[str, Any]) -> None:
    """Store the report. Raise an error if a check failed."""
    path = order.path(image, REPORT)
    _write(path, report)
    if report["status"] == 0:
        return
    failed = [
        f"{check.get('name')}: {check.get('detail')}"
        for check in report.get("checks", [])
        if check.get("state") == "failed"
    ]
    stays = f"{before['tag']} stays current" if before else "nothing is recorded"
    raise Unhealthy(
        f"The image {image.tag} failed its verification: {'; '.join(failed) or 'see its report'}.",
        f"It is not published, and {stays}. See the report: {path}",
        {"failed": failed},
    )


def describe(image: Image, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the package list of an image on the engine, in SPDX."""
    words = ["--rm", "--network", "none", "--entrypoint", "/usr/bin/dpkg-query", image.tag]
    lines = docker_images.docker("run", *words, "--show", "--showformat", image_sbom.QUERY).splitlines()
    packages = [image_sbom.Package.of(line) for line in lines]
    created = re.sub(r"\.\d+", "", str(about["Created"]))
    made = image_identity.recipe(image.profile)
    left_out = str(((about.get("Config") or {}).get("Labels") or {}).get(image_identity.WITHOUT, "")).split()
    made = replace(made, tools={name: tool for name, tool in made.tools.items() if name not in left_out})
    return image_sbom.sbom(image, made, packages, created, collection_release())


def push(image: Image, repository: str) -> str:
    """Push the image. Return its name in the registry, with its digest.

    The profile's tag in the registry points to it too. The engine's tags of the registry are removed, because a tagged
    image would never be pruned.
    """
    names = [f"{repository}:{tag}" for tag in (image.tag.rpartition(":")[2], image.profile)]
    try:
        for name in names:
            docker_images.docker("tag", image.tag, name)
            _pushed(name)
        digests = [str(found) for found in _about(image).get("RepoDigests") or []]
    finally:
        for name in names:
            with contextlib.suppress(FlowError):
                docker_images.docker("image", "rm", "--no-prune", name)
    for found in digests:
        # The engine omits the name of the public registry.
        if found.startswith(f"{repository.removeprefix('docker.io/')}@"):
            return f"{repository}@{found.partition('@')[2]}"
    raise Unhealthy(
        f"{repository} accepted the image {image.tag}, but returned no digest.", "Check the registry's log."
    )


def _pushed(name: str) -> None:
    try:
        docker_images.docker("push", "--quiet", name)
    except FlowError as error:
        registry = name.partition("/")[0]
        if re.search("denied|unauthorized|no basic auth|authentication required", error.message, re.IGNORECASE):
            raise AuthError(f"Cannot push {name}: {error.message}", f"Sign in: docker login {registry}") from None
        raise Unhealthy(
            f"Cannot push {name}: {error.message}", f"Check that {registry} answers and has free space."
        ) from None


def _archive(image: Image, path: Path, progress: Progress) -> None:
    """Return the path of the archive: a hard link to the cache's, or a copy on another disk."""
    source = image_build.archived(image, {}, progress)
    aside = path.with_name(f".{path.name}")
    aside.unlink(missing_ok=True)
    try:
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)
        os.replace(aside, path)
    except OSError as error:
        raise FlowError(
            f"Cannot write the image to {path}: {error.strerror}.", "Free space there and run it again."
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write atomically: readers see the old or the new file, also after a crash."""
    try:
        atomic.write(path, json.dumps(content, indent=2, sort_keys=True) + "\n", 0o644, durable=True)
    except OSError as error:
        raise FlowError(f"Cannot write {path}: {error.strerror}.", "Free space there and run it again.") from None


# Pruning


def _prune(image: Image, order: Order, check: bool) -> list[str]:
    """Delete older images from the engine and their files from the directory. Current images of a profile stay."""
    current = [str(entry["hash"]) for entry in image_identity.recorded(order.file).values()]
    wanted = docker_images.Wanted(image.tag, image.hash, keep=order.keep, in_use=[*current, *order.in_use])
    removed = docker_images.reconcile(wanted, check).removed
    spared = {f"{profile}-{entry['hash'][:12]}" for profile, entry in image_identity.recorded(order.file).items()}
    files: dict[str, list[Path]] = {}
    for path in order.file.parent.glob("*"):
        found = _FILES.fullmatch(path.name)
        if found and found["image"] not in {*spared, f"{image.profile}-{image.hash[:12]}"}:
            files.setdefault(found["image"], []).append(path)
    newest = sorted(files.values(), key=lambda paths: max(path.stat().st_mtime for path in paths), reverse=True)
    for path in (path for paths in newest[order.keep :] for path in sorted(paths)):
        removed.append(str(path))
        if not check:
            path.unlink(missing_ok=True)
    return removed
