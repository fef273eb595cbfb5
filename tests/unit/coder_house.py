# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fake Coder server with our template, for tests of what talks to one."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

from ansible_collections.spt.flow.plugins.module_utils._coder_client import CoderClient
from ansible_collections.spt.flow.plugins.module_utils._coder_config import CoderConfig
from ansible_collections.spt.flow.plugins.module_utils._coder_http import CoderHttp
from ansible_collections.spt.flow.tests.fake_coder.jobs import Clock, Script
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.fake_coder.state import State

TOKEN = "a123456789-b123456789012345678901"
TEMPLATE = """
data "coder_parameter" "repo" {
  name    = "repo"
  default = ""
  mutable = true
}
data "coder_parameter" "ref" {
  name    = "ref"
  default = ""
  mutable = true
}
data "coder_parameter" "dotfiles" {
  name    = "dotfiles"
  default = ""
  mutable = true
}
"""
EVENTS = (
    '{"spt_flow": 1, "event": "start", "boot": "b1", "started": 1}',
    '{"spt_flow": 1, "event": "step", "step": "home", "state": "ok", "started": 1, "ended": 1.1}',
    '{"spt_flow": 1, "event": "step", "step": "clone", "state": "ok", "started": 1.1, "ended": 1.5}',
    '{"spt_flow": 1, "event": "step", "step": "ide", "state": "ok", "started": 1.1, "ended": 2}',
)


def archive(text: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("main.tf")
        info.size = len(text.encode())
        tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def add_version(state: State, name: str, template: str = "", text: str = TEMPLATE) -> str:
    """Id of a new, imported version."""
    admin = state.user("admin")
    file, _known = state.upload(admin, archive(text))
    body = {"name": name, "file_id": file.id, "storage_method": "file", "provisioner": "terraform", "tags": {}}
    version = state.create_version(admin, {**body, **({"template_id": template} if template else {})})
    state.clock.advance(30)
    return version.id


@contextmanager
def server(speed: float = 40.0) -> Iterator[Fake]:
    """A server whose clock runs faster than ours, with the template ``spt-flow`` and the user ``ada``."""
    state = State(Clock(speed))
    state.first_user("admin@example.com", "admin", "correct horse battery staple 1")
    body = {"email": "ada@example.com", "username": "ada", "login_type": "none", "user_status": "active"}
    ada = state.create_user({**body, "organization_ids": [state.organization]})
    state.give_token(ada, TOKEN)
    state.behaviour = type(state.behaviour)(scripts=(Script(output=EVENTS),))
    version = add_version(state, "v1")
    state.create_template(
        state.user("admin"), {"name": "spt-flow", "template_version_id": version, "default_ttl_ms": 7_200_000}
    )
    with Fake(state, openapi=os.environ.get("CODER_OPENAPI", "")) as fake:
        yield fake
        assert fake.errors == []
        assert not fake.checker or fake.checker.problems == []


def client(fake: Fake, token: str = TOKEN) -> CoderClient:
    return CoderClient(CoderHttp(CoderConfig(fake.url, token, "the test")))
