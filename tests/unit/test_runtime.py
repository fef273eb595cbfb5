# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtime spt-flow: how it changes a bundle and calls runc, which is a recorder here."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "roles/host_docker/files/spt-flow-runc"
MAPPINGS = [{"containerID": 0, "hostID": 1000000, "size": 1048576}]
GROUPS = [{"containerID": 0, "hostID": 2000000, "size": 65536}, {"containerID": 65536, "hostID": 3000000, "size": 9}]
CREATE = ["--root", "/run/docker", "--log-format", "json", "create", "--bundle"]

SETPRIV = """#!/bin/sh
# Instead of a holder in a user namespace: a process whose files below /proc are ordinary ones.
[ ! -e {folder}/refused ] || exit 1
echo "$*" >>{folder}/setpriv.called
mkdir -p {folder}/proc/$$/ns
: >{folder}/proc/$$/ns/user
exec sleep 60
"""


class Runtime:
    """A copy of the script that finds its fake runc and its configuration below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "bundle with a space"
        self.bundle.mkdir()
        self.called = folder / "called"
        self.environment = folder / "runtime.env"
        self.audit = folder / "audit-id.sh"
        self.program = folder / "spt-flow-runc"
        text = SOURCE.read_text()
        for old, new in {
            "PATH=/usr/local/sbin:": f"PATH={folder}:/usr/local/sbin:",
            "/etc/spt-flow/runtime.env": str(self.environment),
            "/usr/local/lib/spt-flow/audit-id.sh": str(self.audit),
            "/usr/local/lib/spt-flow/spt-flow-disk": str(folder / "disk"),
            "/run/spt-flow/disk": str(folder / "disks"),
            "/proc/$holder/": f"{folder}/proc/$holder/",
            "/sys/class/net/spt-flow0/": f"{folder}/",
        }.items():
            assert old in text
            text = text.replace(old, new)
        self._write(self.program, text)
        self._write(folder / "setpriv", SETPRIV.format(folder=folder))
        self._write(folder / "runc", f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {self.called}\nexit 7\n")

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def config(self, uid_mappings: bool = True, pids: int | None = None, env: tuple[str, ...] = ()) -> None:
        """Return a config.json as the engine writes it: one line, no blanks."""
        linux: dict[str, Any] = {
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                **({"pids": {"limit": pids}} if pids else {}),
            },
            "namespaces": [{"type": "mount"}, {"type": "user"}, {"type": "pid"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys"],
        }
        if uid_mappings:
            linux = {"uidMappings": MAPPINGS, "gidMappings": GROUPS, **linux}
        mounts = [{"destination": "/dev/pts", "type": "devpts", "options": ["nosuid", "newinstance", "mode=0620"]}]
        process = {"env": list(env), "args": ["sh"]}
        content = {"ociVersion": "1.0.2", "process": process, "mounts": mounts, "linux": linux}
        (self.bundle / "config.json").write_text(json.dumps(content, separators=(",", ":")))

    def linux(self) -> dict[str, Any]:
        """Return the bundle's current content; a user namespace created for it is shown without a path."""
        found: dict[str, Any] = self.content()["linux"]
        for namespace in found["namespaces"]:
            if namespace["type"] == "user":
                namespace.pop("path", None)
        return found

    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())
        return found

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = ["/bin/sh", str(self.program), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, cwd=self.folder)

    def words(self) -> list[str] | None:
        """Return the arguments of runc; empty if it was not called."""
        return self.called.read_text().split("\0")[:-1] if self.called.exists() else None


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(tmp_path)


@pytest.mark.parametrize("verb", ["create", "run"])
def test_create_unmasks_proc_and_keeps_the_rest(runtime: Runtime, verb: str) -> None:
    runtime.config(env=("A=1",))
    before = runtime.linux()
    assert runtime.run("--root", "/run/docker", verb, "--bundle", str(runtime.bundle), "x1").returncode == 7
    assert runtime.linux() == {**before, "maskedPaths": [], "readonlyPaths": []}
    assert runtime.words() == ["--root", "/run/docker", verb, "--bundle", str(runtime.bundle), "x1"]


def test_proc_stays_masked_without_docker_inside(runtime: Runtime) -> None:
    runtime.config(env=("SPT_FLOW_DOCKER=off",))
    before = runtime.linux()
    runtime.run(*CREATE, str(runtime.bundle), "x1")
    assert runtime.linux() == before
    runtime.config(env=('X="SPT_FLOW_DOCKER=off"', "SPT_FLOW_DOCKER=on"))
    runtime.run(*CREATE, str(runtime.bundle), "x1")
    assert runtime.linux()["maskedPaths"] == []


