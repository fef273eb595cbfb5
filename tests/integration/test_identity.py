# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's identity in sessions of the real OpenSSH: client and server, with a session owner between them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.identity import messages
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import ssh as workspace_ssh
from ansible_collections.spt.flow.tests.integration import playbook_harness
from ansible_collections.spt.flow.tests.unit import identity_harness as harness

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
HOST = "identity-ada-demo"

pytestmark = pytest.mark.skipif(not SSHD or os.geteuid() != 0, reason="needs openssh-server and root")


@dataclass
class Client:
    """An OpenSSH client whose `ProxyCommand` is an owner that starts `sshd -i`."""

    folder: Path
    config: Path
    environment: dict[str, str]

    def argv(self, *words: str) -> list[str]:
        return ["ssh", "-F", str(self.config), *words]

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **more}
        return subprocess.run(
            self.argv(*words), env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )

    @property
    def socket(self) -> Path:
        return self.folder / "spt-flow/s" / HOST


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    # A short path, because a socket is below it.
    with tempfile.TemporaryDirectory(prefix="id-") as name:
        folder = Path(name)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin yes\nPidFile none\nPasswordAuthentication no\n"
        )
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        proxy = f"{SSHD} -i -f {folder}/sshd_config"
        settings = {
            "User": "root",
            "ProxyCommand": proxy,
            "IdentityFile": f"{folder}/user",
            "IdentitiesOnly": "yes",
            "ForwardAgent": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
        }
        text = workspace_ssh.owned("identity-*", proxy) + workspace_ssh.match("originalhost identity-*", settings)
        (folder / "config").write_text(text)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSH_", "GIT_"))}
        yield Client(folder, folder / "config", kept)


def test_session_behaves_as_without_owner(client: Client) -> None:
    done = client.run(HOST, "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert client.run(HOST, "kill -TERM $$").returncode == 255
    assert not client.socket.exists(), "the socket ends with the session"


def test_agent_is_forwarded_through_the_owner(client: Client, tmp_path: Path) -> None:
    with harness.agent(tmp_path) as (place, public):
        assert client.run(HOST, "ssh-add -L", SSH_AUTH_SOCK=str(place)).stdout.strip() == public


def test_user_without_an_agent_gets_a_channel(client: Client) -> None:
    done = client.run(HOST, 'test -S "$SSH_AUTH_SOCK" && ssh-add -L')
    assert (done.returncode, done.stdout) == (1, "The agent has no identities.\n")


def test_signing_with_a_forwarded_key_works(client: Client, tmp_path: Path) -> None:
    with harness.agent(tmp_path) as (place, public):
        (tmp_path / "public").write_text(public)
        sign = f"echo text | ssh-keygen -q -Y sign -n file -f {shlex.quote(str(tmp_path / 'public'))}"
        assert "BEGIN SSH SIGNATURE" in client.run(HOST, sign, SSH_AUTH_SOCK=str(place)).stdout


def test_terminal_works_through_the_owner(client: Client) -> None:
    child = pexpect.spawn(client.argv("-t", HOST, "sh")[0], client.argv("-t", HOST, "sh")[1:], env=client.environment)
    child.expect("[#$] ", timeout=30)
    child.setwinsize(33, 77)
    child.sendline("sleep 60; stty size")
    time.sleep(1)
    child.sendintr()
    child.sendline("stty size")
    child.expect("33 77", timeout=30)
    child.sendline("exit 5")
    child.expect(pexpect.EOF, timeout=30)
    child.close()
    assert child.exitstatus == 5


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_client_leaves_neither_owner_nor_session(client: Client, number: signal.Signals) -> None:
    # Under nohup, OpenSSH would ignore SIGHUP.
    argv = ["env", "--default-signal=HUP", *client.argv(HOST, "echo $$; exec cat")]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=client.environment)
    assert process.stdin is not None and process.stdout is not None
    remote = int(process.stdout.readline())
    harness.wait_for(client.socket.exists, "the owner serves")
    process.send_signal(number)
    process.wait(20)
    process.stdin.close()
    process.stdout.close()
    harness.wait_for(lambda: not _runs(remote), "the remote command ends")
    harness.wait_for(lambda: not client.socket.exists(), "the owner ends")


