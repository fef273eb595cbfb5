#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: coder_server_info
short_description: Read the version and health of a Coder server
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Asks the server to look at itself, and tells each section's severity with Coder's own codes.
  - Fails where a section is in error that no administrator has dismissed. Owners only.
requirements:
  - python >= 3.11 on the controller
  - urllib3 >= 2.0 (Python package) for Coder servers
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.attributes.info
  - spt.flow.values.server
  - spt.flow.values.output
seealso:
  - module: spt.flow.doctor
"""

EXAMPLES = r"""
- name: Say how the server is
  spt.flow.coder_server_info:
    url: https://coder.example.com
    login_email: admin@example.com
    login_password: "{{ vault_coder_password }}"
"""

RETURN = r"""
msg:
  description: The outcome, in words.
  type: str
  returned: always
server:
  description: What the server says of itself.
  type: dict
  returned: when it answers
  contains:
    version:
      description: Its version.
      type: str
      returned: always
      sample: v2.35.1+3ebe324
    healthy:
      description: Whether no section is in error.
      type: bool
      returned: always
    sections:
      description:
        - >-
          Parts with C(name), C(severity) (V(ok), V(warning), V(error), V(dismissed)) and C(said), texts with Coder's
          codes.
      type: list
      elements: dict
      returned: always
error:
  description: What went wrong; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