def test_only_start_isolates_every_port_of_the_bridge(runtime: Runtime) -> None:
    ports = [runtime.folder / "brif" / name / "isolated" for name in ("veth1", "veth2")]
    for port in ports:
        port.parent.mkdir(parents=True)
        port.write_text("0\n")
    runtime.run("--root", "/r", "kill", "start", "9")
    assert [port.read_text() for port in ports] == ["0\n", "0\n"]
    assert runtime.run("--root", "/r", "start", "x1").returncode == 7
    assert [port.read_text() for port in ports] == ["1\n", "1\n"]


@pytest.mark.parametrize("option", [["--bundle={}"], ["--bundle", "{}"], ["-b", "{}"]])
def test_bundle_is_found_in_every_notation(runtime: Runtime, option: list[str]) -> None:
    runtime.config()
    runtime.run("create", *(word.format(runtime.bundle) for word in option), "--pid-file", "create", "x1")
    assert runtime.linux()["maskedPaths"] == []


def test_process_limit_of_the_node_applies_to_containers_without_one(runtime: Runtime) -> None:
    runtime.environment.write_text("PIDS_LIMIT=4096\n")
    runtime.config()
    runtime.run(*CREATE, str(runtime.bundle), "x1")
    assert runtime.linux()["resources"]["pids"] == {"limit": 4096}
    runtime.config(pids=99)
    runtime.run(*CREATE, str(runtime.bundle), "x1")
    assert runtime.linux()["resources"]["pids"] == {"limit": 99}


def test_no_process_limit_is_added_without_one_of_the_node(runtime: Runtime) -> None:
    runtime.config()
    runtime.run(*CREATE, str(runtime.bundle), "x1")
    assert "pids" not in runtime.linux()["resources"]


@pytest.mark.parametrize(
    "variable", ["", 'X="uidMappings":[{"containerID":0}]', '"uidMappings":[{', 'X=","linux":{"uidMappings":[{']
)
def test_bundle_without_a_user_namespace_is_refused(runtime: Runtime, variable: str) -> None:
    runtime.config(uid_mappings=False, env=(variable,))
    before = (runtime.bundle / "config.json").read_text()
    done = runtime.run(*CREATE, str(runtime.bundle), "x1")
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert "userns-remap" in done.stderr
    assert runtime.words() is None
    assert (runtime.bundle / "config.json").read_text().strip() == before


def test_variable_cannot_imitate_a_limit(runtime: Runtime) -> None:
    runtime.environment.write_text("PIDS_LIMIT=4096\n")
    runtime.config(env=('X="pids":{"limit":-1}',))
    runtime.run(*CREATE, str(runtime.bundle), "x1")
    assert runtime.linux()["resources"]["pids"] == {"limit": 4096}


def test_missing_bundle_is_refused(runtime: Runtime) -> None:
    assert runtime.run(*CREATE, str(runtime.folder / "none"), "x1").returncode == 1
    assert runtime.words() is None


@pytest.mark.parametrize(
    "words",
    [
        ["--root", "/r", "start", "x1"],
        ["--root", "/r", "exec", "--process", "/tmp/create", "--detach", "--pid-file", "/tmp/a b", "x1"],
        ["exec", "-e", "A=b c", "-u", "1000", "x1", "sh", "-c", "echo 'a  b' \"$c\" *"],
        ["kill", "--all", "x1", "9"],
        ["delete", "--force", "x1"],
        ["--version"],
        [],
        ["state", ""],
    ],
)
def test_other_calls_reach_runc_unchanged(runtime: Runtime, words: list[str]) -> None:
    assert runtime.run(*words).returncode == 7
    assert runtime.words() == (words or [""])


def test_audit_numbers_are_set_where_installed(runtime: Runtime) -> None:
    said = runtime.folder / "audit"
    runtime.audit.write_text(
        f'spt_flow_audit_create() {{ echo "create $1 $2" >> "{said}"; }}\n'
        f'spt_flow_audit_exec() {{ echo "exec $1" >> "{said}"; }}\n'
    )
    runtime.config()
    runtime.run(*CREATE, str(runtime.bundle), "x1")
    runtime.run("--root", "/r", "exec", "--process", "/tmp/p", "x2")
    runtime.run("--root", "/r", "kill", "x3", "9")
    assert said.read_text().splitlines() == [f"create {runtime.bundle} x1", "exec x2"]


