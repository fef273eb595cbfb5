# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes that the modules of this collection share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: >-
      Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: full
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the system controlled/queried by the module has not changed in a relevant way.
    support: full
  async:
    description: Supports being used with the C(async) keyword.
    support: none
  action_group:
    description: Use C(group/spt.flow.flow) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - spt.flow.flow
  platform:
    description: Target OS/families that can be operated against.
    support: full
    platforms: posix
"""

    # In addition to the standard fragment, for action plugins.
    ACTION = r"""
options: {}
attributes:
  action:
    description: >-
      Indicates this has a corresponding action plugin so some parts of the options can be executed on the controller.
    support: full
    details:
      - Runs on the controller; C(delegate_to), C(become) and the connection of the host make no difference.
"""

    # In addition to the standard fragment, for read-only actions.
    INFO = r"""
options: {}
attributes:
  diff_mode:
    support: N/A
    details:
      - This action does not modify state.
"""
