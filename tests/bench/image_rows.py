# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the speed table about the fat image: rebuild, one tool updated, start, and work."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import reference_build
from common import Failed, Row, Samples, note, verdict

Play = Callable[..., Any]
PROFILE = "fat-packages"
BUILD = "sh build.sh"
TIMEOUT = 1800


def measure(play: Play, samples: Samples, rounds: int, place: Path) -> str:
    """Measure all rows in ``place``; ``play(verb, **values)`` runs a playbook. Return a remark about the setup."""
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import engine as image_engine
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

    image = image_identity.identity(PROFILE)
    if not image_engine.present(image):
        return f"nothing about the fat image: `make image PROFILE={PROFILE}` first"
    again(play, samples, rounds, image.tag)
    share(samples, place, image.tag)
    started(play, samples, rounds, place)
    reference(play, samples, place, image.tag)
    return f"the fat image: {PROFILE}"


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        raise Failed(f"'docker {' '.join(words)}' ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def again(play: Play, samples: Samples, rounds: int, tag: str) -> None:
    """Measure `make image` without changes."""
    before = docker("image", "inspect", "-f", "{{.Id}}", tag)
    for _round in range(rounds):
        note(samples, "image again", play("image", profile=PROFILE).seconds)
    if docker("image", "inspect", "-f", "{{.Id}}", tag) != before:
        raise Failed("building the image again made another one")


def share(samples: Samples, place: Path, tag: str) -> None:
    """Measure the bytes that an image keeps when an often updated tool changes."""
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
    from ansible_collections.spt.flow.tests.integration import image_layers

    begun = time.monotonic()
    with image_layers.moved(PROFILE, place / "moved", Progress()) as other:
        note(samples, "image moved", time.monotonic() - begun)
        note(samples, "image reused", image_layers.reused(image_layers.layers(tag), image_layers.layers(other)))


def started(play: Play, samples: Samples, rounds: int, place: Path) -> None:
    """Measure a new workspace until its IDE is open, with the slim and the fat image in turns."""
    for number in range(rounds):
        for profile in ("slim", PROFILE):
            name = f"start{number}"
            values = {"repo": str(place / "small"), "workspace": name, "connect": "false"}
            note(samples, f"start {profile}", play("up", profile=profile, **values).seconds)
            play("delete", workspace=name, confirm="true")


def reference(play: Play, samples: Samples, place: Path, tag: str) -> None:
    """Measure `up` until a finished build, and the same build in a sleeping container."""
    folder = place / "reference"
    reference_build.make(folder)
    git = ["git", "-C", str(folder), "-c", "user.name=Bench", "-c", "user.email=bench@example.com"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "reference"]):
        subprocess.run([*git, *words], check=True, capture_output=True, timeout=60)
    begun = time.monotonic()
    container = docker("run", "--detach", "--network", "none", "--entrypoint", "/usr/bin/sleep", tag, str(TIMEOUT))
    try:
        docker("cp", f"{folder}/.", f"{container}:/var/tmp/coder")
        docker("exec", "--user", "0", container, "chown", "-R", "1000:1000", "/var/tmp/coder")
        docker("exec", "--workdir", "/var/tmp/coder", container, "bash", "-lc", BUILD)
        note(samples, "reference bare", time.monotonic() - begun)
    finally:
        docker("rm", "-f", "-v", container)
    built = play("up", repo=str(folder), profile=PROFILE, command=BUILD, docker="disabled")
    if built.output.split()[-1:] != ["built"]:
        raise Failed(f"the reference build failed:\n{built.output}")
    note(samples, "reference", built.seconds)
    play("delete", repo=str(folder), confirm="true")


def rows(samples: Samples) -> Iterator[Row]:
    """(what, measured, bound, whether it holds) of what was measured."""
    if "image again" not in samples:
        return
    m = {name: statistics.median(values) for name, values in samples.items()}
    seconds = m["image again"]
    yield (
        f"`make image PROFILE={PROFILE}`, nothing changed",
        f"{seconds:.2f} s, the same image",
        "≤ 2 s",
        verdict(seconds <= 2),
    )
    measured = f"{m['image moved']:.1f} s, {m['image reused']:.1%} of the bytes reused"
    yield "the same after one tool moved", measured, "≥ 80 %", verdict(m["image reused"] >= 0.8)
    ratio = m[f"start {PROFILE}"] / m["start slim"]
    measured = f"{m[f'start {PROFILE}']:.2f} s = {ratio:.2f} × slim"
    yield f"new workspace of `{PROFILE}`", measured, "≤ 1.1 ×", verdict(ratio <= 1.1)
    ratio = m["reference"] / m["reference bare"]
    measured = f"{m['reference']:.0f} s = {ratio:.2f} × in a bare container"
    what = "`up` to a finished build of Go, Rust, wasm and npm"
    yield what, measured, "≤ 300 s, ≤ 1.10 ×", verdict(m["reference"] <= 300 and ratio <= 1.1)
