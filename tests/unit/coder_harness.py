# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start a fake Coder server, empty or with the templates and the user ``ada``, and connect clients to it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.client import CoderClient
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.config import CoderConfig
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.http import OUTAGE, CoderHttp
from ansible_collections.spt.flow.tests.fake_coder import samples
from ansible_collections.spt.flow.tests.fake_coder.jobs import Behaviour, Clock, Script
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.fake_coder.state import State

TOKEN = samples.USER_TOKEN
"""The token of the user ada."""
TEMPLATE = "".join(
    f'data "coder_parameter" "{name}" {{\n  name    = "{name}"\n  default = ""\n  mutable = true\n}}\n'
    for name in ("repo", "ref", "dotfiles")
)
CI_TEMPLATE = TEMPLATE + "".join(
    f'data "coder_parameter" "{name}" {{\n  name    = "{name}"\n  default = ""\n}}\n'
    for name in ("deadline", "directory", "seed")
)
EVENTS = (
    '{"spt_flow": 1, "event": "start", "boot": "b1", "started": 1}',
    '{"spt_flow": 1, "event": "step", "step": "home", "state": "ok", "started": 1, "ended": 1.1}',
    '{"spt_flow": 1, "event": "step", "step": "clone", "state": "ok", "started": 1.1, "ended": 1.5}',
    '{"spt_flow": 1, "event": "step", "step": "ide", "state": "ok", "started": 1.1, "ended": 2}',
    '{"spt_flow": 1, "event": "step", "step": "docker", "state": "skipped", "started": 1.1, "ended": 1.1}',
)
"""What the workspace agent prints into the log of Coder's agent."""


@contextmanager
def running(state: State | None = None, **more: Any) -> Iterator[Fake]:
    """Start a fake server; fail if it had an error, or a request or answer does not match the API description."""
    with Fake(state, openapi=os.environ.get("CODER_OPENAPI", ""), **more) as fake:
        yield fake
    assert fake.errors == [], "\n".join(fake.errors)
    problems = fake.checker.problems if fake.checker else []
    assert problems == [], "\n".join(problems)


def connect(fake: Fake, token: str = TOKEN, **more: Any) -> CoderAdmin:
    """Return a client that sleeps by the fake's clock, so that waiting takes no time."""
    clock = fake.state.clock
    config = CoderConfig(url=fake.url, token=token, source="the test")
    return CoderAdmin(CoderHttp(config, clock=clock, sleep=clock.sleep, **more))


def archive(text: str) -> bytes:
    return samples.archive({"main.tf": text})


def add_version(state: State, name: str, template: str = "", text: str = TEMPLATE) -> str:
    """Import a version and return its id."""
    admin = state.user("admin")
    file, _known = state.upload(admin, archive(text))
    body = {"name": name, "file_id": file.id, **({"template_id": template} if template else {})}
    version = state.create_version(admin, body)
    state.clock.advance(version.job.ends - state.now)
    return version.id


@contextmanager
def server(speed: float = 40.0, skew: float = 0.0) -> Iterator[Fake]:
    """Start a fake server with both templates. Its clock runs ``speed`` times as fast and is ``skew`` seconds off."""
    state = State(Clock(speed, time.time() + skew))
    # Without this, clients would take each workspace for a new one and wait for it (`lifecycle.YOUNG`).
    state.clock.advance(120)
    state.first_user("admin@example.com", "admin", "correct horse battery staple 1")
    body = {"email": "ada@example.com", "username": "ada", "login_type": "none", "user_status": "active"}
    ada = state.create_user({**body, "organization_ids": [state.organization]})
    state.give_token(ada, TOKEN)
    state.behaviour = Behaviour(scripts=(Script(output=EVENTS),))
    version = add_version(state, "v1")
    state.create_template(
        state.user("admin"), {"name": "spt-flow", "template_version_id": version, "default_ttl_ms": 7_200_000}
    )
    ci = {"default_ttl_ms": 1_800_000, "activity_bump_ms": 0, "allow_user_cancel_workspace_jobs": True}
    version = add_version(state, "v1", text=CI_TEMPLATE)
    state.create_template(state.user("admin"), {"name": "spt-flow-ci", "template_version_id": version, **ci})
    with running(state) as fake:
        yield fake


def client(fake: Fake, token: str = TOKEN, outage: float = OUTAGE) -> CoderClient:
    """Return a client that waits ``outage`` real seconds for a server that does not answer."""
    return CoderClient(CoderHttp(CoderConfig(fake.url, token, "the test"), outage=outage))
