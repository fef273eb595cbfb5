# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fake Coder server for a test, and clients whose waiting takes no time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.config import CoderConfig
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.http import CoderHttp
from ansible_collections.spt.flow.tests.fake_coder.samples import USER_TOKEN
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.fake_coder.state import State


@contextmanager
def running(state: State | None = None, **more: Any) -> Iterator[Fake]:
    """A fake that has made no mistake and met no request or answer that the API description does not know."""
    with Fake(state, openapi=os.environ.get("CODER_OPENAPI", ""), **more) as fake:
        yield fake
    assert fake.errors == [], "\n".join(fake.errors)
    problems = fake.checker.problems if fake.checker else []
    assert problems == [], "\n".join(problems)


def connect(fake: Fake, token: str = USER_TOKEN, **more: Any) -> CoderAdmin:
    """A client that sleeps by the fake's clock."""
    clock = fake.state.clock
    config = CoderConfig(url=fake.url, token=token, source="the test")
    return CoderAdmin(CoderHttp(config, clock=clock, sleep=clock.sleep, **more))
