# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The installed program spt-flow-snapshots with real restic: restores, and behaviour under faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots import volumes as volumes_
from ansible_collections.spt.flow.plugins.module_utils._node.snapshots.compare import differences
from ansible_collections.spt.flow.tests.integration import sshd_harness

ROOT = Path(__file__).parents[2]
BASE = 1_000_000

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("restic") is None, reason="needs root and restic (apt-get install restic)"
)


class Node:
    """A node below ``root``: the program as the role installs it, a data root and a repository."""

    def __init__(
        self, root: Path, data_root: Path | None = None, repository: Path | str | None = None, **settings: object
    ) -> None:
        self.root, self.data = root, data_root or root / "docker"
        self.repository: Any = repository or root / "repository"
        shutil.copytree(ROOT / "plugins/module_utils/_node", root / "lib" / "spt_flow_node")
        self.settings = {
            "repository": str(self.repository),
            "password_file": str(root / "password"),
            "state": str(root / "state"),
            "lock": str(root / "lock"),
            "cache": str(root / "cache"),
            "data_root": str(self.data),
            "textfile": str(root / "metrics"),
            "engine": False,
            **settings,
        }
        (root / "config.json").write_text(json.dumps(self.settings))

    def argv(self, *words: str) -> list[str]:
        return [
            "/usr/bin/python3",
            str(ROOT / "roles/host_snapshots/files/spt-flow-snapshots"),
            f"--config={self.root}/config.json",
            "--json",
            *words,
        ]

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "SPT_FLOW_LIB": str(self.root / "lib")}

    def __call__(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.argv(*words), env=self.env, input=stdin, text=True, capture_output=True, timeout=120)

    def ok(self, *words: str, stdin: str = "") -> dict:
        done = self(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def volume(self, name: str) -> Path:
        path = self.data / f"{BASE}.{BASE}" / "volumes" / f"spt-flow-{name}-home" / "_data"
        path.mkdir(parents=True)
        fill(path)
        return path

    def status(self) -> dict:
        return json.loads((self.root / "state" / "status.json").read_text())

    def restic(self, *words: str) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD_FILE": str(self.root / "password"),
        }
        env["RESTIC_CACHE_DIR"] = str(self.root / "cache")
        return subprocess.run(["restic", *words], env=env, text=True, capture_output=True, timeout=120)

    def started(self) -> Node:
        self.ok("password")
        self.ok("init")
        return self


def fill(home: Path) -> None:
    """Create a home like a remapped workspace's: owners, modes, links, attributes, odd names, an escaping link."""
    (home / "src").mkdir()
    for number in range(50):
        (home / "src" / f"file{number}").write_bytes(os.urandom(200 * number))
    (home / "odd *[x]?\\ name\nwith line").write_text("odd")
    (home / "run").write_text("#!/bin/sh\n")
    os.link(home / "run", home / "run-too")
    os.symlink("/etc", home / "way-out")
    os.symlink("../../../../../../etc/passwd", home / "up")
    for folder, folders, files in os.walk(home):
        for name in folders + files:
            os.lchown(os.path.join(folder, name), BASE + 1000, BASE + 1000)
    os.chown(home, BASE + 1000, BASE + 1000)
    os.chown(home / "src", BASE, BASE + 100_000)
    (home / "run").chmod(0o4711)
    home.chmod(0o750)
    os.setxattr(home / "src", "user.note", b"kept")
    if shutil.which("setfacl"):
        subprocess.run(["setfacl", "-m", f"u:{BASE + 7}:r", str(home / "src" / "file3")], check=True)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path).started()


def loop(tmp_path: Path, kind: str, size: str = "200M") -> Iterator[Path]:
    image, mount = tmp_path / "disk", tmp_path / "mnt"
    mount.mkdir()
    subprocess.run(["truncate", "-s", size, str(image)], check=True)
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    subprocess.run([f"mkfs.{kind}", *(["-q"] if kind != "xfs" else []), str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(mount)], capture_output=True).returncode:
        pytest.skip(f"{kind} on a loop device cannot be mounted here")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.fixture(params=["btrfs", "xfs"])
def freezing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    for mount in loop(tmp_path, request.param, "400M"):
        yield request.param, mount


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    yield from loop(tmp_path, "ext4", "24M")


