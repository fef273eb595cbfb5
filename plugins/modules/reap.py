#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: reap
short_description: Delete expired CI workspaces from a node or a Coder server
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - >-
    One pass of the role P(spt.flow.workspace_reaper#role) - deletes containers of expired CI workspaces, and volumes
    and networks whose workspace was deleted at least an hour ago.
  - Never deletes objects without the labels of spt.flow, or homes of users' workspaces.
  - In check mode it only reports what it would delete.
requirements:
  - python >= 3.9 on the host
extends_documentation_fragment:
  - spt.flow.attributes
attributes:
  diff_mode:
    support: none
options:
  state_file:
    description: File with the memory of earlier passes; by default in C(/run/spt-flow).
    type: path
    default: ""
  coder_url:
    description:
      - A Coder server, whose CI workspaces are deleted through its API. The engine is not used then.
      - If its lists cannot be read completely, nothing is deleted.
    type: str
    default: ""
  coder_token_file:
    description: File on the host with a token that may delete workspaces of others (role C(organization-admin)).
    type: path
    default: /etc/spt-flow/reaper.token
  coder_ca_file:
    description: Certificate of the server's certificate authority, if it is not a public one.
    type: path
    default: ""
  coder_template:
    description:
      - Name of the template of CI workspaces.
      - Workspaces of the template with the same name without V(-ci) belong to users. The dashboard lets users extend
        their stop without limit; stops more than 24 hours away are capped.
    type: str
    default: spt-flow-ci
  coder_workspaces:
    description: Ids of Coder workspaces on nodes (RV(coder_workspaces)). RV(gone) lists those that were deleted.
    type: list
    elements: str
    default: []
  coder_gone:
    description:
      - Ids of deleted Coder workspaces. Their containers and Docker data are deleted from the node and nothing else.
      - Their homes are only listed.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Delete expired workspaces
  spt.flow.reap:
  become: true

- name: Delete CI workspaces through the API of the Coder server
  spt.flow.reap:
    coder_url: https://coder.example.com
  become: true
"""

RETURN = r"""
reaped:
  description: Names of deleted objects, or in check mode of those to be deleted.
  type: list
  elements: str
  returned: success
capped:
  description: Names of users' workspaces whose stop was capped, or would be in check mode.
  type: list
  elements: str
  returned: always
stopped:
  description: Names of workspaces without an automatic stop that were stopped after a day without use.
  type: list
  elements: str
  returned: always
homes:
  description: Homes on the node of deleted Coder workspaces, which are never deleted automatically.
  type: list
  elements: str
  returned: always
coder_workspaces:
  description: Ids of the Coder workspaces that the node has objects of.
  type: list
  elements: str
  returned: on a node
gone:
  description: Those of the option O(coder_workspaces) that the server has deleted.
  type: list
  elements: str
  returned: on a server
problems:
  description: Failed deletions and caps, with the reason by name.
  type: dict
  returned: always
lines:
  description: The same as sentences.
  type: list
  elements: str
  returned: always
error:
  description: What went wrong (code, kind, message, hint, details).
  type: dict
  returned: failure of the engine
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spt.flow.plugins.module_utils._node.docker.http import connect
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.module_utils._node.reaper import coder as reaper_coder
from ansible_collections.spt.flow.plugins.module_utils._node.reaper import engine as reaper_engine
from ansible_collections.spt.flow.plugins.module_utils._node.reaper import orphans as reaper_orphans


def main() -> None:
    spec = {
        "state_file": {"type": "path", "default": ""},
        "coder_url": {"type": "str", "default": ""},
        "coder_token_file": {"type": "path", "default": "/etc/spt-flow/reaper.token"},
        "coder_ca_file": {"type": "path", "default": ""},
        "coder_template": {"type": "str", "default": reaper_coder.TEMPLATE},
        "coder_workspaces": {"type": "list", "elements": "str", "default": []},
        "coder_gone": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(spec, supports_check_mode=True)
    params, dry = module.params, module.check_mode
    more: dict[str, list[str]] = {}
    try:
        if params["coder_url"]:
            token = reaper_coder.read_token(params["coder_token_file"])
            api = reaper_coder.Api(params["coder_url"], token, params["coder_ca_file"])
            state = params["state_file"] or reaper_coder.STATE
            report = reaper_coder.sweep(api, params["coder_template"], state, dry)
            more["gone"] = reaper_orphans.deleted(api, params["coder_workspaces"])
        elif params["coder_gone"]:
            report = reaper_orphans.sweep(params["coder_gone"], dry)
        else:
            report = reaper_engine.sweep(params["state_file"] or reaper_engine.STATE, dry)
            more["coder_workspaces"] = reaper_orphans.workspaces(reaper_engine.read(connect()))
    except FlowError as error:
        module.fail_json(msg=f"Nothing was deleted: {error}", error=error.to_dict())
    reaped = [entry.name for entry in report.expired] if dry else report.reaped
    lines = reaper_engine.lines(report, dry)
    changed = bool(reaped or report.capped or report.stopped)
    result = {
        "reaped": reaped,
        "capped": report.capped,
        "stopped": report.stopped,
        "homes": report.homes,
        **more,
        "problems": report.failed,
        "lines": lines,
        "changed": changed,
    }
    if report.failed:
        module.fail_json(msg="; ".join(lines), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
