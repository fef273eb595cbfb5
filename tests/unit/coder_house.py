# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fake server with the template ``spt-flow`` and its user ``ada``, for tests of what uses workspaces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.client import CoderClient
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.config import CoderConfig
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.http import CoderHttp
from ansible_collections.spt.flow.tests.fake_coder import samples
from ansible_collections.spt.flow.tests.fake_coder.jobs import Behaviour, Clock, Script
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.fake_coder.state import State
from ansible_collections.spt.flow.tests.unit import coder_kit

TOKEN = samples.USER_TOKEN
"""Ada's."""
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
)
"""What the start contract prints into the agent's log."""


def archive(text: str) -> bytes:
    return samples.archive({"main.tf": text})


def add_version(state: State, name: str, template: str = "", text: str = TEMPLATE) -> str:
    """Id of a new, imported version."""
    admin = state.user("admin")
    file, _known = state.upload(admin, archive(text))
    body = {"name": name, "file_id": file.id, **({"template_id": template} if template else {})}
    version = state.create_version(admin, body)
    state.clock.advance(version.job.ends - state.now)
    return version.id


@contextmanager
def server(speed: float = 40.0, skew: float = 0.0) -> Iterator[Fake]:
    """Its clock runs by itself, faster than ours: several clients wait at once. It starts ``skew`` seconds off."""
    state = State(Clock(speed, time.time() + skew))
    # By this machine's clock no workspace is so young that a client waits for it once more (`_lifecycle.YOUNG`).
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
    with coder_kit.running(state) as fake:
        yield fake


def client(fake: Fake, token: str = TOKEN) -> CoderClient:
    return CoderClient(CoderHttp(CoderConfig(fake.url, token, "the test")))
