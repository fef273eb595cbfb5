# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probing repositories on real servers on loopback: an sshd and an HTTPS server with dumb git repositories."""

from __future__ import annotations

import base64
import contextlib
import functools
import getpass
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import address as repository_address
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import probe as repository_probe

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
LIMIT = 10.0

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("git", "ssh", "ssh-keygen", "openssl"))), reason="git, OpenSSH or openssl is missing"
)


def run(*argv: str | Path, **more) -> str:
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True, **more).stdout.strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> tuple[Path, str]:
    """Create a bare repository that a dumb HTTP server can serve; return it and its HEAD."""
    base = tmp_path_factory.mktemp("served")
    work = base / "work"
    run("git", "init", "-q", "-b", "main", work)
    (work / "file").write_text("text")
    run("git", "-C", work, "add", "file")
    run("git", "-C", work, "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-q", "-m", "one")
    run(
        "git",
        "-C",
        work,
        "tag",
        "-a",
        "-m",
        "one",
        "v1",
        env={**os.environ, "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b"},
    )
    run("git", "clone", "-q", "--bare", work, base / "open.git")
    run("git", "-C", base / "open.git", "update-server-info")
    return base / "open.git", run("git", "-C", work, "rev-parse", "HEAD")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A caller with nothing: no keys, no agent, no known hosts, no git configuration."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    for name in ("SSH_AUTH_SOCK", "GIT_SSH_COMMAND", "GIT_ASKPASS", "SSH_ASKPASS", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    # Programs that would prompt; none may run.
    trap = tmp_path / "asked"
    asker = tmp_path / "askpass"
    asker.write_text(f"#!/bin/sh\ntouch {trap}\necho secret\n")
    asker.chmod(0o755)
    monkeypatch.setenv("SSH_ASKPASS", str(asker))
    monkeypatch.setenv("GIT_ASKPASS", str(asker))
    monkeypatch.setenv("DISPLAY", ":0")
    return tmp_path


@pytest.fixture(autouse=True)
def _never_asks_and_is_quick(home) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert not (home / "asked").exists()
    assert time.monotonic() - begun < LIMIT + 2


# HTTPS


class Server(http.server.SimpleHTTPRequestHandler):
    """/open is public, /private needs ada's password, all other paths are missing."""

    def do_GET(self) -> None:
        path = self.path
        wanted = "Basic " + base64.b64encode(b"ada:lovelace").decode()
        if path.startswith("/private") and self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path.startswith("/forbidden"):
            self.send_error(403)
            return
        if path.startswith("/slow"):
            time.sleep(30)
        self.path = path.replace("/private/", "/open/").replace("/open/", "/", 1)
        super().do_GET()

    def log_message(self, *arguments) -> None:
        pass


@dataclass
class Https:
    port: int
    certificate: Path


@pytest.fixture(scope="module")
def https(repository, tmp_path_factory) -> Iterator[Https]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    run(
        *(
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ),
        *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key),
    )
    handler = functools.partial(Server, directory=str(repository[0].parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Https(server.server_address[1], certificate)
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask_https(https, home, monkeypatch):
    monkeypatch.setenv("GIT_SSL_CAINFO", str(https.certificate))

    def ask(path: str, ref: str = "", **more) -> repository_probe.Probe:
        repository = repository_address.Repository.parse(f"https://127.0.0.1:{https.port}/{path}")
        return repository_probe.probe(repository, ref, **more)

    return ask


def test_open_https_repository(ask_https, repository):
    assert ask_https("open/open.git") == repository_probe.Probe("open", "", repository[1])


def test_refs_over_https(ask_https, repository):
    assert ask_https("open/open.git", "main").head == repository[1]
    assert ask_https("open/open.git", "v1").head == repository[1]
    assert ask_https("open/open.git", "nowhere").state == "not-found"


def test_https_401_without_credentials(ask_https):
    answer = ask_https("private/open.git")
    assert answer.state == "needs-auth" and answer.detail


def test_https_401_with_the_callers_credential_helper(ask_https, home, repository):
    (home / ".gitconfig").write_text(
        '[credential]\n\thelper = "!f() { echo username=ada; echo password=lovelace; }; f"\n'
    )
    assert ask_https("private/open.git") == repository_probe.Probe("open", "", repository[1], "as ada with git")
    assert ask_https("open/open.git").identity == "", "no credential was used"


def test_https_401_with_the_login_of_gh_which_git_does_not_store(ask_https, home, monkeypatch, repository):
    (home / ".gitconfig").write_text(f'[credential]\n\thelper = "!f() {{ echo $1 >>{home}/used; }}; f"\n')
    program = home / "bin/gh"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\ntest "$*" = "auth git-credential get" && echo username=ada && echo password=lovelace\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert ask_https("private/open.git") == repository_probe.Probe("open", "", repository[1], "as ada with gh")
    assert (home / "used").read_text().split() == ["get"]


def test_https_401_with_wrong_credentials(ask_https, home):
    (home / ".gitconfig").write_text(
        '[credential]\n\thelper = "!f() { echo username=ada; echo password=c4n4ry; }; f"\n'
    )
    answer = ask_https("private/open.git")
    assert answer.state == "needs-auth" and "c4n4ry" not in answer.detail


def test_https_403(ask_https):
    assert ask_https("forbidden/open.git").state == "needs-auth"


def test_https_404(ask_https):
    assert ask_https("open/nothing.git").state == "not-found"


def test_https_with_an_untrusted_certificate(ask_https, monkeypatch):
    monkeypatch.delenv("GIT_SSL_CAINFO")
    answer = ask_https("open/open.git")
    assert answer.state == "unreachable" and "certificate" in answer.detail


def test_silent_https_server_times_out(ask_https):
    begun = time.monotonic()
    answer = ask_https("slow/open.git", timeout=1.0)
    assert (answer.state, answer.detail) == ("unreachable", "no answer within 1 s")
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("form", ["https://127.0.0.1:{port}/o/r", "ssh://git@127.0.0.1:{port}/o/r"])
def test_refused_connection(form, home):
    answer = repository_probe.probe(repository_address.Repository.parse(form.format(port=free_port())))
    assert answer.state == "unreachable" and answer.detail


@pytest.mark.parametrize("form", ["https://127.0.0.1:{port}/o/r", "ssh://git@127.0.0.1:{port}/o/r"])
def test_dropped_packets_time_out(form, home):
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(5)
        begun = time.monotonic()
        repository = repository_address.Repository.parse(form.format(port=hole.getsockname()[1]))
        assert repository_probe.probe(repository, timeout=2.0).state == "unreachable"
        assert time.monotonic() - begun < 4


def test_unknown_host(home):
    answer = repository_probe.probe(repository_address.Repository.parse("https://nowhere.invalid/o/r"))
    assert answer.state == "unreachable" and answer.detail


# SSH


@dataclass
class Ssh:
    port: int
    folder: Path
    host_key: str

    def known_hosts(self, key: str = "") -> str:
        return f"[127.0.0.1]:{self.port} {key or self.host_key}\n"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory) -> Iterator[Ssh]:
    if SSHD is None:
        pytest.skip("sshd is missing")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user", "stranger"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    port = free_port()
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    log = (folder / "log").open("wb")
    daemon = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log, stdin=subprocess.DEVNULL
    )
    try:
        for _attempt in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert daemon.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield Ssh(port, folder, " ".join((folder / "host.pub").read_text().split()[:2]))
    finally:
        daemon.terminate()
        daemon.wait(10)
        log.close()


