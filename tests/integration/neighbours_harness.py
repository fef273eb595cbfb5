# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways in which one workspace could read, divert, slow or stop another: the rows of test_neighbours.

Placeholders in braces: {victim}, {gateway}, {host} (addresses), {subnet} (the bridge's broadcast address),
{victim_port} (published port of the victim's IDE), {victim_pid} (its first process, as numbered by the host),
{victim_id}, {victim_name} (its container), {mac} (its Ethernet address), {mark} (a word that only the victim has).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """``attack`` runs in the attacker; exit status 0 means that the attack succeeded.

    With ``watch``, a script that runs in the victim meanwhile, success means that the watch exits with 0. ``before``
    runs in the victim first. ``control`` proves that the method works: it runs in the victim and exits with 0.
    """

    name: str
    kind: str
    attack: str
    control: str = "true"
    watch: str = ""
    before: str = ""


def python(code: str) -> str:
    return "timeout 10 python3 - <<'END'\nimport ctypes, errno, os, socket, struct, sys, time\n" + code + "\nEND"


def connects(host: str, port: int | str) -> str:
    return f"timeout 2 bash -c 'exec 3<>/dev/tcp/{host}/{port}'"


def sends(address: str, port: int, prepare: str = "", family: str = "AF_INET") -> str:
    """Send datagrams with a word that the watch knows."""
    return python(
        f"s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n{prepare}\n"
        f"for _ in range(5):\n    s.sendto(b'hello', ('{address}', {port}))\n    time.sleep(0.1)"
    )


def hears(port: int, prepare: str = "", family: str = "AF_INET", address: str = "") -> str:
    return python(
        f"s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n"
        f"s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\ns.bind(('{address}', {port}))\n{prepare}\n"
        "s.settimeout(2)\ntry:\n    sys.exit(0 if s.recv(99) == b'hello' else 1)\nexcept OSError:\n    sys.exit(1)"
    )


def itself(port: int, prepare: str = "", join: str = "", family: str = "AF_INET", to: str = "127.0.0.1") -> str:
    """The control of a watch: the victim receives its own packet."""
    return f"({hears(port, join, family)}\n) & sleep 0.4; {sends(to, port, prepare, family)}\nwait $!"


def packet(frame: str) -> str:
    return python(
        "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\ns.bind(('eth0', 0))\n"
        f"h = lambda a: bytes(map(int, a.split('.')))\nm = lambda a: bytes.fromhex(a.replace(':', ''))\n{frame}"
    )


def raw(family: str, protocol: int, code: str) -> str:
    return python(f"s = socket.socket(socket.{family}, socket.SOCK_RAW, {protocol})\n{code}")


def arp(to: str, mine: str, target: str) -> str:
    """Announce to ``target`` that ``mine`` has the attacker's Ethernet address."""
    return packet(
        "me = m('02:de:ad:be:ef:01')\n"
        f"frame = m({to}) + me + bytes.fromhex('08060001080006040002') + me + h('{mine}') + m({to}) + h('{target}')\n"
        "for _ in range(5):\n    s.send(frame)\n    time.sleep(0.1)"
    )


WALK = "for f in $(find /sys/fs/cgroup {}); do {{ {}; }} 2>/dev/null && exit 0; done; exit 1"
AS_USER = "setpriv --reuid 1000 --regid 1000 --clear-groups"
BROADCAST = "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)"
OPEN_PROCESS = "os.path.exists('/proc/{victim_pid}/comm') or sys.exit(1)\nl = ctypes.CDLL(None, use_errno=True)\n"
SHM = "l = ctypes.CDLL(None, use_errno=True)\n"
JOIN = (
    "s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,"
    " socket.inet_aton('224.0.0.251') + socket.inet_aton('0.0.0.0'))"
)
CONNECT_SELF = connects("127.0.0.1", 8080)

NETWORK = (
    Way("forged ARP: the victim's address is mine", "divert", arp("'ff:ff:ff:ff:ff:ff'", "{victim}", "{gateway}")),
    Way("forged ARP: the gateway is mine", "divert", arp("'{mac}'", "{gateway}", "{victim}")),
    Way("listening to frames", "read", packet("s.settimeout(1)")),
    Way(
        "MAC flooding",
        "divert",
        packet("for _ in range(5000):\n    s.send(os.urandom(12) + b'\\x88\\xb5' + b'x' * 50)"),
    ),
    Way("forged IPv4 source", "divert", raw("AF_INET", 255, "s.sendto(b'E' * 40, ('{gateway}', 0))")),
    Way("forged TCP reset", "stop", raw("AF_INET", 6, "s.sendto(b'\\0' * 20, ('{victim}', 0))")),
    Way("forged ICMP redirect", "divert", raw("AF_INET", 1, "s.sendto(bytes([5, 1]) + b'\\0' * 30, ('{victim}', 0))")),
    Way(
        "IPv6 router advertisement",
        "divert",
        raw("AF_INET6", 58, "s.sendto(bytes([134]) + b'\\0' * 15, ('ff02::1', 0))"),
    ),
    Way(
        "ping socket as a forger",
        "divert",
        python(
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)\n"
            "s.sendto(bytes([5, 1]) + b'\\0' * 30, ('{victim}', 0))"
        ),
    ),
    Way("DHCP server", "divert", sends("255.255.255.255", 68, BROADCAST), itself(68, BROADCAST), hears(68)),
    Way("broadcast", "read", sends("{subnet}", 9995, BROADCAST), itself(9995), hears(9995)),
    Way(
        "multicast DNS",
        "divert",
        sends("224.0.0.251", 5353),
        itself(5353, "", JOIN, to="224.0.0.251"),
        hears(5353, JOIN),
    ),
    Way("UDP", "read", sends("{victim}", 9996), itself(9996), hears(9996)),
    Way(
        "UDP bound to the device",
        "read",
        sends("{victim}", 9997, "s.setsockopt(1, 25, b'eth0')"),
        itself(9997),
        hears(9997),
    ),
    Way(
        "IPv6 on the bridge",
        "divert",
        "echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6; ip -6 addr show dev eth0 | grep -q inet6",
        "ip addr show dev eth0 | grep -q inet",
    ),
    Way(
        "my device in a nested network",
        "divert",
        "unshare -Urn sleep 3 & sleep 0.5; ip link set eth0 netns $!",
        f"{AS_USER} unshare -Urn ip link set lo up",
    ),
    Way(
        "the bridge from a nested network",
        "divert",
        "unshare -Urn ip link | grep -q eth0",
        f"{AS_USER} unshare -Urn ip link | grep -q lo",
    ),
    Way(
        "UDP with the gateway's address",
        "divert",
        sends("{victim}", 9994, "s.setsockopt(0, 15, 1)\ns.bind(('{gateway}', 53))"),
        itself(9994),
        hears(9994),
    ),
    Way("transparent proxying", "divert", python("s = socket.socket()\ns.setsockopt(0, 19, 1)")),
    Way("TCP to the IDE", "read", connects("{victim}", 8080), CONNECT_SELF),
    Way("TCP to other ports", "read", " || ".join(connects("{victim}", port) for port in (22, 80, 2375, 3000))),
    Way("TCP by the victim's name", "read", connects("{victim_name}", 8080), CONNECT_SELF),
    Way("TCP by its host name", "read", connects("victim", 8080), CONNECT_SELF),
    Way("TCP by IPv6", "read", connects("fe80::42:acff:fe12:3%eth0", 8080), CONNECT_SELF),
    Way("the published port at the gateway", "read", connects("{gateway}", "{victim_port}"), CONNECT_SELF),
    Way("the published port at the host's address", "read", connects("{host}", "{victim_port}"), CONNECT_SELF),
    Way("the published port on loopback", "read", connects("127.0.0.1", "{victim_port}"), CONNECT_SELF),
    Way("ping", "read", "ping -c 1 -W 1 {victim}", "ping -c 1 -W 1 127.0.0.1"),
    Way(
        "the victim's address on my interface",
        "divert",
        "ip addr add {victim}/16 dev eth0",
        "ip addr show eth0 | grep -q inet",
    ),
    Way(
        "the victim's Ethernet address", "divert", "ip link set eth0 address {mac}", "ip link show eth0 | grep -q {mac}"
    ),
    Way(
        "a second device on the bridge",
        "divert",
        "ip link add link eth0 name m0 type macvlan",
        f"{AS_USER} unshare -Urn ip link set lo up",
    ),
    Way(
        "a tap in the workspace's own network",
        "divert",
        "ip tuntap add dev t0 mode tap",
        f"{AS_USER} unshare -Urn ip link set lo up",
    ),
    Way(
        "forgetting the host's connections",
        "stop",
        python(
            "s = socket.socket(16, 3, 12)\ns.send(struct.pack('=IHHIIBBH', 20, 258, 5, 1, 0, 2, 0, 0))\n"
            "sys.exit(struct.unpack('=i', s.recv(999)[16:20])[0] and 1)"
        ),
    ),
    Way("vsock", "read", python("s = socket.socket(40, 1)\ns.bind((2**32 - 1, 9999))\ns.listen()")),
    Way("Docker's API at the gateway", "stop", f"{connects('{gateway}', 2375)} || {connects('{gateway}', 2376)}"),
)

MEMORY = (
    Way(
        "abstract Unix socket",
        "read",
        python("s = socket.socket(socket.AF_UNIX)\ns.connect('\\0{mark}')"),
        before=python(
            "if os.fork(): os._exit(0)\nos.setsid()\nfor d in (0, 1, 2): os.dup2(os.open('/dev/null', 2), d)\n"
            "s = socket.socket(socket.AF_UNIX)\ns.bind('\\0{mark}')\ns.listen()\ntime.sleep(600)"
        ),
        control="sleep 0.5; " + python("s = socket.socket(socket.AF_UNIX)\ns.connect('\\0{mark}')"),
    ),
    Way(
        "POSIX shared memory",
        "read",
        "test -e /dev/shm/{mark}",
        "test -e /dev/shm/{mark}",
        before="echo x > /dev/shm/{mark}",
    ),
    Way("POSIX message queue", "read", "ls /dev/mqueue | grep -q {mark}", "ls /dev/mqueue >/dev/null"),
    Way(
        "System V shared memory",
        "read",
        python(SHM + "sys.exit(l.shmget(77123, 0, 0) < 0)"),
        python(SHM + "sys.exit(l.shmget(77123, 0, 0) < 0)"),
        before=python(SHM + "sys.exit(l.shmget(77123, 4096, 0o1666) < 0)"),
    ),
    Way(
        "System V semaphores",
        "stop",
        python(SHM + "sys.exit(l.semget(77124, 0, 0) < 0)"),
        python(SHM + "sys.exit(l.semget(77124, 0, 0) < 0)"),
        before=python(SHM + "sys.exit(l.semget(77124, 1, 0o1666) < 0)"),
    ),
    Way(
        "System V messages",
        "read",
        python(SHM + "sys.exit(l.msgget(77125, 0) < 0)"),
        python(SHM + "sys.exit(l.msgget(77125, 0) < 0)"),
        before=python(SHM + "sys.exit(l.msgget(77125, 0o1666) < 0)"),
    ),
    Way("kernel keyring", "read", python("l = ctypes.CDLL(None)\nsys.exit(l.syscall(250, 0, -4, 0) < 0)")),
    Way("/proc/keys", "read", "grep -q {mark} /proc/keys /proc/key-users"),
)

PROCESSES = (
    Way(
        "command lines",
        "read",
        "grep -lqa '{mark}[0-9]' /proc/[0-9]*/cmdline",
        "pgrep -f '^sleep.*{mark}' || pgrep -f {mark}",
        before="exec -a {mark}7 sleep 600 >/dev/null 2>&1 & disown",
    ),
    Way("signals by the host's number", "stop", "test -e /proc/{victim_pid}/comm && kill -0 {victim_pid}"),
    Way("ptrace", "read", python(OPEN_PROCESS + "sys.exit(l.ptrace(16, {victim_pid}, 0, 0) != 0)")),
    Way("reading memory", "read", python(OPEN_PROCESS + "sys.exit(l.syscall(310, {victim_pid}, 0, 0, 0, 0, 0) != 0)")),
    Way("process descriptors", "stop", python(OPEN_PROCESS + "sys.exit(l.syscall(434, {victim_pid}, 0) < 0)")),
    Way("the victim's namespaces", "read", "test -e /proc/{victim_pid}/ns && nsenter -t {victim_pid} -a true"),
    Way("the host's namespaces", "read", "nsenter -t 1 -m ls / | grep -q nothing; nsenter -t 1 -U true"),
    Way(
        "scheduler's lists",
        "read",
        "cat /proc/sched_debug /sys/kernel/debug/sched/debug /proc/timer_list 2>/dev/null | grep -q {mark}",
    ),
    Way("kernel log", "read", "dmesg 2>/dev/null | grep -q . || timeout 1 head -c 1 /dev/kmsg"),
    Way("real-time priority", "slow", "chrt -f 50 true", "chrt -b 0 true"),
    Way(
        "negative nice", "slow", "nice -n -20 true 2>&1 | grep -q denied && exit 1; nice -n -20 true", "nice -n 5 true"
    ),
    Way("real-time disk priority", "slow", "ionice -c 1 -n 0 true", "ionice -c 3 true"),
    Way(
        "never killed for memory",
        "stop",
        "echo -1000 > /proc/self/oom_score_adj",
        "echo 500 > /proc/self/oom_score_adj",
    ),
)

FILES = (
    Way(
        "files of the victim by name",
        "read",
        "find / -path /proc -prune -o -name '{mark}*' -print 2>/dev/null | grep -q .",
        "ls /home/coder/{mark}",
        before="echo {mark} > /home/coder/{mark}",
    ),
    Way(
        "the engine's folder", "read", "ls /var/lib/docker/volumes /proc/1/root/var/lib/docker 2>/dev/null | grep -q ."
    ),
    Way(
        "file handles",
        "read",
        python("l = ctypes.CDLL(None)\nb = ctypes.create_string_buffer(128)\nsys.exit(l.syscall(304, -100, b, 0) < 0)"),
    ),
    Way(
        "a file of the shared image",
        "stop",
        "echo >> /usr/bin/env",
        "test -r /usr/bin/env",
        watch="sleep 2; sha256sum -c /tmp/env.sum >/dev/null 2>&1; test $? != 0",
        before="sha256sum /usr/bin/env > /tmp/env.sum",
    ),
    Way(
        "the session's password",
        "read",
        "cat /run/spt-flow/session.json | grep -q {mark}",
        "test -e /run/spt-flow/session.json",
    ),
    Way("loop devices", "read", "losetup -f && exit 0; head -c 1 /dev/loop0 || head -c 1 /dev/loop-control"),
    Way(
        "a device node of a disk",
        "read",
        "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk || { mknod /tmp/d8 b 8 0 && head -c 1 /tmp/d8; }",
        "mknod /tmp/fifo$$ p",
    ),
    Way("memory devices", "read", "head -c 1 /dev/mem || head -c 1 /proc/kcore || head -c 1 /dev/port"),
    Way(
        "Docker's sockets",
        "stop",
        "find / -xdev -type s \\( -name docker.sock -o -name containerd.sock \\) 2>/dev/null | grep -q .",
    ),
    Way("the victim's cgroup", "stop", "find /sys/fs/cgroup -path '*{victim_id}*' 2>/dev/null | grep -q ."),
    Way(
        "frozen by cgroup",
        "stop",
        WALK.format(
            "-name freezer.state -o -name cgroup.freeze -o -name cgroup.kill", "echo FROZEN > $f || echo 1 > $f"
        ),
    ),
    Way(
        "own limits",
        "slow",
        WALK.format(
            "-name memory.limit_in_bytes -o -name memory.max -o -name pids.max"
            " -o -name cpu.cfs_quota_us -o -name cpu.max",
            "echo -1 > $f || echo max > $f",
        ),
    ),
    Way("dropping the page cache", "slow", "echo 3 > /proc/sys/vm/drop_caches"),
    Way(
        "kernel settings",
        "stop",
        "for f in vm/swappiness kernel/threads-max fs/file-max kernel/core_pattern kernel/sysrq;"
        " do { cat /proc/sys/$f > /proc/sys/$f; } 2>/dev/null && exit 0; done; exit 1",
    ),
    Way("the clock", "stop", "date -s '2030-01-01'", "date"),
)

_LOOP = "import os, socket, sys, time\nend = time.time() + float(sys.argv[1])\n"
NOISES = {
    "packets to the host": _LOOP
    + "s = socket.socket(2, 2)\nwhile time.time() < end:\n"
    + " for n in range(200):\n"
    + "  try: s.sendto(b'x' * 1400, ('{gateway}', 9))\n  except OSError: pass",
    "connections to the host": _LOOP
    + "while time.time() < end:\n s = socket.socket()\n s.setblocking(False)\n"
    + " s.connect_ex(('{gateway}', 9))\n s.close()",
    "lines of log": _LOOP
    + "out = open('/proc/1/fd/1', 'wb', 0)\nwhile time.time() < end: out.write(b'x' * 199 + b'\\n')",
    "names to resolve": _LOOP
    + "while time.time() < end:\n try: socket.gethostbyname('{victim_name}')\n except OSError: pass",
    "synchronous writes": _LOOP
    + "f = open(os.path.expanduser('~/.noise'), 'wb', 0)\nwhile time.time() < end:\n"
    + " f.seek(0)\n f.write(b'x' * 4096)\n os.fsync(f.fileno())",
    "processes that come and go": _LOOP + "while time.time() < end:\n if not os.fork(): os._exit(0)\n os.wait()",
}
"""Noise in addition to noise_harness: Python programs; the argument is the number of seconds."""
