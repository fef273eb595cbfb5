#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: doctor
short_description: Check a user's machine for workspaces
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Checks git, SSH and its agent, and the target's requirements. These are the Docker engine and C(/dev/kvm), or the
    Coder server with its token, our template, the program C(coder) and, for owners, the server's own health.
  - Says what is missing and how to fix it. Fails with exit status 8 if a requirement is missing.
  - Changes nothing unless O(write=true).
requirements:
  - python >= 3.11 on the controller
  - urllib3 >= 2.0 (Python package) for Coder servers
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values.settings
  - spt.flow.values.output
options:
  write:
    description:
      - Save the values of extra variables, the environment and the task in C(~/.config/spt-flow/config.yml).
      - If a Coder server works, V(coder) is also saved as O(target). Other lines of the file do not change.
      - A token is never written.
    type: bool
    default: false
  questions:
    description:
      - Check nothing; return questions for missing values, for the playbook to ask.
      - Without a terminal the list is empty.
    type: bool
    default: false
  answers:
    description:
      - Answers by the names of the questions; an empty answer keeps the current value.
      - C(server) is the address of a Coder server. It is saved where Coder's own command line saves it.
    type: dict
    default: {}
  owner:
    description: Owner of the workspace; by default the login name.
    type: str
    default: ''
  target:
    description: Target on which workspaces run.
    type: str
    choices: [auto, docker, coder]
    default: auto
  node:
    description: Host of the inventory's group flow_nodes on which workspaces run; by default this machine.
    type: str
    default: ''
  template:
    description: Coder template of new workspaces.
    type: str
    default: spt-flow
  dotfiles:
    description: Your dotfiles repository, installed and updated at each start; append C(#branch) for a branch.
    type: str
    default: ''
  default_host:
    description: Host of repositories given as owner/name.
    type: str
    default: github.com
seealso:
  - module: spt.flow.workspace
"""

EXAMPLES = r"""
- name: Report missing requirements
  spt.flow.doctor:

- name: Save the answers
  spt.flow.doctor:
    write: true
    default_host: git.example.com
"""

RETURN = r"""
target:
  description: The checked target.
  type: str
  returned: always
checks:
  description: Results of the checks.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: Name of the check.
      type: str
    state:
      description: V(ok), V(missing) (required) or V(note) (optional).
      type: str
    message:
      description: A sentence.
      type: str
    hint:
      description: How to fix it.
      type: str
questions:
  description: C(name) and C(prompt) of each question.
  type: list
  elements: dict
  returned: with O(questions=true)
path:
  description: The settings file.
  type: str
  returned: with O(write=true)
error:
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
