#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image
short_description: Make sure that the engine has the workspace image
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Builds the image that this version of the collection describes unless the engine has it. Slow parts and the
    finished image are cached in C(~/.cache/spt-flow).
  - The image's identity is the content of its inputs; mirrors do not change it.
  - M(spt.flow.workspace) does the same when it creates a workspace.
  - A release verifies the image in a separate container, lists its packages (SPDX), publishes it, and records it in
    one file that nodes, templates and C(up) read. An image that fails its verification is neither published nor
    recorded.
requirements:
  - python >= 3.11 on the controller
  - docker >= 7.0 (Python package) where an image is built, loaded or pulled
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values.image
options:
  state:
    description:
      - Whether the engine has the image. V(absent) leaves the copy in the cache.
      - V(archived) creates that copy, an archive in the format of C(docker save), and returns its path.
      - V(released) is like V(present), and also makes a release if O(image_release) names a file. A recorded and
        published image is not built again.
    type: str
    choices: [present, absent, archived, released]
    default: present
  registry:
    description:
      - Repository of a registry that a release pushes to, without a tag. The image gets its own tag, and the
        profile's name as a moving tag. Uses the credentials of the C(docker) program.
    type: str
    default: ""
  archive:
    description: Whether a release writes an archive next to its file.
    type: bool
    default: false
  keep:
    description:
      - How many unused older images and their files a release keeps; by default all.
      - Current images of all profiles and images used by containers, even stopped ones, always stay. Nothing is
        removed from registries.
    type: int
    default: -1
  in_use:
    description: Tags or identities of further images to keep.
    type: list
    elements: str
    default: []
seealso:
  - module: spt.flow.workspace
"""

EXAMPLES = r"""
- name: Build the workspace image behind a mirror
  spt.flow.image:
    mirror_apt: http://mirror.example.com

- name: Release it to the team's registry
  spt.flow.image:
    state: released
    image_release: /srv/flow/image.json
    registry: registry.example.com/team/workspace
"""

RETURN = r"""
image:
  description: Names and identity of the image.
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
      description: Profile of the image.
      type: str
      sample: slim
    archive:
      description: Path of the archive; with O(state=released) next to the file of the release.
      type: str
      returned: with O(state=archived) or O(archive=true)
    reference:
      description: The image's name in the registry with its digest.
      type: str
      returned: with O(registry)
    verified:
      description: Time at which it passed its verification.
      type: str
      returned: with O(state=released), not in check mode
    sbom:
      description: Name of the list of its packages (SPDX 2.3, JSON) next to the file of the release.
      type: str
      returned: with O(state=released), not in check mode
steps:
  description: Steps of a release, done or to be done in check mode (build, verify, describe, push, archive, record).
  type: list
  elements: str
  returned: with O(state=released) and O(image_release)
removed:
  description: Names and files of removed older images.
  type: list
  elements: str
  returned: with O(state=released) and O(image_release)
error:
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
