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
    Creates the first user of a new server, and applies a list of users in one call: present with their roles, or
    offboarded.
  - >-
    Offboarded users are suspended, which ends their sessions. Their roles are removed, their tokens are revoked and
    their workspaces stopped. Their homes and accounts stay, so that their names are not reused.
  - Users that are not in the list do not change.
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
      - User name of the first user, who is created with O(login_email) and O(login_password) on a server without users.
      - A password needs 52 bits of entropy and at most 64 characters.
    type: str
    default: ''
  first_name:
    description: Real name of the first user.
    type: str
    default: ''
  users:
    description: The wanted users.
    type: list
    elements: dict
    default: []
    suboptions:
      username:
        description: At most 32 letters, digits and single hyphens.
        type: str
        required: true
      email:
        description: E-mail address; required for a new user. The task fails if a user of this name has another address.
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
        description: All roles on the whole server, such as V(template-admin). Without it, roles do not change.
        type: list
        elements: str
      organization_roles:
        description: All roles in the organization, such as V(organization-admin). Without it, roles do not change.
        type: list
        elements: str
      login_type:
        description: How a new user signs in; V(none) is for service accounts, whose tokens an owner creates.
        type: str
        choices: [none, password, oidc, github]
        default: none
      password:
        description: Password of a new user with O(users[].login_type=password).
        type: str
        default: ''
seealso:
  - module: spt.flow.coder_token
"""

EXAMPLES = r"""
- name: Create the first user and a service account
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
  description: What was done, or would be done in check mode, as a sentence.
  type: str
  returned: always
  sample: "User bob: suspended, 1 token revoked, stopped demo, homes kept."
users:
  description: Result for each user.
  type: list
  elements: dict
  returned: success
  contains:
    username:
      description: User name.
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
      description: The same as a sentence.
      type: str
      returned: always
error:
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
