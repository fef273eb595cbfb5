# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several small files in one call: only differences are written, and readers never see a partial file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.module_utils._node.machine import files as machine_files
from ansible_collections.spt.flow.plugins.module_utils._node.machine.files import Entry

CHECKOUT = Path(__file__).resolve().parents[2]


def entries(folder: Path) -> list[Entry]:
    return [
        Entry.of({"path": f"{folder}/etc/ours", "state": "directory"}),
        Entry.of({"path": f"{folder}/etc/ours/run", "content": "#!/bin/sh\n", "mode": "0755"}),
        Entry.of({"path": f"{folder}/etc/old", "state": "absent"}),
    ]


def names(changes: list[dict[str, str]]) -> list[str]:
    return [Path(change["after_header"]).name for change in changes]


def test_second_run_and_check_mode_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/old").write_text("x")
    assert names(machine_files.apply(entries(tmp_path), dry=True)) == ["ours", "run", "old"]
    assert os.listdir(tmp_path / "etc") == ["old"]
    assert names(machine_files.apply(entries(tmp_path))) == ["ours", "run", "old"]
    assert os.listdir(tmp_path / "etc") == ["ours"]
    assert (tmp_path / "etc/ours/run").stat().st_mode & 0o777 == 0o755
    before = (tmp_path / "etc/ours/run").stat()
    assert machine_files.apply(entries(tmp_path)) == []
    after = (tmp_path / "etc/ours/run").stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


@pytest.mark.parametrize("spoil", ["content", "mode", "link", "lines"])
def test_differences_are_corrected_and_shown(spoil: str, tmp_path: Path) -> None:
    machine_files.apply(entries(tmp_path))
    file, elsewhere = tmp_path / "etc/ours/run", tmp_path / "elsewhere"
    if spoil == "link":
        elsewhere.write_text("not ours")
        file.unlink()
        file.symlink_to(elsewhere)
    elif spoil == "mode":
        file.chmod(0o4777)
    else:
        file.write_bytes(b"#!/bin/sh\r\n" if spoil == "lines" else b"\xff\xfe")
        file.chmod(0o755)
    (change,) = machine_files.apply(entries(tmp_path))
    assert change["before"] != change["after"]
    assert change["after"].endswith("#!/bin/sh\n")
    assert not file.is_symlink() and file.read_bytes() == b"#!/bin/sh\n" and file.stat().st_mode & 0o7777 == 0o755
    assert not elsewhere.exists() or elsewhere.read_text() == "not ours"


def test_non_empty_folder_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/file").touch()
    gone = [Entry(f"{tmp_path}/theirs", "absent"), Entry(f"{tmp_path}/never/there", "absent")]
    assert machine_files.apply(gone) == []
    (tmp_path / "theirs/file").unlink()
    assert names(machine_files.apply(gone)) == ["theirs"]


def test_refusal_names_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(FlowError, match=f"Cannot apply the state file to {tmp_path}/taken"):
        machine_files.apply([Entry(f"{tmp_path}/taken", content="x")])
    assert os.listdir(tmp_path) == ["taken"]
    with pytest.raises(FlowError, match="octal"):
        Entry.of({"path": "x", "mode": "rw"})


def test_observed_state_tells_whether_changes_are_needed(tmp_path: Path) -> None:
    wished = entries(tmp_path)
    paths = [entry.path for entry in wished]
    assert not machine_files.up_to_date(wished, machine_files.digests(paths))
    machine_files.apply(wished)
    seen = machine_files.digests(paths)
    mine = os.geteuid() == os.getegid() == 0
    assert machine_files.up_to_date(wished, seen) is mine  # Hosts are written and read by root.
    assert not machine_files.up_to_date([*wished, Entry(f"{tmp_path}/new")], seen)
    (tmp_path / "etc/ours/run").chmod(0o4755)
    assert not machine_files.up_to_date(wished, machine_files.digests(paths))


PLAY = """
- hosts: far
  gather_facts: false
  tasks:
    - spt.flow.host_files: {{files: [{{path: /etc/ours, content: {content}}}], seen: {{/etc/ours: {seen}}}}}
"""


@pytest.mark.parametrize(("content", "status"), [("same", 0), ("other", 4)])
def test_up_to_date_host_is_not_contacted(content: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(
        "all: {hosts: {far: {ansible_host: 192.0.2.1, ansible_connection: ssh, ansible_timeout: 1}}}\n"
    )
    seen = machine_files._digest(Entry("/etc/ours", content="same").describe("0:0"))
    (tmp_path / "play.yml").write_text(PLAY.format(content=content, seen=seen))
    program = Path(sys.executable).parent / "ansible-playbook"
    env = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / ".ansible/collections")}
    argv = [str(program), "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml")]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr


def test_controller_files_are_written_and_invalid_options_refused(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "ansible"
    env = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / ".ansible/collections")}

    def ad_hoc(entry: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
        argv = [str(program), "localhost", "-m", "spt.flow.host_files", "-a", json.dumps({"files": [entry]}), *words]
        return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    entry = {"path": f"{tmp_path}/new", "content": "{{ 'te' ~ 'xt' }}", "mode": "0640"}
    checked = ad_hoc(entry, "--check", "--diff")
    assert "CHANGED" in checked.stdout and "+text" in checked.stdout and not (tmp_path / "new").exists()
    assert "CHANGED" in ad_hoc(entry).stdout
    assert ((tmp_path / "new").read_text(), (tmp_path / "new").stat().st_mode & 0o777) == ("text", 0o640)
    assert "SUCCESS" in ad_hoc(entry).stdout
    for wrong, words in (
        ({"state": "there"}, "state must be one of"),
        ({"path": "/dev/null/x"}, "Cannot apply the state file to /dev"),
    ):
        done = ad_hoc({**entry, **wrong})
        assert (done.returncode, words in done.stdout + done.stderr) == (2, True)
