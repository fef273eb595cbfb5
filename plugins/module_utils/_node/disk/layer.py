# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limit the data that a container writes outside its volumes.

With project quotas, the directories that the engine's overlay writes to are limited. Otherwise, a second overlay is
mounted on top of the engine's. Its files are in a file system of limited size next to them. The engine deletes all of
it with the container.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import Unhealthy
from . import image, kernel, quota

LATE = "resolv.conf"
"""The engine writes its resolver into this file only once the container has a network; a copy would be too early."""
STAGE = ".spt-flow-layer"
LONGEST = 4000
"""Size limit of mount options in the kernel, in bytes."""


def attach(root: Path, size: int, files: Sequence[str] = ()) -> dict[str, str] | None:
    """Limit the writes to the overlay at ``root``. Return ``None`` if nothing must be detached.

    ``files`` are host files that are mounted writable into the container (the engine's ``/etc/hosts``). They count too,
    so the result maps each to the copy that replaces it.
    """
    options = _options(root)
    if not options or size == 0:
        return None
    upper, work = Path(options["upperdir"]), Path(options["workdir"])
    stage = upper.parent / STAGE
    try:
        if upper.parent.name != STAGE:
            if not stage.exists() and quota.attempt([upper, work], size, files):
                return None
            with image.locked(upper.parent):
                _stage(upper, stage, size)
                _stack(root, options, stage)
        else:
            stage = upper.parent
        return {file: _copied(file, stage) for file in files if os.path.basename(file) != LATE}
    except OSError as error:
        raise Unhealthy(
            f"Cannot limit the disk of the container at {root}: {error.strerror or error}.",
            "Check that the node has loop devices and free space, or disable the limit: disk=0.",
        ) from error


def _copied(file: str, stage: Path) -> str:
    """Return the copy of ``file`` in the container's file system. Like the engine, make a new one for each start."""
    copy = stage / os.path.basename(file)
    with suppress(FileNotFoundError):
        copy.unlink()
    copy.write_bytes(Path(file).read_bytes())
    found = os.stat(file)
    os.chown(copy, found.st_uid, found.st_gid)
    copy.chmod(found.st_mode & 0o7777)
    return str(copy)


def _options(root: Path) -> dict[str, str]:
    """Return the options of the overlay at ``root``, or nothing for another storage driver."""
    top = kernel.on_top(root)
    if top is None or top.kind != "overlay":
        return {}
    words = {name: value for name, _is, value in (word.partition("=") for word in top.options.split(","))}
    return words if {"lowerdir", "upperdir", "workdir"} <= set(words) else {}


def _stage(upper: Path, stage: Path, size: int) -> None:
    """Mount the container's own file system at ``stage``; create it if needed."""
    file = upper.parent / image.IMAGE
    if not file.exists():
        image.need(upper.parent, 0)
        image.make(upper.parent / image.FRESH, size)
        os.rename(upper.parent / image.FRESH, file)
    stage.mkdir(mode=0o700, exist_ok=True)
    if kernel.on_top(stage) is None:
        with kernel.loop(file) as device:
            kernel.mount(device, stage, "ext4", image.OPTIONS)
    found = os.stat(upper)
    for name in ("diff", "work"):
        with suppress(FileExistsError):
            (stage / name).mkdir(mode=0o700)
            if name == "diff":
                os.chown(stage / name, found.st_uid, found.st_gid)
                (stage / name).chmod(found.st_mode & 0o7777)


def _stack(root: Path, options: dict[str, str], stage: Path) -> None:
    """Return the options of our overlay, whose top layer is the writable layer of the engine's overlay."""
    here = os.getcwd()
    layers = [options["upperdir"], *options["lowerdir"].split(":")]
    base = os.path.commonpath(layers)
    lower = ":".join(os.path.relpath(layer, base) for layer in layers)
    words = [f"lowerdir={lower}", f"upperdir={stage}/diff", f"workdir={stage}/work"]
    words += [name for name in ("userxattr",) if name in options]
    if len(",".join(words)) > LONGEST:
        raise Unhealthy(
            f"Cannot limit the disk: the image has {len(layers)} layers, which is too many.",
            "Disable the limit: disk=0.",
        )
    # Relative names, because many layers do not fit into the options otherwise.
    os.chdir(base)
    try:
        kernel.mount("overlay", root, "overlay", ",".join(words))
    finally:
        os.chdir(here)


def detach(root: Path) -> None:
    """Unmount our overlay and its file system. The engine unmounts its own."""
    options = _options(root)
    stage = Path(options.get("upperdir", "/")).parent
    if stage.name != STAGE:
        return
    kernel.unmount(root)
    if kernel.on_top(stage):
        with suppress(OSError):
            kernel.trim(stage)
        kernel.unmount(stage)
