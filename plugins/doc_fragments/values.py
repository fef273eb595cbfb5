# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several modules share, generated from the table of options."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.options import OPTIONS, Option

PRECEDENCE = [
    "Without a value in the task, an option is taken from the extra variable of the same name, then from the "
    "environment"
    " variable C(SPT_FLOW_<OPTION>), then from C(~/.config/spt-flow/config.yml), then from the inventory variable"
    " C(flow_<option>), then from its default.",
    "Ansible runs C(-e) text as a template and keeps one word of an unquoted value, so extra variables that contain a "
    "template, and stray words between them, are rejected. The environment takes every text literally.",
]


def _documented(option: Option) -> dict[str, Any]:
    """Return one option in ansible-doc's format."""
    description = [option.description]
    if option.type == "duration":
        description.append("A number of seconds, or a text such as V(90m) or V(1h30m).")
    if option.type == "size":
        description.append("A number of bytes, or a text such as V(512m) or V(8g).")
    if option.zero:
        description.append(f"V(0) means {option.zero}.")
    entry = {"description": description, "type": option.ansible_type, "default": option.default}
    return {**entry, "choices": list(option.choices)} if option.choices else entry


def _fragment(options: Iterable[Option], notes: list[str]) -> str:
    return json.dumps({"options": {o.name: _documented(o) for o in options}, "notes": notes})


class ModuleDocFragment:
    # Calls need an annotation: ansible-test of ansible-core 2.19 fails on a plain assignment that is not a literal.

    # Which workspace, and where values come from.
    DOCUMENTATION: str = _fragment(
        (
            OPTIONS[name]
            for name in ("workspace", "repo", "owner", "target", "node", "template", "output", "default_host")
        ),
        PRECEDENCE,
    )

    # CI options.
    CI: str = _fragment(
        (
            OPTIONS[name]
            for name in (
                *("repo", "ref", "commit", "command", "ttl", "artifacts", "junit", "artifacts_dir", "env", "env_file"),
                *("owner", "target", "node", "template", "output", "default_host"),
            )
        ),
        PRECEDENCE,
    )

    # Settings of a workspace, its image and this client.
    SETTINGS: str = _fragment(
        (o for o in OPTIONS.values() if o.scope in ("workspace", "client", "image") and o.name != "default_host"), []
    )

    # Output.
    OUTPUT: str = _fragment((OPTIONS["output"],), [])

    # Settings of a workspace.
    WORKSPACE: str = _fragment((o for o in OPTIONS.values() if o.scope == "workspace"), PRECEDENCE)

    # Building the image.
    IMAGE: str = _fragment(
        (o for o in OPTIONS.values() if o.scope == "image" or o.name in ("profile", "output")), PRECEDENCE
    )

    # Access to a Coder server for operators.
    SERVER = r"""
options:
  url:
    description: The server; by default what E(CODER_URL) or the CLI's configuration names.
    type: str
    default: ''
  token:
    description: Of a user who may do this; by default E(CODER_SESSION_TOKEN) or the CLI's session.
    type: str
    default: ''
  login_email:
    description:
      - E-mail address of an owner who signs in with O(login_password) instead. The session ends with the task.
    type: str
    default: ''
  login_password:
    description: The password of O(login_email).
    type: str
    default: ''
  wait:
    description: Seconds that a server which does not answer yet is waited for.
    type: int
    default: 60
notes:
  - Passwords, sessions and tokens are in memory only, never in a result, and shown at no verbosity.
"""
