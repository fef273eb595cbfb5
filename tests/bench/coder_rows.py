# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the speed table about a Coder server: whole processes against the fake one, and new workspaces on a real one.

The fake server runs in the benchmark's own process, on the measured processors. ``samples`` has seconds, bytes and
counts by name.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from common import Failed, Row, Samples, median, note, verdict

Play = Callable[..., Any]
MANY = 1000
REPO = "https://git.invalid/team/demo.git"


def measure(playbook: Play, samples: Samples, rounds: int, many: int = MANY) -> str:
    """Measure `up` on a running workspace in turns with an empty play, then `status` with ``many``.

    ``playbook(verb, memory, **environment)`` runs one and returns its seconds, output and memory. Return a remark about
    the setup.
    """
    from ansible_collections.spt.flow.tests.unit import coder_harness

    with coder_harness.server(20.0) as fake:
        server = {"CODER_URL": fake.url, "CODER_SESSION_TOKEN": coder_harness.TOKEN, "NO_PROXY": "127.0.0.1"}
        values = {**server, "SPT_FLOW_REPO": REPO, "SPT_FLOW_CONNECT": "false"}
        playbook("up", False, **values)
        # Recently started workspaces would be waited for, because another client may have started them.
        fake.state.clock.advance(120)
        playbook("up", False, **values)
        for _round in range(rounds):
            note(samples, "coder empty", playbook("empty", False).seconds)
            before = len(fake.seen)
            again = playbook("up", False, **values)
            if "changed=0" not in again.output:
                raise Failed(f"'up' on a running Coder workspace changed something:\n{again.output}")
            note(samples, "coder up", again.seconds)
            note(samples, "coder up requests", len(fake.seen) - before)
        fill(fake, many)
        for _round in range(rounds):
            before = len(fake.seen)
            note(samples, "coder status", playbook("status", False, **server).seconds)
            note(samples, "coder status requests", len(fake.seen) - before)
            note(samples, "coder status memory", playbook("status", True, **server).memory)
    crowd(samples)
    return f"a Coder server: the fake one (v2.35.1's API) with {many} workspaces"


def crowd(samples: Samples, clients: int = 100) -> None:
    """Run this many ``up`` in parallel with a fifth of all answers wrong; count workspaces and requests per minute."""
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.probe import Probe
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
    from ansible_collections.spt.flow.tests.unit import coder_harness

    spec = WorkspaceSpec("me", Settings(wait_timeout=300))

    def up(number: int) -> None:
        repository = Repository.parse(f"https://git.invalid/team/crowd{number // 2}.git")
        target = CoderTarget(coder_harness.client(fake))
        lifecycle.ensure(target, replace(spec, repository=repository), probe=lambda *_asked: Probe("open"))

    with coder_harness.server(20.0) as fake:
        fake.faults.share = 0.2
        begun = fake.state.now
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(up, range(clients)))
        minutes = max(1.0, (fake.state.now - begun) / 60)
        fake.faults.share = 0.0
        busiest = Counter(request.path for request in fake.seen).most_common(1)[0][1]
        note(samples, "coder crowd", clients)
        note(samples, "coder crowd workspaces", len(fake.state.workspaces))
        note(samples, "coder crowd busiest", busiest / minutes)
        note(samples, "coder crowd requests", len(fake.seen) / minutes)


def measure_live(samples: Samples, rounds: int) -> str:
    """Measure new workspaces on a real server, one by one, with a cached image; return a remark or why none ran."""
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.probe import Probe
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
    from ansible_collections.spt.flow.tests.integration import sshd_harness
    from ansible_collections.spt.flow.tests.live import conftest

    reason = conftest.missing()
    if reason:
        return f"no real Coder server: {reason}"
    with (
        conftest.postgres() as database,
        tempfile.TemporaryDirectory() as place,
        tempfile.TemporaryDirectory() as git_server,
        conftest.server(database, Path(place)) as live_server,
        sshd_harness.sshd(Path(git_server), live_server.gateway),
    ):
        known = Path(git_server, "known_hosts").read_text()
        port = known.split("]:")[1].split()[0]
        settings = Settings(
            profile="slim", cpus=2.0, memory=2 << 30, kvm="disabled", known_hosts=known, wait_timeout=300
        )
        assert live_server.admin is not None
        coder_template.roll_out(live_server.admin, live_server.wanted(settings))
        for number in range(rounds + 1):
            # It needs a key, so that the clone ends at once on any network.
            repository = Repository.parse(f"ssh://root@{live_server.gateway}:{port}/team/new{number}.git")
            spec = WorkspaceSpec("me", settings, repository=repository)
            client = live_server.client(live_server.token)
            asked = moment(client, "create_workspace")
            begun = time.time()
            result = lifecycle.ensure(CoderTarget(client), spec, probe=lambda *_asked: Probe("needs-auth"))
            seconds = time.time() - begun
            assert result.workspace is not None
            if number:  # The first one fills caches.
                parts = stages(client.workspace_by_id(result.workspace.id), asked[0], seconds)
                for name, part in parts.items():
                    note(samples, f"coder new {name}", part)
            lifecycle.ensure(live_server.target(), replace(spec, name=result.workspace.name, repository=None), "absent")
        return f"new Coder workspaces: a real server, {live_server.client('').buildinfo()['version']}"


