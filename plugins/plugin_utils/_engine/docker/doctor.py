# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check what a user's machine needs for the target docker."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ....module_utils._node.errors import FlowError, NotFound
from ..workspace.checks import TIMEOUT, Check, clock_skew

PREPARE = "Prepare one: make quickstart, or ansible-playbook spt.flow.engine"
LEAST_FREE = 1.0
"""GiB that a new workspace needs at least."""
BUILD = {"slim": 6.0, "auto": 6.0}
"""GiB that building an image of a profile takes; other profiles take ``BUILD_FAT``."""
BUILD_FAT = 25.0


def examine(values: Mapping[str, Any]) -> list[Check]:
    """Return the checks of the engine that ``values`` name, by default this machine's."""
    engine = values["engine"]
    found = docker(engine)
    if found.state == "missing":
        return [found]
    local = [] if engine else [program(), device(values["kvm"])]
    profile_image = image(values)
    missing_image = profile_image.state != "ok"
    return [
        found,
        *local,
        *holes(engine),
        *protection(engine),
        *demands(values),
        profile_image,
        *([] if engine else [space(engine, values["profile"] if missing_image else "")]),
        *clock(engine),
    ]


def docker(engine: str = "") -> Check:
    from ....module_utils._node.docker import http as docker_http
    from ....module_utils._node.docker.versions import SPOKEN

    try:
        answer = docker_http.connect(engine).get_json("/version", timeout=TIMEOUT)
    except FlowError as error:
        if "is too new" in error.message:
            return Check("docker", "missing", f"The Docker engine is too old: {error.message}", "Update it to 20.10.")
        return Check("docker", "missing", error.message, f"{error.hint}\n{PREPARE}".strip())
    version = answer.get("Version", "")
    oldest = str(answer.get("MinAPIVersion") or "0")
    if _parts(oldest) > _parts(SPOKEN[-1]):
        return Check(
            "docker",
            "note",
            f"Docker {version} supports only versions {oldest} and newer of its API; spt.flow was tested with"
            f" {' and '.join(SPOKEN)}.",
            "If something fails, update spt.flow or use an older engine.",
        )
    return Check("docker", "ok", f"Docker {version} answers.")


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def program() -> Check:
    """Check for the program docker, which enters workspaces of this machine's engine."""
    path = shutil.which("docker")
    if path is None:
        return Check("docker CLI", "missing", "The program docker, which enters workspaces, is missing.", PREPARE)
    return Check("docker CLI", "ok", path)


def demands(values: Mapping[str, Any]) -> list[Check]:
    """Check that the engine starts workspaces, and has what the settings require."""
    from ..settings.workspace import Settings
    from ..workspace.models import WorkspaceSpec
    from . import container as docker_container
    from .target import DockerTarget

    target = DockerTarget(values["engine"], values["node"] if values["engine"] else "")
    # The device has its own check.
    settings = replace(Settings.of(values), kvm="disabled")
    try:
        mark = target.drained()
        if mark:
            undrain = f"ansible-playbook spt.flow.undrain -e node={values['node'] or 'localhost'}"
            return [Check("engine", "missing", f"The engine was drained {mark}.", f"Undrain it: {undrain}")]
        docker_container.Plan.of(WorkspaceSpec("", settings), target.probe_engine(), not values["engine"])
    except FlowError as error:
        return [Check("settings", "missing", error.message, error.hint)]
    return []


def image(values: Mapping[str, Any]) -> Check:
    """Check that the engine has the image, or that this machine can build it."""
    from ....module_utils._node.docker import http as docker_http
    from ..image import choice as image_choice
    from ..image import identity as image_identity

    engine, profile = values["engine"], values["profile"]
    try:
        choose = image_identity.current if engine else image_choice.image_for
        wanted = choose(profile, values["image_release"])
        docker_http.connect(engine).get_json(f"/images/{wanted.tag}/json", timeout=TIMEOUT)
        note = image_choice.LACKS if profile == image_identity.AUTO and wanted.profile == image_choice.SMALL else ""
        return Check("image", "ok", f"The engine has {wanted.tag}. {note}".rstrip())
    except NotFound as error:
        if "status" not in error.details:
            return Check("image", "missing", error.message, error.hint)
    except FlowError as error:
        return Check("image", "missing", error.message, error.hint)
    lacks = image_identity.missing("The engine", wanted.tag)
    if engine:
        return Check("image", "missing", lacks, image_identity.install_hint(values["node"]))
    if importlib.util.find_spec("docker") is None:
        return Check(
            "image",
            "missing",
            f"{lacks} The Python package docker, which builds it, is missing.",
            "Install it in the environment of ansible-core: pip install docker",
        )
    get = f"ansible-playbook spt.flow.image -e profile={wanted.profile}"
    return Check("image", "note", f"{lacks} The next `up` builds it, which takes minutes.", f"Build it now: {get}")


