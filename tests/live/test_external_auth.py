# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A workspace on a real Coder server clones a private repository with the login that the server keeps for its user.

A stand-in for the Git host answers OAuth and serves the repository over HTTPS, on the address that workspaces reach.
"""

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
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import external_auth
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.probe import Probe
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import lifecycle
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
from ansible_collections.spt.flow.tests.live.conftest import LiveServer

SETTINGS = Settings(profile="slim", cpus=1.0, memory=1 << 30, kvm="disabled", wait_timeout=600)
NAME = "login"


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


@pytest.fixture(scope="module")
def host(live_server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    made = GitHost(live_server.gateway, tmp_path_factory.mktemp("git-host"))
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


@pytest.fixture(scope="module")
def configured(live_server: LiveServer, host: GitHost) -> Iterator[None]:
    """The server with the provider, and the template that uses it."""
    assert live_server.admin is not None
    before = dict(live_server.environment)
    live_server.stop()
    live_server.environment |= external_auth.environment(host.providers())
    live_server.start()
    wanted = coder_template.ours(
        SETTINGS, "dev", "spt-flow", {}, network="bridge", external_auth=external_auth.variable(["githost"])
    )
    coder_template.roll_out(live_server.admin, wanted)
    yield
    live_server.stop()
    live_server.environment = before
    live_server.start()


def log_in(live_server: LiveServer, url: str) -> None:
    """Follow the link as the user's browser does."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    request = urllib.request.Request(f"{url}/callback", headers={"Coder-Session-Token": live_server.token})
    with opener.open(request, timeout=30) as answer:
        assert answer.status == 200


def docker(*argv: str, text: str = "") -> str:
    done = subprocess.run(["docker", *argv], input=text, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_up_waits_for_the_login_and_clones_with_it(
    live_server: LiveServer, host: GitHost, configured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODER_URL", live_server.url)
    monkeypatch.setenv("CODER_SESSION_TOKEN", live_server.token)
    spec = WorkspaceSpec("me", SETTINGS, NAME)
    said: list[str] = []

    def user(line: str) -> None:
        said.append(line)
        if "Open " in line:
            log_in(live_server, line.split("Open ")[1].split()[0])

    try:
        client = live_server.client(live_server.token)
        template = client.template("spt-flow")
        assert template is not None
        client.create_workspace(NAME, template["id"])
        made = lifecycle.ensure(live_server.target(), spec).workspace
        assert made is not None
        container = docker("ps", "--quiet", "--filter", f"label=spt.flow.coder={made.id}").strip()
        place = "/usr/local/share/ca-certificates/githost.crt"
        trust = f"cat >{place} && update-ca-certificates"
        docker("exec", "--interactive", "--user", "0", container, "sh", "-c", trust, text=host.certificate)

        wanted = replace(spec, repository=Repository.parse(host.url))
        result = lifecycle.ensure(
            live_server.target(), wanted, probe=lambda *words: Probe("needs-auth"), progress=Progress(user)
        )
        assert any("login: done" in line for line in said), said
        assert result.workspace is not None and result.workspace.step("clone").state == "ok", (said, result.notes)
        assert docker("exec", "--user", "1000", container, "cat", f"/home/coder/{NAME}/hello.txt") == "hello\n"
        assert host.refused, "git asked for the token only when it was needed"
        assert host.token not in docker("inspect", container) + docker("logs", container)
        found = docker(
            "exec", "--user", "0", container, "sh", "-c", f"grep -rl {host.token} /home /etc /var /tmp || true"
        )
        assert found == ""
    finally:
        lifecycle.ensure(live_server.target(), spec, "absent")
