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
    same content and values make the same version, so a second run changes nothing.
  - A version becomes active only after its import has succeeded. Workspaces keep their version until their user
    restarts them.
  - Limits, image and nodes come from the inventory; developers only choose the repository.
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
      - Which templates. V(ci) has the same source as V(dev) and the name suffix C(-ci). Its workspaces are deleted at
        their deadline, regardless of activity.
    type: list
    elements: str
    choices: [dev, ci]
    default: [dev, ci]
  template:
    description: Coder template of new workspaces.
    type: str
    default: spt-flow
  token_file:
    description:
      - File on the task's host with the token, as written by M(spt.flow.coder_token). It is only read into memory.
    type: str
    default: ''
  lock_file:
    description:
      - File on the task's host that is added to the templates as C(.terraform.lock.hcl), so that every build uses
        providers with these digests. Create it from the server's mirror with C(terraform providers lock -fs-mirror=).
    type: str
    default: ''
  deprecated:
    description:
      - Reason for deprecating the templates. It is shown in their descriptions, and C(up) refuses to create
        workspaces from them. Existing workspaces start, stop and restart as before. An empty value ends the
        deprecation.
    type: str
    default: ''
  network:
    description: Bridge network of workspaces; by default that of P(spt.flow.host_docker#role).
    type: str
    default: ''
  apparmor:
    description: AppArmor profile of workspaces; C(spt-flow-workspace) if the nodes have AppArmor.
    type: str
    default: ''
  presets:
    description:
      - Repositories that users can choose with one click when they create a workspace in the dashboard.
      - Each has C(name) and C(repo), and may have C(ref), C(description) and C(icon).
    type: list
    elements: dict
    default: []
  external_auth:
    description:
      - Ids of the server's providers of external authentication. Users may log in at each in the dashboard, and their
        workspaces then clone private repositories with that login.
    type: list
    elements: str
    default: []
seealso:
  - module: spt.flow.workspace
"""

EXAMPLES = r"""
- name: Upload the templates
  spt.flow.coder_template:
    url: https://coder.example.com
    token: "{{ coder_token }}"
"""

RETURN = r"""
templates:
  description: Result for each template.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name on the server.
      type: str
    version:
      description: Name of the active version.
      type: str
    actions:
      description: Actions that were needed, out of V(import), V(create), V(activate) and V(change).
      type: list
      elements: str
    ignored:
      description: Settings that the server did not change, because they need a licence.
      type: list
      elements: str
error:
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