def test_session_survives_its_owner_and_another_session_serves(client: Client, tmp_path: Path) -> None:
    with harness.agent(tmp_path) as (place, public):
        environment = {**client.environment, "SSH_AUTH_SOCK": str(place)}
        command = 'while read -r line; do eval "$line"; done'
        first = subprocess.Popen(
            client.argv(HOST, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert first.stdin is not None and first.stdout is not None
        print("ssh-add -L", file=first.stdin, flush=True)
        assert first.stdout.readline().strip() == public
        os.kill(_owner_of(first.pid), signal.SIGKILL)
        print("echo alive", file=first.stdin, flush=True)
        assert first.stdout.readline() == "alive\n"
        print("ssh-add -L 2>/dev/null; echo $?", file=first.stdin, flush=True)
        assert first.stdout.readline() != "0\n"
        second = subprocess.Popen(client.argv(HOST, "sleep 30"), env=environment)
        harness.wait_for(lambda: harness.keys(client.socket) == public, "the second owner serves")
        print("ssh-add -L", file=first.stdin, flush=True)
        assert first.stdout.readline().strip() == public, "the first session uses the second one's owner"
        first.stdin.close()
        assert first.wait(20) == 0
        second.terminate()
        second.wait(20)


def test_ssh_works_when_the_owner_has_disappeared(client: Client, tmp_path: Path) -> None:
    text = client.config.read_text().replace("/owner.py", "/missing.py")
    client.config.write_text(text)
    with harness.agent(tmp_path) as (place, public):
        assert client.run(HOST, "ssh-add -L", SSH_AUTH_SOCK=str(place)).stdout.strip() == public


def test_name_too_long_for_a_socket_forwards_the_agent(client: Client, tmp_path: Path) -> None:
    with harness.agent(tmp_path) as (place, public):
        done = client.run("identity-" + "x" * 100, "ssh-add -L", SSH_AUTH_SOCK=str(place))
    assert done.stdout.strip() == public
    assert not (client.folder / "spt-flow/s").exists()


HERE, THERE, PORT = "198.18.11.1", "198.18.11.2", 8443
SECRET = "canary-71ab"
SERVER = """
import base64, http.server, os, ssl, subprocess, sys
root, secret, log = sys.argv[4:7]

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def answer(self):
        given = self.headers.get("Authorization", "")
        with open(log, "a") as file:
            print("with" if given else "without", self.path, file=file)
        if given != "Basic " + base64.b64encode(f"ada:{secret}".encode()).decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic realm=git")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _mark, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = {
            "GIT_PROJECT_ROOT": root, "GIT_HTTP_EXPORT_ALL": "1", "REMOTE_USER": "ada", "PATH_INFO": path,
            "QUERY_STRING": query, "REQUEST_METHOD": self.command, "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "PATH": os.environ["PATH"], "HOME": root,
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True)
        head, _blank, content = done.stdout.partition(b"\\r\\n\\r\\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\\r\\n"))
        self.send_response(int(headers.pop("Status", "200 OK").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_words):
        pass

    do_GET = do_POST = answer

server = http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@dataclass
class GitServer:
    """git over HTTPS with a password, reachable from here and from workspaces."""

    certificate: Path
    log: Path

    address = f"https://{THERE}:{PORT}/private.git"

    def requests(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def git_server(tmp_path: Path) -> Iterator[GitServer]:
    if not shutil.which("ip") or not shutil.which("openssl"):
        pytest.skip("needs ip and openssl")
    work = playbook_harness.make_repository(tmp_path / "work")
    bare = tmp_path / "served/private.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(bare)], check=True, timeout=30)
    subprocess.run(["git", "-C", str(bare), "config", "http.receivepack", "true"], check=True, timeout=30)
    key, certificate, both = tmp_path / "tls.key", tmp_path / "tls.crt", tmp_path / "tls.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={THERE}"]
    words += ["-addext", f"subjectAltName=IP:{THERE}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)
    both.write_text(key.read_text() + certificate.read_text())
    (tmp_path / "server.py").write_text(SERVER)
    net, server = f"spti{secrets.token_hex(3)}", None

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, timeout=30, capture_output=True)

    try:
        ip("netns", "add", net)
        ip("link", "add", f"{net}a", "type", "veth", "peer", "name", f"{net}b", "netns", net)
        ip("addr", "add", f"{HERE}/30", "dev", f"{net}a")
        ip("link", "set", f"{net}a", "up")
        ip("-n", net, "addr", "add", f"{THERE}/30", "dev", f"{net}b")
        ip("-n", net, "link", "set", f"{net}b", "up")
        ip("-n", net, "route", "add", "default", "via", HERE)
        argv = [sys.executable, str(tmp_path / "server.py"), THERE, str(PORT), str(both), str(bare.parent), SECRET]
        server = subprocess.Popen(["ip", "netns", "exec", net, *argv, str(tmp_path / "requests")])
        harness.wait_for(lambda: _listens(net), "the git server listens")
        yield GitServer(certificate, tmp_path / "requests")
    finally:
        if server:
            server.terminate()
            server.wait(20)
        ip("netns", "del", net, check=False)
        ip("link", "del", f"{net}a", check=False)


def _listens(net: str) -> bool:
    argv = ["ip", "netns", "exec", net, "ss", "-Hltn", f"sport = :{PORT}"]
    return bool(subprocess.run(argv, capture_output=True, timeout=30, check=False).stdout)


def test_workspace_clones_and_pushes_with_the_users_git_credentials(git_server: GitServer, tmp_path: Path) -> None:
    """The whole way: up, OpenSSH, the workspace agent's helper, the owner, the user's helper, a real git server."""
    with playbook_harness.playbooks(tmp_path / "books") as books:
        user = harness.User(books.home, tmp_path / "unused")
        user.helper(f'test "$1" = get && printf "username=ada\\npassword={SECRET}\\n"; echo "$1" >>"$HOME/asked"')
        books.up()
        git = "git -c http.sslVerify=false"
        clone = f"cd /tmp && rm -rf p && {git} clone -q {git_server.address} p && cd p && git log --format=%s"

        def run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
            return books.run("ssh", SPT_FLOW_WORKSPACE=books.name, SPT_FLOW_COMMAND=command, **environment)

        refused = run(clone)
        assert refused.returncode and "credential_hosts" in refused.stdout + refused.stderr
        allowed = {"SPT_FLOW_CREDENTIAL_HOSTS": f"{THERE}:{PORT}"}
        cloned = run(clone, **allowed)
        assert (cloned.returncode, cloned.stdout) == (0, "first\n"), cloned
        change = "git -c user.name=A -c user.email=a@b commit -q --allow-empty -m second"
        pushed = run(f"cd /tmp/p && {change} && {git} push -q && {git} fetch -q && git log -1 --format=%s", **allowed)
        assert (pushed.returncode, pushed.stdout) == (0, "second\n"), pushed
        found = run(f"grep -rls {SECRET} /home/coder /tmp /run 2>/dev/null; true", **allowed)
        assert found.stdout == ""
        assert "get" in (books.home / "asked").read_text().split()
        log = (books.home / ".local/state/spt-flow/credentials.log").read_text()
        assert '"refused"' in log and '"given"' in log and SECRET not in log


def test_commit_is_signed_through_the_users_gnupg_agent(tmp_path: Path) -> None:
    """A second GnuPG home, with the public key only, reaches the first one's agent by the owner's stream."""
    if not all(map(shutil.which, ("gpg", "gpgconf", "gpg-agent"))):
        pytest.skip("needs GnuPG")
    with tempfile.TemporaryDirectory(prefix="gpg-") as short:
        mine, inside = Path(short, "mine"), Path(short, "inside")
        mine.mkdir(mode=0o700)
        inside.mkdir(mode=0o700)
        user = harness.User(Path(short), harness.private(tmp_path))
        user.record("git.example.com")
        here = {**os.environ, **user.environment, "GNUPGHOME": str(mine)}
        there = {**here, "GNUPGHOME": str(inside)}

        def run(*words: str, environment: dict[str, str] = here, stdin: str = "") -> str:
            done = subprocess.run(words, env=environment, input=stdin, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done
            return done.stdout

        batch = ["gpg", "--batch", "--passphrase", "", "--pinentry-mode", "loopback"]
        try:
            run(*batch, "--quick-generate-key", "ada@example.com", "ed25519", "sign", "never")
            config = "[user]\n\temail = ada@example.com\n\tsigningKey = ada@example.com\n[commit]\n\tgpgSign = true\n"
            (user.home / ".gitconfig").write_text(config)
            with user.session(GNUPGHOME=str(mine)) as session:
                facts = session.query(kind="signing")
                assert (facts["format"], facts["commits"]) == ("openpgp", True)
                assert "PRIVATE" not in str(facts)
                run("gpg", "--batch", "--import", environment=there, stdin=facts["public_keys"])
                run("gpg", "--batch", "--import-ownertrust", environment=there, stdin=facts["ownertrust"])
                place = run("gpgconf", "--list-dirs", "agent-socket", environment=there).strip()
                run("gpgconf", "--kill", "gpg-agent", environment=there)
                harness.wait_for(lambda: not Path(place).exists(), "importing has left no agent")
                with _relay(Path(place), user.socket):
                    signed = ["gpg", "--batch", "--no-autostart", "--armor", "--clearsign"]
                    signature = run(*signed, environment=there, stdin="text")
                run("gpg", "--batch", "--verify", stdin=signature)
            assert '"kind": "gpg"' in (user.home / "state/spt-flow/credentials.log").read_text()
        finally:
            for home in (here, there):
                subprocess.run(["gpgconf", "--kill", "all"], env=home, timeout=30, check=False)


@contextlib.contextmanager
def _relay(place: Path, owner: Path) -> Iterator[None]:
    """Serve ``place`` by streams of the owner, as the workspace agent does."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()

        def join() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _address = listener.accept()
                    with client, harness.Inside(owner) as inside:
                        assert inside.ask(harness.extension("stream@spt.flow", {"kind": "gpg"})) == b"\x06"
                        with contextlib.suppress(messages.Broken):
                            messages.join(client, inside.socket)

        threading.Thread(target=join, daemon=True).start()
        yield


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _owner_of(ssh: int) -> int:
    """Return the process of the owner below an OpenSSH client."""
    children = Path(f"/proc/{ssh}/task/{ssh}/children").read_text().split()
    return next(int(child) for child in children if b"owner.py" in Path(f"/proc/{child}/cmdline").read_bytes())
