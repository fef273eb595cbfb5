# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of the speed table that are about a Coder server: whole processes against the fake one.

The fake runs in the bench's own process, on the same processors as what is measured. ``samples`` holds seconds, bytes
and counts by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

Samples = dict[str, list[float]]
Play = Callable[..., Any]
MANY = 1000
REPO = "https://git.invalid/team/demo.git"


def measure(playbook: Play, samples: Samples, rounds: int, many: int = MANY) -> str:
    """`up` on a running workspace in turns with an empty play, then `status` with ``many``.

    ``playbook(verb, memory, **environment)`` runs one and returns its seconds, words and memory. Returns what was
    measured on.
    """
    from ansible_collections.spt.flow.tests.unit import coder_house

    with coder_house.server(20.0) as fake:
        server = {"CODER_URL": fake.url, "CODER_SESSION_TOKEN": coder_house.TOKEN, "NO_PROXY": "127.0.0.1"}
        values = {**server, "SPT_FLOW_REPO": REPO, "SPT_FLOW_CONNECT": "false"}
        playbook("up", False, **values)
        # What was started a moment ago is waited for, as somebody else's may be.
        fake.state.clock.advance(120)
        playbook("up", False, **values)
        for _round in range(rounds):
            note(samples, "coder empty", playbook("empty", False).seconds)
            before = len(fake.seen)
            again = playbook("up", False, **values)
            if "changed=0" not in again.output:
                sys.exit(f"bench: 'up' on a running Coder workspace changed something:\n{again.output}")
            note(samples, "coder up", again.seconds)
            note(samples, "coder up requests", len(fake.seen) - before)
        fill(fake, many)
        for _round in range(rounds):
            before = len(fake.seen)
            note(samples, "coder status", playbook("status", False, **server).seconds)
            note(samples, "coder status requests", len(fake.seen) - before)
            note(samples, "coder status memory", playbook("status", True, **server).memory)
    return f"a Coder server: the fake one (v2.35.1's API) with {many} workspaces"


def fill(fake: Any, many: int) -> None:
    """``many`` running workspaces of the user ``ada`` altogether."""
    state = fake.state
    with fake.lock:
        ada, template = state.user("ada"), state.template_by_name("spt-flow")
        for number in range(many - len(state.workspaces)):
            values = [{"name": "repo", "value": f"https://git.invalid/team/ws{number:04}.git"}]
            body = {"name": f"ws{number:04}", "template_id": template.id, "rich_parameter_values": values}
            state.create_workspace(ada, ada, body)
    state.clock.advance(600)


def note(samples: Samples, name: str, value: float) -> None:
    samples.setdefault(name, []).append(value)


def rows(samples: Samples, median: Callable[[str], float]) -> Iterator[tuple[str, str, str, str]]:
    """(what, measured, bound, whether it holds) of what was measured."""
    if "coder up" not in samples:
        return
    ratio, asked = median("coder up") / median("coder empty"), max(samples["coder up requests"])
    measured = f"{median('coder up'):.2f} s = {ratio:.2f} × empty, {asked:.0f} requests"
    yield "`up` on a running Coder workspace", measured, "≤ 1.5 ×, ≤ 3 requests", yes(ratio <= 1.5 and asked <= 3)
    seconds, memory = median("coder status"), max(samples["coder status memory"]) / 2**20
    asked = max(samples["coder status requests"])
    measured = f"{seconds:.2f} s, {memory:.0f} MiB, {asked:.0f} requests"
    holds = yes(seconds <= 2 and memory <= 200)
    yield f"`status` with {MANY:,} Coder workspaces", measured, "≤ 2 s, ≤ 200 MiB", holds


def yes(holds: bool) -> str:
    return "yes" if holds else "**no**"
