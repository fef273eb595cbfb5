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
  - Looks at git, SSH and its agent, and at what the target needs. That is Docker's engine and C(/dev/kvm), or the Coder
    server with its token, our template, the program C(coder) and, for those whom the server tells it, its own health.
  - Says for each what is missing and how to get it. Fails with exit status 8 when something needed is missing.
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
      - Keep in C(~/.config/spt-flow/config.yml) what the extra variables, the environment and the task say.
      - Where a Coder server was found to work, V(coder) is kept as O(target), too. Other lines of that file stay.
      - A token is never written.
    type: bool
    default: false
  questions:
    description:
      - Look at nothing; return what nobody has said yet, to be asked by the playbook.
      - That is nothing where standard input or output are no terminal.
    type: bool
    default: false
  answers:
    description:
      - What was answered, by the names of the questions; an empty answer takes the value that is there.
      - C(server) is the address of a Coder server. It is kept where Coder's own command line keeps it.
    type: dict
    default: {}
  owner:
    description: Whose workspace it is; by default the login name.
    type: str
    default: ''
  target:
    description: Target on which workspaces run.
    type: str
    choices: [auto, docker, coder]
    default: auto
  node:
    description: Host of the inventory's group flow_nodes that workspaces run on; by default this machine.
    type: str
    default: ''
  template:
    description: Template of the Coder server that new workspaces are made of.
    type: str
    default: spt-flow
  dotfiles:
    description: Repository with your dotfiles (C(#branch) at its end for one), installed and updated at each start.
    type: str
    default: ''
  default_host:
    description: The host that owner/name alone stands for.
    type: str
    default: github.com
seealso:
  - module: spt.flow.workspace
"""

EXAMPLES = r"""
- name: Say what is missing
  spt.flow.doctor:

- name: Keep the answers for later runs
  spt.flow.doctor:
    write: true
    default_host: git.example.com
"""

RETURN = r"""
target:
  description: The target that was looked at.
  type: str
  returned: always
checks:
  description: What was looked at.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: A word for it.
      type: str
    state:
      description: V(ok), V(missing) (nothing works without) or V(note) (something does not).
      type: str
    message:
      description: A sentence.
      type: str
    hint:
      description: How to get it.
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
  description: What went wrong; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
