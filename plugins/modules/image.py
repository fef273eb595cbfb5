#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image
short_description: Have the workspace image on the engine
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Builds the image that this version of the collection describes unless the engine has it. What is slow is kept in
    C(~/.cache/spt-flow), the finished image included.
  - The image's identity is the content of what it is made of; mirrors are no part of it.
  - M(spt.flow.workspace) does the same when it creates a workspace.
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values.image
options:
  state:
    description:
      - Whether the engine has the image. V(absent) leaves the copy in the cache.
      - V(archived) makes sure of that copy, an archive as C(docker save) writes it, and tells where it lies.
    type: str
    choices: [present, absent, archived]
    default: present
seealso:
  - module: spt.flow.workspace
"""

EXAMPLES = r"""
- name: Build the workspace image behind a mirror
  spt.flow.image:
    mirror_apt: http://mirror.example.com
"""

RETURN = r"""
image:
  description: What the image is called and what it is.
  type: dict
  returned: success
  contains:
    tag:
      description: Name on the engine.
      type: str
      sample: spt-flow/workspace:slim-0123456789ab
    hash:
      description: Identity, 64 hexadecimal digits; also the label C(spt.flow.image).
      type: str
    profile:
      description: Which of the image's profiles.
      type: str
      sample: slim
    archive:
      description: Where the archive lies.
      type: str
      returned: with O(state=archived)
error:
  description: What went wrong; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
