#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: reap
short_description: Delete CI workspaces whose time is over from a node
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - >-
    One pass of the role P(spt.flow.workspace_reaper#role) - containers of CI workspaces that have outlived their TTL,
    and volumes and networks whose workspace has been gone for an hour.
  - Nothing without the labels of spt.flow goes, nor the home of a person's workspace.
  - In check mode it only tells what would go.
extends_documentation_fragment:
  - spt.flow.attributes
attributes:
  diff_mode:
    support: none
options:
  state_file:
    description: Where passes remember what they have seen.
    type: path
    default: /run/spt-flow/reaper.json
"""

EXAMPLES = r"""
- name: Delete what has outlived its time
  spt.flow.reap:
  become: true
"""

RETURN = r"""
reaped:
  description: Names of what was deleted, in check mode of what would be.
  type: list
  elements: str
  returned: success
problems:
  description: What could not be deleted and why, by name.
  type: dict
  returned: always
lines:
  description: The same in words.
  type: list
  elements: str
  returned: always
error:
  description: What went wrong (code, kind, message, hint, details).
  type: dict
  returned: failure of the engine
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spt.flow.plugins.module_utils import _reaper
from ansible_collections.spt.flow.plugins.module_utils._errors import FlowError


def main() -> None:
    spec = {"state_file": {"type": "path", "default": _reaper.STATE}}
    module = AnsibleModule(spec, supports_check_mode=True)
    dry = module.check_mode
    try:
        report = _reaper.sweep(module.params["state_file"], dry)
    except FlowError as error:
        module.fail_json(msg=f"Nothing was deleted: {error}", error=error.to_dict())
    reaped = [entry.name for entry in report.doomed] if dry else report.reaped
    lines = _reaper.lines(report, dry)
    result = {"reaped": reaped, "problems": report.failed, "lines": lines, "changed": bool(reaped)}
    if report.failed:
        module.fail_json(msg="; ".join(lines), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
