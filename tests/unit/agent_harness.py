# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the workspace agent on this machine: a temporary root, git over HTTPS, small stand-ins for big programs."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = REPOSITORY / "image/rootfs/usr/local/lib/spt-workspace"
PROGRAM = REPOSITORY / "image/rootfs/usr/local/bin/spt-workspace"

sys.dont_write_bytecode, _before = True, sys.dont_write_bytecode
sys.path.insert(0, str(LIBRARY))
import spt_workspace.main

sys.dont_write_bytecode = _before

RUN = """
import os, sys
sys.dont_write_bytecode = True
sys.path.insert(0, {library!r})
from pathlib import Path
from spt_workspace.contract import Contract, Paths
from spt_workspace.supervisor import Supervisor
root = Path({root!r})
contract = Contract.from_environment(os.environ)
sys.exit(Supervisor(contract, Paths(root), dict(os.environ), root / "pts", (str(root / "skel"),), {docker!r}).run())
"""

COMMAND = """
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, {library!r})
from pathlib import Path
from spt_workspace.contract import Paths
from spt_workspace.main import main
sys.exit(main(sys.argv[1:], Paths(Path({root!r}))))
"""

CODE_SERVER = """#!{python}
import http.server, os, pathlib, sys, time
config = dict(line.split(": ", 1) for line in pathlib.Path(sys.argv[2]).read_text().splitlines())
place = config["bind-addr"].strip('"')
pathlib.Path({root!r}, "code-server.argv").write_text(repr(sys.argv))
pathlib.Path({root!r}, "code-server.env").write_text(repr(dict(os.environ)))
pathlib.Path({root!r}, "code-server.pid").write_text(str(os.getpid()))
print("password from file", config["password"], flush=True)
time.sleep(float(os.environ.get("STUB_SLOW", "0")))
if os.environ.get("STUB_DIES"):
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()
    def log_message(self, *words):
        pass
http.server.HTTPServer((place.rsplit(":", 1)[0], int(place.rsplit(":", 1)[1])), Handler).serve_forever()
"""

DOCKERD = """#!{python}
import http.server, os, pathlib, signal, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def address_string(self):
        return ""
    def log_message(self, *words):
        pass
def bye(*_):
    pathlib.Path({root!r}, "dockerd.ended").touch()
    os._exit(0)
signal.signal(signal.SIGTERM, bye)
pathlib.Path({root!r}, "dockerd.pid").write_text(str(os.getpid()))
socketserver.UnixStreamServer(sys.argv[1], Handler).serve_forever()
"""

WRONG = "Basic dTp3cm9uZw=="
"""User u, password wrong."""

GIT = """#!/bin/sh
sub=
for word in "$@"; do
  case $word in clone|checkout|rev-parse|fsck|for-each-ref|check-ref-format|submodule) sub=$word; break ;; esac
done
[ "$KILL_AT" = "before:$sub" ] && kill -9 $PPID
if [ "$KILL_AT" = "during:$sub" ]; then (sleep 0.03; kill -9 $PPID) & fi
/usr/bin/git "$@"
status=$?
[ "$KILL_AT" = "after:$sub" ] && kill -9 $PPID
exit $status
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what, seconds: float = 15.0, message: str = ""):  # type: ignore[no-untyped-def]
    """Return the first true answer of ``what``."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answer = what()
        if answer:
            return answer
        time.sleep(0.02)
    raise AssertionError(message or f"nothing within {seconds} s")


