# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing a dev container: refusals, idempotence, and an accurate check mode."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import Conflict, FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import devcontainer as docker_devcontainer
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.parse import engine_facts
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings

CHECKOUT = Path(__file__).resolve().parents[2]
FACTS = engine_facts(
    {"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker/1000000.1000000"}, local=False
)
ACL = struct.Struct("<HHI")
"""An entry of an access list: tag, rights, id."""


def play(folder: Path, *words: str, **values: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "ansible-playbook"
    env = {name: text for name, text in os.environ.items() if not name.startswith("SPT_FLOW_")}
    env |= {f"SPT_FLOW_{name.upper()}": value for name, value in values.items()}
    env["XDG_CONFIG_HOME"] = str(folder / "config")
    argv = [str(program), "playbooks/devcontainer.yml", "-e", f"devcontainer_path={folder}", *words]
    return subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=300)


def test_check_mode_shows_a_run_writes_and_the_next_changes_nothing(tmp_path: Path) -> None:
    place = tmp_path / ".devcontainer/devcontainer.json"
    planned = play(tmp_path, "--check", "--diff", memory="3g")
    assert "would be written (devcontainer.json, ci.env)" in planned.stdout, planned.stdout + planned.stderr
    assert '+    "--memory=3221225472",' in planned.stdout and not place.parent.exists()
    assert "changed=1" in play(tmp_path, memory="3g").stdout
    written = json.loads(place.read_text().removeprefix(docker_devcontainer.MARK))
    assert "--memory=3221225472" in written["runArgs"] and written["image"].startswith("spt-flow/workspace:fat-")
    assert (place.parent / "ci.env").read_text() == "SPT_FLOW_MEMORY=3221225472\n"
    assert "changed=0" in play(tmp_path, memory="3g").stdout


@pytest.mark.parametrize(
    ("words", "values", "said"),
    [
        (["-e", "devcontainer_image=--privileged"], {}, "is not an image reference"),
        ([], {"repo": "/srv/demo"}, "a local path, which a dev container cannot clone"),
        ([], {"memory": "lots"}, "memory is"),
    ],
)
def test_refusal_is_reported_in_one_sentence(
    tmp_path: Path, words: list[str], values: dict[str, str], said: str
) -> None:
    done = play(tmp_path, *words, **values)
    assert done.returncode == 2 and said in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / ".devcontainer").exists()


def test_foreign_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "devcontainer.json").write_text("{}")
    with pytest.raises(Conflict, match="was not written by spt.flow"):
        docker_devcontainer.changes(tmp_path, docker_devcontainer.files(Settings(), "image"))


def test_linked_folder_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".devcontainer").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict, match="is a link"):
        docker_devcontainer.changes(tmp_path / ".devcontainer", docker_devcontainer.files(Settings(), "image"))


def test_changed_values_replace_only_differences(tmp_path: Path) -> None:
    first = docker_devcontainer.files(Settings(docker="required"), "image")
    assert set(first) == {"devcontainer.json", "seccomp.json", "ci.env"}
    docker_devcontainer.write(tmp_path, first)
    second = docker_devcontainer.files(Settings(docker="required", cpus=2.0), "image")
    assert set(docker_devcontainer.changes(tmp_path, second)) == {"devcontainer.json", "ci.env"}
    docker_devcontainer.write(tmp_path, second)
    assert docker_devcontainer.changes(tmp_path, second) == {}
    assert docker_devcontainer.changes(tmp_path, docker_devcontainer.files(Settings(), "image"))["ci.env"][1] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ci.env", "devcontainer.json", "seccomp.json"]
    docker_devcontainer.write(tmp_path, {"ci.env": ""})
    assert not (tmp_path / "ci.env").exists(), "a pipeline must not continue with outdated values"


def test_unwritable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FlowError, match="Cannot write to"):
        docker_devcontainer.write(tmp_path / "file/.devcontainer", {"devcontainer.json": "{}"})


def test_directory_that_the_container_cannot_write_is_named_with_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "my code"
    folder.mkdir(mode=0o755)
    assert docker_devcontainer.missing_access(folder, replace(FACTS, remapped=False, remap_base=0)) == ""
    said = docker_devcontainer.missing_access(folder, FACTS)
    assert f"cannot write to {folder}" in said and said.endswith(f"d:u:{os.getuid()}:rwX '{folder}'")
    assert f"setfacl -R -m u:{FACTS.remap_base + 1000}:rwX" in said
    folder.chmod(0o777)
    assert docker_devcontainer.missing_access(folder, FACTS) == ""


@pytest.mark.parametrize(("entry", "writable"), [("user:7", True), ("user:5", False), ("other", False)])
def test_access_list_of_a_directory_counts(tmp_path: Path, entry: str, writable: bool) -> None:
    user = FACTS.remap_base + 1000
    tag, who, rights = {"user:7": (2, user, 7), "user:5": (2, user, 5), "other": (2, user + 1, 7)}[entry]
    entries = [(1, 7, 2**32 - 1), (tag, rights, who), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1), (32, 5, 2**32 - 1)]
    try:
        os.setxattr(tmp_path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(ACL.pack(*e) for e in entries))
    except OSError:
        pytest.skip("this file system has no access lists")
    assert (docker_devcontainer.missing_access(tmp_path, FACTS) == "") is writable
