#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: coder_template
short_description: Manage workspace templates on a Coder server
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Uploads the collection's template with every variable, waits for its import and makes it the active version. The
    same content and the same values are one version, so a second run changes nothing.
  - A version becomes active only when its import succeeded. Workspaces keep the version that they were built with until
    their user restarts them.
  - Limits, image and nodes come from the inventory; developers choose only what is cloned.
requirements:
  - python >= 3.11 on the controller
  - urllib3 >= 2.0 (Python package) for Coder servers
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values.workspace
  - spt.flow.values.server
  - spt.flow.values.output
options:
  kinds:
    description:
      - Which templates; V(ci) has the same source as V(dev) and is called with C(-ci) at the end. A CI workspace is
        stopped by its time limit whatever it does, and with that deleted.
    type: list
    elements: str
    choices: [dev, ci]
    default: [dev, ci]
  template:
    description: Template of the Coder server that new workspaces are made of.
    type: str
    default: spt-flow
  token_file:
    description:
      - File of the task's host with the token to use, such as M(spt.flow.coder_token) keeps it; it is read into memory.
    type: str
    default: ''
  lock_file:
    description:
      - File of the task's host that goes into the templates as C(.terraform.lock.hcl), so that every build takes the
        providers with these sums. C(terraform providers lock -fs-mirror=) of the server's mirror makes it.
    type: str
    default: ''
  deprecated:
    description:
      - Why no new workspace is to be made of the templates any more; it is put before their descriptions, and C(up)
        refuses to make a workspace of them. Workspaces that are there start, stop and restart as before. Empty takes
        it back.
    type: str
    default: ''
  network:
    description: The bridge that workspaces are on; by default that of P(spt.flow.host_docker#role).
    type: str
    default: ''
  apparmor:
    description: AppArmor profile of workspaces, C(spt-flow-workspace) where the nodes have AppArmor.
    type: str
    default: ''
  presets:
    description:
      - Repositories that users can choose with one click when they create a workspace in the dashboard.
      - Each has C(name) and C(repo), and may have C(ref), C(description) and C(icon).
    type: list
    elements: dict
    default: []
seealso:
  - module: spt.flow.workspace
"""

EXAMPLES = r"""
- name: Bring the templates to the server
  spt.flow.coder_template:
    url: https://coder.example.com
    token: "{{ coder_token }}"
"""

RETURN = r"""
templates:
  description: What happened to each.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name on the server.
      type: str
    version:
      description: Name of the version that is active.
      type: str
    actions:
      description: Those of V(import), V(create), V(activate) and V(change) that were needed.
      type: list
      elements: str
    ignored:
      description: Settings that the server kept as they were, as it has no licence for them.
      type: list
      elements: str
error:
  description: What went wrong; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
