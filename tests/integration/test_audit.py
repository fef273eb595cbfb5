# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit trail with the real kernel, daemon and remapped containers: it records root's commands by workspace.

The kernel has one audit system. These tests refuse to run where a daemon is active, and remove their rules and daemon.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jinja2
import pytest
import yaml
from ansible_collections.spt.flow.tests.integration import agent_harness
from ansible_collections.spt.flow.tests.integration.test_agent import ROOTFS

ROOT = Path(__file__).parents[2]
FILES = ROOT / "roles/host_audit/files"
BASE = 1_000_000
IMAGE = "spt-flow-audit-test:2"
DOCKERFILE = """\
FROM {base}
RUN apt-get update && apt-get install -y --no-install-recommends sudo python3 libcap2-bin && apt-get clean \
 && useradd -m -u 1000 coder && echo 'coder ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/coder
"""


def run(*argv: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, text=True, capture_output=True, **more)  # type: ignore[call-overload, no-any-return]


def docker(*words: str, **more: object) -> str:
    done = run("docker", *words, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def render(name: str, **values: object) -> str:
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    environment.filters["comment"] = lambda text: f"# {text}"
    environment.filters["regex_replace"] = lambda text, old, new: re.sub(old, new, text, count=1)
    return environment.from_string((ROOT / "roles/host_audit/templates" / name).read_text()).render(values)


class Trail:
    """A running daemon with our rules, its log and a registry, all below ``root``."""

    def __init__(self, root: Path, space_left: tuple[int, int] = (75, 50)) -> None:
        """``space_left`` has the two limits of the role, in MiB."""
        self.root, self.log, self.registry = root, root / "log" / "audit.log", root / "registry"
        for folder in ("log", "etc", "registry/ids", "registry/keys", "registry/containers", "shares"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / "plugins/module_utils/_node", root / "lib/spt_flow_node", dirs_exist_ok=True)
        values = {
            "ansible_managed": "test",
            "host_audit_backlog": 65536,
            "host_audit_backlog_wait": 60000,
            "host_audit_remap_base": BASE,
            "host_audit_remap_size": 1_048_576,
        }
        (root / "etc/rules").write_text(render("rules.j2", **values).replace("-w /var/lib", "#"))
        settings = f"local_events = yes\nwrite_logs = yes\nlog_file = {self.log}\nlog_format = RAW\nmax_log_file = 64\n"
        settings += "flush = INCREMENTAL_ASYNC\nfreq = 50\nnum_logs = 99\nmax_log_file_action = KEEP_LOGS\n"
        settings += "disk_full_action = SUSPEND\n"
        settings += f"space_left = {space_left[0]}\nadmin_space_left = {space_left[1]}\n"
        settings += "priority_boost = 4\nspace_left_action = SYSLOG\n"
        settings += (
            "admin_space_left_action = SUSPEND\ndisk_error_action = SUSPEND\nname_format = NONE\nq_depth = 4000\n"
        )
        (root / "etc/auditd.conf").write_text(settings)
        (root / "etc/auditd.conf").chmod(0o640)

    def start(self) -> None:
        self.daemon = subprocess.Popen(
            ["auditd", "-n", "-c", str(self.root / "etc")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while "pid 0" in run("auditctl", "-s").stdout and time.monotonic() < deadline:
            time.sleep(0.1)
        loaded = run("auditctl", "-R", str(self.root / "etc/rules"))
        assert loaded.returncode == 0, loaded.stderr
        run("auditctl", "-e", "1")

    def stop(self) -> None:
        run("auditctl", "-D")
        run("auditctl", "-e", "0")
        run("auditctl", "-b", "64", "--backlog_wait_time", "15000")
        self.daemon.terminate()
        self.daemon.wait(20)

    def program(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run(*self.argv(*words), env=self.environment)

    def argv(self, *words: str) -> list[str]:
        places = ["--log", str(self.log), "--registry", str(self.registry), "--shares", str(self.root / "shares")]
        return ["/usr/bin/python3", str(FILES / "spt-flow-audit"), *places, *words]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SPT_FLOW_LIB": str(self.root / "lib")}

    @contextlib.contextmanager
    def watched(self, mib: int) -> Iterator[None]:
        """Run the watcher of shares; remove its rules and state afterwards."""
        with subprocess.Popen(
            self.argv("watch", "--mib", str(mib)), env=self.environment, stdout=subprocess.PIPE
        ) as child:
            try:
                yield
            finally:
                child.terminate()
                child.wait(10)
                run("auditctl", "-D")
                run("auditctl", "-R", str(self.root / "etc/rules"))
                for file in (self.root / "shares").iterdir():
                    file.unlink()

    def rows(self, since: float, *more: str, **filters: str) -> list[dict]:
        words = [*more, *(word for name, value in filters.items() for word in (f"--{name}", value))]
        done = self.program("report", "--json", "--since", str(since), *words)
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        return [row for row in found if "gap" not in row]

    def lost(self) -> int:
        return int(run("auditctl", "-s").stdout.partition("lost ")[2].split()[0])

    def shell(self, script: str, container: str) -> subprocess.CompletedProcess[str]:
        """Do what the runtime does: source audit-id.sh and execute the next program."""
        env = {**os.environ, "SPT_FLOW_AUDIT_REGISTRY": str(self.registry)}
        return run("sh", "-c", f'. "{FILES}/audit-id.sh"; {script}', "sh", container, env=env)


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trail]:
    if os.geteuid() != 0 or not shutil.which("auditd"):
        pytest.skip("needs root and auditd")
    status = run("auditctl", "-s").stdout
    if (
        "pid 0" not in status
        or "enabled 0" not in status
        or run("auditctl", "-l").stdout.strip() not in ("", "No rules")
    ):
        pytest.skip("the kernel's audit cannot be asked or is in use")
    found = Trail(tmp_path_factory.mktemp("trail"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


class Workspace:
    """A container of the remapped engine, entered like the runtime's exec: audit number first, then the namespaces."""

    def __init__(self, trail: Trail, owner: str, name: str) -> None:
        self.trail, self.owner, self.name = trail, owner, name
        self.container = docker(
            "run",
            "-d",
            "--rm",
            "--network=none",
            f"--name=spt-flow-audittest-{os.getpid()}-{name}",
            IMAGE,
            "sleep",
            "3600",
        )
        self.pid = docker("inspect", "-f", "{{.State.Pid}}", self.container)
        bundle = trail.root / self.container
        bundle.mkdir()
        env = [f"SPT_FLOW_OWNER={owner}", f"SPT_FLOW_WORKSPACE={name}", 'SPT_FLOW_GIT_NAME=x,"SPT_FLOW_OWNER=mallory']
        (bundle / "config.json").write_text(json.dumps({"process": {"env": env}}, separators=(",", ":")))
        done = trail.shell(f"spt_flow_audit_create {bundle} $1", self.container)
        assert done.returncode == 0, done.stderr

    def __call__(self, command: str, uid: int = 1000) -> subprocess.CompletedProcess[str]:
        enter = f"nsenter -t {self.pid} -U -m -p -n -u -i -S {uid} -G {uid} -r -w"
        file = self.trail.root / f"command-{secrets.token_hex(4)}"
        file.write_text(command)
        return self.trail.shell(
            f'spt_flow_audit_exec "$1" && exec {enter} env -i PATH="$PATH" bash -c "$(cat {file})"',
            self.container,
        )

    @property
    def number(self) -> int:
        return int((self.trail.registry / "containers" / self.container).read_text())

    def rows(self, since: float, *more: str) -> list[dict]:
        return self.trail.rows(since, *more, owner=self.owner, workspace=self.name)


@pytest.fixture(scope="module")
def workspace(trail: Trail) -> Iterator[Workspace]:
    if run("docker", "version").returncode or "userns" not in docker("info", "-f", "{{.SecurityOptions}}"):
        pytest.skip("needs a remapped Docker engine")
    if run("docker", "image", "inspect", IMAGE).returncode:
        base = docker("images", "-q", "spt-flow/base").splitlines() or docker("images", "-q", "debian").splitlines()
        if not base:
            pytest.skip("the engine has no Debian base, as when the workspace image came from the cache")
        env = {**os.environ, "DOCKER_BUILDKIT": "0"}
        docker("build", "-t", IMAGE, "-", input=DOCKERFILE.format(base=base[0]), env=env)
    found = Workspace(trail, "alice", "demo")
    try:
        yield found
    finally:
        run("docker", "rm", "-f", found.container)


def since() -> float:
    return time.time() - 0.01


def commands(rows: list[dict]) -> str:
    return "\n".join(row["command"] for row in rows)


WAYS = {
    "sudo one by one": ("sudo id -u; sudo cat /etc/shadow >/dev/null", ["id -u", "cat /etc/shadow"]),
    "a root shell": (
        "seq 50 | sed 's/.*/uname -& 2>\\/dev\\/null; echo\\; \\/bin\\/echo n&/' | sudo bash",
        [f"/bin/echo n{n}" for n in range(1, 51)],
    ),
    "su": ("sudo su -c 'cat /etc/hostname'", ["cat /etc/hostname"]),
    "a setuid program": (
        "sudo cp /usr/bin/env /tmp/suid; sudo chmod 4755 /tmp/suid; /tmp/suid true marked",
        ["/tmp/suid true marked", "chmod 4755 /tmp/suid"],
    ),
    "a script": (
        "printf '#!/bin/sh\\n/bin/echo from-script\\n' >/tmp/s; chmod +x /tmp/s; sudo /tmp/s",
        ["/bin/echo from-script"],
    ),
    "base64 through a shell": (
        "echo L2Jpbi9lY2hvIGhpZGRlbiB3b3Jkcw== | base64 -d | sudo sh",
        ["/bin/echo hidden words"],
    ),
    "odd arguments": ("sudo /bin/echo $'two\\nlines' 'sp ace' ü", ["/bin/echo 'two\\nlines' 'sp ace' ü"]),
    "a very long argument": ("sudo /bin/echo $(seq -s, 9000) end", [",8999,9000 end"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_root_is_recorded_with_the_workspace(workspace: Workspace, way: str) -> None:
    script, expected = WAYS[way]
    began = since()
    done = workspace(script)
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        text = commands(workspace.rows(began))
        if all(words in text for words in expected):
            return
        time.sleep(0.2)
    raise AssertionError(f"missing: {[words for words in expected if words not in text]}; found:\n{text[:2000]}")


PYTHON = "sudo python3 -c 'import os, time; {}'"
EVASIONS = {
    "another user id": (
        "sudo setpriv --reuid 5 bash -c '/bin/echo by-5; /usr/bin/env true by-5'",
        ["/bin/echo by-5", "/usr/bin/env true by-5"],
    ),
    "another user id by a program": (
        PYTHON.format('os.setuid(5); os.system("/bin/echo by-program")'),
        ["/bin/echo by-program"],
    ),
    "a user id beyond the nested ones": (
        "sudo setpriv --reuid 200000 /bin/echo from-beyond",
        ["/bin/echo from-beyond"],
    ),
    "root as the real user id only": (
        PYTHON.format('os.setresuid(0, 1000, 1000); os.execv("/bin/echo", ["/bin/echo", "half-root"])'),
        ["/bin/echo half-root"],
    ),
    "the effective user id only": (
        PYTHON.format('os.seteuid(7); os.execv("/bin/echo", ["/bin/echo", "half-7"])'),
        ["/bin/echo half-7"],
    ),
    "sudo to another user": ("sudo -u daemon /bin/echo as-daemon", ["/bin/echo as-daemon"]),
}


@pytest.mark.parametrize("way", EVASIONS)
def test_powers_that_the_user_lacks_are_recorded_under_any_user_id(workspace: Workspace, way: str) -> None:
    script, expected = EVASIONS[way]
    began = since()
    done = workspace(script)
    assert done.returncode == 0, done.stderr
    # Match a whole line: the command that granted the capability names the next one and was always recorded.
    text = eventually(lambda: f"\n{commands(workspace.rows(began))}\n", [f"\n{words}\n" for words in expected])
    assert [words for words in expected if f"\n{words}\n" not in text] == [], text[:2000]


CHANGES = {
    "setuid": "os.setuid(5)",
    "setuid back to root": "os.seteuid(7); os.setreuid(0, 0)",
    "capabilities kept over a change": "import ctypes; ctypes.CDLL(None).prctl(8, 1); os.setuid(1000)",
    "file system id": "import ctypes; ctypes.CDLL(None).setfsuid(9)",
    "capset": "import ctypes; l = ctypes.CDLL(None); h = (ctypes.c_uint32 * 2)(0x20080522);"
    " d = (ctypes.c_uint32 * 6)(); l.capget(h, d); l.capset(h, d)",
}
CALLED = {"setuid": "setuid", "setuid back to root": "setreuid", "file system id": "setfsuid", "capset": "capset"}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_ids_and_capabilities_are_recorded_without_a_command(workspace: Workspace, change: str) -> None:
    began, mark = since(), f"mark-{secrets.token_hex(4)}"
    done = workspace(f"sudo python3 -c '\"{mark}\"; import os; {CHANGES[change]}'")
    assert done.returncode == 0, done.stderr
    call = f"[{CALLED.get(change, 'prctl')}]"
    text = eventually(lambda: commands(workspace.rows(began, "--ids")), [call])
    assert any(line.startswith(call) and mark in line for line in text.splitlines()), text[:2000]


def test_commands_get_no_capabilities_under_the_users_id(workspace: Workspace) -> None:
    """Neither from the file nor from the process that starts them, in a container like a workspace's."""
    filter_ = f"seccomp={ROOT / 'image/seccomp.json'}"
    options = ["--rm", "--network=none", "--cap-drop=SETFCAP", "--cap-drop=MKNOD", f"--security-opt={filter_}"]
    script = (
        "cp /bin/cat /tmp/cat; setcap cap_dac_override=ep /tmp/cat 2>/dev/null && echo a file got capabilities;"
        " setpriv --reuid 1000 --inh-caps +dac_override --ambient-caps +dac_override cat /etc/shadow 2>/dev/null"
        " && echo a command got capabilities; setpriv --reuid 1000 grep CapEff /proc/self/status"
    )
    said = docker("run", *options, "--user=0", IMAGE, "bash", "-c", script).split()
    assert said == ["CapEff:", "0000000000000000"]


def test_workspace_over_its_share_is_recorded_without_arguments_and_counted(trail: Trail, workspace: Workspace) -> None:
    with trail.watched(mib=1):
        began = since()
        for _ in range(12):
            assert workspace("sudo bash -c '/bin/true $(seq -s. 20000)'").returncode == 0
            time.sleep(1)
            if "alice/demo is over its share" in trail.program("status").stdout:
                break
        workspace("sudo /usr/bin/env true secret-words")
        text = eventually(lambda: commands(workspace.rows(began)), ["/usr/bin/env (arguments not kept)"])
        assert "/usr/bin/env (arguments not kept)" in text and "secret-words" not in text
        counted = re.compile(r"alice/demo is over its share: ([2-9]|\d\d+) commands recorded without arguments")
        said = eventually(lambda: "".join(counted.findall(trail.program("status").stdout)) and "counted", ["counted"])
        assert said == "counted", trail.program("status").stdout


def test_one_workspace_cannot_fill_the_trail(trail: Trail, workspace: Workspace) -> None:
    other = Workspace(trail, "bob", "thrifty")
    big = "sudo bash -c 'for i in 1 2 3 4 5 6 7 8; do /bin/true mark-$i $(seq -s. 20000); done'"
    try:
        with trail.watched(mib=1):
            assert trail.program("status").returncode is not None
            began = since()
            for _ in range(2):
                assert workspace(big).returncode == 0
            told = eventually(lambda: trail.program("status").stdout, ["alice/demo is"])
            assert "alice/demo is" in told
            size = trail.log.stat().st_size
            for number in range(30):
                workspace(big)
                assert other(f"sudo /bin/echo of-bob-{number}").returncode == 0
                if "twice its share" in trail.program("status").stdout:
                    break
            grown = trail.log.stat().st_size - size
            assert grown < 12 << 20, "8 times 110 kB of arguments, 30 times, would be 100 MB and more"
            text = eventually(lambda: commands(other.rows(began)), ["of-bob-0"])
            assert "of-bob-0" in text
            done = trail.program("status")
            assert (done.returncode, "alice/demo is" in done.stdout, "bob" in done.stdout) == (8, True, False)
            report = trail.program("report", "--since", str(began), "--owner", "alice").stdout
            assert re.search(r"Gap: alice/demo is (over|at twice) its share", report)
            print(f"the log grew by {grown / 1e6:.1f} MB; {done.stdout.strip()}")
        assert workspace("sudo /bin/echo recorded-again").returncode == 0
        assert "recorded-again" in eventually(lambda: commands(workspace.rows(began)), ["recorded-again"])
    finally:
        run("docker", "rm", "-f", other.container)


def eventually(read: Callable[[], str], words: Sequence[str], seconds: float = 10) -> str:
    """Return what ``read`` returns once it has all ``words``, or at the timeout."""
    deadline = time.monotonic() + seconds
    while True:
        text = read()
        if all(word in text for word in words) or time.monotonic() > deadline:
            return text
        time.sleep(0.2)


def test_commands_without_root_are_not_recorded(workspace: Workspace) -> None:
    began = since()
    workspace("/bin/echo private")
    time.sleep(1)
    assert "private" not in commands(workspace.rows(began))


def test_root_inside_cannot_change_its_number_or_the_trail(workspace: Workspace) -> None:
    began = since()
    tries = "for n in 4294967295 0 700001; do echo $n >/proc/self/loginuid; echo $?; done"
    assert workspace(f"sudo bash -c '{tries}' 2>/dev/null").stdout.split() == ["1", "1", "1"]
    assert workspace(f"sudo kill {workspace.trail.daemon.pid}").returncode != 0
    assert workspace.trail.daemon.poll() is None
    assert not Path(f"/proc/{workspace.pid}/root{workspace.trail.log}").exists()
    time.sleep(0.5)
    assert {row["owner"] for row in workspace.trail.rows(began) if row["euid"] == BASE} == {"alice"}


def test_two_workspaces_are_distinguished_and_keep_their_numbers(trail: Trail, workspace: Workspace) -> None:
    other = Workspace(trail, "bob", "demo2")
    again = None
    try:
        began = since()
        other("sudo /bin/echo of-bob")
        workspace("sudo /bin/echo of-alice")
        time.sleep(0.5)
        assert "of-alice" not in commands(other.rows(began))
        assert "of-bob" in commands(other.rows(began))
        number = other.number
        run("docker", "rm", "-f", other.container)
        again = Workspace(trail, "bob", "demo2")
        assert again.number == number
    finally:
        for left in (other, again):
            if left:
                run("docker", "rm", "-f", left.container)


def test_parallel_numbers_never_collide(tmp_path: Path) -> None:
    for folder in ("ids", "keys", "containers"):
        (tmp_path / folder).mkdir()
    env = {**os.environ, "SPT_FLOW_AUDIT_REGISTRY": str(tmp_path)}
    one = f'. "{FILES}/audit-id.sh"; key=o/w$1; spt_flow_audit_allocate && echo "$key $number"'
    crowd = [
        subprocess.Popen(["sh", "-c", one, "sh", str(n % 20)], env=env, stdout=subprocess.PIPE, text=True)
        for n in range(40)
    ]
    pairs = {tuple(process.communicate()[0].split()) for process in crowd}
    assert len(pairs) == 20
    assert len({number for _key, number in pairs}) == 20


@pytest.mark.parametrize(
    ("rate", "seconds", "share"),
    [
        (100, 5, 1.0),
        (1000, 5, 0.999),
        pytest.param(100, 60, 1.0, marks=pytest.mark.full),
        pytest.param(1000, 60, 0.999, marks=pytest.mark.full),
    ],
)
def test_bursts_are_recorded_and_losses_counted(workspace: Workspace, rate: int, seconds: int, share: float) -> None:
    began, before = since(), workspace.trail.lost()
    mark = f"burst{rate}"
    ten = f"for i in 1 2 3 4 5 6 7 8 9 10; do n=$((n+1)); /bin/true {mark}-$n; done"
    pause = f"sleep {10 / rate}" if rate < 1000 else ":"
    script = f"n=0; while [ $n -lt {rate * seconds} ]; do {ten}; {pause}; done"
    assert workspace(f"sudo bash -c '{script}'").returncode == 0
    took = time.time() - began
    time.sleep(2)
    rows = [
        row for row in workspace.rows(began) if mark + "-" in row["command"] and row["command"].startswith("/bin/true")
    ]
    count, lost = len({row["command"] for row in rows}), workspace.trail.lost() - before
    print(f"{rate * seconds} commands at {rate * seconds / took:.0f}/s: {count} recorded, {lost} records lost")
    assert count >= rate * seconds * share
    assert {(row["owner"], row["workspace"]) for row in rows} == {("alice", "demo")}


def test_setuid_program_on_the_host_is_recorded(trail: Trail) -> None:
    began = since()
    run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "su", "-c", "true", "missing-user")
    time.sleep(0.5)
    assert "su -c true missing-user" in commands(trail.rows(began))


def test_lost_record_or_missing_rule_fails_the_status(trail: Trail) -> None:
    whole = trail.program("status")
    assert whole.returncode == 0 or "missing" not in whole.stdout
    run("auditctl", "-D")
    try:
        done = trail.program("status")
        assert (done.returncode, "Rules are missing" in done.stdout) == (8, True)
    finally:
        run("auditctl", "-R", str(trail.root / "etc/rules"))


def test_compressed_logs_are_searched_and_deleted_with_age(trail: Trail, workspace: Workspace) -> None:
    began = since()
    workspace("sudo /bin/echo before-rotation")
    time.sleep(0.5)
    assert trail.program("archive", "--days", "30").returncode == 0
    packed = list((trail.log.parent / "archive").glob("*.gz"))
    assert packed
    assert "before-rotation" in commands(workspace.rows(began))
    os.utime(packed[0], (1, 1))
    trail.program("archive", "--days", "30")
    assert not packed[0].exists()


ENDS = {
    "switch off": ["-e", "0"],
    "drop the rules": ["-D"],
    "limit the rate": ["-r", "1"],
    "take away the room": ["-b", "0"],
    "forge a record": ["-m", "forged-by-root-inside"],
}


@pytest.mark.parametrize("end", ENDS)
def test_root_inside_cannot_control_the_kernels_audit(trail: Trail, workspace: Workspace, end: str) -> None:
    """Run the host's own auditctl as root inside the workspace's namespaces, with files in which it exists."""
    before = [run("auditctl", word).stdout.partition("backlog_wait_time_actual")[0] for word in ("-s", "-l")]
    enter = ["nsenter", "-t", workspace.pid, "-U", "-p", "-n", "-u", "-i", "-S", "0", "-G", "0"]
    done = run(*enter, "auditctl", *ENDS[end])
    assert "forged-by-root-inside" not in "\n".join(
        line for line in trail.log.read_text(errors="replace").splitlines() if line.startswith("type=USER")
    ), done
    assert done.returncode != 0, done
    after = [run("auditctl", word).stdout.partition("backlog_wait_time_actual")[0] for word in ("-s", "-l")]
    assert [settled(text) for text in after] == [settled(text) for text in before]


def settled(text: str) -> list[str]:
    """Return the lines of ``auditctl`` that only a command changes."""
    return [line for line in text.splitlines() if not line.startswith(("backlog ", "lost "))]


def test_flood_in_one_workspace_hides_no_record_of_another(trail: Trail, workspace: Workspace) -> None:
    other = Workspace(trail, "bob", "beside")
    try:
        began, lost = since(), trail.lost()
        flood = "end=$((SECONDS+4)); while [ $SECONDS -lt $end ]; do /bin/true flood; done"
        with ThreadPoolExecutor(2) as crowd:
            began_with = trail.log.read_text(errors="replace")
            noisy = [crowd.submit(workspace, f"sudo bash -c '{flood}'") for _ in range(2)]
            for number in range(10):
                assert other(f"sudo /bin/echo of-bob-{number}").returncode == 0
            assert [future.result().returncode for future in noisy] == [0, 0]
        time.sleep(1)
        text = commands(other.rows(began))
        assert [number for number in range(10) if f"of-bob-{number}" not in text] == []
        assert "flood" not in text
        assert trail.lost() == lost
        assert trail.log.read_text(errors="replace").startswith(began_with)
    finally:
        run("docker", "rm", "-f", other.container)


def test_playbook_reports_who_ran_what(trail: Trail, workspace: Workspace, tmp_path: Path) -> None:
    """The unchanged ``playbooks/audit.yml``, in a mount namespace with this trail in a node's place."""
    shutil.copy(FILES / "spt-flow-audit", trail.root / "lib")
    places = {trail.root / "lib": "/usr/local/lib/spt-flow", trail.log.parent: "/var/log/audit"}
    mounts = [f"mount --bind {source} {target}" for source, target in places.items()]
    mounts += ["mount -t tmpfs none /var/lib/spt-flow", "mkdir -p /var/lib/spt-flow/audit/registry"]
    mounts += [f"mount --bind {trail.registry} /var/lib/spt-flow/audit/registry"]
    for target in (*places.values(), "/var/lib/spt-flow"):
        Path(target).mkdir(parents=True, exist_ok=True)
    script = " && ".join(["mount --make-rprivate /", *mounts, 'exec "$@"'])
    play = ["ansible-playbook", "playbooks/audit.yml", "-e", "owner=alice", "-e", "since=1m"]

    other = Workspace(trail, "bob", "unasked")
    other("sudo /bin/echo of-bob")
    run("docker", "rm", "-f", other.container)
    began = time.monotonic()
    workspace("cd /tmp && sudo /bin/echo for-the-playbook")
    done = run("unshare", "--mount", "sh", "-ec", script, "sh", *play, cwd=ROOT)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"told {seconds:.1f}s after the command")
    (line,) = [line for line in done.stdout.splitlines() if line.rstrip('",').endswith("  /bin/echo for-the-playbook")]
    assert "alice/demo  /tmp  " in line
    assert "of-bob" not in done.stdout
    assert "changed=0" in done.stdout


def test_full_disk_keeps_records_and_raises_an_alarm(trail: Trail, tmp_path: Path) -> None:
    """The role's policy on a disk of 32 MiB: the daemon stops writing, drops nothing, and the status reports it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    trail.stop()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(disk)], check=True)
    small = Trail(disk, space_left=(16, 12))
    try:
        small.start()
        mark = since()
        run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "su", "-c", "true", "before-it-was-full")
        time.sleep(0.5)
        assert "before-it-was-full" in commands(small.rows(mark))
        assert "does not write" not in small.program("status").stdout
        (disk / "filler").write_bytes(b"x" * (21 << 20))
        written = small.log.read_text(errors="replace")
        run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "su", "-c", "true", "while-it-was-full")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            status = small.program("status")
            if "does not write" in status.stdout:
                break
        assert (status.returncode, "does not write" in status.stdout) == (8, True), status.stdout
        assert small.log.read_text(errors="replace").startswith(written), "the records are gone"
        assert small.daemon.poll() is None
        (disk / "filler").unlink()
        small.daemon.send_signal(signal.SIGUSR2)
        mark = since()
        time.sleep(0.5)
        run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "su", "-c", "true", "after-there-was-room")
        time.sleep(0.5)
        assert "after-there-was-room" in commands(small.rows(mark))
        assert "does not write" not in small.program("status").stdout
    finally:
        small.stop()
        subprocess.run(["umount", "-l", str(disk)], check=True)
        trail.start()


# Locked rules. The kernel's lock holds until a reboot, so no test may set it on a shared machine.


def test_lock_is_loaded_last(tmp_path: Path) -> None:
    """The distribution's own augenrules merges the role's files with the distribution's first file."""
    if os.geteuid() != 0 or not shutil.which("augenrules"):
        pytest.skip("needs root and auditd")
    variables = yaml.safe_load((ROOT / "roles/host_audit/vars/main.yml").read_text())
    (file,) = [one for one in variables["__host_audit_files_always"] if one["path"].endswith("spt-flow-lock.rules")]
    environment = jinja2.Environment(keep_trailing_newline=True)
    environment.filters["bool"] = bool
    content = environment.from_string(file["content"])
    folder = tmp_path / "audit/rules.d"
    folder.mkdir(parents=True)
    (folder / "audit.rules").write_text("-D\n-b 8192\n-f 1\n")
    values = {"host_audit_backlog": 65536, "host_audit_backlog_wait": 60000, "host_audit_remap_base": BASE}
    values["host_audit_remap_size"] = 1_048_576
    (folder / "spt-flow.rules").write_text(render("rules.j2", ansible_managed="test", **values))
    for locked, last in ((True, "-e 2"), (False, "-e 1")):
        (folder / "spt-flow-lock.rules").write_text(content.render(host_audit_immutable=locked))
        script = f"mount --make-rprivate / && mount --bind {tmp_path}/audit /etc/audit && augenrules"
        done = run("unshare", "--mount", "sh", "-ec", script)
        lines = [line for line in (tmp_path / "audit/audit.rules").read_text().splitlines() if line]
        assert done.returncode == 0, done.stderr
        assert (lines[1], lines[2], lines[-1]) == ("-D", "-b 65536", last)
        assert sum("spt-flow-priv" in line for line in lines) == 8


def test_locked_rules_are_pending_and_not_a_failure(tmp_path: Path) -> None:
    """The role's own tasks, with an augenrules that prints what auditctl prints for a locked kernel."""
    words = "The audit system is in immutable mode, no rule changes allowed"
    program = shutil.which("auditctl")
    if program is None:
        pytest.skip("needs auditd")
    assert b"immutable mode" in Path(program).read_bytes()
    (tmp_path / "augenrules").write_text(f"#!/bin/sh\necho '{words}'\n")
    (tmp_path / "augenrules").chmod(0o755)
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {
            "__host_audit_found": {"host": {"container": False, "systemd": True}},
            "__host_audit_written": {"paths": ["/etc/audit/rules.d/spt-flow.rules"]},
            "ansible_become": False,
        },
        "tasks": [{"ansible.builtin.import_tasks": str(ROOT / "roles/host_audit/tasks/load.yml")}],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = run("ansible-playbook", str(tmp_path / "play.yml"), cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Pending: the audit rules of localhost are locked and change at its next reboot." in done.stdout


# With the real runtime


@pytest.fixture
def runtime(trail: Trail, workspace: Workspace) -> Iterator[Path]:
    """The registry of this machine, created for the test where host_audit has not been applied."""
    if "spt-flow" not in docker("info", "-f", "{{range $name, $_ := .Runtimes}}{{$name}} {{end}}").split():
        pytest.skip("the engine does not offer the runtime spt-flow")
    library, registry = Path("/usr/local/lib/spt-flow/audit-id.sh"), Path("/var/lib/spt-flow/audit/registry")
    made = not library.exists()
    if made:
        for folder in ("ids", "containers"):
            (registry / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(FILES / "audit-id.sh", library.with_suffix(".new"))
        library.with_suffix(".new").rename(library)
    yield registry
    if made:
        library.unlink()
        shutil.rmtree(registry.parent)


def test_runtime_assigns_a_workspace_its_number_at_create_and_exec(runtime: Path, trail: Trail) -> None:
    names = ["-e", "SPT_FLOW_OWNER=carol", "-e", "SPT_FLOW_WORKSPACE=real"]
    began = since()
    container = docker("run", "-d", "--runtime=spt-flow", "--network=none", *names, IMAGE, "sudo", "sleep", "600")
    try:
        number = (runtime / "containers" / container).read_text().strip()
        assert Path(f"/proc/{docker('inspect', '-f', '{{.State.Pid}}', container)}/loginuid").read_text() == number
        forged = ["-e", "SPT_FLOW_OWNER=mallory", "-e", "SPT_FLOW_AUDIT_ID=700001"]
        docker("exec", "-u", "1000", *forged, container, "sudo", "/bin/echo", "by-exec")
        time.sleep(1)
        done = trail.program("--registry", str(runtime), "report", "--json", "--since", str(began))
        rows = [json.loads(line) for line in done.stdout.splitlines() if json.loads(line)["euid"] == BASE]
        mine = [row for row in rows if row["owner"] == "carol"]
        assert {row["workspace"] for row in mine} == {"real"}
        assert {"sudo sleep 600", "sleep 600", "/bin/echo by-exec"} <= {row["command"] for row in mine}
    finally:
        run("docker", "rm", "-f", container)


def test_workspace_without_docker_inside_is_numbered_and_reports_its_audit(
    runtime: Path, trail: Trail, tmp_path: Path
) -> None:
    began = since()
    with agent_harness.workspace(tmp_path, docker="disabled") as inside:
        assert inside.workspace and (runtime / "containers" / inside.workspace.id).exists()
        inside.wait("home", "ok", seconds=60)
        assert json.loads(inside.sh("spt-workspace status"))["audited"] is True
        inside.sh("sudo /bin/echo without-docker")
        text = eventually(lambda: commands(reported(trail, runtime, began, inside.owner)), ["without-docker"])
        assert "/bin/echo without-docker" in text


def reported(trail: Trail, registry: Path, began: float, owner: str) -> list[dict]:
    done = trail.program("--registry", str(registry), "report", "--json", "--since", str(began), "--owner", owner)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def login_uid(marker: str) -> tuple[int, int, str]:
    """Return (pid, real uid, audit number) on the host of the shell with ``marker``."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes() == f"/bin/dash\0-s\0{marker}\0".encode():
                uid = (folder / "status").read_text().partition("\nUid:")[2].split()[0]
                return int(folder.name), int(uid), (folder / "loginuid").read_text()
    raise AssertionError(f"no process has {marker}")


def test_number_is_inherited_by_docker_inside_a_workspace(runtime: Path, trail: Trail, tmp_path: Path) -> None:
    began, marker = since(), f"nested-{os.getpid()}"
    with agent_harness.workspace(tmp_path, docker="auto") as inside:
        assert inside.workspace
        number = (runtime / "containers" / inside.workspace.id).read_text().strip()
        inside.wait("docker", "ok", seconds=60)
        inside.sh(ROOTFS)
        inside.sh(f"docker run -d -i --name nested --network none tiny /bin/dash -s {marker}")
        pid, uid, found = login_uid(marker)
        assert found == number
        assert uid not in (0, BASE), "root of a nested container is not root of the workspace or the host"
        forging = "for n in 4294967295 0 700001; do echo $n >/proc/self/loginuid && echo changed; done; echo tried"
        assert inside.sh(f"docker exec nested /bin/dash -c '{forging}' 2>/dev/null") == "tried"
        assert login_uid(marker) == (pid, uid, number)
        inside.sh('sudo docker -H "unix:///run/user/1000/docker.sock" exec nested /bin/dash -c "echo by-root"')
        time.sleep(1)
        rows = [row for row in reported(trail, runtime, began, inside.owner) if row["euid"] == BASE]
        assert "docker -H unix:///run/user/1000/docker.sock exec nested /bin/dash" in commands(rows)
        assert marker not in commands(rows), "commands without sudo are not recorded"
        assert {row["workspace"] for row in rows} == {inside.name}
