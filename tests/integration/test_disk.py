# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk limits of a workspace on a real engine: what fills up, what survives, what is left behind."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.tests.integration import second_engine
from ansible_collections.spt.flow.tests.integration.second_engine import SecondEngine
from ansible_collections.spt.flow.tests.integration.test_snapshots import Node

MIB = 1 << 20
SIZES = {"SPT_FLOW_DISK": 400 * MIB, "SPT_FLOW_DOCKER_DISK": 300 * MIB}
PLACES = {"/home/coder": 400, "/var/lib/spt-flow-docker": 300, "/var": 400}
FULL = "No space left on device"
LEFT = [".spt-flow-disk.new", ".spt-flow-disk.staging", ".spt-flow-disk.next"]
STEPS = ["begun", "made", "copied", "prepared", "named", "exchanged"]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("dockerd") is None, reason="needs root and the Docker engine's program"
)


@pytest.fixture(scope="module")
def engine() -> Iterator[SecondEngine]:
    with second_engine.second_engine() as found:
        yield found


class Box:
    """A container with the volumes of a workspace, like target docker and the template create."""

    def __init__(self, engine: SecondEngine) -> None:
        self.engine, self.name = engine, f"spt-flow-box-{secrets.token_hex(3)}"
        self.volumes = {f"{self.name}-home": "/home/coder", f"{self.name}-docker": "/var/lib/spt-flow-docker"}

    def create(self, sizes: dict[str, int] | None = None, runtime: str = "spt-flow", name: str = "") -> None:
        words = [word for volume, path in self.volumes.items() for word in ("--volume", f"{volume}:{path}")]
        words += [w for key, size in (SIZES if sizes is None else sizes).items() for w in ("--env", f"{key}={size}")]
        argv = [
            "create",
            "--env",
            "HOME=/home/coder",
            "--name",
            name or self.name,
            "--runtime",
            runtime,
            "--network",
            "none",
            "--user",
            "1000",
        ]
        self.engine.docker(*argv, *words, second_engine.IMAGE, "sh", "-c", "while :; do sleep 1; done")

    def up(self, sizes: dict[str, int] | None = None) -> None:
        self.create(sizes)
        self.engine.docker("start", self.name)

    def run(self, script: str, user: str = "1000", check: bool = True) -> str:
        done = self.engine.docker("exec", "--user", user, self.name, "sh", "-c", script, check=check)
        return done.stdout + done.stderr

    def data(self, part: str = "home") -> Path:
        found = self.engine.docker("volume", "inspect", "--format", "{{.Mountpoint}}", f"{self.name}-{part}")
        return Path(found.stdout.strip())

    def images(self) -> list[Path]:
        """Return the files that hold what this container has written."""
        upper = self.engine.docker("inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", self.name).stdout.strip()
        folders = [self.data().parent, self.data("docker").parent, Path(upper).parent]
        return [folder / ".spt-flow-disk.ext4" for folder in folders]

    def delete(self) -> None:
        self.engine.docker("rm", "--force", self.name)
        self.engine.docker("volume", "rm", *self.volumes)

    def listed(self) -> str:
        """Return the size of the home in the engine's list of volumes."""
        found = self.engine.docker("system", "df", "--verbose", "--format", "{{json .Volumes}}").stdout
        entries = [entry for entry in json.loads(found) if entry["Name"] == f"{self.name}-home"]
        return str(entries[0]["Size"])


@pytest.fixture
def box(engine: SecondEngine) -> Iterator[Box]:
    found = Box(engine)
    yield found
    engine.docker("rm", "--force", found.name, check=False)
    engine.docker("volume", "rm", "--force", *found.volumes, check=False)
    assert traces(engine) == []


def traces(engine: SecondEngine) -> list[str]:
    """Return mounts, loop devices, records and files that disk limits have left with this engine."""
    found = list(map(str, engine.data.rglob(".spt-flow-*")))
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [line for line in lines if "/dev/loop" in line and str(engine.data) in line]
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        text = entry.read_text()
        found += [text] if str(engine.data) in text else []
    return found + ([entry.name for entry in engine.records.iterdir()] if engine.records.exists() else [])


