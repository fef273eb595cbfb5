#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: coder_token
short_description: Keep a token of a Coder server in a file and rotate it
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - >-
    Looks at the token in a file of the task's host, asks the server whether it works, whose it is and how long it
    lasts, and replaces it where that is not as wished. What still works makes its own successor, so nobody has to sign
    in for that.
  - >-
    The new token is tried and written before the old one is deleted. It goes from memory to the standard input of
    a command on the host; it is in no result, in no argument, and on the disk of no other machine.
requirements:
  - python >= 3.11 on the controller
  - urllib3 >= 2.0 (Python package) for Coder servers
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values.server
  - spt.flow.values.output
options:
  name:
    description: Name of the token on the server. Later ones are called C(name-2), C(name-3) and so on.
    type: str
    required: true
  user:
    description:
      - Whose token it is, by default of whoever asks. For somebody else's an owner has to ask.
    type: str
    default: me
  dest:
    description: File on the task's host, readable for its owner alone; its folder is made where it is not there.
    type: str
    required: true
  lifetime:
    description:
      - How long a new token lives, such as V(30d). A server gives owners 7 days at most, and then the result says so.
    type: str
    default: 30d
  rotate_before:
    description: How long before its end a token is replaced, at the latest after half of its life.
    type: str
    default: 10d
seealso:
  - module: spt.flow.coder_user
"""

EXAMPLES = r"""
- name: Keep the token of the user for machines
  spt.flow.coder_token:
    url: https://coder.example.com
    login_email: admin@example.com
    login_password: "{{ vault_coder_password }}"
    user: flow-bot
    name: spt-flow
    dest: /etc/spt-flow/coder.token
  become: true
"""

RETURN = r"""
msg:
  description: What was done, or would be done in check mode, in words.
  type: str
  returned: always
token:
  description: What is known about the token; never the token itself.
  type: dict
  returned: success
  contains:
    name:
      description: Its name on the server.
      type: str
      returned: always
      sample: spt-flow-2
    expires_at:
      description: When it ends; empty in check mode for one that would be made.
      type: str
      returned: always
      sample: "2026-12-24T03:00:00Z"
    dest:
      description: Where it lies.
      type: str
      returned: always
      sample: /etc/spt-flow/coder.token
error:
  description: What went wrong; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