def test_nothing_starts_without_its_audit_number(runtime: Runtime) -> None:
    runtime.audit.write_text("spt_flow_audit_create() { return 1; }\nspt_flow_audit_exec() { return 1; }\n")
    runtime.config()
    assert runtime.run(*CREATE, str(runtime.bundle), "x1").returncode == 1
    assert runtime.run("exec", "x1", "true").returncode == 1
    assert runtime.words() is None


# User namespaces and limits


def ended(process: int) -> bool:
    """Return whether it has ended, reaped or not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(("name", "owner"), [("0a96a78cffc1", 0x70A96A78), ("fffffffff", 0x7FFFFFFF)])
def test_each_container_gets_a_user_namespace_of_its_own(runtime: Runtime, name: str, owner: int) -> None:
    runtime.config()
    assert runtime.run(*CREATE, str(runtime.bundle), name).returncode == 7
    assert f"--reuid={owner} --regid={owner} --clear-groups" in (runtime.folder / "setpriv.called").read_text()
    (holder,) = (runtime.folder / "proc").iterdir()
    assert (holder / "uid_map").read_text() == "0 1000000 1048576\n"
    assert (holder / "gid_map").read_text() == "0 2000000 65536\n65536 3000000 9\n"
    assert ended(int(holder.name)), "the holder process survives the call"
    (path,) = [space["path"] for space in runtime.content()["linux"]["namespaces"] if "path" in space]
    assert re.fullmatch(r"/proc/\d+/fd/8", path)


def test_container_does_not_inherit_the_namespace_descriptor(runtime: Runtime) -> None:
    runtime.config()
    said = runtime.folder / "descriptors"
    (runtime.folder / "runc").write_text(f"#!/bin/sh\n[ -e /proc/$PPID/fd/8 ] && ls /proc/self/fd >{said}\n")
    runtime.run(*CREATE, str(runtime.bundle), "abcdef0")
    assert "8" not in said.read_text().split()


@pytest.mark.parametrize("name", ["x1", "abc", "../../etc", "0x12345678"])
def test_container_with_another_name_gets_a_namespace_too(runtime: Runtime, name: str) -> None:
    runtime.config()
    assert runtime.run(*CREATE, str(runtime.bundle), name).returncode == 7
    assert re.search(r"--reuid=1[89]\d{8} ", (runtime.folder / "setpriv.called").read_text())


def test_engine_is_told_why_no_namespace_could_be_created(runtime: Runtime) -> None:
    runtime.config()
    (runtime.folder / "refused").touch()
    log = runtime.folder / "log.json"
    done = runtime.run("--root", "/r", "--log", str(log), "create", "--bundle", str(runtime.bundle), "x1")
    assert (done.returncode, runtime.words()) == (1, None)
    said = json.loads(log.read_text())
    assert said["level"] == "error"
    assert "no user namespace can be made" in said["msg"] and "max_user_namespaces" in said["msg"]


def test_terminals_and_open_files_have_the_limits_of_the_node(runtime: Runtime) -> None:
    runtime.environment.write_text("FILES_LIMIT=99\nTERMINALS_LIMIT=7\n")
    runtime.config(env=('X="newinstance",',))
    said = runtime.folder / "files"
    (runtime.folder / "runc").write_text(f"#!/bin/sh\nulimit -Hn >>{said}; ulimit -Sn >>{said}\n")
    runtime.run(*CREATE, str(runtime.bundle), "x1")
    runtime.run("exec", "x1", "true")
    assert said.read_text().split() == ["99"] * 4
    assert runtime.content()["mounts"][0]["options"] == ["nosuid", "newinstance", "max=7", "mode=0620"]
    assert runtime.content()["process"]["env"] == ['X="newinstance",']


# Sizes of volumes


class Sized:
    """The runtime with a disk program and a runc that both record their calls."""

    def __init__(self, runtime: Runtime, attach: str = "exit 0") -> None:
        self.runtime, self.calls = runtime, runtime.folder / "calls"
        runtime._write(
            runtime.folder / "disk",
            f'#!/bin/sh\necho "disk $*" >>{self.calls}\n[ "$1" != attach ] || {{ {attach}; }}\n',
        )
        self.runc()

    def runc(self, status: int = 0) -> None:
        self.runtime._write(self.runtime.folder / "runc", f'#!/bin/sh\necho "runc $*" >>{self.calls}\nexit {status}\n')

    def volumes(self) -> None:
        self.runtime.config()
        path = self.runtime.bundle / "config.json"
        config = json.loads(path.read_text())
        config["mounts"] = [
            {"destination": "/home/coder", "type": "bind", "source": "/x/volumes/spt-flow-a-home/_data"}
        ]
        path.write_text(json.dumps(config, separators=(",", ":")))

    def create(self) -> int:
        return self.runtime.run(*CREATE, str(self.runtime.bundle), "x1").returncode

    def called(self) -> list[str]:
        """Return which programs were called with which of their arguments, in order."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [" ".join(word for word in line.split() if word in VERBS) for line in lines]


