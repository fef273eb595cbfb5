#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read the snapshots of a node's home volumes; thin, the work is done by ``_snapshots``."""

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_snapshot_info
short_description: List snapshots of home volumes on a node
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Lists snapshots and the age of each home volume's last good one.
requirements:
  - python >= 3.9 on the host
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.info
options:
  volume:
    description: Only this volume.
    type: str
    default: ''
  config:
    description: Settings written by the role P(spt.flow.host_snapshots#role).
    type: path
    default: /etc/spt-flow/snapshots.json
seealso:
  - module: spt.flow.volume_snapshot
"""

EXAMPLES = r"""
- name: Read the snapshots of one volume
  spt.flow.volume_snapshot_info:
    volume: spt-flow-alice-demo-home
  register: found
"""

RETURN = r"""
snapshots:
  description: Snapshots by volume, newest first (id, volume, time in epoch seconds, good, labels).
  type: list
  elements: dict
  returned: success
lines:
  description: The same as text.
  type: list
  elements: str
  returned: success
volumes:
  description: State of each volume's snapshots by name (last_good, age_hours, error and more).
  type: dict
  returned: success
problems:
  description: Problems, as sentences; empty if every home volume has a recent snapshot.
  type: list
  elements: str
  returned: success
error:
  description: What went wrong (code, kind, message, hint, details).
  type: dict
  returned: failure
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import config as snapshots_config
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import restore as snapshots_restore
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import status as snapshots_status


def read(config: snapshots_config.Config, volume: str) -> dict:
    status = snapshots_status.report(config, time.time())
    found = snapshots_restore.listing(config, volume)
    lines = [
        f"{s['id']}  {time.strftime('%Y-%m-%d %H:%M', time.localtime(s['time']))}  {s['volume']}"
        + ("" if s["good"] else "  incomplete")
        for s in found
    ]
    volumes = {name: record for name, record in status["volumes"].items() if volume in ("", name)}
    return {"snapshots": found, "lines": lines, "volumes": volumes, "problems": status["problems"]}


def main() -> None:
    spec = {
        "volume": {"type": "str", "default": ""},
        "config": {"type": "path", "default": snapshots_config.CONFIG},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    try:
        module.exit_json(
            changed=False, **read(snapshots_config.Config.load(module.params["config"]), module.params["volume"])
        )
    except FlowError as error:
        module.fail_json(msg=str(error), error=error.to_dict())


if __name__ == "__main__":
    main()
