#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_info
short_description: Read facts about a host and its Docker engine
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Reads all facts for the role P(spt.flow.host_docker#role) at once; a task for each would cost half a second.
requirements:
  - python >= 3.9 on the host
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.info
options:
  remap_user:
    description: The user whose ranges of ids are read.
    type: str
    default: spt-flow-remap
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
  devices:
    description: Device nodes, without the leading slash, whose modes are read.
    type: list
    elements: str
    default: []
  files:
    description: Paths for whose content, mode and owner a digest is read, which M(spt.flow.host_files) can compare.
    type: list
    elements: str
    default: []
  limits:
    description: Limits of the kernel by their sysctl names, each with its minimum value; 0 means no limit.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Read what this host is
  spt.flow.engine_info:
    packages: [docker.io, docker-ce]
  become: true
  register: found
"""

RETURN = r"""
engine:
  description: The host and its engine.
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
    settings:
      description: The content of C(/etc/docker/daemon.json).
      type: dict
    info:
      description:
        - The engine's answer, empty if it does not answer (version, remapped, security, runtimes, cgroup_driver,
          live_restore, running, workspaces, network, content, holes).
      type: dict
    content:
      description: Number of containers, images and volumes.
      type: int
    newer:
      description: Whether its settings or its program changed after the engine started.
      type: bool
    ours:
      description: Whether the engine was started by C(spt-flow-engine).
      type: bool
    packages:
      description: Versions of installed packages.
      type: dict
    units:
      description: Whether each is active and enabled, and whether systemd must reload it (reload).
      type: dict
    devices:
      description: Modes of existing devices, as octal text.
      type: dict
    ids:
      description: Ranges of the user in C(subuid) and C(subgid), as first and count with a colon between them.
      type: dict
    remap_user:
      description: Whether the user exists.
      type: bool
    members:
      description: Users in the group docker.
      type: list
      elements: str
    firewall:
      description: Whether the rules between workspaces and the host are in place.
      type: bool
    limits:
      description:
        - Required values of the limits that this kernel has, never below the current ones (values), and the names of
          limits that are too low (low).
      type: dict
    files:
      description: Digests by path, for O(spt.flow.host_files#module:seen); empty text for what does not exist.
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spt.flow.plugins.module_utils._node.docker import host as docker_host
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError


def main() -> None:
    names = {"type": "list", "elements": "str", "default": []}
    user = {"type": "str", "default": "spt-flow-remap"}
    spec = {"remap_user": user, "packages": names, "units": names, "devices": names, "files": names}
    spec["limits"] = {"type": "dict", "default": {}}
    module = AnsibleModule(spec, supports_check_mode=True)
    try:
        found = docker_host.read(**module.params)
    except FlowError as error:
        module.fail_json(msg=f"{error.message} {error.hint}".strip())
    module.exit_json(changed=False, engine=found)


if __name__ == "__main__":
    main()
