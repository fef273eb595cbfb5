#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_config
short_description: Configure plain SSH to reach workspaces by name
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - >-
    Writes one block that serves every workspace of this machine's engine to C(~/.config/spt-flow/ssh_config) and one
    C(Include) line to the top of C(~/.ssh/config). C(ssh), C(scp), C(rsync) and VS Code Desktop's Remote-SSH use it.
  - V(absent) removes both and changes nothing else in C(~/.ssh/config).
requirements:
  - python >= 3.11 on the controller
  - urllib3 >= 2.0 (Python package) for Coder servers
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
options:
  state:
    description: Whether the block exists.
    type: str
    choices: [present, absent]
    default: present
  output:
    description: V(json) for one JSON object on standard output instead of text.
    type: str
    choices: [text, json]
    default: text
seealso:
  - module: spt.flow.workspace
"""

EXAMPLES = r"""
- name: Let ssh and VS Code Desktop enter workspaces
  spt.flow.ssh_config:

- name: Remove it
  spt.flow.ssh_config:
    state: absent
"""

RETURN = r"""
paths:
  description: The checked files.
  type: list
  elements: str
  returned: success
  sample: [/home/alice/.config/spt-flow/ssh_config, /home/alice/.ssh/config]
error:
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
