# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which `coder` program enters workspaces: the one on PATH if it matches, otherwise the server's own, fetched once."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import NotFound
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import cli as coder_cli
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.http import CoderHttp
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import coder_harness


def program(version: str) -> bytes:
    said = f"""[ "$1" = version ] && echo '{{"version": "{version}"}}'"""
    return f"""#!/bin/sh\n{said}\n[ "$1" = ssh ] && echo "{version} $*"\ntrue\n""".encode()


@pytest.fixture
def fake() -> Iterator[Fake]:
    with coder_harness.server() as made:
        made.state.cli = program(made.state.build_version)
        yield made


@pytest.fixture
def http(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoderHttp:
    """A client that knows the server's version; PATH contains only what the test installs."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    client = coder_harness.client(fake)
    client.me()
    return client.http


def install(folder: Path, version: str) -> None:
    path = folder / "bin/coder"
    path.write_bytes(program(version))
    path.chmod(0o755)


def test_matching_program_on_path_is_used_and_asked_once(http: CoderHttp, tmp_path: Path) -> None:
    install(tmp_path, http.server_version)
    before = http.requests
    assert coder_cli.ready(http, Progress()) == []
    (tmp_path / "bin/coder").chmod(0o755)
    status = (tmp_path / "bin/coder").stat()
    (tmp_path / "bin/coder").write_bytes(b"x" * status.st_size)
    os.utime(tmp_path / "bin/coder", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert coder_cli.ready(http, Progress()) == []
    assert http.requests == before
    assert not (coder_cli.folder() / "coder").exists()


@pytest.mark.parametrize("here", ["", "v2.20.1"])
def test_missing_or_other_program_is_fetched_once(fake: Fake, http: CoderHttp, tmp_path: Path, here: str) -> None:
    if here:
        install(tmp_path, here)
    before = http.requests
    assert coder_cli.ready(http, Progress(), needed=True) == []
    assert coder_cli.ready(http, Progress(), needed=True) == []
    assert http.requests == before + 1
    link = coder_cli.folder() / "coder"
    assert link.resolve().stat().st_mode & 0o777 == 0o755
    assert re.fullmatch(r"\d+\.\d+\.\d+", link.resolve().parent.name)
    assert [path.name for path in link.resolve().parent.iterdir()] == ["coder"]
    command = next(line for line in workspace_ssh.config_text().splitlines() if "coder ssh" in line).strip()
    command = command.removeprefix("ProxyCommand ").replace("%n", "ada--demo.spt-coder")
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == f"{fake.state.build_version} ssh --stdio --wait=no ada--demo\n"
    install(tmp_path, http.server_version)
    assert coder_cli.ready(http, Progress()) == []
    assert not link.exists()


def test_unavailable_program_is_reported_in_one_line(fake: Fake, http: CoderHttp, tmp_path: Path) -> None:
    fake.state.cli = b""
    (note,) = coder_cli.ready(http, Progress())
    assert "is missing" in note
    assert "\n" not in note
    with pytest.raises(NotFound, match="is missing"):
        coder_cli.ready(http, Progress(), needed=True)
    install(tmp_path, "v2.20.1")
    (note,) = coder_cli.ready(http, Progress(), needed=True)
    assert "is v2.20.1, the server is" in note


def test_invalid_program_is_not_kept(fake: Fake, http: CoderHttp) -> None:
    fake.state.cli = b"<html>"
    (note,) = coder_cli.ready(http, Progress())
    assert "not a working coder v2" in note
    assert not list(coder_cli.folder().rglob("coder"))


@pytest.mark.parametrize(
    ("version", "server", "fits"),
    [
        ("v2.35.1+abc", "v2.35.0", True),
        ("v2.34.9", "v2.35.0", False),
        ("v1.35.0", "v2.35.0", False),
        ("v2.35.0-devel+1", "v2.20.0", True),
        ("", "v2.35.0-devel", False),
        ("", "v2.35.0", False),
        ("v2.35.0", "", False),
    ],
)
def test_major_and_minor_version_must_match(version: str, server: str, fits: bool) -> None:
    assert coder_cli.is_compatible(version, server) is fits