@pytest.fixture
def ask_ssh(sshd, home, repository, monkeypatch):
    """Probe as a user with ``key``; OpenSSH finds its files by the passwd entry, so they are named."""

    def ask(path: str = "", key: str = "user", known: str | None = None, **more) -> repository_probe.Probe:
        (home / "known").write_text(sshd.known_hosts() if known is None else known)
        options = f"-F /dev/null -i {sshd.folder / key} -o IdentitiesOnly=yes -o UserKnownHostsFile={home / 'known'}"
        monkeypatch.setenv("GIT_SSH_COMMAND", f"ssh {options}")
        where = path or str(repository[0])
        text = f"ssh://{getpass.getuser()}@127.0.0.1:{sshd.port}{where}"
        return repository_probe.probe(repository_address.Repository.parse(text), **more)

    return ask


def test_open_ssh_repository(ask_ssh, repository):
    assert ask_ssh() == repository_probe.Probe("open", "", repository[1])


def test_ssh_with_an_agent(ask_ssh, sshd, repository, tmp_path, monkeypatch):
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        for _attempt in range(100):
            if (tmp_path / "agent").exists():
                break
            time.sleep(0.02)
        run("ssh-add", "-q", sshd.folder / "user")
        (tmp_path / "none").touch()
        monkeypatch.setenv("GIT_SSH_COMMAND", f"ssh -F /dev/null -o UserKnownHostsFile={tmp_path / 'known'}")
        (tmp_path / "known").write_text(sshd.known_hosts())
        text = f"ssh://{getpass.getuser()}@127.0.0.1:{sshd.port}{repository[0]}"
        assert repository_probe.probe(repository_address.Repository.parse(text)).state == "open"
    finally:
        agent.terminate()
        agent.wait(5)


def test_ssh_with_an_unauthorised_key(ask_ssh):
    answer = ask_ssh(key="stranger")
    assert answer.state == "needs-auth" and "Permission denied" in answer.detail


def test_ssh_with_an_unknown_host_key(ask_ssh):
    assert ask_ssh(known="").state == "host-key-unknown"


def test_ssh_with_a_changed_host_key(ask_ssh, sshd):
    other = " ".join((sshd.folder / "stranger.pub").read_text().split()[:2])
    answer = ask_ssh(known=sshd.known_hosts(other))
    assert answer.state == "host-key-unknown" and "CHANGED" in answer.detail


def test_ssh_with_the_host_key_from_the_settings(ask_ssh, sshd, repository):
    assert ask_ssh(known="", known_hosts=sshd.known_hosts()).head == repository[1]


def test_ssh_to_a_missing_repository(ask_ssh):
    answer = ask_ssh(path="/nowhere/nothing.git")
    assert answer.state == "not-found" and "nothing.git" in answer.detail


def test_no_process_is_left_running(ask_ssh, sshd):
    ask_ssh()
    left = run("ps", "-eo", "args=").splitlines()
    assert not [line for line in left if "ls-remote" in line and str(sshd.port) in line]