class Machine:
    """The inside of one workspace below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = spt_workspace.main.Paths(root)
        self.log = root / "log"
        self.bin = root / "bin"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        for place in (self.paths.home, self.bin, root / "skel/.config/x", root / "pts", root / "tmp"):
            place.mkdir(parents=True)
        (root / "skel/.bashrc").write_text("# skeleton\n")
        (root / "skel/.config/x/y").write_text("deep\n")
        self.stub("code-server", CODE_SERVER)
        self.stub("dockerd", DOCKERD)
        self.stub("git", GIT)
        self.environ = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "SPT_FLOW_CONTRACT": "1",
            "SPT_FLOW_WORKSPACE": "demo",
            "SPT_FLOW_DIRECTORY": str(self.paths.home / "demo"),
            "SPT_FLOW_IDE_PORT": str(self.port),
            "SPT_FLOW_IDLE_STOP": "7200",
            "SPT_FLOW_TICK": "100",
            "GOTMPDIR": "/var/tmp/go",
            # In the image /etc/gitconfig includes it.
            "GIT_CONFIG_SYSTEM": str(self.paths.run / "gitconfig"),
        }

    def stub(self, name: str, text: str) -> None:
        place = self.bin / name
        place.write_text(text.replace("{python}", sys.executable).replace("{root!r}", repr(str(self.root))))
        place.chmod(0o755)

    def trust(self, authority: Path) -> None:
        (self.paths.home / ".gitconfig").write_text(f"[http]\n\tsslCAInfo = {authority}\n")

    def start(self, **extra: str) -> subprocess.Popen[bytes]:
        docker = [str(self.bin / "dockerd"), str(self.paths.docker_socket)] if extra.get("SPT_FLOW_DOCKER") else ()
        program = RUN.format(library=str(LIBRARY), root=str(self.root), docker=docker)
        self.starts += 1
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                env={**self.environ, **extra},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.process

    def command(self, *words: str, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
        program = COMMAND.format(library=str(LIBRARY), root=str(self.root))
        env = {name: self.environ[name] for name in ("PATH", "GIT_CONFIG_SYSTEM")}
        env.update(extra)
        argv = [sys.executable, "-c", program, *words]
        return subprocess.run(argv, env=env, input=stdin, capture_output=True, text=True, timeout=60)

    def status(self) -> dict:
        return json.loads(self.command("status").stdout)

    def events(self) -> list[dict]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines if line.startswith('{"spt_flow": 1')]

    def step(self, name: str) -> dict:
        """Return the newest state of a step in this start, from the log."""
        found: dict = {}
        starts = 0
        for event in self.events():
            starts += event["event"] == "start"
            if starts == self.starts and event["event"] == "step" and event["step"] == name:
                found = event
        return found

    def wait(self, name: str, *states: str, seconds: float = 20.0) -> dict:
        wanted = states or ("ok", "failed", "skipped", "needs-auth")

        def ended() -> dict | None:
            event = self.step(name)
            return event if event.get("state") in wanted else None

        return wait_for(ended, seconds, f"{name} is {self.step(name)}\n{self.log.read_text()[-3000:]}")

    def end(self, seconds: float = 25.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill_rest(self) -> None:
        """Kill every process that this machine started, found by the root in its command line."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if str(self.root).encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    os.kill(int(entry.name), signal.SIGKILL)


class _Handler(http.server.BaseHTTPRequestHandler):
    """git's smart HTTP over ``git http-backend``.

    Paths below /private/ need a login that is not ``WRONG``; those below /slow/ are slow.
    """

    protocol_version = "HTTP/1.1"
    root = Path()
    failures = 0

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_GET

    def _serve(self) -> None:
        cls = type(self)
        path, _mark, query = self.path.partition("?")
        if path.startswith("/private/") and self.headers.get("Authorization") in (None, WRONG):
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if cls.failures > 0:
            cls.failures -= 1
            self.send_error(503)
            return
        if path.startswith("/slow/"):
            time.sleep(1)
        body = self._body()
        env = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(cls.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path.replace("/private", "").replace("/slow", ""),
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        answer = subprocess.run(["/usr/bin/git", "http-backend"], input=body, env=env, capture_output=True).stdout
        head, _blank, content = answer.partition(b"\r\n\r\n")
        lines = [line.split(": ", 1) for line in head.decode().splitlines()]
        code = next((int(value.split()[0]) for name, value in lines if name == "Status"), 200)
        self.send_response(code)
        for name, value in lines:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *words: object) -> None:
        return


@contextlib.contextmanager
def https_git(root: Path, place: Path) -> Iterator[tuple[str, Path, type[_Handler]]]:
    """Serve the bare repositories below ``root``; yield (URL prefix, certificate, handler)."""
    certificate, key = place / "cert.pem", place / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    subprocess.run([*argv, *names, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    handler = type("Handler", (_Handler,), {"root": root, "failures": 0})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://localhost:{server.server_port}", certificate, handler
    finally:
        server.shutdown()
        server.server_close()


def git(*words: str, cwd: Path | None = None) -> str:
    argv = ["/usr/bin/git", "-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    return subprocess.run([*argv, *words], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def make_repository(place: Path, files: int = 3) -> str:
    """Create a bare repository: branches main and topic/one, tag v1 on the first commit; return the commit of main."""
    work = place.with_name(f"{place.name}.work")
    git("init", "-q", "-b", "main", str(work))
    for number in range(files):
        (work / f"file{number}").write_text(f"{number}\n" * 50)
    git("add", ".", cwd=work)
    git("commit", "-q", "-m", "one", cwd=work)
    git("tag", "v1", cwd=work)
    git("checkout", "-q", "-b", "topic/one", cwd=work)
    (work / "topic").write_text("topic\n")
    git("add", ".", cwd=work)
    git("commit", "-q", "-m", "topic", cwd=work)
    git("checkout", "-q", "main", cwd=work)
    (work / "second").write_text("second\n")
    git("add", ".", cwd=work)
    git("commit", "-q", "-m", "two", cwd=work)
    git("clone", "-q", "--bare", str(work), str(place))
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=place)
    return git("rev-parse", "main", cwd=work)
