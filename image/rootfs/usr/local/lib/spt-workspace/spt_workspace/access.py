# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SSH access (docs/decisions/entering-by-ssh.md): one sshd per session over the target's channel; the git identity."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from . import hooks
from .contract import Contract, Failure, Paths, reason, write_file
from .record import tell

KNOWN_HOSTS = Path(__file__).resolve().parent.parent / "known_hosts"
SSHD = "/usr/sbin/sshd"
KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
# Set by a login itself, or internal to the agent.
_NOT_PASSED = re.compile(
    r"SPT_FLOW_.*|HOME|PWD|OLDPWD|SHLVL|HOSTNAME|USER|LOGNAME|SHELL|TERM|MAIL|_|SSH_.*|GIT_.*|(HASHED_)?PASSWORD"
)

# Large caches go to the container's disk, because /tmp is memory (docs/decisions/memory-file-systems.md).
CACHE = "/var/tmp/coder"  # noqa: S108 - a directory of the user's own, made with the image
CACHES = {
    "GOTMPDIR": CACHE,
    "CARGO_TARGET_DIR": f"{CACHE}/cargo-target",
    "PIP_CACHE_DIR": f"{CACHE}/pip",
    "npm_config_cache": f"{CACHE}/npm",
}


def user_environment(environ: Mapping[str, str], contract: Contract, paths: Paths) -> dict[str, str]:
    """Return the environment of the user's programs, the same in the IDE and in SSH sessions."""
    env = {
        name: value
        for name, value in environ.items()
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and not _NOT_PASSED.fullmatch(name) and value.isprintable()
    }
    env.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    env.setdefault("LANG", "C.UTF-8")
    env = {**CACHES, **env}
    env["XDG_RUNTIME_DIR"] = str(paths.runtime)
    env["SSH_AUTH_SOCK"] = str(paths.agent)
    env.update(coder_credentials(environ))
    if contract.docker:
        env["DOCKER_HOST"] = f"unix://{paths.docker_socket}"
    return env


def coder_credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which git gets the SSH key and the logins that a Coder server keeps; empty elsewhere."""
    command = environ.get("GIT_SSH_COMMAND", "")
    if not re.fullmatch(r"/[A-Za-z0-9._/-]*/coder gitssh --", command):
        return {}
    return {name: environ[name] for name in ("GIT_SSH_COMMAND", "GIT_ASKPASS") if environ.get(name)}


def _quoted(text: str) -> str:
    """Quote ``text`` for sshd_config or gitconfig."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def gitconfig(contract: Contract, paths: Paths) -> str:
    """Return the file that /etc/gitconfig includes; the user's ``~/.gitconfig`` overrides it."""
    known = f"/etc/ssh/ssh_known_hosts {paths.run / 'known_hosts'}"
    lines = []
    if contract.git_name or contract.git_email:
        lines.append("[user]")
        lines += [
            f"{key} = {_quoted(''.join(c for c in value if c.isprintable()))}"
            for key, value in (("name", contract.git_name), ("email", contract.git_email))
            if value
        ]
    command = _quoted(f"ssh -o 'GlobalKnownHostsFile={known}'")
    # The empty helper removes those that packages may have configured for the whole system.
    lines += ["[credential]", "helper =", 'helper = "!spt-workspace credential"', "[core]", f"sshCommand = {command}"]
    if contract.git_hooks:
        lines.append(f"hooksPath = {_quoted(str(hooks.folder(paths)))}")
    if contract.directory:
        lines += ["[safe]", f"directory = {_quoted(contract.directory)}"]
    lines += ['[protocol "ext"]', "allow = never", "[include]", f"path = {paths.signing}"]
    return "\n".join(lines) + "\n"


def sshd_config(env: Mapping[str, str], paths: Paths) -> str:
    """Return sshd's configuration, the same for every session; each session brings its own authorized key."""
    settings = {
        "HostKey": str(paths.run / "host_key"),
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",
        "AuthenticationMethods": "publickey",
        "PubkeyAuthentication": "yes",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "AuthorizedKeysFile": "none",
        "AllowAgentForwarding": "yes",
        "AllowTcpForwarding": "yes",
        "AllowStreamLocalForwarding": "yes",
        "StreamLocalBindUnlink": "yes",
        "GatewayPorts": "no",
        "X11Forwarding": "no",
        "PermitTunnel": "no",
        "PermitUserEnvironment": "no",
        "PermitUserRC": "no",
        "AcceptEnv": "LANG LC_* COLORTERM TERM_PROGRAM TERM_PROGRAM_VERSION",
        "PrintMotd": "no",
        "LoginGraceTime": "30",
        "MaxSessions": "64",
        "ClientAliveInterval": "60",
        "ClientAliveCountMax": "3",
        "LogLevel": "FATAL",
        "Subsystem": "sftp internal-sftp",
        # sshd reads the first SetEnv line only.
        "SetEnv": " ".join(_quoted(f"{name}={value}") for name, value in sorted(env.items())),
    }
    return "".join(f"{name} {value}\n" for name, value in settings.items())


