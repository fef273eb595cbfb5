# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generated hostile repositories through `up`, `status`, `logs`, `ci` and `ssh` on the real engine.

Set HOSTILE_SEED to the printed seed to repeat a run.
"""

from __future__ import annotations

import re
import subprocess
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.tests import hostile_repositories
from ansible_collections.spt.flow.tests.integration import doors_kit
from ansible_collections.spt.flow.tests.integration.doors_kit import CHECKOUT, Doors

SEED = hostile_repositories.seed()
COMMAND = "git rev-parse HEAD; ls | wc -l"
CONFIGURATION = CHECKOUT / "playbooks/ansible.cfg"


@pytest.fixture
def house(tmp_path: Path, image: Any) -> Iterator[Doors]:
    with doors_kit.doors(tmp_path) as made:
        installed = made.home / ".ansible/collections/ansible_collections/spt"
        installed.mkdir(parents=True)
        (installed / "flow").symlink_to(CHECKOUT)
        made.installed = made.home / ".ansible/collections"
        yield made


@dataclass
class Tally:
    """What went wrong, and how much was tried."""

    runs: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def orders_a_terminal(text: str) -> list[str]:
    """Characters by which a text could control a terminal or hide what it says."""
    kept = re.sub(r"[\n\t]", "", text)
    return sorted(
        {
            repr(c)
            for c in kept
            if unicodedata.category(c) == "Cc" or c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        }
    )


def play(house: Doors, verbs: list[str], cwd: Path, tally: Tally, title: str, **values: str) -> bool:
    environment = house.environment(
        ANSIBLE_CONFIG=str(CONFIGURATION), SPT_FLOW_DOCKER="disabled", SPT_FLOW_WAIT_TIMEOUT="90s", **values
    )
    done = subprocess.run(
        [str(house.programs / "ansible-playbook"), *(f"spt.flow.{verb}" for verb in verbs)],
        cwd=cwd,
        env={**environment, "SPT_FLOW_MEMORY": "1g", "SPT_FLOW_CPUS": "1", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=400,
        check=False,
    )
    text = (done.stdout + done.stderr).decode(errors="replace")
    tally.runs += len(verbs)
    title = f"{title} {'+'.join(verbs)}"
    if "Traceback" in text or "This is a fault of spt.flow" in text or done.returncode < 0:
        tally.wrong.append(f"{title}: traceback or signal ({done.returncode})\n{text}")
    if found := orders_a_terminal(text):
        tally.wrong.append(f"{title}: {', '.join(found)} on the terminal\n{text!r}")
    return done.returncode == 0


def try_one(house: Doors, base: Path, number: int, tally: Tally) -> None:
    """One repository; what it has on the engine is removed at once."""
    made = hostile_repositories.generate(base, SEED, number)
    title = f"seed {SEED}, repository {number} ({', '.join(made.words)})"
    cwd = made.place.folder if number % 2 else base
    values = {
        "SPT_FLOW_REPO": str(made.place.folder),
        "SPT_FLOW_CONNECT": "false",
        "SPT_FLOW_COMMAND": COMMAND,
        "SPT_FLOW_ARTIFACTS": "*",
        "SPT_FLOW_ARTIFACTS_DIR": str(base / "runs"),
    }
    verbs = ["up", "status", "logs", "ci"]
    try:
        if play(house, verbs, cwd, tally, title, **values):
            play(house, ["ssh"], cwd, tally, title, **{**values, "SPT_FLOW_CONNECT": "true"})
        else:
            tally.refused += 1
            for verb in ("status", "logs", "ci", "ssh"):
                play(house, [verb], cwd, tally, title, **values)
    finally:
        doors_kit.remove(house.owner)
    if made.place.canary.exists():
        tally.wrong.append(f"{title}: ran {made.place.canary.read_text()}")


def try_all(house: Doors, folder: Path, numbers: range) -> None:
    tally = Tally()
    for number in numbers:
        try_one(house, folder / str(number), number, tally)
        done = number + 1 - numbers.start
        print(f"seed {SEED}: {done} repositories, {tally.runs} runs, {tally.refused} refused, {len(tally.wrong)} wrong")
    assert tally.wrong == [], "\n".join(tally.wrong)


def test_hostile_repositories_stay_in_their_workspaces(house: Doors, tmp_path: Path) -> None:
    try_all(house, tmp_path, range(6))


@pytest.mark.full
@pytest.mark.parametrize("tens", range(10))
def test_a_hundred_hostile_repositories_stay_in_their_workspaces(house: Doors, tmp_path: Path, tens: int) -> None:
    try_all(house, tmp_path, range(10 * tens, 10 * tens + 10))