@pytest.mark.parametrize("place", PLACES)
def test_full_workspace_gets_no_space_left_and_others_are_unaffected(box: Box, place: str) -> None:
    box.up()
    neighbour = Box(box.engine)
    neighbour.up()
    try:
        said = box.run(f"dd if=/dev/zero of={place}/filler bs=1M count=1000", user="0", check=False)
        assert FULL in said, said
        taken = sum(path.stat().st_blocks * 512 for path in box.images())
        assert 250 * MIB < taken < (PLACES[place] + 32) * MIB
        assert not (box.data() / "filler").exists() or os.path.ismount(box.data())
        others = [other for other in PLACES if other != place and {other, place} != {"/var", "/"}]
        for other in others:
            box.run(f"dd if=/dev/zero of={other}/small bs=1M count=20", user="0")
        for other in PLACES:
            neighbour.run(f"dd if=/dev/zero of={other}/small bs=1M count=100", user="0")
    finally:
        neighbour.delete()
        box.delete()


@pytest.mark.parametrize("file", ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"])
def test_files_of_the_engine_count_towards_the_limit(box: Box, file: str) -> None:
    box.up()
    refused = box.run(f"dd if=/dev/zero of={file} bs=1M count=1000", user="0", check=False)
    assert ("Read-only file system" if file == "/etc/resolv.conf" else FULL) in refused


def test_many_small_files_reach_the_limit(box: Box) -> None:
    box.up()
    said = box.run("cd; i=0; while : >f$i; do i=$((i+1)); [ $i -lt 60000 ] || break; done", check=False)
    assert FULL in said


def test_home_survives_stop_kill_and_restarts_of_the_engine(box: Box) -> None:
    engine = box.engine
    box.up()
    box.run("echo kept >~/file; ln -s file ~/link")
    box.run("echo kept >/var/own", user="0")

    def kept() -> bool:
        return box.run("cat ~/file ~/link ~/.profile /var/own") == "kept\nkept\nfrom the image\nkept\n"

    engine.docker("stop", "--time", "1", box.name)
    assert traces(engine) and all("/dev/loop" not in line for line in traces(engine)), "nothing stays mounted"
    engine.docker("start", box.name)
    assert kept()
    engine.docker("kill", box.name)
    engine.docker("start", box.name)
    assert kept()
    engine.stop()
    engine.start()
    assert kept()
    engine.stop(signal.SIGKILL)
    engine.start()
    assert kept()
    engine.docker("restart", "--time", "1", box.name)
    assert kept()
    engine.docker("rm", "--force", box.name)
    box.up()
    assert box.run("cat ~/file ~/link") == "kept\nkept\n"


def test_home_is_found_after_a_crash_of_the_machine(box: Box) -> None:
    """After a crash nothing is mounted and nothing is recorded."""
    engine = box.engine
    box.up()
    box.run("echo kept >~/file; sync")
    engine.docker("kill", box.name)
    for record in engine.records.iterdir():
        record.unlink()
    engine.docker("start", box.name)
    assert box.run("cat ~/file") == "kept\n"


def test_mounts_of_a_lost_runtime_are_removed_at_the_next_start(box: Box) -> None:
    engine = box.engine
    box.up()
    data = box.data()
    record = next(engine.records.iterdir())
    text = record.read_text()
    engine.docker("rm", "--force", box.name)
    record.write_text(text)
    subprocess.run([sys.executable, "-c", ATTACH, engine.folder / "lib", data, str(400 * MIB)], check=True, timeout=60)
    assert os.path.ismount(data)
    other = Box(engine)
    other.up()
    other.delete()
    assert not os.path.ismount(data) and not record.exists()


ATTACH = (
    "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from spt_flow_node.disk import image;"
    "image.attach(Path(sys.argv[2]), int(sys.argv[3]))"
)
KILLED = (
    "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
    "from spt_flow_node.disk import image\n"
    "image.step = lambda name: name == sys.argv[4] and os.kill(os.getpid(), signal.SIGKILL)\n"
    "image.attach(Path(sys.argv[2]), int(sys.argv[3]))"
)


def summed(box: Box) -> str:
    script = "cd; find . ! -name lost+found -exec stat -c '%n %f %u:%g %Y %h' {} +; find . -type f -exec sha256sum {} +"
    return "\n".join(sorted(box.run(script).splitlines()))


@pytest.mark.parametrize("step", STEPS)
def test_existing_home_is_migrated_and_a_kill_at_any_step_loses_nothing(box: Box, step: str) -> None:
    engine = box.engine
    box.create(sizes={}, runtime="runc")
    engine.docker("start", box.name)
    box.run(
        "cd; mkdir -p a/b; echo x >a/b/file; ln a/b/file hard; ln -s a/b/file soft; truncate -s 50M sparse;"
        "dd if=/dev/urandom of=random bs=1M count=20; mkdir empty; : >'odd name'"
    )
    before = summed(box)
    engine.docker("rm", "--force", box.name)
    argv = [sys.executable, "-c", KILLED, str(engine.folder / "lib"), str(box.data()), str(400 * MIB), step]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done
    box.up()
    assert summed(box) == before
    assert "400.0M" not in box.run("df -h /home/coder") and "/dev/loop" in box.run("df /home/coder")
    assert not any((box.data().parent / name).exists() for name in LEFT)


def test_container_from_before_the_migration_sees_the_home(box: Box) -> None:
    """A failed restart puts the old container back, which has no sizes."""
    box.up()
    box.run("echo kept >~/file")
    box.engine.docker("rm", "--force", box.name)
    box.up(sizes={})
    assert box.run("cat ~/file") == "kept\n"


def test_home_larger_than_its_limit_is_migrated_completely(box: Box) -> None:
    engine = box.engine
    box.create(sizes={}, runtime="runc")
    engine.docker("start", box.name)
    box.run("dd if=/dev/urandom of=/home/coder/big bs=1M count=300")
    before = summed(box)
    engine.docker("rm", "--force", box.name)
    box.up(sizes={"SPT_FLOW_DISK": 256 * MIB})
    assert summed(box) == before


def test_home_used_by_another_container_is_not_migrated(box: Box) -> None:
    engine = box.engine
    box.create(sizes={}, runtime="runc", name=f"{box.name}-other")
    engine.docker("start", f"{box.name}-other")
    try:
        box.create()
        done = engine.docker("start", box.name, check=False)
        assert done.returncode and "a container without a size limit uses it" in done.stderr
        assert "exit status" not in done.stderr and "Traceback" not in done.stderr
    finally:
        engine.docker("rm", "--force", f"{box.name}-other")
    engine.docker("start", box.name)


def test_files_copied_into_a_stopped_home_are_found(box: Box, tmp_path: Path) -> None:
    """The client uploads a local repository before the start."""
    box.up()
    box.run("mkdir -p ~/.cache/seeds; echo mine >~/.cache/seeds/mine; echo old >~/file")
    box.engine.docker("stop", "--time", "1", box.name)
    (tmp_path / ".cache/seeds").mkdir(parents=True)
    (tmp_path / ".cache/seeds/bundle").write_text("new\n")
    (tmp_path / "file").write_text("new\n")
    for name in (".cache", "file"):
        box.engine.docker("cp", str(tmp_path / name), f"{box.name}:/home/coder/")
    box.engine.docker("start", box.name)
    assert box.run("cd ~/.cache/seeds; cat mine bundle; cat ~/file") == "mine\nnew\nnew\n"
    assert box.run("cat ~/file.~1~") == "old\n", "nothing is overwritten"


def test_link_in_the_home_cannot_redirect_a_copy(box: Box, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    (outside / "file").write_text("untouched")
    box.up()
    box.run(f"ln -s {outside} ~/folder; ln -s {outside}/file ~/file")
    box.engine.docker("stop", "--time", "1", box.name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/new").write_text("new")
    (tmp_path / "file").write_text("new")
    data = box.data()
    subprocess.run(["cp", "-a", tmp_path / "folder", tmp_path / "file", data], check=True, timeout=60)
    box.engine.docker("start", box.name)
    assert (outside / "file").read_text() == "untouched" and [p.name for p in outside.iterdir()] == ["file"]


def test_failed_start_leaves_nothing_mounted(box: Box) -> None:
    box.create(sizes={"SPT_FLOW_DISK": 1 << 50})
    done = box.engine.docker("start", box.name, check=False)
    assert "Cannot limit the disk" in done.stderr and "disk=0" in done.stderr
    assert all("/dev/loop" not in line for line in traces(box.engine))


def test_engine_reports_the_size_of_running_and_stopped_homes(box: Box) -> None:
    box.up()
    box.run("dd if=/dev/urandom of=/home/coder/big bs=1M count=100; sync")
    running = box.listed()
    box.engine.docker("stop", "--time", "1", box.name)
    for found in (running, box.listed()):
        assert found.endswith("MB") and 100 <= float(found[:-2]) < 112, (running, found)


def test_deleted_file_returns_its_space_to_the_node(box: Box) -> None:
    box.up()
    image = box.data().parent / ".spt-flow-disk.ext4"
    box.run("dd if=/dev/urandom of=/home/coder/big bs=1M count=200; sync")
    full = image.stat().st_blocks * 512
    box.run("rm ~/big; sync")
    box.engine.docker("stop", "--time", "1", box.name)
    assert full > 200 * MIB and image.stat().st_blocks * 512 < 50 * MIB


def test_larger_limit_is_applied_and_removed_limit_keeps_the_home(box: Box) -> None:
    box.up()
    box.run("echo kept >~/file")
    box.engine.docker("rm", "--force", box.name)
    box.up(sizes={"SPT_FLOW_DISK": 800 * MIB})
    total = int(box.run("df -m /home/coder").splitlines()[1].split()[1])
    # Growing a mounted file system needs a capability that some test machines lack.
    grows = int(Path("/proc/self/status").read_text().partition("CapEff:\t")[2].split()[0], 16) >> 24 & 1
    assert total > 700 if grows else total > 300
    box.engine.docker("rm", "--force", box.name)
    box.up(sizes={"SPT_FLOW_DISK": 0})
    assert box.run("cat ~/file") == "kept\n"


@pytest.mark.skipif(shutil.which("restic") is None, reason="needs restic (apt-get install restic)")
def test_home_is_snapshotted_and_restored(box: Box, tmp_path: Path) -> None:
    """Running, stopped and unchanged; one path, and the whole home in place."""
    engine, home = box.engine, f"{box.name}-home"
    engine.docker("volume", "create", "--label", "spt.flow.owner=box", home)
    node = Node(tmp_path, data_root=engine.data, engine=True, socket=str(engine.socket))
    node.ok("setup")
    box.up()
    box.run("echo first >~/file; mkdir ~/folder; echo kept >~/folder/kept")
    running = node.ok("run")["volumes"][home]
    assert running["files"] >= 3 and not running["error"]
    box.run("echo second >~/file")
    engine.docker("stop", "--time", "1", box.name)
    stopped = node.ok("run")["volumes"][home]
    assert stopped["files"] == running["files"] and stopped["last_id"] != running["last_id"]
    assert all("/dev/loop" not in line for line in traces(engine)), "nothing stays mounted"
    assert node.ok("run")["volumes"][home]["last_id"] == stopped["last_id"], "unchanged on any device"
    assert node.ok("verify")["ok"]
    # One path into the stopped home, which is another file system than the staging directory.
    node.ok("restore", home, "--snapshot", running["last_id"][:8], "--path", "folder/kept")
    engine.docker("start", box.name)
    assert box.run("cat ~/file ~/restored-*/kept; stat -c %u ~/restored-*") == "second\nkept\n1000\n"
    assert node.ok("run")["volumes"][home]["files"] == running["files"] + 1
    # The whole home
    refused = node("restore", home, "--snapshot", running["last_id"][:8], "--into", home, "--over", "--confirm", home)
    assert refused.returncode and "in use" in refused.stderr
    engine.docker("stop", "--time", "1", box.name)
    node.ok("restore", home, "--snapshot", running["last_id"][:8], "--into", home, "--over", "--confirm", home)
    engine.docker("start", box.name)
    assert box.run("cat ~/file ~/folder/kept; ls ~") == "first\nkept\nfile\nfolder\n"
    assert "/dev/loop" in box.run("df /home/coder")


def test_killed_snapshot_leaves_nothing_mounted_and_blocks_no_start(box: Box, tmp_path: Path) -> None:
    box.up()
    box.run("echo kept >~/file")
    engine = box.engine
    engine.docker("stop", "--time", "1", box.name)
    script = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from spt_flow_node.disk import image\n"
        "with image.opened(Path(sys.argv[2])):\n"
        "    print(Path(sys.argv[2], 'file').read_text(), end='', flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", script, str(engine.folder / "lib"), str(box.data())]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "kept\n"
        assert not os.path.ismount(box.data())
        engine.docker("start", box.name)
        box.run("echo more >>~/file; sync")
        used = subprocess.run(["losetup", "--associated", box.images()[0]], capture_output=True, text=True, check=True)
        assert len(used.stdout.splitlines()) == 1, "a file behind two devices is destroyed"
        engine.docker("stop", "--time", "1", box.name)
        reader.kill()
    engine.docker("start", box.name)
    assert box.run("cat ~/file") == "kept\nmore\n"
    engine.docker("rm", "--force", box.name)
