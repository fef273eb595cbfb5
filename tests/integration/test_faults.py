# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Missing, full, taken or crashing parts: each failure has a sentence, a hint and a code, and loses nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.errors import Conflict, FlowError, NotFound, Unhealthy
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.target import DockerTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.tests.integration.harness import COLLECTIONS, Harness, git

SOCKET = docker_http.DEFAULT_HOST.removeprefix("unix://")


def sentence(error: FlowError, kind: type[FlowError], *words: str) -> None:
    """Check what every error message must have."""
    assert isinstance(error, kind) and error.code == kind.code
    assert error.message.endswith((".", ")")) and error.hint, error
    assert all(word in error.message for word in words), error.message


def test_missing_image_is_reported(harness: Harness) -> None:
    source = harness.repository()
    spec = replace(harness.spec(source), image="spt-flow/workspace:slim-0123456789ab", image_hash="0" * 64)
    with pytest.raises(FlowError) as caught:
        harness.ensure(spec)
    sentence(caught.value, NotFound, "slim-0123456789ab", "demo")
    assert "spt.flow.image" in caught.value.hint
    harness.up(harness.spec(source))
    harness.is_exactly("demo")


def test_taken_port_is_reported(harness: Harness) -> None:
    source = harness.repository()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(FlowError) as caught:
            harness.ensure(replace(harness.spec(source, ide_port=port)))
        sentence(caught.value, Conflict, str(port), "demo")
    workspace = harness.up(harness.spec(source, ide_port=port))
    assert workspace.url == f"http://127.0.0.1:{port}/"
    assert harness.inside(workspace, "git -C ~/demo rev-parse HEAD") == git(source, "rev-parse", "HEAD")


def test_taken_port_in_a_restart_keeps_the_old_workspace(harness: Harness) -> None:
    source = harness.repository()
    workspace = harness.up(harness.spec(source))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(FlowError) as caught:
            harness.ensure(harness.spec(source, ide_port=other.getsockname()[1]), "restarted")
        sentence(caught.value, Conflict, str(other.getsockname()[1]))
    assert harness.up(harness.spec(source)).id == workspace.id
    harness.is_exactly("demo")


def test_missing_engine_is_reported(harness: Harness, tmp_path: Path) -> None:
    target = DockerTarget(f"unix://{tmp_path}/none.sock")
    with pytest.raises(FlowError) as caught:
        lifecycle.ensure(target, harness.spec(harness.repository()))
    sentence(caught.value, Unhealthy, f"{tmp_path}/none.sock", "does not answer")


def test_engine_without_permission_is_reported(harness: Harness, tmp_path: Path) -> None:
    """As uid 65534 with a socket that only root may use."""
    path = f"/tmp/spt-flow-refuses-{os.getpid()}.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    os.chmod(path, 0o600)
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from ansible_collections.spt.flow.plugins.module_utils._node import errors\n"
        "from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http\n"
        "os.setuid(65534)\n"
        "try: docker_http.connect('unix://' + sys.argv[2]).get_json('/info')\n"
        "except errors.FlowError as error: print(error.code, error)\n"
    )
    if os.getuid():
        pytest.skip("only root can become another user")
    try:
        argv = [sys.executable, "-c", script, str(COLLECTIONS), path]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    finally:
        server.close()
        os.unlink(path)
    assert said.stdout.startswith("8 This user may not use the Docker engine at"), said
    assert "group docker" in said.stdout


