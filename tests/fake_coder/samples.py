# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A prepared server: users, a template and many workspaces, without the requests to create them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

from .accounts import User
from .state import State, Template

OWNER_TOKEN = "OWNERtoken-0123456789abcdefghijkl"
USER_TOKEN = "PERSONtokn-0123456789abcdefghijkl"
SOURCE = """
variable "image" {
  type    = string
  default = "spt-flow-workspace:1"
}

variable "secret" {
  type      = string
  default   = ""
  sensitive = true
}

data "coder_parameter" "repository" {
  name         = "repository"
  display_name = "Repository"
  type         = "string"
  default      = ""
  mutable      = false
}

data "coder_parameter" "ref" {
  name    = "ref"
  type    = "string"
  default = ""
  mutable = true
}

data "coder_parameter" "seed" {
  name      = "seed"
  type      = "string"
  default   = "none"
  mutable   = true
  ephemeral = true
}

data "coder_workspace_preset" "plain" {
  name = "Plain"
  parameters = {
    ref = "main"
  }
}
"""


def archive(files: Mapping[str, str] | None = None) -> bytes:
    """Return a deterministic ustar of these files, or of a template like ours."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in sorted((files or {"main.tf": SOURCE}).items()):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


@dataclass(frozen=True)
class Prepared:
    """The owner uses ``OWNER_TOKEN``, ``person`` (a plain member) uses ``USER_TOKEN``."""

    owner: User
    person: User
    template: Template


def prepare(state: State, source: bytes | None = None, template: str = "spt-flow") -> Prepared:
    """Create an owner, a member and an imported template; the clock advances by the duration of the import."""
    owner = state.first_user("owner@example.com", "owner", "Never-used-1-correct-horse")
    state.give_token(owner, OWNER_TOKEN)
    person = User("dev", "dev@example.com", "password", state.now, "Never-used-2-correct-horse", "Dev")
    state.users[person.id] = person
    state.give_token(person, USER_TOKEN)
    file, _new = state.upload(owner, source or archive())
    version = state.create_version(owner, {"file_id": file.id, "name": "v-1", "user_variable_values": []})
    state.clock.advance(version.job.ends - state.now)
    made = state.create_template(
        owner,
        {"name": template, "template_version_id": version.id, "default_ttl_ms": 7_200_000, "activity_bump_ms": 0},
    )
    return Prepared(owner, person, made)


def crowd(state: State, owner: User, template: Template, count: int, prefix: str = "ws") -> None:
    """Create ``count`` running workspaces that became ready a minute ago."""
    slots, state.slots = state.slots, [0.0] * count
    for number in range(count):
        state.create_workspace(owner, owner, {"name": f"{prefix}-{number:04d}", "template_id": template.id})
    state.slots = slots
    state.clock.advance(60)
