# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for a Git host: OAuth, and a private repository over HTTPS for those who send its token."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import secrets
import ssl
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class GitHost:
    """``refused`` counts requests without the token."""

    address: str
    folder: Path
    token: str = field(default_factory=lambda: f"canary-{secrets.token_hex(12)}")
    code: str = field(default_factory=lambda: secrets.token_hex(8))
    certificate: str = ""
    oauth: str = ""
    git: str = ""
    refused: int = 0

    @property
    def url(self) -> str:
        return f"https://{self.git}/private.git"

    def providers(self) -> list[dict[str, Any]]:
        addresses = {f"{name}_url": f"http://{self.oauth}/{name}" for name in ("auth", "token", "validate", "revoke")}
        known = {"type": "gitlab", "id": "githost", "host": self.git, "scopes": ["read"]}
        return [{**known, **addresses, "client_id": "spt-flow", "client_secret": "canary-secret"}]


class Oauth(http.server.BaseHTTPRequestHandler):
    host: GitHost

    def do_GET(self) -> None:
        place = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(place.query))
        if place.path == "/auth":
            answer = urllib.parse.urlencode({"code": self.host.code, "state": query["state"]})
            self.send_response(302)
            self.send_header("Location", f"{query['redirect_uri']}?{answer}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        good = self.headers.get("Authorization") == f"Bearer {self.host.token}"
        self._json({"login": "ada"} if good else {}, 200 if good else 401)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        assert dict(urllib.parse.parse_qsl(body))["code"] == self.host.code
        self._json({"access_token": self.host.token, "token_type": "bearer", "expires_in": 3600})

    def _json(self, answer: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        pass


class Git(http.server.SimpleHTTPRequestHandler):
    """Serves a bare repository to those who send the token as the password."""

    host: GitHost

    def do_GET(self) -> None:
        kind, _space, words = self.headers.get("Authorization", "").partition(" ")
        password = base64.b64decode(words).decode().partition(":") if kind == "Basic" else ("", "", "")
        if self.host.token in (password[0], password[2]):
            super().do_GET()
            return
        self.host.refused += 1
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        pass


@contextmanager
def served(host: GitHost, handler: Any, context: ssl.SSLContext | None = None) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer((host.address, 0), handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{host.address}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def git(*argv: str) -> None:
    author = ["-c", "user.name=Grace", "-c", "user.email=grace@example.com"]
    subprocess.run(["git", *author, *argv], check=True, capture_output=True, timeout=60)


@contextmanager
def git_host(address: str, folder: Path) -> Iterator[GitHost]:
    made = GitHost(address, folder)
    work, bare = made.folder / "work", made.folder / "public/private.git"
    git("init", "-q", "-b", "main", str(work))
    (work / "hello.txt").write_text("hello\n")
    git("-C", str(work), "add", ".")
    git("-C", str(work), "commit", "-q", "-m", "first")
    git("clone", "-q", "--bare", str(work), str(bare))
    git("-C", str(bare), "update-server-info")
    certificate, key = made.folder / "cert.pem", made.folder / "key.pem"
    subject = ["-subj", f"/CN={made.address}", "-addext", f"subjectAltName=IP:{made.address}"]
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*argv, "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True, timeout=60)
    made.certificate = certificate.read_text()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = functools.partial(type("Served", (Git,), {"host": made}), directory=str(bare.parent))
    with (
        served(made, handler, context) as made.git,
        served(made, type("Oauth", (Oauth,), {"host": made})) as made.oauth,
    ):
        yield made


def docker(*argv: str, text: str = "") -> str:
    done = subprocess.run(["docker", *argv], input=text, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trust(container: str, host: GitHost) -> None:
    """Let a workspace trust the host's certificate."""
    install = "cat >/usr/local/share/ca-certificates/githost.crt && update-ca-certificates"
    docker("exec", "--interactive", "--user", "0", container, "sh", "-c", install, text=host.certificate)
