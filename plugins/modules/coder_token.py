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
    Reads the token in a file on the task's host, asks the server whether it works, whose it is and when it expires, and
    replaces it if needed. A token that still works creates its successor, so no login is needed for that.
  - >-
    The new token is tested and written before the old one is deleted. It is passed to the host by standard input and
    never appears in a result, an argument, or on another machine's disk.
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
      - User of the token; by default the user who signs in. Only owners can create tokens of other users.
    type: str
    default: me
  dest:
    description: File on the task's host, readable only by its owner. Its directory is created if needed.
    type: str
    required: true
  lifetime:
    description:
      - Lifetime of a new token, such as V(30d). A server limits owners' tokens to 7 days; the result reports a
        shorter lifetime.
    type: str
    default: 30d
  rotate_before:
    description: Time before its end at which a token is replaced; at least half of its lifetime always passes first.
    type: str
    default: 10d
seealso:
  - module: spt.flow.coder_user
"""

EXAMPLES = r"""
- name: Keep the token of a service account
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
  description: What was done, or would be done in check mode, as a sentence.
  type: str
  returned: always
token:
  description: Facts about the token; never the token itself.
  type: dict
  returned: success
  contains:
    name:
      description: Its name on the server.
      type: str
      returned: always
      sample: spt-flow-2
    expires_at:
      description: When it expires; empty in check mode for a token that would be created.
      type: str
      returned: always
      sample: "2026-12-24T03:00:00Z"
    dest:
      description: Path of its file.
      type: str
      returned: always
      sample: /etc/spt-flow/coder.token
error:
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