def test_password_is_created_once_root_only_and_never_shown(tmp_path: Path) -> None:
    node = Node(tmp_path)
    first = node("password")
    secret = (tmp_path / "password").read_text().strip()
    assert (tmp_path / "password").stat().st_mode & 0o777 == 0o600
    assert len(secret) >= 32
    node.volume("a-one")
    outputs = [first, node("init"), node("run"), node("status"), node("password"), node("list")]
    assert all(secret not in done.stdout + done.stderr for done in outputs)
    assert not json.loads(outputs[4].stdout)["changed"]


def test_wrong_password_is_refused(node: Node) -> None:
    before = (node.root / "password").read_text()
    done = node("password", stdin="something else")
    assert done.returncode == 7
    assert "does not open the repository" in done.stderr
    assert "something else" not in done.stdout + done.stderr
    assert (node.root / "password").read_text() == before


def test_restored_files_equal_the_originals(node: Node, tmp_path: Path) -> None:
    home = node.volume("a-one")
    status = node.ok("run")
    assert status["volumes"]["spt-flow-a-one-home"]["last_good"]
    node.restic("restore", "latest", "--target", str(tmp_path / "back"))
    compared, found = differences(str(home), str(tmp_path / "back" / "_data"))
    assert (found, compared > 55) == ([], True)
    assert node.ok("verify")["compared"] == compared
    assert "spt_flow_snapshots_verify_ok 1" in (node.root / "metrics" / "spt_flow_snapshots.prom").read_text()


