# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several modules share (private to the collection). Defaults are checked against ``_settings.OPTIONS`` by a test."""

from __future__ import annotations


class ModuleDocFragment:
    # Where values come from, and which workspace is meant.
    DOCUMENTATION = r"""
notes:
  - >-
    An option that the task leaves out is taken from the extra variable of the same name, then from the environment
    (E(SPT_FLOW_REPO) for O(repo) and so on), then from C(~/.config/spt-flow/config.yml), then from the inventory
    variable C(flow_<option>), then from its default.
  - >-
    Ansible runs C(-e) text as a template and keeps one word of an unquoted value, so extra variables with a template in
    them and stray words beside them are refused. The environment takes every text literally.
options:
  workspace:
    description:
      - Name of the workspace.
      - By default it is made from the name of O(repo).
    type: str
    default: ''
  repo:
    description:
      - The repository to work on, C(https://), C(ssh://) or C(git@host:path), a local path, or C(owner/name) on O(default_host).
      - With no O(workspace) it also names an existing workspace.
    type: str
    default: ''
  default_host:
    description: The host that C(owner/name) alone stands for.
    type: str
    default: github.com
  owner:
    description: Whose workspace it is; by default the login name.
    type: str
    default: ''
  target:
    description:
      - Where workspaces run.
      - V(docker) is the Docker engine of this machine or of E(DOCKER_HOST), V(coder) a Coder server,
        V(auto) the first that is configured.
    type: str
    choices: [auto, docker, coder]
    default: auto
  output:
    description: V(json) for one JSON object on standard output instead of text.
    type: str
    choices: [text, json]
    default: text
"""

    # What a workspace is made of and how long clients wait.
    SETTINGS = r"""
options: {}
"""
