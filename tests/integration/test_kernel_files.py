# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file of /proc/sys and /sys is written from inside a workspace; no global kernel setting may be writable.

Each file is written with its current value. Writable files are listed in artifacts/kernel-files.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.tests.integration.harness import Harness

ARTIFACT = Path(__file__).resolve().parents[2] / "artifacts/kernel-files.md"
SWEEP = r"""
import json, os, stat, sys
seen, written = 0, []
for top in ("/proc/sys", "/sys"):
    for folder, _folders, files in os.walk(top):
        for name in files:
            path = os.path.join(folder, name)
            try:
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    continue
                seen += 1
                handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                with open(path, "rb") as file:
                    value = file.read(4096)
                os.write(handle, value)
                written.append(path)
            except PermissionError:
                pass
            except OSError as error:
                written.append(f"{path} ({error.strerror})")
            os.close(handle)
print(json.dumps([seen, sorted(written)]))
"""
CHANGE = r"""
import json, sys
changed = {}
for path in json.load(sys.stdin):
    try:
        with open(path) as file:
            value = file.read()
        if value.strip().isdigit():
            with open(path, "w") as file:
                file.write(str(int(value) - 1 if int(value) > 1 else int(value) + 1))
            with open(path) as file:
                changed[path] = file.read() != value
    except OSError:
        continue
print(json.dumps(changed))
"""
OWN = re.compile(
    r"/proc/sys/(kernel/(shm\w+|msg\w+|sem\w*|auto_msgmni|ns_last_pid|pid_max|hostname|domainname)"
    r"|fs/mqueue/\w+|net/.*|user/max_\w+)( \(.*\))?"
)
"""Settings of the workspace's own namespaces: IPC, processes, name, network, users."""


@pytest.fixture(scope="module")
def workspace(shared_harness: Harness) -> Workspace:
    """With Docker inside, so that nothing of /proc is masked."""
    return shared_harness.up(shared_harness.spec(shared_harness.repository("sweep"), docker="auto", wait_timeout=300))


@pytest.fixture(scope="module")
def rows() -> Iterator[list[tuple[str, int, list[str]]]]:
    found: list[tuple[str, int, list[str]]] = []
    yield found
    lines = ["| As | Files tried | Written | Of these not the workspace's own |", "| --- | --- | --- | --- |"]
    for who, seen, written in found:
        lines.append(f"| {who} | {seen} | {len(written)} | {sum(not OWN.fullmatch(path) for path in written)} |")
    lines += ["", *(f"- {who}: `{path}`" for who, _seen, written in found for path in written)]
    ARTIFACT.parent.mkdir(exist_ok=True)
    ARTIFACT.write_text("\n".join(lines) + "\n")
    print("\n".join(["", *lines]))


@pytest.mark.parametrize(("who", "user"), [("coder", "1000:1000"), ("root", "0:0")])
def test_no_kernel_setting_is_written(
    shared_harness: Harness, workspace: Workspace, rows: list[tuple[str, int, list[str]]], who: str, user: str
) -> None:
    done = shared_harness.target.exec(workspace, ["python3", "-c", SWEEP], user=user, timeout=300)
    assert done.status == 0, done
    seen, written = json.loads(done.stdout)
    rows.append((who, seen, written))
    assert seen > 1000
    assert [path for path in written if who == "coder" or not OWN.fullmatch(path)] == []


def test_files_writable_by_root_change_nothing_on_the_host(
    shared_harness: Harness, workspace: Workspace, rows: list[tuple[str, int, list[str]]]
) -> None:
    paths = [path for who, _seen, written in rows for path in written if who == "root" and Path(path).exists()]
    before = {path: Path(path).read_text() for path in paths if path != "/proc/sys/kernel/ns_last_pid"}
    stdin = json.dumps(list(before)).encode()
    done = shared_harness.target.exec(workspace, ["python3", "-c", CHANGE], user="0:0", stdin=stdin, timeout=120)
    assert done.status == 0 and any(json.loads(done.stdout).values()), done
    assert {path: Path(path).read_text() for path in before} == before
