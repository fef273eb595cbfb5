# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attempts to escape through namespaces that a workspace creates, where its user has every capability.

The user tries each inside new namespaces of every kind, root directly. The results are in
artifacts/nested-namespaces.md.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import Workspace
from ansible_collections.spt.flow.tests.integration.harness import Harness

ARTIFACT = Path(__file__).resolve().parents[2] / "artifacts/nested-namespaces.md"
NESTED = ["unshare", "-Urmpfinu", "--mount-proc", "bash", "-c"]
SETTINGS = (
    "kernel/core_pattern",
    "kernel/panic",
    "kernel/randomize_va_space",
    "kernel/kptr_restrict",
    "kernel/dmesg_restrict",
    "kernel/perf_event_paranoid",
    "kernel/threads-max",
    "kernel/keys/maxkeys",
    "kernel/printk",
    "kernel/panic_on_oops",
    "kernel/sysrq",
    "vm/overcommit_memory",
    "vm/swappiness",
    "vm/mmap_min_addr",
    "fs/file-max",
    "fs/inotify/max_user_instances",
    "fs/aio-max-nr",
    "fs/protected_symlinks",
    "fs/suid_dumpable",
    "kernel/pty/max",
    "fs/pipe-user-pages-soft",
)
KINDS = (
    "debugfs",
    "tracefs",
    "securityfs",
    "efivarfs",
    "pstore",
    "configfs",
    "fusectl",
    "devtmpfs",
    "ext4",
    "hugetlbfs",
    "nfs4",
    "9p",
)
CALLS = {
    "bpf": 321,
    "perf_event_open": 298,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "fsopen": 430,
    "open_by_handle_at": 304,
    "init_module": 175,
    "kexec_load": 246,
    "swapon": 167,
    "syslog": 103,
    "acct": 163,
    "add_key": 248,
    "clock_settime": 227,
}


def call(number: int) -> str:
    code = f"import ctypes; raise SystemExit(ctypes.CDLL(None).syscall({number}, 0, 0, 0, 0, 0) < 0)"
    return f"python3 -c '{code}'"


CASES = {
    **{f"setting {name}": f'v=$(cat /proc/sys/{name}) && echo "$v" > /proc/sys/{name}' for name in SETTINGS},
    **{f"mount of {kind}": f"mount -t {kind} none /mnt" for kind in KINDS},
    **{f"call {name}": call(number) for name, number in CALLS.items()},
    "cgroup's release_agent": "mount -t cgroup -o memory cgroup /mnt && echo /bin/true > /mnt/release_agent",
    "cgroup limits": "for f in $(find /sys/fs/cgroup -name memory.limit_in_bytes -o -name memory.max);"
    " do { echo -1 > $f || echo max > $f; } 2>/dev/null && exit 0; done; exit 1",
    "cgroup devices": "for f in $(find /sys/fs/cgroup -name devices.allow); do echo a > $f && exit 0; done; exit 1",
    "sysrq": "echo h > /proc/sysrq-trigger",
    "sysfs writable again": "mount -o remount,rw /sys && echo 1 > /sys/kernel/profiling",
    "a sysfs of one's own": "mount -t sysfs none /mnt && echo /bin/true > /mnt/kernel/uevent_helper",
    "a block device": "mknod /tmp/n$$ b 254 0",
    "a character device": "mknod /tmp/n$$ c 1 1",
    "the kernel's log": "head -c 1 /dev/kmsg || dmesg",
    "the workspace's first process": "nsenter -t 1 -m true && test $(readlink /proc/1/ns/pid) = {pidns}",
    "files of root": "cat /etc/shadow > /dev/null && test $(stat -c %u /etc/shadow) != 0",
    "writing as root": "test $(stat -c %u /etc) != 0 && touch /etc/spt-flow-mark",
    "an id outside the range by newuidmap": "unshare -U sleep 3 & sleep 0.5; newuidmap $! 0 1 1",
    "many ids by newuidmap": "unshare -U sleep 3 & sleep 0.5; newuidmap $! 0 1 1000000",
    "a group outside the range": "unshare -U sleep 3 & sleep 0.5; newgidmap $! 0 1 1",
    "root's id by hand": "unshare -U bash -c 'echo 0 0 1 > /proc/self/uid_map'",
    "device of the network down": "ip link set eth0 down",
    "the clock": "date -s 2030-01-01",
    "loop device": "losetup -f || head -c 1 /dev/loop-control",
    "real-time priority": "chrt -f 50 true",
    "negative nice": "nice -n -20 true 2>&1 | grep -q denied && exit 1; nice -n -20 true",
    "more open files than allowed": "ulimit -H -n 4194304",
    "never killed for memory": "echo -1000 > /proc/self/oom_score_adj",
}
RUNNER = r"""
import json, subprocess, sys
prefix, cases = json.load(sys.stdin)
for name, script in cases.items():
    try:
        done = subprocess.run([*prefix, script], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
        said = (done.stderr or done.stdout).strip().splitlines()
        print(json.dumps([name, done.returncode, said[-1][:80] if said else ""]))
    except subprocess.TimeoutExpired:
        print(json.dumps([name, 124, "timeout"]))
"""


@pytest.fixture(scope="module")
def workspace(shared_harness: Harness) -> Workspace:
    return shared_harness.up(shared_harness.spec(shared_harness.repository("nested"), docker="auto", wait_timeout=300))


def run(harness: Harness, workspace: Workspace, user: str, prefix: list[str], cases: dict[str, str]) -> list[list[str]]:
    stdin = json.dumps([prefix, cases]).encode()
    done = harness.target.exec(workspace, ["python3", "-c", RUNNER], user=user, stdin=stdin, timeout=600)
    assert done.status == 0, done
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_new_namespaces_have_every_capability(shared_harness: Harness, workspace: Workspace) -> None:
    """The control: the user has every capability inside them."""
    cases = {
        "capabilities": "grep -q 'CapEff:.*1ff$' /proc/self/status || grep -q 'CapEff:.*ffff' /proc/self/status",
        "mount": "mount -t tmpfs none /mnt",
        "network": "ip link set lo up",
    }
    assert [row[1] for row in run(shared_harness, workspace, "1000:1000", NESTED, cases)] == [0, 0, 0]


def test_no_escape_through_nested_namespaces(shared_harness: Harness, workspace: Workspace) -> None:
    pidns = shared_harness.inside(workspace, "readlink /proc/self/ns/pid")
    cases = {name: script.replace("{pidns}", pidns) for name, script in CASES.items()}
    assert len(cases) >= 53
    rows = []
    for who, user, prefix in (("coder", "1000:1000", NESTED), ("root", "0:0", ["bash", "-c"])):
        rows += [(who, *row) for row in run(shared_harness, workspace, user, prefix, cases)]
    counted = Counter((who, "SUCCEEDED" if status == 0 else "held") for who, _name, status, _said in rows)
    lines = [
        "| As | Verdict | Cases |",
        "| --- | --- | --- |",
        *(f"| {who} | {verdict} | {count} |" for (who, verdict), count in sorted(counted.items())),
        "",
        "| As | Case | Status | It said |",
        "| --- | --- | --- | --- |",
        *(f"| {who} | {name} | {status} | {str(said).replace('|', '/')} |" for who, name, status, said in rows),
    ]
    ARTIFACT.parent.mkdir(exist_ok=True)
    ARTIFACT.write_text("\n".join(lines) + "\n")
    print("\n".join(["", *lines]))
    assert [row for row in rows if row[2] == 0] == []
