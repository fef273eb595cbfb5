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
    with the same settings as workspaces.
  - Also writes C(seccomp.json) if Docker runs inside, and C(ci.env) with the same values for a pipeline, unless all
    are defaults.
  - The file must work on any engine. So it requests C(/dev/kvm) only with O(kvm=required), and Docker inside only
    with O(docker=required), which needs an engine set up by the role P(spt.flow.host_docker#role), or with
    O(docker=unsafe).
requirements:
  - python >= 3.11 on the controller
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values.output
  - spt.flow.values.workspace
options:
  path:
    description: Root of the repository, in which C(.devcontainer) is created; by default the current directory.
    type: str
    default: ''
  image:
    description:
      - The workspace image, preferably by digest from a registry.
      - By default the reference recorded in the file C(image_release), otherwise the local image of M(spt.flow.image).
    type: str
    default: ''
  apparmor:
    description:
      - Whether the engines have AppArmor with the profile of the role P(spt.flow.host_docker#role), which Docker
        inside needs.
    type: bool
    default: false
  repo:
    description:
      - Repository that the container clones into its own home. By default the container mounts the directory with the
        file, as usual for dev containers. On an engine with user namespaces, the container cannot write there; a note
        of the run names the command that allows it.
    type: str
    default: ''
  ref:
    description: Branch, tag or commit of a new clone; by default the repository's own.
    type: str
    default: ''
  default_host:
    description: Host of repositories given as owner/name.
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
  description: What was done, or would be done in check mode, as a sentence.
  type: str
  returned: always
image:
  description: The container's image.
  type: str
  returned: success
  sample: spt-flow/workspace:fat-0123456789ab
notes:
  description: What the container lacks on this machine's engine, such as its image or write access to the directory.
  type: list
  elements: str
  returned: success
files:
  description: Files of the dev container.
  type: list
  elements: str
  returned: success
error:
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
