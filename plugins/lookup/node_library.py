# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lookup `node_library`: the collection's library for nodes as entries for the module host_files."""

from __future__ import annotations

DOCUMENTATION = """
name: node_library
short_description: List the files of the node library
version_added: 0.1.0
author: spt.flow contributors (@spt-flow)
description:
  - Lists the Python library that the programs on a node share, as entries for the module P(spt.flow.host_files#module).
  - Every role that installs one of these programs installs the library whole, so all programs on a node run the same
    version of it. The file C(VERSION) in it holds the version of the collection and is written last.
options:
  _terms:
    description: Absolute path of the folder on the node that gets the package C(spt_flow_node).
    required: true
"""
EXAMPLES = """
- name: Install the node library
  spt.flow.host_files:
    files: "{{ query('spt.flow.node_library', '/usr/local/lib/spt-flow') }}"
"""
RETURN = """
_raw:
  description: Directories first, then files with their content, then C(VERSION).
  type: list
  elements: dict
"""

from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import node_library


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, str]]:
        self.set_options(var_options=variables, direct=kwargs)
        return [entry for folder in terms for entry in node_library.entries(folder)]