def moment(of: Any, method: str) -> list[float]:
    """Record when ``of.method`` is first called."""
    moments: list[float] = []
    function = getattr(of, method)

    def called(*arguments: Any, **named: Any) -> Any:
        moments.append(time.time())
        return function(*arguments, **named)

    setattr(of, method, called)
    return moments


def stages(workspace: Any, asked: float, seconds: float) -> dict[str, float]:
    """Split the time of a new workspace: Coder from the request ``asked`` to a running job, Terraform, the agent until
    it is connected, and our own part."""
    job = workspace["latest_build"]["job"]
    agent = next(a for r in workspace["latest_build"]["resources"] for a in r.get("agents") or [])
    taken, built, there = (
        datetime.fromisoformat(text).timestamp()
        for text in (job["started_at"], job["completed_at"], agent["first_connected_at"])
    )
    coder = there - asked
    return {
        "whole": seconds,
        "queue": taken - asked,
        "Terraform": built - taken,
        "agent": there - built,
        "ours": seconds - coder,
    }


def fill(fake: Any, many: int) -> None:
    """Create running workspaces of the user ``ada``, up to ``many`` in total."""
    state = fake.state
    with fake.lock:
        ada, template = state.user("ada"), state.template_by_name("spt-flow")
        for number in range(many - len(state.workspaces)):
            values = [{"name": "repo", "value": f"https://git.invalid/team/ws{number:04}.git"}]
            body = {"name": f"ws{number:04}", "template_id": template.id, "rich_parameter_values": values}
            state.create_workspace(ada, ada, body)
    state.clock.advance(600)


def rows(samples: Samples) -> Iterator[Row]:
    """Return the rows of ``measure``."""
    seconds, asked = median(samples, "coder up"), max(samples["coder up requests"])
    share = seconds / median(samples, "coder empty")
    measured = f"{seconds:.2f} s = {share:.2f} × empty, {asked:.0f} requests"
    holds = verdict(share <= 1.5 and asked <= 3)
    yield "`up` on a running Coder workspace", measured, "≤ 1.5 ×, ≤ 3 requests", holds
    seconds, memory = median(samples, "coder status"), max(samples["coder status memory"]) / 2**20
    asked = max(samples["coder status requests"])
    measured = f"{seconds:.2f} s, {memory:.0f} MiB, {asked:.0f} requests"
    holds = verdict(seconds <= 2 and memory <= 200)
    yield f"`status` with {MANY:,} Coder workspaces", measured, "≤ 2 s, ≤ 200 MiB", holds
    crowded = {name: samples[f"coder crowd {name}"][0] for name in ("workspaces", "requests", "busiest")}
    once = crowded["workspaces"] * 2 == samples["coder crowd"][0]
    yield (
        "100 `up`s of 50 repositories at once, a fifth of all answers wrong",
        "{workspaces:.0f} workspaces, {requests:.0f} requests a minute, {busiest:.0f} of one URL".format(**crowded),
        "50 workspaces, ≤ 512 a minute of one URL, as the server counts",
        verdict(once and crowded["busiest"] <= 512),
    )


def live_rows(samples: Samples) -> Iterator[Row]:
    """Return the row of ``measure_live``, if there is a real server."""
    if "coder new whole" not in samples:
        return
    parts = {name: median(samples, f"coder new {name}") for name in ("whole", "queue", "Terraform", "agent", "ours")}
    words = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items() if name != "whole")
    share = parts["ours"] / parts["whole"]
    fine = parts["ours"] <= 1.5 and share <= 0.2 and parts["whole"] <= 8
    yield (
        "new workspace on a real Coder server, image cached",
        f"{parts['whole']:.1f} s: {words} = {share:.0%}",
        "≤ 8 s, ours ≤ 1.5 s and ≤ 20 %",
        verdict(fine),
    )
