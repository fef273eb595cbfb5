# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine alone, as a script uses it: lists an owner's workspaces. ``list_workspaces.py <owner>``"""

from __future__ import annotations

import sys

from ansible_collections.spt.flow.plugins.module_utils import _settings
from ansible_collections.spt.flow.plugins.module_utils._errors import FlowError


def main() -> int:
    values = _settings.resolve([{"owner": sys.argv[1]}])
    print("Workspaces of", values["owner"], flush=True)
    try:
        from ansible_collections.spt.flow.plugins.module_utils._docker_target import DockerTarget

        for workspace in DockerTarget().list(owner=values["owner"]):
            print(workspace.name, workspace.state, workspace.repo)
    except FlowError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
