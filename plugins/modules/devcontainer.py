#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: devcontainer
short_description: Write a dev container configuration from workspace settings
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Writes C(.devcontainer/devcontainer.json), which VS Code, DevPod, Codespaces and the program C(devcontainer) read,
    from the same values that workspaces are made of.
  - Beside it come C(seccomp.json) where Docker runs inside, and C(ci.env) with what a pipeline sets for the same
    values, unless all are defaults.
  - Such a file is read on engines that nobody has looked at. It asks for C(/dev/kvm) with O(kvm=required) only, and for
    Docker inside with O(docker=required), which needs an engine as the role P(spt.flow.host_docker#role) makes it, or
    with O(docker=unsafe).
requirements:
  - python >= 3.11 on the controller
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values.output
  - spt.flow.values.workspace
options:
  path:
    description: Folder that gets the folder C(.devcontainer), the root of a repository; by default where you are.
    type: str
    default: ''
  image:
    description:
      - The workspace image, best one of a registry by its digest.
      - By default the reference that the file C(image_release) records, else what M(spt.flow.image) builds here.
    type: str
    default: ''
  apparmor:
    description:
      - Whether the engines have AppArmor, and the profile of the role P(spt.flow.host_docker#role) that Docker inside
        needs there.
    type: bool
    default: false
  repo:
    description:
      - Repository that the container clones into a home of its own. By default it works on the folder that holds the
        file, as dev containers usually do; an engine with user namespaces cannot write to that, so give it there.
    type: str
    default: ''
  ref:
    description: Branch, tag or commit that a new clone starts on; by default the repository's own.
    type: str
    default: ''
  default_host:
    description: The host that owner/name alone stands for.
    type: str
    default: github.com
seealso:
  - module: spt.flow.workspace
  - module: spt.flow.image
"""

EXAMPLES = r"""
- name: Give a repository the team's workspace as a dev container
  spt.flow.devcontainer:
    path: /home/ada/src/demo
    image: registry.example.org/spt-flow/workspace:fat
    memory: 4g
"""

RETURN = r"""
msg:
  description: What was done, or would be done in check mode, in words.
  type: str
  returned: always
image:
  description: The image that the container is made of.
  type: str
  returned: success
  sample: spt-flow/workspace:fat-0123456789ab
files:
  description: What belongs to the dev container.
  type: list
  elements: str
  returned: success
error:
  description: What went wrong; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
