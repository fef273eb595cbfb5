#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: coder_user
short_description: Manage users of a Coder server
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - >-
    Makes the first user of a fresh server, and brings a list of users to its state in one call: there with their
    roles, or off-boarded.
  - >-
    Whoever leaves is suspended, which refuses every session and token of theirs; their roles go, their tokens are
    revoked and their workspaces stopped. Their homes stay, and so does the user, whose name nobody else gets.
  - Users who are not in the list are left alone.
requirements:
  - python >= 3.11 on the controller
  - urllib3 >= 2.0 (Python package) for Coder servers
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values.server
  - spt.flow.values.output
options:
  first_username:
    description:
      - User name of the first user, who is made of it, O(login_email) and O(login_password) where a server has no user.
      - A password needs 52 bits of entropy and has 64 characters at most.
    type: str
    default: ''
  first_name:
    description: Real name of the first user.
    type: str
    default: ''
  users:
    description: Users as they are to be.
    type: list
    elements: dict
    default: []
    suboptions:
      username:
        description: Letters, digits and single hyphens, 32 at most.
        type: str
        required: true
      email:
        description: E-mail address; a new user needs one. A user of this name with another address is somebody else.
        type: str
        default: ''
      name:
        description: Real name of a new user.
        type: str
        default: ''
      state:
        description: V(present) may sign in; V(offboarded) has left.
        type: str
        choices: [present, offboarded]
        default: present
      roles:
        description: All roles on the whole server, such as V(template-admin); left out, they stay as they are.
        type: list
        elements: str
      organization_roles:
        description: All roles in the organization, such as V(organization-admin); left out, they stay as they are.
        type: list
        elements: str
      login_type:
        description: How a new user signs in; V(none) is for machines, whose tokens an owner makes.
        type: str
        choices: [none, password, oidc, github]
        default: none
      password:
        description: Of a new user with O(users[].login_type=password).
        type: str
        default: ''
seealso:
  - module: spt.flow.coder_token
"""

EXAMPLES = r"""
- name: Make the first user and one for machines
  spt.flow.coder_user:
    url: https://coder.example.com
    first_username: admin
    login_email: admin@example.com
    login_password: "{{ vault_coder_password }}"
    users:
      - {username: flow-bot, email: flow-bot@example.com, organization_roles: [organization-template-admin]}
      - {username: bob, state: offboarded}
"""

RETURN = r"""
msg:
  description: What was done, or would be done in check mode, in words.
  type: str
  returned: always
  sample: "User bob: suspended, 1 token revoked, stopped demo, homes kept."
users:
  description: What happened to each.
  type: list
  elements: dict
  returned: success
  contains:
    username:
      description: Who.
      type: str
      returned: always
      sample: bob
    changed:
      description: Whether anything was done.
      type: bool
      returned: always
      sample: true
    actions:
      description: What was done, in order.
      type: list
      elements: str
      returned: always
      sample: [suspend, tokens, workspaces]
    msg:
      description: The same in words.
      type: str
      returned: always
error:
  description: What went wrong; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
