#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: acceptance_info
short_description: Check the requirements of a workspace host
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Reads virtualisation, the Docker engine, the firewall, the audit trail and the snapshots of a host.
  - Requirements that a host cannot meet, such as timers without systemd, are V(impossible) instead of V(failed).
requirements:
  - python >= 3.9 on the host
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.info
options:
  kvm_required:
    description: Fail for a host without KVM; by default software emulation is accepted.
    type: bool
    default: false
  firewall:
    description: The firewall is required.
    type: bool
    default: true
  min_free_gib:
    description: Free space that workspaces need, in GiB.
    type: int
    default: 5
"""

EXAMPLES = r"""
- name: Check this host
  spt.flow.acceptance_info:
  become: true
  register: acceptance
"""

RETURN = r"""
rows:
  description: Requirements (requirement, value, limit, and a verdict that is met, failed or impossible).
  type: list
  elements: dict
  returned: always
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spt.flow.plugins.module_utils._node.acceptance import checks as acceptance_checks


def main() -> None:
    spec = {
        "kvm_required": {"type": "bool", "default": False},
        "firewall": {"type": "bool", "default": True},
        "min_free_gib": {"type": "int", "default": 5},
    }
    module = AnsibleModule(spec, supports_check_mode=True)
    rows = [asdict(row) for row in acceptance_checks.collect(**module.params)]
    module.exit_json(changed=False, rows=rows)


if __name__ == "__main__":
    main()
