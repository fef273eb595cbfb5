# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation site is complete, and a broken link fails the build."""

from __future__ import annotations

import html
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TOOL = CHECKOUT / "tools/docs-site"

pytestmark = [pytest.mark.full, pytest.mark.skipif(sys.version_info < (3, 12), reason="the newest end builds the site")]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return runpy.run_path(str(TOOL))["main"].__globals__


def words(page: Path) -> str:
    """Return what a reader sees on a page of the site."""
    return re.sub(r"<[^>]+>", "", html.unescape(page.read_text(encoding="utf-8")))


def test_site_has_every_playbook_role_plugin_and_setting() -> None:
    done = subprocess.run([sys.executable, TOOL], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    site = CHECKOUT / "artifacts/docs-site/html"
    for module in (CHECKOUT / "plugins/modules").glob("[!_]*.py"):
        assert (site / f"collection/{module.stem}_module.html").exists(), module.stem
    for role in (CHECKOUT / "roles").iterdir():
        assert (site / f"collection/{role.name}_role.html").exists(), role.name
        assert (site / f"roles/{role.name}/README.html").exists(), role.name
    module = words(site / "collection/workspace_module.html")
    assert "make install" in module and "collection install spt.flow" not in module, "it is not on Galaxy"
    playbooks = words(site / "docs/reference/playbooks.html")
    for playbook in (CHECKOUT / "playbooks").glob("*.yml"):
        assert f"spt.flow.{playbook.stem}" in playbooks
    for picture in ("overview.svg", "workspace.png"):
        assert (site / "_images" / picture).exists()


def test_broken_link_fails_the_build(tool: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_bytes((CHECKOUT / "docs/conf.py").read_bytes())
    tool["inventory"](source / "ansible.inv")
    (source / "index.md").write_text("# Title\n\n[a good link](#title)\n")
    tool["build"](source, tmp_path / "good")
    (source / "index.md").write_text("# Title\n\n[a broken link](nowhere.md)\n")
    with pytest.raises(SystemExit, match="failed"):
        tool["build"](source, tmp_path / "bad")
    assert "nowhere.md" in capfd.readouterr().err
