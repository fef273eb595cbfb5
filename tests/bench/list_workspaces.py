# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""List an owner's workspaces with only the engine's API, like a script: ``list_workspaces.py <owner>``"""

from __future__ import annotations

import sys

from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import resolve as settings_resolve


def main() -> int:
    values = settings_resolve.resolve([{"owner": sys.argv[1]}])
    print("Workspaces of", values["owner"], flush=True)
    try:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.target import DockerTarget

        for workspace in DockerTarget().list(owner=values["owner"]):
            print(workspace.name, workspace.state, workspace.repo)
    except FlowError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
