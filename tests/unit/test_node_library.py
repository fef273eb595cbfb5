# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The node library: complete, with its version, and usable by the system's Python alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ansible_collections.spt.flow.plugins.module_utils._node.machine import files as machine_files
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common import version
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import node_library


def test_library_is_installed_completely_with_its_version_last(tmp_path: Path) -> None:
    entries = node_library.entries(str(tmp_path))
    assert entries[-1] == {"path": f"{tmp_path}/spt_flow_node/VERSION", "content": f"{version.release()}\n"}
    machine_files.result(entries, dry=False)
    source = {path.relative_to(node_library.SOURCE) for path in node_library.SOURCE.rglob("*.py")}
    assert {path.relative_to(tmp_path / "spt_flow_node") for path in tmp_path.rglob("*.py")} == source
    assert machine_files.result(entries, dry=False)["changed"] is False


def test_every_installed_module_imports_without_ansible(tmp_path: Path) -> None:
    machine_files.result(node_library.entries(str(tmp_path)), dry=False)
    names = [".".join(path.relative_to(tmp_path).with_suffix("").parts) for path in sorted(tmp_path.rglob("*.py"))]
    code = (
        f"import importlib, sys; sys.path.insert(0, {str(tmp_path)!r}); [importlib.import_module(n) for n in {names!r}]"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
