#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make or restore snapshots of home volumes; thin, the work is done by ``_snapshots``."""

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_snapshot
short_description: Create or restore snapshots of home volumes on a node
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Creates snapshots of a node's home volumes now, or restores one path or a whole volume.
  - Uses the settings of the role P(spt.flow.host_snapshots#role).
  - A whole volume is restored under its own name if it is missing, otherwise into a new volume.
requirements:
  - python >= 3.9 on the host
extends_documentation_fragment:
  - spt.flow.attributes
attributes:
  idempotent:
    support: none
    details:
      - Every call makes a snapshot or restores one.
options:
  state:
    description: V(present) creates a snapshot, V(restored) restores one.
    type: str
    choices: [present, restored]
    default: present
  volume:
    description: The volume, such as C(spt-flow-alice-demo-home); without it V(present) applies to all.
    type: str
    default: ''
  snapshot:
    description: The snapshot's id; V(latest) is the newest good one.
    type: str
    default: latest
  path:
    description: One path, relative to the home, restored into C(restored-<id>) in the home. By default the whole
      volume.
    type: str
    default: ''
  into:
    description: The volume to restore into.
    type: str
    default: ''
  over:
    description: Replace the content of an existing volume; O(confirm) must name it too.
    type: bool
    default: false
  confirm:
    description: The name of the volume whose contents are replaced.
    type: str
    default: ''
  config:
    description: Settings written by the role.
    type: path
    default: /etc/spt-flow/snapshots.json
seealso:
  - module: spt.flow.volume_snapshot_info
"""

EXAMPLES = r"""
- name: Snapshot every home volume now
  spt.flow.volume_snapshot:

- name: Restore one directory
  spt.flow.volume_snapshot:
    state: restored
    volume: spt-flow-alice-demo-home
    path: src/parser
"""

RETURN = r"""
restored:
  description: The restored data and its snapshot (volume, snapshot, into, path, created).
  type: dict
  returned: with O(state=restored)
volumes:
  description: State of each volume's snapshots by name.
  type: dict
  returned: with O(state=present)
error:
  description: What went wrong (code, kind, message, hint, details).
  type: dict
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError, InvalidInput
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import config as snapshots_config
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import restore as snapshots_restore
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import run as snapshots_run
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import status as snapshots_status


def argument_spec() -> dict:
    texts = {name: {"type": "str", "default": ""} for name in ("volume", "path", "into", "confirm")}
    return {
        "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
        "snapshot": {"type": "str", "default": "latest"},
        "over": {"type": "bool", "default": False},
        "config": {"type": "path", "default": snapshots_config.CONFIG},
        **texts,
    }


def act(params: dict, check: bool) -> dict:
    config = snapshots_config.Config.load(params["config"])
    names = (params["volume"],) if params["volume"] else ()
    if params["state"] == "restored":
        if not names:
            raise InvalidInput(
                "Nothing says which volume is to be restored.", "Pass volume=<name>; spt.flow.restore lists them."
            )
        wanted = {name: params[name] for name in ("volume", "snapshot", "path", "into", "over", "confirm")}
        return {"restored": snapshots_restore.restore(config, snapshots_restore.Restore(**wanted), plan_only=check)}
    status = snapshots_status.read_status(config) if check else snapshots_run.run(config, names)
    return {"volumes": status["volumes"]}


def sentence(result: dict) -> str:
    if "volumes" in result:
        return f"Snapshots of {len(result['volumes'])} volumes."
    back = result["restored"]
    where = " ".join(filter(None, (back["into"], back["path"])))
    return f"Snapshot {back['snapshot']} of {back['volume']} restored into {where}."


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        result = act(module.params, module.check_mode)
        module.exit_json(changed=True, msg=sentence(result), **result)
    except FlowError as error:
        module.fail_json(msg=str(error), error=error.to_dict())


if __name__ == "__main__":
    main()
