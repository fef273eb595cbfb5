# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generated hostile repositories through `up`, `status`, `logs`, `ci` and `ssh` on the real engine.

Set HOSTILE_SEED to the printed seed to repeat a run.
"""

from __future__ import annotations

import json
import re
import subprocess
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.tests import hostile_repositories
from ansible_collections.spt.flow.tests.integration import playbook_harness
from ansible_collections.spt.flow.tests.integration.playbook_harness import CHECKOUT, Playbooks

SEED = hostile_repositories.seed()
COMMAND = "git rev-parse HEAD; ls | wc -l"
CONFIGURATION = CHECKOUT / "playbooks/ansible.cfg"


@pytest.fixture
def playbooks(tmp_path: Path, image: Any) -> Iterator[Playbooks]:
    with playbook_harness.playbooks(tmp_path) as made:
        installed = made.home / ".ansible/collections/ansible_collections/spt"
        installed.mkdir(parents=True)
        (installed / "flow").symlink_to(CHECKOUT)
        made.installed = made.home / ".ansible/collections"
        yield made


@dataclass
class Tally:
    """Problems, and the number of workspaces."""

    started: int = 0
    wrong: list[str] = field(default_factory=list)


def orders_a_terminal(text: str) -> list[str]:
    """Return characters that could control a terminal or hide text."""
    kept = re.sub(r"[\n\t]", "", text)
    return sorted(
        {
            repr(c)
            for c in kept
            if unicodedata.category(c) == "Cc" or c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        }
    )


def run(playbooks: Playbooks, plays: list[str], cwd: Path, tally: Tally, title: str, **values: str) -> bool:
    """Run playbooks in one process, record problems in their output, and return whether they succeeded."""
    environment = playbooks.environment(
        ANSIBLE_CONFIG=str(CONFIGURATION), SPT_FLOW_DOCKER="disabled", SPT_FLOW_WAIT_TIMEOUT="90s", **values
    )
    done = subprocess.run(
        [str(playbooks.programs / "ansible-playbook"), *plays],
        cwd=cwd,
        env={**environment, "SPT_FLOW_MEMORY": "1g", "SPT_FLOW_CPUS": "1", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=1800,
        check=False,
    )
    text = (done.stdout + done.stderr).decode(errors="replace")
    tally.started += text.count("COUNTED True")
    title = f"{title} {' '.join(plays)}"
    if "Traceback" in text or "This is a bug of spt.flow" in text or done.returncode < 0:
        tally.wrong.append(f"{title}: traceback or signal ({done.returncode})\n{text}")
    if found := orders_a_terminal(text):
        tally.wrong.append(f"{title}: {', '.join(found)} on the terminal\n{text!r}")
    return done.returncode == 0


def values_of(made: hostile_repositories.Repository) -> dict[str, str]:
    runs = made.place.folder.parent / "runs"
    return {
        "repo": str(made.place.folder),
        "connect": "false",
        "command": COMMAND,
        "artifacts": "*",
        "artifacts_dir": str(runs),
    }


def title_of(made: hostile_repositories.Repository) -> str:
    return f"seed {SEED}, {made.place.folder.name} ({', '.join(made.words)})"


def check_canary(made: hostile_repositories.Repository, tally: Tally) -> None:
    if made.place.canary.exists():
        tally.wrong.append(f"{title_of(made)}: ran {made.place.canary.read_text()}")


def test_hostile_repositories_stay_in_their_workspaces(playbooks: Playbooks, tmp_path: Path) -> None:
    """Six repositories, each playbook as users call it."""
    tally = Tally()
    for number in range(6):
        made = hostile_repositories.generate(tmp_path / str(number), SEED, number)
        values = {f"SPT_FLOW_{name.upper()}": text for name, text in values_of(made).items()}
        cwd = made.place.folder if number % 2 else made.place.folder.parent
        title = title_of(made)
        if run(
            playbooks, ["spt.flow.up", "spt.flow.status", "spt.flow.logs", "spt.flow.ci"], cwd, tally, title, **values
        ):
            run(playbooks, ["spt.flow.ssh"], cwd, tally, title, **{**values, "SPT_FLOW_CONNECT": "true"})
        else:
            for verb in ("status", "logs", "ci", "ssh"):
                run(playbooks, [f"spt.flow.{verb}"], cwd, tally, title, **values)
        check_canary(made, tally)
        playbook_harness.remove(playbooks.owner)
    assert tally.wrong == [], "\n".join(tally.wrong)


def tasks(made: hostile_repositories.Repository) -> list[dict[str, Any]]:
    """The tasks of the playbooks for one repository, in a single process."""
    values = values_of(made)
    wanted = {name: values[name] for name in ("repo", "connect")}
    job = {name: text for name, text in values.items() if name != "connect"}
    repo = {"repo": values["repo"]}
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "up": ("workspace", wanted),
        "status": ("workspace_info", {}),
        "logs": ("workspace_info", {"logs": True, **repo}),
        "ci": ("ci", job),
        "ssh": ("workspace", {"create": False, **wanted}),
        "command": ("workspace_exec", {"command": COMMAND, **repo}),
        "delete": ("workspace", {"state": "absent", "confirm": True, **repo}),
    }
    name = made.place.folder.name
    return [
        {"name": f"{verb} {name}", f"spt.flow.{action}": args, "ignore_errors": True, "register": verb}
        for verb, (action, args) in calls.items()
    ] + [{"name": f"Count {name}", "ansible.builtin.debug": {"msg": "COUNTED {{ command is success }}"}}]


@pytest.mark.full
@pytest.mark.parametrize("tens", range(10))
def test_hundred_hostile_repositories_stay_in_their_workspaces(playbooks: Playbooks, tmp_path: Path, tens: int) -> None:
    """Ten at a time in one process, each brought up, used and deleted."""
    tally = Tally()
    made = [hostile_repositories.generate(tmp_path / str(n), SEED, n) for n in range(10 * tens, 10 * tens + 10)]
    play = tmp_path / "play.yml"
    every = [task for one in made for task in tasks(one)]
    play.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": every}]))
    run(playbooks, [str(play)], made[0].place.folder, tally, f"seed {SEED}: {'; '.join(map(title_of, made))}")
    for one in made:
        check_canary(one, tally)
    wrong = len(tally.wrong)
    print(f"seed {SEED}, tens {tens}: {len(made)} repositories, {tally.started} with a workspace, {wrong} wrong")
    assert tally.wrong == [], "\n".join(tally.wrong)
