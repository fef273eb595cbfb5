# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a workspace may use, and that it gets no more: processors, memory, processes, devices, memory file systems."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils import (
    _docker_http,
    _docker_target,
    _errors,
    _image,
    _lifecycle,
    _progress,
    _repository,
    _settings,
    _workspace,
)

MIB = 1 << 20
SMALL = {"cpus": "0.5", "memory": "512m", "pids": "150"}


@pytest.fixture(scope="module")
def engine() -> _docker_target.DockerTarget:
    found = _docker_target.DockerTarget()
    try:
        found.probe_engine()
    except _errors.FlowError as error:
        pytest.skip(f"no Docker engine: {error.message}")
    return found


def spec_for(folder: Path, owner: str, **values: str) -> _workspace.WorkspaceSpec:
    repository = folder / owner
    author = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    subprocess.run(["git", "-C", str(repository), *author, "commit", "-q", "--allow-empty", "-m", "1"], check=True)
    image = _image.identity()
    _image.ensure(image, {}, _progress.Progress())
    return _workspace.WorkspaceSpec(
        owner,
        _settings.Settings.of(_settings.resolve([values])),
        repository=_repository.Repository.parse(str(repository)),
        image=image.tag,
        image_hash=image.hash,
    )


@pytest.fixture(scope="module")
def small(
    engine: _docker_target.DockerTarget, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[_workspace.Workspace]:
    spec = spec_for(tmp_path_factory.mktemp("limits"), f"limits{secrets.token_hex(3)}", **SMALL)
    try:
        found = _lifecycle.ensure(engine, spec, "started").workspace
        assert found is not None
        yield found
    finally:
        _lifecycle.ensure(engine, spec, "absent")


def shell(engine: _docker_target.DockerTarget, workspace: _workspace.Workspace, script: str) -> tuple[int, str]:
    done = engine.exec(workspace, ["bash", "-c", script], timeout=120)
    return done.status, (done.stdout + done.stderr).strip()


def test_processes_are_limited(engine: _docker_target.DockerTarget, small: _workspace.Workspace) -> None:
    status, said = shell(
        engine,
        small,
        "python3 -c 'import os,time\nn=0\ntry:\n while n<400:\n  n+=1\n  os.fork() or (time.sleep(2), os._exit(0))\n"
        'except OSError: print("limited", n)\'; true',
    )
    assert said.startswith("limited"), said
    assert int(said.split()[1]) < int(SMALL["pids"])
    time.sleep(2)
    assert shell(engine, small, "true")[0] == 0


def test_memory_is_limited(engine: _docker_target.DockerTarget, small: _workspace.Workspace) -> None:
    assert shell(engine, small, f"python3 -c 'b = bytearray({256 * MIB})'")[0] == 0
    status, _said = shell(engine, small, f"python3 -c 'b = bytearray({700 * MIB})'")
    assert status != 0
    assert engine.find(_workspace.WorkspaceSpec(small.owner, _settings.Settings(), name=small.name)).state == "running"  # type: ignore[union-attr]


def test_processor_time_is_limited(engine: _docker_target.DockerTarget, small: _workspace.Workspace) -> None:
    burn = "python3 -c 'import time; e=time.monotonic()+2\nwhile time.monotonic()<e: pass\nprint(time.process_time())'"
    status, said = shell(engine, small, burn)
    assert status == 0
    assert float(said) < 1.6, "two seconds at half a processor are about one second of it"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/tmp", {"rw", "nosuid", "nodev"}),
        ("/run", {"rw", "nosuid", "nodev", "noexec"}),
        ("/run/spt-flow", {"rw", "nosuid", "nodev"}),
        ("/run/user/1000", {"rw", "nosuid", "nodev"}),
    ],
)
def test_memory_file_systems(
    engine: _docker_target.DockerTarget, small: _workspace.Workspace, path: str, words: set[str]
) -> None:
    _status, said = shell(engine, small, f"findmnt -n -o FSTYPE,OPTIONS {path}")
    kind, options = said.split()
    assert kind == "tmpfs"
    assert words <= set(options.split(","))


def test_programs_run_from_tmp_and_it_is_bounded(
    engine: _docker_target.DockerTarget, small: _workspace.Workspace
) -> None:
    assert shell(engine, small, "cp /bin/true /tmp/t && /tmp/t")[0] == 0
    assert shell(engine, small, "head -c 200m /dev/zero > /tmp/big; s=$?; rm -f /tmp/big; exit $s")[0] != 0
    assert shell(engine, small, "cp /bin/true /run/spt-flow/t && rm /run/spt-flow/t")[0] == 0


def test_the_user_runs_guest_code(engine: _docker_target.DockerTarget, small: _workspace.Workspace) -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("this machine has no /dev/kvm")
    ask = "import fcntl; print(fcntl.ioctl(open('/dev/kvm','rb+',buffering=0), 0xAE00))"
    assert shell(engine, small, f'python3 -c "{ask}"') == (0, "12")


def test_more_than_the_machine_has_is_explained(engine: _docker_target.DockerTarget, tmp_path: Path) -> None:
    spec = spec_for(tmp_path, f"limits{secrets.token_hex(3)}", cpus="1024", memory="1t")
    try:
        result = _lifecycle.ensure(engine, spec, "started")
        note = next(note for note in result.notes if "instead of 1024 CPUs" in note)
        assert "GiB of memory" in note
        assert result.workspace is not None
        host = _docker_http.connect().get_json(f"/containers/{result.workspace.id}/json")["HostConfig"]
        facts = engine.probe_engine()
        assert host["NanoCpus"] == facts.cpus * 10**9
        assert host["Memory"] < facts.memory
    finally:
        _lifecycle.ensure(engine, spec, "absent")


def test_a_required_device_that_is_missing_is_refused(engine: _docker_target.DockerTarget, tmp_path: Path) -> None:
    from ansible_collections.spt.flow.plugins.module_utils import _docker_body

    spec = spec_for(tmp_path, "limits", kvm="required")
    with pytest.raises(_errors.FlowError, match="no /dev/kvm"):
        _docker_body.Plan.of(spec, engine.probe_engine(), True, lambda path: False)
    plan = _docker_body.Plan.of(
        replace(spec, settings=replace(spec.settings, kvm="auto")), engine.probe_engine(), True, lambda path: False
    )
    assert any("software emulation" in note for note in plan.notes)


def test_a_busy_neighbour_does_not_starve_others(
    engine: _docker_target.DockerTarget, small: _workspace.Workspace, tmp_path: Path
) -> None:
    """A fork bomb with a memory hog beside it: another workspace still answers, and nothing outside is killed."""
    spec = spec_for(tmp_path, f"limits{secrets.token_hex(3)}", **SMALL)
    try:
        other = _lifecycle.ensure(engine, spec, "started").workspace
        assert other is not None
        bomb = "timeout 6 bash -c 'b() { b | b & }; b; tail /dev/zero' >/dev/null 2>&1; true"
        with subprocess.Popen(
            ["docker", "exec", "-u", "1000:1000", small.id, "bash", "-c", bomb],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as child:
            time.sleep(1)
            assert shell(engine, other, "true")[0] == 0
            child.wait(60)
        assert shell(engine, other, "true")[0] == 0
    finally:
        _lifecycle.ensure(engine, spec, "absent")
