# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to a Coder server: what is retried, what is reported, and which secrets are never shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import errors
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import http as coder_http
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import retry as coder_retry
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.config import CoderConfig

pytest.importorskip("urllib3", reason="the client's own library")

TOKEN = "CANARYtoken"
JSON = {"Content-Type": "application/json"}
OK = (200, JSON, b'{"id": 1}')


def error(status: int, message: str = "No.", headers: dict[str, str] | None = None, **more: Any) -> tuple[Any, ...]:
    return status, {**JSON, **(headers or {})}, json.dumps({"message": message, **more}).encode()


class Server:
    """Answers from a script; ``None`` in it breaks the connection."""

    def __init__(self) -> None:
        self.script: list[tuple[int, dict[str, str], bytes] | None] = []
        self.seen: list[tuple[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                server.seen.append((self.command, self.path))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                now = server.script.pop(0) if server.script else OK
                if now is None:
                    self.close_connection = True
                    return
                status, headers, body = now
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.httpd.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.httpd.shutdown()
    made.httpd.server_close()


class Clock:
    """A clock that advances only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def client(server: Server | str, clock: Clock | None = None, **more: Any) -> coder_http.CoderHttp:
    clock = clock or Clock()
    url = server if isinstance(server, str) else server.url
    config = CoderConfig(url=url, token=TOKEN, source="the test", headers=(("X-Proxy", "CANARYheader"),))
    return coder_http.CoderHttp(config, clock=clock, sleep=clock.sleep, **more)


def test_answer_is_returned(server: Server) -> None:
    answer = client(server).request("GET", "/api/v2/x", {"q": "owner:me", "deleted": True, "no": None})
    assert (answer.status, answer.data) == (200, {"id": 1})
    assert server.seen == [("GET", "/api/v2/x?q=owner%3Ame&deleted=true")]


@pytest.mark.parametrize(
    ("method", "trouble"),
    [
        ("GET", error(502)),
        ("GET", error(500)),
        ("GET", None),
        ("GET", (200, JSON, b'{"id": ')),
        ("DELETE", error(504)),
        ("POST", error(503)),
        ("POST", error(429, headers={"Retry-After": "3"})),
        ("PATCH", error(429)),
    ],
)
def test_safe_requests_are_retried(server: Server, method: str, trouble: Any) -> None:
    server.script = [trouble]
    assert client(server).request(method, "/x", body={}).status == 200
    assert len(server.seen) == 2


@pytest.mark.parametrize("trouble", [error(500), error(502), None, (200, JSON, b"{")])
def test_post_with_unknown_outcome_is_not_repeated(server: Server, trouble: Any) -> None:
    server.script = [trouble]
    with pytest.raises(coder_retry.Unsure, match="may have processed it"):
        client(server).request("POST", "/x", body={})
    assert len(server.seen) == 1


def test_retry_after_is_obeyed_within_the_deadline(server: Server) -> None:
    clock = Clock()
    server.script = [error(429, headers={"Retry-After": "20"})]
    client(server, clock).request("POST", "/x", timeout=60)
    assert 20 <= clock.now <= 23
    server.script = [error(429, headers={"Retry-After": "90"})]
    with pytest.raises(errors.DeadlineExceeded, match="retry in 90 s"):
        client(server, clock).request("POST", "/x", timeout=60)


def test_wrongly_answering_server_is_given_up_soon(server: Server) -> None:
    """An answer with Retry-After is not a wrong answer and does not count as a try."""
    clock = Clock()
    server.script = [error(500)] * 20
    with pytest.raises(errors.Unhealthy, match="status 500"):
        client(server, clock).request("GET", "/x", timeout=60)
    assert len(server.seen) == coder_retry.BROKEN_TRIES and clock.now < 10
    server.script = [error(429, headers={"Retry-After": "1"})] * 9 + [error(500)] * 3
    assert client(server, Clock()).request("GET", "/x", timeout=60).status == 200


def test_outage_is_waited_for_within_the_deadline(server: Server) -> None:
    server.httpd.shutdown()
    server.httpd.server_close()
    clock, said = Clock(), []
    with pytest.raises(errors.Unhealthy, match="cannot be reached") as caught:
        client(server, clock, say=said.append, outage=30).request("POST", "/x", timeout=300)
    assert 20 <= clock.now <= 30 and said and "CODER_URL" in caught.value.hint


def test_database_that_is_down_for_a_minute_is_waited_for_with_one_line(server: Server) -> None:
    """Twelve answers are a minute of waiting; a server that only answers wrongly gets six tries."""
    clock, said = Clock(), []
    detail = "dial unix /run/postgresql/.s.PGSQL.5432: connect: no such file or directory"
    server.script = [error(500, "Internal error fetching API key by id.", detail=detail)] * 18
    assert client(server, clock, say=said.append).request("GET", "/x").status == 200
    assert 45 <= clock.now <= coder_http.OUTAGE
    (line,) = said
    assert "Waiting up to 75 s for the server and its database" in line


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (error(400, "Bad.", validations=[{"field": "name", "detail": "too long"}]), errors.InvalidInput, "name: too"),
        (error(401, "Signed out."), errors.AuthError, "token from the test"),
        (error(403, "Forbidden.", detail="no role"), errors.AuthError, "no role"),
        (error(500, "Internal error.", detail="insert: rbac: forbidden"), errors.AuthError, "rbac: forbidden"),
        (error(404, "Gone."), errors.NotFound, "Gone"),
        (error(406, "Hidden."), errors.Conflict, "Hidden"),
        (error(409, "Busy."), errors.Conflict, "Busy"),
        (error(410, "Deleted."), errors.NotFound, "Deleted"),
        ((200, {"Content-Type": "text/html"}, b"<html>login"), errors.Unhealthy, "web page"),
        ((404, {"Content-Type": "text/html"}, b"<html>"), errors.Unhealthy, "web page"),
        ((302, {"Location": "https://sso.example.com/login"}, b""), errors.Unhealthy, "https://sso.example.com"),
    ],
)
def test_refusal_is_reported_in_one_sentence(
    server: Server, answer: Any, kind: type[errors.FlowError], words: str
) -> None:
    server.script = [answer]
    with pytest.raises(kind) as caught:
        client(server).request("POST", "/x", body={})
    assert words in caught.value.message and len(server.seen) == 1


def test_messages_contain_no_secret(server: Server) -> None:
    server.script = [error(400, f"Bad token {TOKEN} with CANARYheader.", detail=TOKEN)]
    http = client(server)
    with pytest.raises(errors.FlowError) as caught:
        http.request("GET", "/x")
    assert "CANARY" not in json.dumps(caught.value.to_dict()) + repr(http) + repr(http.config)


def test_unknown_host_is_reported_at_once() -> None:
    clock = Clock()
    with pytest.raises(errors.Unhealthy, match="The host .* does not exist"):
        client("http://coder.invalid", clock).request("GET", "/x")
    assert clock.now == 0
