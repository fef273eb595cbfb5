# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The library of the programs on a node: `module_utils/_node`, installed there as the package `spt_flow_node`."""

from __future__ import annotations

from functools import cache

from ..common.version import COLLECTION, release

PACKAGE = "spt_flow_node"
SOURCE = COLLECTION / "plugins/module_utils/_node"


@cache
def entries(folder: str) -> list[dict[str, str]]:
    """Return the library below ``folder`` as entries for `host_files`: directories, files, then ``VERSION``.

    ``VERSION`` comes last, so a node that has it has the complete library of that version.
    """
    root = f"{folder}/{PACKAGE}"
    files = sorted(path for path in SOURCE.rglob("*.py") if "__pycache__" not in path.parts)
    folders = sorted({path.parent.relative_to(SOURCE).as_posix() for path in files} - {"."})
    return [
        *({"path": f"{root}/{name}".rstrip("/"), "state": "directory"} for name in ("", *folders)),
        *(
            {"path": f"{root}/{path.relative_to(SOURCE)}", "content": path.read_text(encoding="utf-8")}
            for path in files
        ),
        {"path": f"{root}/VERSION", "content": f"{release()}\n"},
    ]
