# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP/1.1 with keep-alive in front of the state: rate limits, faults, checks against the description."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import struct
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from . import routes
from .accounts import User
from .faults import Fault, Faults
from .jobs import iso
from .openapi import Checker
from .rules import Refused
from .state import State

HTML = b"<!doctype html><html><title>Coder</title></html>"


@dataclass(frozen=True)
class Seen:
    """A request, answered or not (status 0). ``at``: the state's clock; ``route``: its path as in the description."""

    at: float
    method: str
    path: str
    route: str
    status: int
    user: str


@dataclass
class Answer:
    status: int
    data: Any = None
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes | None = None
    kind: str = "application/json"

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        return b"" if self.status in (204, 304) else json.dumps(self.data, ensure_ascii=False).encode() + b"\n"


class Fake:
    """A server on ``host`` and ``port`` (0: any unused one). ``openapi`` names the API description, if available.

    ``errors`` has the fake's own errors: tests assert that it is empty, like ``checker.problems``.
    ``changed`` is called after each request that may have changed the state. Use it in a ``with``, or ``start`` and
    ``stop``.
    """

    def __init__(
        self,
        state: State | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        openapi: str = "",
        tls: tuple[str, str] | None = None,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self.state = state or State()
        self.faults = Faults(self.state.clock)
        self.checker = Checker(openapi) if openapi else None
        self.seen: list[Seen] = []
        self.errors: list[str] = []
        self.limited = True
        self.lock = threading.RLock()
        self.url = ""
        self._address = (host, port)
        self._tls = tls
        self._changed = changed or (lambda: None)
        self._recent: defaultdict[tuple[str, str], deque[float]] = defaultdict(deque)
        self._httpd: _Server | None = None

    def start(self) -> Fake:
        fake = self

        class Bound(_Handler):
            server_fake = fake

        self._httpd = _Server(self._address, Bound)
        host, port = str(self._httpd.server_address[0]), self._httpd.server_port
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
            self._httpd.socket = context.wrap_socket(
                self._httpd.socket, server_side=True, do_handshake_on_connect=False
            )
        self._address = (host, port)
        self.url = f"{'https' if self._tls else 'http'}://{host}:{port}"
        threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Close the port and every connection; ``start`` opens the same port again."""
        if self._httpd is not None:
            self._httpd.shutdown()
            self._httpd.server_close()
            self._httpd.hang_up()
            self._httpd = None

    def restart(self, seconds: float, clean: bool = True) -> None:
        """Be unreachable for this long by the clock, like a restarting server; its running jobs fail."""
        with self.lock:
            self.faults.restart(seconds)
            self.state.interrupt(clean)

    def __enter__(self) -> Fake:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    # One request

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        with self.lock:
            try:
                self.state.settle()
                answer = self._answer(method, target, headers, body)
            except Exception:  # noqa: BLE001  # a fault of the fake's own, which its user has to see
                self.errors.append(traceback.format_exc())
                return Answer(500, {"message": "The fake is broken.", "detail": self.errors[-1][-500:]})
            if method != "GET":
                self._changed()
            return answer

    def _answer(self, method: str, target: str, headers: Any, raw: bytes) -> Answer:
        parts = urlsplit(target)
        found = routes.find(method, parts.path)
        if found is None:
            return self._elsewhere(method, parts.path)
        route, words = found
        query, body = dict(parse_qsl(parts.query, keep_blank_values=True)), None
        asker = None
        try:
            asker = self._asker(headers) if not route.open else None
            self._limit(asker.id if asker else "address", route, parts.path)
            if "{id}" in route.path:
                routes.uuid(words[0])
            body = _parsed(raw) if raw and method != "GET" and not route.path.endswith("/files") else routes.Body()
            kind = headers.get("Content-Type", "")
            segments = tuple(unquote(word) for word in words)
            token = headers.get("Coder-Session-Token", "")
            call = routes.Call(self.state, asker, segments, query, body, raw, kind, self.url, token)
            reply = route.handler(call)
            status, data = (reply.status, reply.data) if isinstance(reply, routes.Reply) else (route.status, reply)
            answer = Answer(status, data, raw=b"OK" if data == "OK" else None)
            answer.kind = "text/plain" if data == "OK" else answer.kind
        except Refused as refused:
            answer = Answer(refused.status, refused.body, _headers(refused))
        self._check(method, route.path, query, body, answer)
        self.seen.append(
            Seen(self.state.now, method, parts.path, route.path, answer.status, asker.username if asker else "")
        )
        return answer

    def _asker(self, headers: Any) -> User:
        bearer = headers.get("Authorization", "").removeprefix("Bearer ")
        return self.state.authenticate(headers.get("Coder-Session-Token", "") or bearer)

    def _limit(self, who: str, route: routes.Route, path: str) -> None:
        """Limit the requests per minute by user and path."""
        if not self.limited:
            return
        recent, now = self._recent[who, path], self.state.now
        while recent and recent[0] <= now - 60:
            recent.popleft()
        if len(recent) >= route.per_minute:
            raise Refused(429, f"You've been rate limited for sending more than {route.per_minute} requests in 1m0s.")
        recent.append(now)

    def _elsewhere(self, method: str, path: str) -> Answer:
        """An unknown route of the API is 404; any other path is the dashboard's page."""
        if path.startswith("/api/"):
            if self.checker:
                self.checker.request(method, path, {}, None)
            return Answer(404, {"message": "Route not found."})
        if path.startswith("/bin/coder-") and self.state.cli:
            return Answer(200, raw=self.state.cli, kind="application/octet-stream")
        return Answer(200, raw=HTML, kind="text/html; charset=utf-8")

    def _check(self, method: str, path: str, query: dict[str, str], body: Any, answer: Answer) -> None:
        if self.checker:
            self.checker.request(method, path, query, body)
            if answer.raw is None:
                self.checker.answer(method, path, answer.status, answer.data)


def _parsed(raw: bytes) -> routes.Body:
    try:
        return routes.Body(json.loads(raw))
    except (ValueError, TypeError):
        raise Refused(400, "Request body must be valid JSON.", "invalid character") from None


def _headers(refused: Refused) -> tuple[tuple[str, str], ...]:
    if refused.status in (401, 403):
        return (("WWW-Authenticate", 'Bearer realm="coder"'),)
    return (("Retry-After", "60"), ("X-RateLimit-Limit", "512")) if refused.status == 429 else ()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 60
    server_fake: Fake

    def answer(self) -> None:
        fake = self.server_fake
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        with fake.lock:
            fault = None if fake.faults.away else fake.faults.pick(self.command, path)
        if fake.faults.away:
            self._vanish()
            return
        if path == "/derp" and self.headers.get("Upgrade", "").lower() == "websocket":
            self._relay()
            return
        answer = None
        if fault is None or fault.processed or fault.kind == "truncated":
            answer = fake.answer(self.command, self.path, self.headers, body)
        if fault is not None:
            self._spoil(fault, answer, path)
        elif answer is not None:
            self._send(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = answer

    def _relay(self) -> None:
        """A websocket that sends its first message, like the relay, and closes; for proxies in front."""
        key = self.headers.get("Sec-WebSocket-Key", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Protocol", "derp")):
            self.send_header(name, value)
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.write(b"\x82\x04derp")
        self.close_connection = True

    def _spoil(self, fault: Fault, answer: Answer | None, path: str) -> None:
        fake = self.server_fake
        fake.seen.append(Seen(fake.state.now, self.command, path, "", 0, ""))
        if fault.kind == "html":
            self._send(Answer(200, raw=HTML, kind="text/html"))
        elif fault.kind == "truncated" and answer is not None:
            whole = answer.body()
            self._send(Answer(answer.status, raw=whole[: len(whole) // 2]))
        elif fault.kind in ("reset", "timeout", "truncated"):
            time.sleep(fault.delay if fault.kind == "timeout" else 0)
            self._vanish()
        else:
            after = () if fault.retry_after is None else (("Retry-After", f"{fault.retry_after:g}"),)
            self._send(Answer(int(fault.kind), {"message": f"An injected {fault.kind}."}, after))

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The header ``Date`` by the fake's own clock."""
        return super().date_time_string(int(self.server_fake.state.now) if timestamp is None else timestamp)

    def _vanish(self) -> None:
        """Reset the connection, so that the client notices at once."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _send(self, answer: Answer) -> None:
        body = answer.body()
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if self.path.startswith("/api/"):
            self.send_header("X-Coder-Build-Version", self.server_fake.state.build_version)
        if answer.status not in (204, 304):
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: tests read ``seen``."""


def describe(fake: Fake) -> str:
    """Print one line for the user who started it."""
    return f"A fake Coder server {fake.state.build_version} on {fake.url} since {iso(fake.state.created)}"
