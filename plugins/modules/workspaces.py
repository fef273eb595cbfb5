#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: workspaces
short_description: Manage a list of workspaces
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Applies M(spt.flow.workspace) to a list of workspaces, several at a time.
  - >-
    The whole list is validated first, and all mistakes are reported at once. If a workspace fails, the others continue,
    and the task fails at its end with its name.
requirements:
  - python >= 3.11 on the controller
  - docker >= 7.0 (Python package) where an image is built, loaded or pulled
  - urllib3 >= 2.0 (Python package) for Coder servers
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values.output
options:
  workspaces:
    description:
      - The workspaces, by default from the inventory variable C(flow_workspaces).
      - >-
        Each entry has C(repo), or C(workspace) for an existing workspace, and may have C(state) (V(started), V(stopped)
        or
        V(absent)), C(ref) and every option of M(spt.flow.workspace) that is a setting, such as C(owner) or C(memory).
      - >-
        Other options default as in M(spt.flow.workspace), but C(repo), C(workspace) and C(ref) come only from the
        entry.
    type: list
    elements: raw
  parallel:
    description: Number of workspaces processed at the same time, 1 to 32.
    type: int
    default: 4
  confirm:
    description: Must be V(true) for entries whose C(state) is V(absent) to be deleted.
    type: bool
    default: false
seealso:
  - module: spt.flow.workspace
"""

EXAMPLES = r"""
- name: Bring up the workspaces of a course
  spt.flow.workspaces:
    workspaces:
      - repo: https://github.com/ansible-collections/community.docker
        owner: alice
      - repo: https://github.com/ansible-collections/community.docker
        owner: bob
        memory: 16g
      - workspace: last-year
        state: absent
    confirm: true
"""

RETURN = r"""
msg:
  description: Number of workspaces that are up to date, or which failed and why.
  type: str
  returned: always
  sample: "3 workspaces: 1 ok, 2 changed, 0 failed."
workspaces:
  description: Result for each entry, in the order of the list.
  type: list
  elements: dict
  returned: when the list has no mistakes
  contains:
    index:
      description: Position in the list, from 1.
      type: int
      returned: always
      sample: 1
    name:
      description: Name of the workspace.
      type: str
      returned: always
      sample: demo
    owner:
      description: Owner of the workspace.
      type: str
      returned: always
      sample: alice
    node:
      description: Host of the inventory on which it runs; empty for this machine's engine.
      type: str
      returned: always
      sample: node1.example.org
    state:
      description: The requested state.
      type: str
      returned: always
      sample: started
    changed:
      description: Whether anything was done.
      type: bool
      returned: always
      sample: true
    msg:
      description: What was done, or the error, as a sentence.
      type: str
      returned: always
      sample: Workspace demo is running (unchanged).
    workspace:
      description: The workspace as M(spt.flow.workspace) returns it.
      type: dict
      returned: unless the entry failed
    actions:
      description: What was done, in order.
      type: list
      elements: str
      returned: unless the entry failed
      sample: [create, start]
    notes:
      description: Warnings, as sentences.
      type: list
      elements: str
      returned: unless the entry failed
    error:
      description: The error, if the task failed; see M(spt.flow.workspace).
      type: dict
      returned: when the entry failed
error:
  description: The error, if the task failed; see M(spt.flow.workspace). C(details.entries) has a sentence for each
    mistake.
  type: dict
  returned: failure
"""
