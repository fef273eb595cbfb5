#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: image_cache
short_description: Keep the workspace image on a host's engine and remove old ones
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - An image counts as present if its tag exists and its label C(spt.flow.image) has the wanted identity.
  - Without O(archive) and O(reference) the module only checks whether it is present.
requirements:
  - python >= 3.9 on the host
extends_documentation_fragment:
  - spt.flow.attributes
options:
  tag:
    description: Tag of the image on engines; see P(spt.flow.image_identity#filter).
    type: str
    required: true
  hash:
    description: Its identity, 64 hexadecimal digits.
    type: str
    required: true
  archive:
    description: A file on the host, in the format of C(docker save).
    type: path
  reference:
    description: A name in a registry with its digest. Uses the credentials of the C(docker) program on the host.
    type: str
    default: ""
  keep:
    description:
      - How many unused older workspace images are kept; the others are removed.
      - The default removes none. Images used by containers, even stopped ones, always stay.
    type: int
    default: -1
  in_use:
    description: Tags or identities of further images to keep, such as those of a template.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Load the image from a file
  spt.flow.image_cache:
    tag: "{{ ('slim' | spt.flow.image_identity).tag }}"
    hash: "{{ ('slim' | spt.flow.image_identity).hash }}"
    archive: /var/tmp/image.tar
  become: true
"""

RETURN = r"""
present:
  description: Whether the engine has the image.
  type: bool
  returned: success
removed:
  description: Names (tags, and after a pull digests) of removed old images.
  type: list
  elements: str
  returned: success
error:
  description: What went wrong (code, kind, message, hint, details).
  type: dict
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spt.flow.plugins.module_utils._node.docker import images as docker_images
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError


def main() -> None:
    text = {"type": "str", "default": ""}
    spec = {
        "tag": {"type": "str", "required": True},
        "hash": {"type": "str", "required": True},
        "archive": {"type": "path"},
        "reference": text,
        "keep": {"type": "int", "default": -1},
        "in_use": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(spec, supports_check_mode=True)
    values = {**module.params, "archive": module.params["archive"] or ""}
    try:
        outcome = docker_images.reconcile(docker_images.Wanted(**values), module.check_mode)
    except FlowError as error:
        module.fail_json(msg=str(error), error=error.to_dict())
    module.exit_json(changed=outcome.changed, present=outcome.present, removed=outcome.removed)


if __name__ == "__main__":
    main()
