#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Read the facts that roles need from a host
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Reads release, init system, packages, units and free space at once; gathering facts and separate tasks would cost
    half a second each.
requirements:
  - python >= 3.9 on the host
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.info
options:
  packages:
    description: Packages whose installed versions are read.
    type: list
    elements: str
    default: []
  units:
    description: Units of systemd to read.
    type: list
    elements: str
    default: []
  room:
    description: Paths, which need not exist, for which the free space is read.
    type: list
    elements: str
    default: []
  paths:
    description: Paths to look for.
    type: list
    elements: str
    default: []
  files:
    description: Paths for whose content, mode and owner a digest is read, which M(spt.flow.host_files) can compare.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Read what this host is
  spt.flow.host_info:
    packages: [restic]
    units: [spt-flow-snapshots.timer]
    room: [/var/backups]
  register: found
"""

RETURN = r"""
host:
  description: The host.
  type: dict
  returned: always
  contains:
    release:
      description: Distribution and version, such as V(Debian-12).
      type: str
    codename:
      description: The release's name in package sources.
      type: str
    systemd:
      description: Whether systemd is process 1.
      type: bool
    container:
      description: Whether the host is a container itself.
      type: bool
    apparmor:
      description: Whether AppArmor is active.
      type: bool
    profile:
      description: Whether the kernel has the profile of workspaces.
      type: bool
    unified:
      description: Whether the host has cgroups of version 2 only.
      type: bool
    memory:
      description: Bytes of memory.
      type: int
    cpus:
      description: Number of processors.
      type: int
    packages:
      description: Versions of installed packages.
      type: dict
    units:
      description: Whether each is active and enabled, and whether systemd must reload it (reload).
      type: dict
    room:
      description: Free bytes by path.
      type: dict
    paths:
      description: Existing paths.
      type: list
      elements: str
    files:
      description: Digests by path, for O(spt.flow.host_files#module:seen); empty text for what does not exist.
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spt.flow.plugins.module_utils._node.machine import facts as machine_facts


def main() -> None:
    names = {"type": "list", "elements": "str", "default": []}
    spec = dict.fromkeys(("packages", "units", "room", "paths", "files"), names)
    module = AnsibleModule(spec, supports_check_mode=True)
    module.exit_json(changed=False, host=machine_facts.read(**module.params))


if __name__ == "__main__":
    main()