def prepare(contract: Contract, paths: Paths, env: Mapping[str, str]) -> None:
    """Write the files for sessions and git to memory, with a new host key at every start."""
    paths.sessions.mkdir(mode=0o700, parents=True, exist_ok=True)
    pinned = KNOWN_HOSTS.read_text() if KNOWN_HOSTS.exists() else ""
    write_file(paths.run / "known_hosts", pinned + contract.known_hosts.rstrip("\n") + "\n")
    write_file(paths.run / "gitconfig", gitconfig(contract, paths))
    write_file(paths.run / "sshd_config", sshd_config(env, paths), 0o600)
    key = paths.run / "host_key"
    key.unlink(missing_ok=True)
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)]
    made = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    if made.returncode:
        raise Failure("Cannot create the SSH host key, so SSH does not work. The workspace's log says why.")


def host_key(paths: Paths) -> str:
    """Return ``ssh-ed25519 AAAA…``, or an empty text before the key exists."""
    try:
        return " ".join((paths.run / "host_key.pub").read_text().split()[:2])
    except OSError:
        return ""


def ide_password(paths: Paths) -> str:
    """Return the IDE's password from a file that only the user can read; empty before it exists."""
    try:
        lines = (paths.run / "code-server.yaml").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split('"')[1] for line in lines if line.startswith("password: ")), "")


def known_hosts_line(name: str, paths: Paths) -> str:
    """Return the line that ``KnownHostsCommand`` needs for the host that the client calls ``name``."""
    if not re.fullmatch(r"[][A-Za-z0-9._:-]{1,255}", name):
        raise Failure("The host name has invalid characters.", 2)
    key = _patiently(paths)
    return f"{name} {key}"


def _patiently(paths: Paths) -> str:
    until = time.monotonic() + 10
    while not host_key(paths):
        if time.monotonic() > until:
            raise Failure("The workspace has no host key yet. If it is not starting, see its log.")
        time.sleep(0.05)
    return host_key(paths)


def check_key(text: str) -> str:
    """Return the line for authorized_keys: type and key, without options or comment."""
    parts = text.strip(" \n").split(" ")
    if len(text) > 8192 or not text.strip(" \n").isprintable() or len(parts) < 2 or parts[0] not in KEY_TYPES:
        raise Failure("This is not a public key in OpenSSH's format (type, key).", 2)
    try:
        blob = base64.b64decode(parts[1], validate=True)
        (length,) = struct.unpack(">I", blob[:4])
    except (binascii.Error, struct.error, ValueError):
        raise Failure("This public key is damaged.", 2) from None
    if blob[4 : 4 + length] != parts[0].encode() or len(blob) <= 4 + length:
        raise Failure("This public key does not have the type that it names.", 2)
    return f"{parts[0]} {parts[1]}\n"


def session(text: str, paths: Paths) -> int:
    """Serve one SSH session on stdin and stdout for the holder of the key ``text``; return sshd's status."""
    key = check_key(text)
    _patiently(paths)
    name = os.urandom(6).hex()
    # Renamed when complete, because the liveness check removes sessions without a locked file.
    new, place = paths.run / f"session-{name}", paths.sessions / name
    try:
        new.mkdir(mode=0o700)
        write_file(new / "authorized_keys", key, 0o600)
        lock = os.open(new / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(new, place)
    except OSError as error:
        raise Failure(f"The session cannot be opened below {paths.run}: {reason(error)}.") from None
    argv = [SSHD, "-i", "-e", "-f", str(paths.run / "sshd_config"), "-o", f"AuthorizedKeysFile={place}/authorized_keys"]
    try:
        daemon = subprocess.Popen(argv)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda got, _frame: daemon.send_signal(got))
        _adopt()
        tell(paths, {})
        return _outlive(daemon)
    except OSError as error:
        raise Failure(f"{SSHD} cannot be started: {reason(error)}.") from None
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(lock)
        tell(paths, {})


def _adopt() -> None:
    """Become the parent of processes that the session leaves behind (prctl PR_SET_CHILD_SUBREAPER)."""
    import ctypes  # imported after sshd has started, because it takes 10 ms

    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def _outlive(daemon: subprocess.Popen[bytes]) -> int:
    """Wait for sshd, then send SIGHUP to the commands that its client left behind.

    A terminal does this itself; a command without a terminal would run forever. Daemons (tmux, an editor's server) have
    closed the session's descriptors and keep running.
    """
    status = None
    while status is None:
        child, code = os.waitpid(-1, 0)
        if child == daemon.pid:
            status = daemon.returncode = os.waitstatus_to_exitcode(code)
    for entry in Path("/proc").glob("[0-9]*"):
        if _was_left(entry):
            with contextlib.suppress(OSError):
                os.killpg(int(entry.name), signal.SIGHUP)
    return status


def _was_left(entry: Path) -> bool:
    """Return whether ``/proc/N`` is our child, leads a session and still has the client's pipes open."""
    try:
        number = int(entry.name)
        parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        held = [os.readlink(entry / "fd" / name) for name in ("0", "1", "2")]
        leads = os.getsid(number) == number
    except (OSError, ValueError):
        return False
    return parent == os.getpid() and leads and any(name.startswith(("pipe:", "socket:")) for name in held)