def space(engine: str, profile: str) -> Check:
    """Check the disk space for a workspace and, if ``profile`` must be built, for its image."""
    from .target import DockerTarget

    try:
        root = DockerTarget(engine).probe_engine().root
    except FlowError as error:
        return Check("disk", "missing", error.message, error.hint)
    needed = LEAST_FREE + (BUILD.get(profile, BUILD_FAT) if profile else 0)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for folder in filter(None, (root, cache if profile else "")):
        usage = shutil.disk_usage(_existing(folder))
        free = usage.free / 2**30
        if free < needed:
            return Check(
                "disk",
                "missing",
                f"{folder} has {free:.1f} GiB left; {needed:g} GiB are needed.",
                "Remove unused images and volumes: docker system df lists them.",
            )
        if free < usage.total / 2**30 / 10:
            return Check("disk", "note", f"{folder} is nearly full: {free:.1f} GiB are left.", "docker system df")
    return Check("disk", "ok", f"{needed:g} GiB are available.")


def _existing(folder: str) -> Path:
    path = Path(folder)
    return next(parent for parent in (path, *path.parents) if parent.exists())


def clock(engine: str = "") -> list[Check]:
    """Compare this machine's clock with the engine's, by which CI workspaces expire."""
    from ....module_utils._node.docker import http as docker_http

    client = docker_http.connect(engine)
    try:
        client.get_json("/version", timeout=TIMEOUT)
    except FlowError:
        return []
    return clock_skew(client.clock - time.time(), "the engine's")


def holes(engine: str = "") -> list[Check]:
    """Check for known vulnerabilities of the engine's programs that let a workspace reach the host."""
    from ....module_utils._node.docker import holes as docker_holes
    from ....module_utils._node.docker import http as docker_http

    try:
        client = docker_http.connect(engine)
        options = client.get_json("/info", timeout=TIMEOUT).get("SecurityOptions") or []
        versions = client.get_json("/version", timeout=TIMEOUT)
    except FlowError:
        return []
    remapped = any(option.partition(",")[0] in ("name=userns", "name=rootless") for option in options)
    hints = {
        True: "Update it with the machine's package manager.",
        False: "Update it as soon as your distribution has the fix.",
    }
    return [
        Check(hole["program"], "missing" if hole["open"] else "note", hole["text"], hints[hole["open"]])
        for hole in docker_holes.found(versions, remapped)
    ]


def protection(engine: str = "") -> list[Check]:
    """Check a working engine for the settings of the role host_docker."""
    from . import container as docker_container
    from .target import DockerTarget

    try:
        lacking = docker_container.unprotected(DockerTarget(engine).probe_engine())
    except FlowError:
        return []
    if lacking:
        return [Check("protection", "note", lacking, PREPARE.replace("one", "it"))]
    return [Check("protection", "ok", "The role spt.flow.host_docker has prepared the engine.")]


def device(wish: str) -> Check:
    """Check /dev/kvm, which is needed only if the workspace's settings require it."""
    from ....module_utils._node.kvm import probe as kvm_probe

    if wish == "disabled":
        return Check("kvm", "ok", "Workspaces run without /dev/kvm (kvm=disabled).")
    found = kvm_probe.verdict()
    if found.works:
        return Check("kvm", "ok", "/dev/kvm works.")
    hint = "Prepare this machine: ansible-playbook spt.flow.hosts, or disable KVM: -e kvm=disabled"
    return Check("kvm", "missing" if wish == "required" else "note", found.message, hint)