@contextmanager
def dying_engine(folder: Path, word: bytes, answers: bool) -> Iterator[str]:
    """A proxy to the engine that fails for good once a request has ``word``; with ``answers``, after its answer."""
    path = str(folder / "engine.sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    dead = threading.Event()
    open_ones: list[socket.socket] = []

    def die() -> None:
        dead.set()
        os.unlink(path)
        for one in open_ones:
            with _quiet():
                one.shutdown(socket.SHUT_RDWR)

    def pump(one: socket.socket, other: socket.socket, looks: bool) -> None:
        with _quiet():
            while data := one.recv(65536):
                hit = looks and word in data and not dead.is_set()
                if hit and not answers:
                    die()
                    return
                other.sendall(data)
                if hit:
                    time.sleep(1)
                    die()
        with _quiet():
            other.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with _quiet():
            while not dead.is_set():
                client, _ = server.accept()
                engine = socket.socket(socket.AF_UNIX)
                engine.connect(SOCKET)
                open_ones.extend([client, engine])
                for pair in ((client, engine, True), (engine, client, False)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"unix://{path}"
    finally:
        dead.set()
        server.close()
        for one in open_ones:
            one.close()


@contextmanager
def _quiet() -> Iterator[None]:
    try:
        yield
    except OSError:
        return


@pytest.mark.parametrize("answers", [False, True], ids=["unanswered", "answered"])
@pytest.mark.parametrize("word", [b"/volumes/create", b"/containers/create", b"/archive", b"/start", b"/logs"])
def test_engine_that_dies_during_creation_is_reported(
    harness: Harness, tmp_path: Path, word: bytes, answers: bool
) -> None:
    source = harness.repository()
    with dying_engine(tmp_path, word, answers) as host:
        try:
            lifecycle.ensure(DockerTarget(host), harness.spec(source))
        except FlowError as error:
            assert error.code == Unhealthy.code and error.message and error.hint, error
        else:
            assert answers, "the run should have failed"
    workspace = harness.up(harness.spec(source))
    assert harness.inside(workspace, "git -C ~/demo rev-parse HEAD") == git(source, "rev-parse", "HEAD")
    harness.is_exactly("demo")


@pytest.mark.parametrize("word", [b"/stop", b"/rename", b"/containers/create", b"/start", b"/logs"])
def test_engine_that_dies_during_a_restart_loses_nothing(harness: Harness, tmp_path: Path, word: bytes) -> None:
    source = harness.repository()
    harness.inside(harness.up(harness.spec(source)), "echo precious > ~/note")
    with dying_engine(tmp_path, word, False) as host, pytest.raises(FlowError) as caught:
        lifecycle.ensure(DockerTarget(host), harness.spec(source, pids=999), "restarted")
    assert caught.value.code == Unhealthy.code and caught.value.hint
    workspace = harness.up(harness.spec(source))
    assert harness.inside(workspace, "cat ~/note") == "precious"
    harness.is_exactly("demo")


@pytest.mark.parametrize("wanted", ["auto", "required", "unsafe", "disabled"])
def test_engine_without_remapping_is_reported(harness: Harness, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The facts are those of another engine; what is created from them is real."""
    facts = replace(harness.target.probe_engine(), remapped=False, remap_size=0, remap_base=0, runtime=False)
    monkeypatch.setattr(harness.target, "_facts", facts)
    spec = harness.spec(harness.repository(), docker=wanted)
    if wanted == "required":
        with pytest.raises(FlowError) as caught:
            harness.ensure(spec)
        sentence(caught.value, FlowError, "docker=required", "user-namespace")
        assert "host_docker" in caught.value.hint
        assert harness.containers() == []
        return
    made = harness.target.create(spec, Progress())
    host = harness.inspect(made.id)["HostConfig"]
    notes = " ".join(made.notes)
    assert (host["MaskedPaths"] == []) == (wanted == "unsafe")
    assert ("is disabled" in notes) == (wanted == "auto")
    assert ("can become root on this machine" in notes) == (wanted == "unsafe") or wanted == "auto"


def test_nearly_full_disk_is_reported(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 1_000_000, 30_000, 20_000, 1000, 500, 500, 0, 255))
    monkeypatch.setattr("os.statvfs", lambda path: full)
    result = harness.ensure(harness.spec(harness.repository()))
    assert any("nearly full" in note and "2%" in note for note in result.notes), result.notes


@pytest.mark.parametrize("jump", [-90 * 86400, 400 * 86400], ids=["back", "ahead"])
def test_clock_jump_is_harmless(harness: Harness, jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a wrong client clock dev workspaces stay, and waiting ends in time."""
    source = harness.repository()
    workspace = harness.up(harness.spec(source))
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + jump)
    again = lifecycle.ensure(harness.target, harness.spec(source), now=lambda: real() + jump)
    assert not again.changed and again.workspace and again.workspace.id == workspace.id
    stopped = harness.ensure(harness.spec(source), "stopped")
    assert stopped.changed
    assert harness.up(harness.spec(source)).state == "running"
    harness.is_exactly("demo")


def test_home_in_use_is_not_removed(harness: Harness) -> None:
    """A deletion that cannot finish says why, and another one completes it."""
    spec = harness.spec(harness.repository())
    harness.up(spec)
    other = f"spt-flow-{harness.owner}-other"
    body = {
        "Image": harness.image.tag,
        "Labels": {"spt.flow.owner": harness.owner},
        "HostConfig": {"Mounts": [{"Type": "volume", "Source": f"spt-flow-{harness.owner}-demo-home", "Target": "/x"}]},
    }
    harness.engine.request_json("POST", "/containers/create", {"name": other}, body)
    with pytest.raises(FlowError) as caught:
        harness.ensure(spec, "absent")
    assert "in use" in caught.value.message
    harness.engine.request_json("DELETE", f"/containers/{other}")
    harness.ensure(spec, "absent")
    harness.is_exactly()


def test_missing_kvm_is_reported(harness: Harness) -> None:
    spec = harness.spec(harness.repository(), kvm="required")
    with pytest.raises(FlowError) as caught:
        docker_container.Plan.of(spec, harness.target.probe_engine(), True, lambda path: False)
    sentence(caught.value, FlowError, "kvm=required", "/dev/kvm")
    plan = docker_container.Plan.of(
        replace(spec, settings=replace(spec.settings, kvm="auto")),
        harness.target.probe_engine(),
        True,
        lambda path: False,
    )
    assert plan.devices == () and any("/dev/kvm" in note for note in plan.notes)
