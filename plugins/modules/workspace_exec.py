#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: workspace_exec
short_description: Run a command in a workspace
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Runs one command in a running workspace, as its user and in its clone, and shows its output line by line.
  - At a terminal, use C(ansible-playbook spt.flow.ssh) with C(command) instead.
requirements:
  - python >= 3.11 on the controller
  - urllib3 >= 2.0 (Python package) for Coder servers
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values
attributes:
  check_mode:
    support: partial
    details:
      - Runs nothing and reports a change.
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - The effects of a command are unknown.
options:
  argv:
    description:
      - The program and its arguments, run without a shell.
      - Exactly one of O(argv) and O(command) is required.
    type: list
    elements: str
  command:
    description: A command for the shell in the workspace.
    type: str
    default: ''
seealso:
  - module: spt.flow.workspace
"""

EXAMPLES = r"""
- name: Run the tests
  spt.flow.workspace_exec:
    workspace: demo
    argv: [make, test]
"""

RETURN = r"""
rc:
  description: The command's exit status; the task fails unless it is 0.
  type: int
  returned: when it ran
  sample: 0
stdout_lines:
  description: Lines of the command's output, including standard error.
  type: list
  elements: str
  returned: when it ran
error:
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
