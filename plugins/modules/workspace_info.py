#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: workspace_info
short_description: List the workspaces of an owner
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Reads one workspace, or all workspaces of an owner if neither O(workspace) nor O(repo) is given, or the log of one.
requirements:
  - python >= 3.11 on the controller
  - urllib3 >= 2.0 (Python package) for Coder servers
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.attributes.info
  - spt.flow.values
options:
  size:
    description: Also measure the sizes of the volumes in bytes.
    type: bool
    default: false
  logs:
    description: Show the log of one workspace instead.
    type: bool
    default: false
  follow:
    description: With O(logs=true), follow the log until the workspace stops.
    type: bool
    default: false
  tail:
    description: With O(logs=true), number of last lines to start with; 0 for all.
    type: int
    default: 0
seealso:
  - module: spt.flow.workspace
"""

EXAMPLES = r"""
- name: Read all workspaces of the caller
  spt.flow.workspace_info:
  register: mine

- name: Read one with the sizes of its volumes
  spt.flow.workspace_info:
    workspace: demo
    size: true

- name: Show the last lines of a log
  spt.flow.workspace_info:
    workspace: demo
    logs: true
    tail: 20
"""

RETURN = r"""
workspaces:
  description: The workspaces, each as M(spt.flow.workspace) returns it.
  type: list
  elements: dict
  returned: success
credentials:
  description: >-
    How many requests for credentials each workspace has made through this machine, by verdict (given, refused, missing
    or failed); workspaces without a request are left out.
  type: dict
  returned: success
  sample: {demo: {given: 12, refused: 1}}
lines:
  description: Lines of the log; empty with O(follow=true).
  type: list
  elements: str
  returned: with O(logs=true)
error:
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
