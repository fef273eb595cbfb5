# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the speed table about the team's image: rebuild, one tool updated, start, and a full build in it."""

from __future__ import annotations

import functools
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import reference_build
from common import Failed, Row, Samples, note, verdict

Play = Callable[..., Any]
PROFILES = ("fat", "fat-packages")
"""The first of these that the engine has is measured."""
BUILD = "sh build.sh"
TIMEOUT = 1800


@functools.cache
def profile() -> str:
    """Return the profile to measure, or nothing if the engine has none of them."""
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import engine as image_engine
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

    return next((name for name in PROFILES if image_engine.present(image_identity.identity(name))), "")


def tag() -> str:
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

    return image_identity.identity(profile()).tag


def missing() -> str:
    """Return the remark for an engine without the image."""
    return "" if profile() else f"nothing about the team's image: `make image PROFILE={PROFILES[0]}` first"


def measure(play: Play, samples: Samples, rounds: int, place: Path) -> str:
    """Measure the image in ``place``; ``play(verb, **values)`` runs a playbook. Return a remark about the setup."""
    if not profile():
        return missing()
    again(play, samples, rounds)
    share(samples, place)
    started(play, samples, rounds, place)
    return f"the team's image: {profile()}"


def measure_build(play: Play, samples: Samples, rounds: int, place: Path) -> str:
    """Measure the reference build, in a workspace and in a bare container in turns."""
    if not profile():
        return missing()
    repository(place / "reference")
    for _round in range(rounds):
        bare(samples, place / "reference")
        built(play, samples, place / "reference")
    return f"the full build: {profile()}"


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        raise Failed(f"'docker {' '.join(words)}' ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def again(play: Play, samples: Samples, rounds: int) -> None:
    """Measure `make image` without changes."""
    before = docker("image", "inspect", "-f", "{{.Id}}", tag())
    for _round in range(rounds):
        note(samples, "image again", play("image", profile=profile()).seconds)
    if docker("image", "inspect", "-f", "{{.Id}}", tag()) != before:
        raise Failed("building the image again made another one")


def share(samples: Samples, place: Path) -> None:
    """Measure the bytes that an image keeps when an often updated tool changes."""
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
    from ansible_collections.spt.flow.tests.integration import image_layers

    begun = time.monotonic()
    with image_layers.moved(profile(), place / "moved", Progress()) as other:
        note(samples, "image moved", time.monotonic() - begun)
        note(samples, "image reused", image_layers.reused(image_layers.layers(tag()), image_layers.layers(other)))


def started(play: Play, samples: Samples, rounds: int, place: Path) -> None:
    """Measure a new workspace until its IDE is open, with the slim and the fat image in turns."""
    for number in range(rounds):
        for kind, wanted in (("slim", "slim"), ("team", profile())):
            name = f"start{number}"
            values = {"repo": str(place / "small"), "workspace": name, "connect": "false"}
            note(samples, f"start {kind}", play("up", profile=wanted, **values).seconds)
            play("delete", workspace=name, confirm="true")


def repository(folder: Path) -> None:
    """Create the reference project of four languages as a repository."""
    reference_build.make(folder)
    git = ["git", "-C", str(folder), "-c", "user.name=Bench", "-c", "user.email=bench@example.com"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "reference"]):
        subprocess.run([*git, *words], check=True, capture_output=True, timeout=60)


def bare(samples: Samples, folder: Path) -> None:
    """Measure the build in a sleeping container of the same image."""
    begun = time.monotonic()
    container = docker("run", "--detach", "--network", "none", "--entrypoint", "/usr/bin/sleep", tag(), str(TIMEOUT))
    try:
        docker("cp", f"{folder}/.", f"{container}:/var/tmp/coder")
        docker("exec", "--user", "0", container, "chown", "-R", "1000:1000", "/var/tmp/coder")
        docker("exec", "--workdir", "/var/tmp/coder", container, "bash", "-lc", BUILD)
        note(samples, "build bare", time.monotonic() - begun)
    finally:
        docker("rm", "-f", "-v", container)


def built(play: Play, samples: Samples, folder: Path) -> None:
    """Measure `up` of a new workspace until the build is finished."""
    done = play("up", repo=str(folder), profile=profile(), command=BUILD, docker="disabled")
    if done.output.split()[-1:] != ["built"]:
        raise Failed(f"the reference build failed:\n{done.output}")
    note(samples, "build", done.seconds)
    play("delete", repo=str(folder), confirm="true")


def rows(samples: Samples) -> Iterator[Row]:
    """(what, measured, bound, whether it holds) of the image."""
    if "image again" not in samples:
        return
    m = {name: statistics.median(values) for name, values in samples.items()}
    seconds = m["image again"]
    yield (
        f"`make image PROFILE={profile()}`, nothing changed",
        f"{seconds:.2f} s, the same image",
        "≤ 2 s",
        verdict(seconds <= 2),
    )
    measured = f"{m['image moved']:.1f} s, {m['image reused']:.1%} of the bytes reused"
    yield "the same after one tool moved", measured, "≥ 80 %", verdict(m["image reused"] >= 0.8)
    ratio = m["start team"] / m["start slim"]
    measured = f"{m['start team']:.2f} s = {ratio:.2f} × slim"
    yield f"new workspace of `{profile()}`", measured, "≤ 1.1 ×", verdict(ratio <= 1.1)


def build_rows(samples: Samples) -> Iterator[Row]:
    """(what, measured, bound, whether it holds) of the full build."""
    if "build" not in samples:
        return
    seconds, alone = (statistics.median(samples[name]) for name in ("build", "build bare"))
    measured = f"{seconds:.0f} s = {seconds / alone:.2f} × in a bare container"
    what = f"time to full build: `up` of a new workspace to a finished build of Go, Rust, wasm and npm, `{profile()}`"
    yield what, measured, "≤ 300 s, ≤ 1.05 ×", verdict(seconds <= 300 and seconds / alone <= 1.05)