def test_comparison_finds_every_kind_of_difference(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    fill(tmp_path / "a")
    subprocess.run(["cp", "-a", str(tmp_path / "a"), str(tmp_path / "b")], check=True)
    assert differences(str(tmp_path / "a"), str(tmp_path / "b"))[1] == []
    other = tmp_path / "b" / "src"
    content = bytearray((other / "file9").read_bytes())
    content[5] ^= 1
    times = (other / "file9").stat()
    (other / "file9").write_bytes(content)
    os.utime(other / "file9", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.chown(other / "file8", 5, 5)
    (other / "file7").chmod(0o600)
    os.setxattr(other / "file6", "user.x", b"1")
    (other / "file5").unlink()
    found = " ".join(differences(str(tmp_path / "a"), str(tmp_path / "b"))[1])
    for words in ("file9: content", "file8: owner 5:5", "file7: mode", "file6: extended", "file5: missing"):
        assert words in found


def test_volume_is_read_at_one_instant_where_the_file_system_supports_it(
    freezing: tuple[str, Path], tmp_path: Path
) -> None:
    kind, mount = freezing
    (tmp_path / "n").mkdir()
    node = Node(tmp_path / "n", data_root=mount / "docker").started()
    home = node.volume("a-one")
    (home / "half").write_text("before")
    (volume,) = volumes_.by_name(str(node.data))
    with volumes_.frozen(volume) as (source, how):
        assert how == {"btrfs": "btrfs", "xfs": "reflink"}[kind]
        (home / "half").write_text("after")
        (home / "src" / "file1").unlink()
        assert Path(source, "half").read_text() == "before"
        assert Path(source, "src", "file1").exists()
    assert not (home.parent / volumes_.FROZEN).exists()
    first, second = (node.ok("run")["volumes"]["spt-flow-a-one-home"] for _ in range(2))
    assert (first["source"], first["error"]) == (how, "")
    assert second["added"] < first["added"] / 5
    assert node.ok("verify")["compared"] > 50


def test_unchanged_volume_is_not_stored_again_and_any_change_is_detected(node: Node) -> None:
    home = node.volume("a-one")
    node.ok("run")
    first = node.ok("list")["snapshots"]
    before = node.status()["volumes"]["spt-flow-a-one-home"]["last_good"]
    record = node.ok("run")["volumes"]["spt-flow-a-one-home"]
    assert node.ok("list")["snapshots"] == first
    assert (record["last_good"] > before, record["added"], record["error"]) == (True, 0, "")
    assert first[0]["id"] == record["last_id"][:8]
    node.ok("status")

    def same_size_and_times() -> None:
        found = (home / "src" / "file9").stat()
        (home / "src" / "file9").write_bytes(os.urandom(found.st_size))
        os.utime(home / "src" / "file9", ns=(found.st_atime_ns, found.st_mtime_ns))

    changes = [
        same_size_and_times,
        lambda: (home / "src" / "file8").chmod(0o600),
        lambda: os.lchown(home / "up", BASE + 5, BASE + 5),
        lambda: os.setxattr(home / "run", "user.new", b"1"),
        lambda: (home / "src" / "file7").rename(home / "src" / "file70"),
        (home / "new").mkdir,
        lambda: home.chmod(0o755),
    ]
    seen = {record["last_id"]}
    for change in changes:
        change()
        seen.add(node.ok("run")["volumes"]["spt-flow-a-one-home"]["last_id"])
    assert len(seen) == len(changes) + 1
    node.ok("run", "spt-flow-a-one-home")
    assert len(node.ok("list")["snapshots"]) == len(changes) + 2, "a volume named explicitly is always stored"


def test_snapshot_missing_from_the_repository_is_created_again(node: Node) -> None:
    node.volume("a-one")
    node.ok("run")
    node.restic("forget", node.ok("list")["snapshots"][0]["id"])
    node.ok("run")
    assert len(node.ok("list")["snapshots"]) == 1


def test_leftovers_of_a_killed_run_are_removed_by_the_next(node: Node) -> None:
    home = node.volume("a-one")
    scratch = home.parent / volumes_.FROZEN
    (scratch / "_data").mkdir(parents=True)
    (scratch / "_data" / "junk").write_text("x")
    node.ok("run")
    assert not scratch.exists()


def test_flipped_byte_is_detected(node: Node) -> None:
    node.volume("a-one")
    node.ok("run")
    pack = max((p for p in (node.repository / "data").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    pack.chmod(0o600)
    content = bytearray(pack.read_bytes())
    content[len(content) // 3] ^= 1
    pack.write_bytes(content)
    (node.root / "config.json").write_text(json.dumps({**node.settings, "verify_parts": 1}))
    done = node("verify")
    assert done.returncode == 8, done.stderr
    assert node.status()["verify"]["ok"] is False
    status = node("status")
    assert status.returncode == 8
    assert "The last verification failed" in status.stderr


@pytest.mark.full  # restic may retry for minutes before it gives up
def test_full_disk_fails_the_run_and_keeps_older_snapshots(small: Path, tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    node = Node(tmp_path / "n", repository=small / "repository").started()
    home = node.volume("a-one")
    node.ok("run")
    before = node.ok("list")["snapshots"]
    (home / "big").write_bytes(os.urandom(40 << 20))
    done = node("run")
    assert done.returncode == 1
    assert "no space left" in done.stderr
    record = node.status()["volumes"]["spt-flow-a-one-home"]
    assert record["last_id"].startswith(before[0]["id"])
    assert record["error"]
    assert node.ok("list")["snapshots"] == before
    (home / "big").unlink()
    done = node.restic("restore", before[0]["id"], "--no-lock", "--verify", "--target", str(tmp_path / "back"))
    assert done.returncode == 0, done.stderr
    assert differences(str(home / "src"), str(tmp_path / "back" / "_data" / "src"))[1] == []


def test_run_killed_in_the_middle_keeps_older_snapshots_and_the_next_run_works(node: Node) -> None:
    home = node.volume("a-one")
    node.ok("run")
    before = node.ok("list")["snapshots"]
    for number in range(40):
        (home / f"more{number}").write_bytes(os.urandom(4 << 20))
    process = subprocess.Popen(node.argv("run"), env=node.env, start_new_session=True, stdout=-3, stderr=-3)
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert node.ok("list")["snapshots"] == before
    node.ok("run")
    assert len(node.ok("list")["snapshots"]) == 2
    # restic considers a lock active while the killed process is not yet reaped.
    for _attempt in range(30):
        if node.restic("unlock").returncode == 0 and node.restic("check").returncode == 0:
            break
        time.sleep(1)
    else:
        pytest.fail(node.restic("check").stdout)


def test_runs_never_overlap(node: Node) -> None:
    import fcntl

    with (node.root / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = node("run")
    assert done.returncode == 7
    assert "Another snapshot run" in done.stderr


def test_unreadable_volume_does_not_block_the_others(node: Node) -> None:
    node.volume("a-one")
    home = node.volume("b-two")
    subprocess.run(["mount", "-t", "tmpfs", "none", str(home / "src")], check=True)
    try:
        (home.parent / ".spt-flow-frozen").symlink_to("/nowhere")
        done = node("run")
    finally:
        subprocess.run(["umount", str(home / "src")], check=True)
    assert done.returncode == 1
    records = node.status()["volumes"]
    assert records["spt-flow-a-one-home"]["last_good"]
    assert "last_good" not in records["spt-flow-b-two-home"]


def test_volume_older_than_the_limit_fails_the_status(node: Node) -> None:
    node.volume("a-one")
    node.ok("run")
    node.ok("status")
    path = node.root / "state" / "status.json"
    status = json.loads(path.read_text())
    status["volumes"]["spt-flow-a-one-home"]["last_good"] -= 27 * 3600
    path.write_text(json.dumps(status))
    done = node("status")
    assert done.returncode == 8
    assert "27 h old, the limit is 26 h" in done.stderr


def test_unwritable_or_missing_repository_is_reported(node: Node) -> None:
    node.volume("a-one")
    shutil.rmtree(node.repository)
    done = node("run")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


# On another machine


class Remote(Node):
    """A node whose repository is behind SFTP; ``ssh`` uses the configuration of the test's server."""

    def __init__(self, root: Path, config: Path) -> None:
        super().__init__(root, repository=f"sftp:loopback:{root}/remote")
        (root / "bin").mkdir()
        (root / "bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
        (root / "bin/ssh").chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, "PATH": f"{self.root}/bin:{os.environ['PATH']}"}


def test_sftp_repository_works_like_a_local_one_and_its_absence_is_reported(tmp_path: Path) -> None:
    for name in ("node", "server"):
        (tmp_path / name).mkdir()
    with sshd_harness.sshd(tmp_path / "server") as config:
        node = Remote(tmp_path / "node", config).started()
        home = node.volume("a-one")
        node.ok("run")
        before = node.ok("list")["snapshots"]
        assert node.ok("verify")["compared"] > 50
        assert not node.ok("init")["changed"]
        assert any((tmp_path / "node/remote/data").rglob("*")), "the data was transferred"
        (home / "more").write_text("more")
    done = node("run")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert node.status()["run"]["ok"] is False
    (tmp_path / "again").mkdir()
    with sshd_harness.sshd(tmp_path / "again") as config:
        (tmp_path / "node/bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
        node.ok("run")
        after = node.ok("list")["snapshots"]
        assert [snapshot for snapshot in after if snapshot in before] == [s for s in before if s in after] != []
        assert len(after) > len(before)
        assert node.ok("verify")["compared"] > 50


def test_server_that_dies_in_the_middle_keeps_older_snapshots(tmp_path: Path) -> None:
    for name in ("node", "server", "again"):
        (tmp_path / name).mkdir()
    with sshd_harness.sshd(tmp_path / "server") as config:
        node = Remote(tmp_path / "node", config).started()
        home = node.volume("a-one")
        node.ok("run")
        before = node.ok("list")["snapshots"]
        for number in range(40):
            (home / f"more{number}").write_bytes(os.urandom(4 << 20))
        process = subprocess.Popen(node.argv("run"), env=node.env, stdout=-3, stderr=subprocess.PIPE, text=True)
        data = tmp_path / "node/remote/data"
        size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
        until = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < until:
            if sum(path.stat().st_size for path in data.rglob("*") if path.is_file()) > size + (8 << 20):
                break
            time.sleep(0.02)
        assert process.poll() is None, "the run ended before its server died"
        sshd_harness.hang_up(tmp_path / "server")
        _out, said = process.communicate(timeout=120)
        assert process.returncode == 1, said
        assert "Traceback" not in said
    with sshd_harness.sshd(tmp_path / "again") as config:
        (tmp_path / "node/bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
        assert node.ok("list")["snapshots"] == before
        node.ok("run")
        assert len(node.ok("list")["snapshots"]) == 2
        assert node.ok("verify")["compared"] > 80


# With the real engine


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], text=True, capture_output=True, check=True).stdout.strip()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[tuple[Node, str]]:
    if shutil.which("docker") is None or subprocess.run(["docker", "version"], capture_output=True).returncode:
        pytest.skip("no Docker engine answers")
    name = f"spt-flow-snaptest-{os.getpid()}-home"
    docker("volume", "create", "--label", "spt.flow.owner=snaptest", "--label", "spt.flow.repo=h/o/a,b", name)
    node = Node(tmp_path, engine=True).started()
    fill(Path(docker("volume", "inspect", "-f", "{{.Mountpoint}}", name)))
    yield node, name
    for left in docker("volume", "ls", "-q", "--filter", f"name={name}").split():
        docker("volume", "rm", "-f", left)


def mountpoint(name: str) -> Path:
    return Path(docker("volume", "inspect", "-f", "{{.Mountpoint}}", name))


def test_lost_volume_is_restored_with_its_name_labels_and_owners(engine: tuple[Node, str], tmp_path: Path) -> None:
    node, name = engine
    node.ok("run", name)
    subprocess.run(["cp", "-a", str(mountpoint(name)), str(tmp_path / "was")], check=True)
    docker("volume", "rm", name)
    result = node.ok("restore", name)
    assert (result["into"], result["created"]) == (name, True)
    assert differences(str(tmp_path / "was"), str(mountpoint(name)))[1] == []
    assert docker("volume", "inspect", "-f", '{{index .Labels "spt.flow.repo"}}', name) == "h/o/a,b"


def test_existing_volume_is_replaced_only_with_two_confirmations(engine: tuple[Node, str]) -> None:
    node, name = engine
    node.ok("run", name)
    (mountpoint(name) / "src" / "file1").unlink()
    other = node.ok("restore", name)
    assert other["into"].startswith(f"{name}-restored-")
    assert (mountpoint(other["into"]) / "src" / "file1").exists()
    assert not (mountpoint(name) / "src" / "file1").exists()
    for words in ([], ["--over"], [f"--confirm={name}"], ["--over", "--confirm=other"]):
        done = node("restore", name, f"--into={name}", *words)
        assert (done.returncode, "must be confirmed" in done.stderr) == (7, True)
    node.ok(
        "restore",
        name,
        f"--into={name}",
        "--over",
        f"--confirm={name}",
        "--snapshot",
        node.ok("list", name)["snapshots"][-1]["id"],
    )
    assert (mountpoint(name) / "src" / "file1").exists()
    assert not list(mountpoint(name).parent.glob(".spt-flow*"))


def test_single_file_is_restored_and_never_through_a_link(engine: tuple[Node, str]) -> None:
    node, name = engine
    node.ok("run", name)
    home = mountpoint(name)
    result = node.ok("restore", name, "--path", "src/file9")
    assert (home / result["path"]).read_bytes() == (home / "src" / "file9").read_bytes()
    assert (home / result["path"]).stat().st_uid == BASE + 1000
    again = node("restore", name, "--path", "src/file8")
    assert (again.returncode, "Nothing was changed" in again.stderr) == (7, True)
    shutil.rmtree(home / Path(result["path"]).parent)
    odd = node.ok("restore", name, "--path", "odd *[x]?\\ name\nwith line")
    assert (home / odd["path"]).read_text() == "odd"
    shutil.rmtree(home / Path(odd["path"]).parent)
    os.symlink("/tmp", home / Path(odd["path"]).parent)
    planted = node("restore", name, "--path", "src/file8")
    assert planted.returncode == 7
    assert not Path("/tmp/file8").exists()
    (home / Path(odd["path"]).parent).unlink()
    for path in ("way-out/passwd", "../x", "/etc/passwd", "no-such"):
        assert node("restore", name, "--path", path).returncode in (1, 6)
    link = node.ok("restore", name, "--path", "way-out")
    assert (home / link["path"]).is_symlink()


def test_volume_in_use_is_never_replaced(engine: tuple[Node, str]) -> None:
    node, name = engine
    image = docker("images", "-q").splitlines()
    if not image:
        pytest.skip("the engine has no image")
    node.ok("run", name)
    container = docker("run", "-d", "-v", f"{name}:/home/coder", "--network=none", "--entrypoint=sleep", image[0], "60")
    try:
        done = node("restore", name, f"--into={name}", "--over", f"--confirm={name}")
    finally:
        docker("rm", "-f", container)
    assert done.returncode == 7
    assert "is in use by" in done.stderr


def test_labels_decide_what_is_snapshotted(engine: tuple[Node, str]) -> None:
    node, name = engine
    other = f"{name}-cache"
    docker("volume", "create", "--label", "spt.flow.owner=snaptest", "--label", "spt.flow.snapshot=no", other)
    volumes = node.ok("run", name)["volumes"]
    assert name in volumes
    assert other not in volumes
    assert node("run", other).returncode == 6
