#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: host_files
short_description: Manage small files, directories and absent paths on a host
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Compares content, mode and owner, and writes only differing files, each atomically.
  - The owner is the user who runs the task. A symbolic link at a file's path is replaced, not followed.
requirements:
  - python >= 3.9 on the host
extends_documentation_fragment:
  - spt.flow.attributes
options:
  files:
    description: Entries, applied in order.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      state:
        description: With V(absent), a directory stays while it is not empty.
        type: str
        choices: [file, directory, absent]
        default: file
      content:
        description: Text of a file.
        type: str
        default: ""
      mode:
        description: Permission bits as octal text; by default V(0644), and V(0755) for a directory.
        type: str
  seen:
    description:
      - Digests of these paths that M(spt.flow.host_info), M(spt.flow.engine_info) or M(spt.flow.kvm_info) read as root
        in the same run. If they match, the host is not contacted again, which saves a third of a second.
    type: dict
"""

EXAMPLES = r"""
- name: Write our settings
  spt.flow.host_files:
    files:
      - {path: /etc/spt-flow, state: directory}
      - {path: /etc/spt-flow/runtime.env, content: "PIDS_LIMIT=4096\n"}
    seen: "{{ found.host.files }}"
  become: true
"""

RETURN = r"""
paths:
  description: Changed paths, in the order of the list.
  type: list
  elements: str
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.module_utils._node.machine import files as machine_files


def main() -> None:
    module = AnsibleModule(machine_files.SPEC, supports_check_mode=True)
    try:
        result = machine_files.result(module.params["files"], dry=module.check_mode)
    except FlowError as error:
        module.fail_json(msg=f"{error.message} {error.hint}".strip())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
