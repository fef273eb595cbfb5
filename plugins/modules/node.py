#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node
short_description: Drain a workspace host, or undrain it
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - >-
    With O(state=drained), marks the engine of a workspace host, which blocks new starts on it, and stops all workspaces
    cleanly. Homes stay. CI workspaces are deleted when they stop.
  - The mark is the empty volume C(spt-flow-drained) of the engine, so it survives restarts and all clients see it.
requirements:
  - python >= 3.11 on the controller
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values.output
options:
  state:
    description: V(drained) stops all workspaces of the host and blocks new starts; V(open) allows starts again.
    type: str
    choices: [drained, open]
    required: true
  node:
    description: Host of the inventory's group C(flow_nodes).
    type: str
    default: ''
  owner:
    description: Your name; by default the login name. Error messages about the drained host show it.
    type: str
    default: ''
  target:
    description: Target on which workspaces run.
    type: str
    choices: [auto, docker, coder]
    default: auto
  confirm:
    description: Must be V(true) for O(state=drained).
    type: bool
    default: false
seealso:
  - module: spt.flow.workspace
  - module: spt.flow.workspaces
"""

EXAMPLES = r"""
- name: Drain a host before an upgrade
  spt.flow.node:
    node: node1.example.org
    state: drained
    confirm: true

- name: Undrain the host
  spt.flow.node:
    node: node1.example.org
    state: open
"""

RETURN = r"""
msg:
  description: What was done, or would be done in check mode, as a sentence.
  type: str
  returned: always
  sample: node1.example.org is drained, 2 workspaces stopped.
workspaces:
  description: Workspaces that were stopped, or would be in check mode.
  type: list
  elements: dict
  returned: success, or when one could not be stopped
  contains:
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
    kind:
      description: V(dev), or V(ci) for one that is deleted when it stops.
      type: str
      returned: always
      sample: dev
    changed:
      description: Whether it was stopped.
      type: bool
      returned: always
      sample: true
    msg:
      description: The result, as a sentence.
      type: str
      returned: always
      sample: alice-demo stopped.
    error:
      description: The error, if the task failed; see M(spt.flow.workspace).
      type: dict
      returned: when it could not be stopped
confirmed:
  description: Whether O(confirm) was V(true), from any source.
  type: bool
  returned: with O(state=drained)
  sample: false
ask:
  description: Whether the user should be asked before O(state=drained) is carried out.
  type: bool
  returned: with O(state=drained)
  sample: true
question:
  description: The question for the user.
  type: str
  returned: with O(state=drained) in check mode
error:
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