VERBS = ("disk", "runc", "attach", "detach", "create", "delete", "x1")


def test_sizes_are_set_before_runc_and_kept_with_the_container(runtime: Runtime) -> None:
    sized = Sized(runtime)
    sized.volumes()
    assert sized.create() == 0
    assert sized.called() == ["disk attach x1 create x1", "runc create x1"]
    assert str(runtime.bundle) in sized.calls.read_text()


@pytest.mark.parametrize("env", [("SPT_FLOW_DISK=1000",), ("A=1", "SPT_FLOW_DISK=1000")])
def test_container_without_volumes_gets_its_size_from_the_environment(runtime: Runtime, env: tuple[str, ...]) -> None:
    sized = Sized(runtime)
    runtime.config(env=env)
    assert sized.create() == 0
    assert sized.called()[0] == "disk attach x1 create x1"
    assert runtime.linux()["maskedPaths"] == [], "the rest of the bundle is edited too"


@pytest.mark.parametrize("env", [(), ("SPT_FLOW_DISK=0",), ('A="SPT_FLOW_DISK=1000',), ("XSPT_FLOW_DISK=1000",)])
def test_other_containers_start_no_further_program(runtime: Runtime, env: tuple[str, ...]) -> None:
    sized = Sized(runtime)
    runtime.config(env=env)
    assert sized.create() == 0 and sized.called() == ["runc create x1"]
    assert runtime.run("delete", "x1").returncode == 0 and sized.called()[1:] == ["runc delete x1"]


def test_container_that_cannot_be_created_leaves_nothing_mounted(runtime: Runtime) -> None:
    sized = Sized(runtime)
    sized.runc(3)
    sized.volumes()
    assert sized.create() == 3, "runc's own status"
    assert sized.called() == ["disk attach x1 create x1", "runc create x1", "disk detach x1"]


def test_limit_that_cannot_be_set_is_reported_to_the_engine(runtime: Runtime, tmp_path: Path) -> None:
    sized = Sized(runtime, attach="echo The disk is full. >&2; exit 1")
    sized.volumes()
    log = tmp_path / "log.json"
    done = runtime.run("--log", str(log), *CREATE, str(runtime.bundle), "x1")
    assert done.returncode == 1 and "The disk is full." in done.stderr
    assert json.loads(log.read_text())["msg"] == "spt-flow: The disk is full."
    assert sized.called() == ["disk attach x1 create x1"], "runc was not called"


def test_mounts_are_removed_after_runc_has_deleted_the_container(runtime: Runtime) -> None:
    sized = Sized(runtime)
    (runtime.folder / "disks").mkdir()
    (runtime.folder / "disks/x1").touch()
    assert runtime.run("--root", "/run/x", "delete", "--force", "x1").returncode == 0
    assert sized.called() == ["runc delete x1", "disk detach x1"]
    sized.runc(1)
    assert runtime.run("delete", "x1").returncode == 1


def test_workspace_learns_whether_the_node_records_its_commands(runtime: Runtime) -> None:
    calls = "spt_flow_audit_create() { return 0; }\n"
    for active, expected in (("return 0", ["SPT_FLOW_AUDIT=on"]), ("return 1", [])):
        runtime.audit.write_text(f"{calls}spt_flow_audit_active() {{ {active}; }}\n")
        env = ["A=1", "SPT_FLOW_OWNER=ada", 'X="env":[']
        runtime.config(env=tuple(env))
        assert runtime.run(*CREATE, str(runtime.bundle), "x1").returncode == 7
        assert runtime.content()["process"]["env"] == [*expected, *env]
    runtime.audit.write_text(calls)
    runtime.config(env=("SPT_FLOW_OWNER=ada",))
    assert runtime.run(*CREATE, str(runtime.bundle), "x1").returncode == 7, "an older program does not report it"
    runtime.audit.write_text(f"{calls}spt_flow_audit_active() {{ return 0; }}\n")
    runtime.config()
    runtime.run(*CREATE, str(runtime.bundle), "x1")
    assert runtime.content()["process"]["env"] == [], "other containers are unchanged"
