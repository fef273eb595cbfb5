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
  - Reads the server's own health check, section by section, with Coder's codes.
  - Fails if a section has an error that no administrator has dismissed. Only for owners.
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
- name: Report the server's health
  spt.flow.coder_server_info:
    url: https://coder.example.com
    login_email: admin@example.com
    login_password: "{{ vault_coder_password }}"
"""

RETURN = r"""
msg:
  description: The result, as a sentence.
  type: str
  returned: always
server:
  description: The server's report.
  type: dict
  returned: when it answers
  contains:
    version:
      description: Its version.
      type: str
      returned: always
      sample: v2.35.1+3ebe324
    healthy:
      description: Whether all sections are free of errors.
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
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
