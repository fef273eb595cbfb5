# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole hostile repositories from a seed: committed files, git's configuration and layout, and traps for Ansible."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.spt.flow.tests import hostile_ansible
from ansible_collections.spt.flow.tests.hostile import TRAPS, Place, git

ESCAPES = (
    "\x1b[2J\x1b[31m",
    "\x1b]0;title\x07",
    "\x1b]52;c;aWQ=\x07",
    "\x9b2J",
    "\u202eexe.txt",
    "\x08\x08\x0d",
    "\x1bP",
)
"""Terminal escape sequences, and one that reverses the direction of text."""


def _development_container(place: Place, rng: random.Random) -> None:
    bad = rng.choice(ESCAPES)
    run = str(place.script)
    values: dict[str, Any] = {
        "name": f"demo{bad}",
        "initializeCommand": run,
        "onCreateCommand": [run],
        "postCreateCommand": f"{run}; echo '{bad}'",
        "postStartCommand": {"a": run, f"b{bad}": run},
        "forwardPorts": [22, "db:5432", 8080, -1, 70000, bad, None],
        "containerEnv": {
            "LD_PRELOAD": run,
            "BASH_ENV": run,
            "PROMPT_COMMAND": run,
            f"X{bad}": bad,
            "HOST": "${localEnv:HOME}",
        },
        "remoteEnv": {"PATH": f"{place.folder}:${{containerEnv:PATH}}", "GIT_SSH_COMMAND": run},
        "mounts": ["source=/,target=/host,type=bind"],
        "runArgs": ["--privileged", "--pid=host"],
        "customizations": {"vscode": {"extensions": [f"../../{bad}", "a.b"], "settings": {"x": bad}}},
    }
    kept = {name: value for name, value in values.items() if rng.random() < 0.7}
    names = (".devcontainer/devcontainer.json", ".devcontainer.json")
    file = place.folder / names[(place.folder / ".devcontainer").is_symlink() or rng.random() < 0.5]
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, ensure_ascii=rng.random() < 0.5)
    file.write_text(rng.choice((text, text, text[:-5], f"/* {bad} */\n{text}", "[" * 5000, "\x00")))


def _file_names(place: Place, rng: random.Random) -> None:
    for name in (f"a{rng.choice(ESCAPES)}", "new\nline", "-rf", "$(id)", "`id`", "{{ lookup('pipe', 'id') }}", "\\x"):
        (place.folder / name.replace("/", "_")).write_text(name)


def _links(place: Place, rng: random.Random) -> None:
    for number, target in enumerate(("/etc/shadow", "../../../../root/.ssh", "/proc/self/environ", str(place.private))):
        (place.folder / f"link{number}").symlink_to(target)
    if not os.path.lexists(place.folder / ".devcontainer"):
        (place.folder / ".devcontainer").symlink_to(place.private)


def _modules(place: Place, rng: random.Random) -> None:
    url = rng.choice((f"ext::{place.script} %S", f"ssh://-oProxyCommand={place.script}/x", "file:///etc", "../private"))
    path = rng.choice(("sub", "../outside", ".git/hooks", "a\x1b[2J"))
    text = f'[submodule "x"]\n\tpath = {path}\n\turl = {url}\n\tupdate = !{place.script}\n'
    (place.folder / ".gitmodules").write_text(text)
    git(place.folder, "update-index", "--add", "--cacheinfo", f"160000,{place.secret},sub", check=False)


def _programs(place: Place, rng: random.Random) -> None:
    """Files that shells, editors and tools execute when they find them."""
    run = f"{place.script}\n"
    names = (
        ".bashrc",
        ".profile",
        ".envrc",
        ".direnv/envrc",
        ".githooks/post-checkout",
        ".husky/post-checkout",
        "Makefile",
    )
    for name in (*names, ".vscode/tasks.json", ".spt-flow/hooks/start", "sitecustomize.py", "conftest.py", "setup.py"):
        if rng.random() < 0.6:
            file = place.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"#!/bin/sh\n{run}")
            file.chmod(0o755)


def _attributes(place: Place, rng: random.Random) -> None:
    (place.folder / ".gitattributes").write_text(f"* filter={rng.choice(('lfs', 'x', 'evil'))} diff=x merge=x\n")
    (place.folder / ".lfsconfig").write_text(f"[lfs]\n\turl = ssh://-oProxyCommand={place.script}\n")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12\n"
    (place.folder / "big.bin").write_text(pointer)


def _refs(place: Place, rng: random.Random) -> None:
    head = git(place.folder, "rev-parse", "HEAD")
    for name in (f"x{rng.choice(ESCAPES)}", "\u202egnp.live", "a{{b}}", "$(id)", "--upload-pack=x", "@", "ü"):
        file = place.git / "refs/heads" / name
        if "/" not in name:
            file.write_text(f"{rng.choice((head, 'f' * 40))}\n" if rng.random() < 0.3 else f"{head}\n")


def _branch(place: Place, rng: random.Random) -> None:
    name = rng.choice(("a$(id)", "a{{lookup('pipe','id')}}", "\u202egnp", "x;id", "-x", "a'b\"c", "\x9b2J"))
    head = git(place.folder, "rev-parse", "HEAD")
    (place.git / "refs/heads" / name).write_text(f"{head}\n")
    (place.git / "HEAD").write_text(f"ref: refs/heads/{name}\n")


CONTENT: tuple[Callable[[Place, random.Random], None], ...] = (
    _development_container,
    _file_names,
    _links,
    _modules,
    _programs,
    _attributes,
)
REFS = (_refs, _branch)


@dataclass(frozen=True)
class Repository:
    """One generated repository, and a word for each of its defects."""

    place: Place
    words: tuple[str, ...]


def generate(base: Path, seed: int, number: int) -> Repository:
    """Create the repository ``number`` of ``seed`` in ``base``."""
    rng = random.Random(f"{seed}/{number}")
    place = Place.make(base, f"hostile-{number}")
    words = []
    for content in rng.sample(CONTENT, rng.randint(1, 4)):
        content(place, rng)
        words.append(content.__name__.strip("_"))
    lures = rng.sample(hostile_ansible.LURES, rng.randint(0, 3))
    hostile_ansible.plant(place.folder, place.script, lures)
    words += [lure.name for lure in lures]
    git(place.folder, "add", "--all", check=False)
    bad = rng.choice(ESCAPES)
    author = f"A{bad} <a@example.com>".replace("\x0d", "").replace("\n", "")
    git(
        place.folder,
        "commit",
        "-q",
        "--no-verify",
        "--allow-empty",
        "-m",
        f"title {bad}",
        "--author",
        author,
        check=False,
    )
    for refs in REFS:
        if rng.random() < 0.3:
            refs(place, rng)
            words.append(refs.__name__.strip("_"))
    if rng.random() < 0.6:
        trap = rng.choice(TRAPS)
        trap.set(place)
        words.append(trap.name)
    place.canary.unlink(missing_ok=True)
    return Repository(place, tuple(words))


def seed() -> int:
    """Return ``HOSTILE_SEED`` if set, to repeat a failure; otherwise a random seed."""
    return int(os.environ.get("HOSTILE_SEED") or random.SystemRandom().randrange(1 << 32))
