# pylint: disable=unused-import; pylint takes this file for the standard library's http
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to a Coder server: one pool of connections, deadlines, retries and error messages.

Failures of requests that cannot have been processed (no connection, 429, 503) are always retried. A lost answer, 500,
502 and 504 are retried only if repeating is harmless (``SAFE``, or ``repeat=True``). Otherwise ``Unsure`` is raised,
and the caller must check whether the request was processed. Knows no paths of Coder.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from ....module_utils._node import clock
from ....module_utils._node.errors import (
    AuthError,
    Conflict,
    DeadlineExceeded,
    FlowError,
    InvalidInput,
    NotFound,
    Unhealthy,
)
from ..common.wait import Waiter
from . import pool
from .answers import ErrorBody, read_body, retry_after, root_cause
from .config import CoderConfig
from .retry import Retry, Trouble

if TYPE_CHECKING:
    import urllib3

SAFE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
"""Methods that may be repeated if the first request may have arrived."""
NOT_PROCESSED = frozenset({429, 503})
AGAIN = frozenset({500, 502, 504})
OUTAGE = 75.0
"""Seconds to wait for a server or database that is down: a restart takes less, and a wrong URL must be reported."""
DATABASE = re.compile(r"\bpq: |\bsql: |\bdial (?:tcp|unix)|driver: bad connection|database|broken pipe|\bEOF\b", re.I)
"""What the server (v2.35.1) says in an answer 500 while its database is down."""
CONNECT_TIMEOUT = 10.0
VERSION_HEADER = "X-Coder-Build-Version"


@dataclass(frozen=True)
class Answer:
    """A complete answer with a successful status. ``data`` is the JSON of its body, or ``None``."""

    status: int
    data: Any
    headers: Mapping[str, str]


class CoderHttp:
    """One server. ``say`` receives a line about each delay; tests replace ``clock`` and ``sleep``."""

    def __init__(
        self,
        config: CoderConfig,
        timeout: float = 60.0,
        outage: float = OUTAGE,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config = config
        self.timeout = timeout
        self.outage = outage
        self.server_version = ""
        self._date = ""
        self.requests = 0
        self.say = say or (lambda line: None)
        self._clock = clock
        self._sleep = sleep
        self._pool: urllib3.PoolManager | None = None

    def __repr__(self) -> str:
        return f"CoderHttp({self.config.url!r})"

    @property
    def server_clock(self) -> float:
        """The server's time (epoch, whole seconds) at its last answer, or this machine's if it sent none."""
        moment = clock.from_header(self._date)
        return time.time() if moment is None else moment

    def waiter(self, timeout: float) -> Waiter:
        """Return a deadline on this client's clock, for several requests."""
        return Waiter(timeout, False, self._clock, self._sleep)

    def signed(self, token: str, source: str) -> CoderHttp:
        """Return a client of the same server with another token; ``source`` names the token's origin in messages."""
        config = replace(self.config, token=token, source=source)
        return CoderHttp(config, self.timeout, self.outage, self.say, self._clock, self._sleep)

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        timeout: float | None = None,
        repeat: bool = False,
        content_type: str = "application/json",
    ) -> Answer:
        """Return the answer within ``timeout`` seconds, including retries and pauses.

        Without ``timeout`` the server has its usual time for an answer, plus the time that an outage may take.
        ``body`` is sent as it is when it is ``bytes``, else as JSON. Raises ``Unsure`` (see above), ``AuthError``,
        ``NotFound``, ``Conflict``, ``InvalidInput``, ``DeadlineExceeded``, ``Unhealthy``, or another ``FlowError``.
        """
        waiter = self.waiter(self.timeout + self.outage if timeout is None else timeout)
        words = {name: _query_value(value) for name, value in (query or {}).items() if value is not None}
        target = path + (f"?{urlencode(words)}" if words else "")
        retry = Retry(f"{method} {path}", waiter, repeat or method in SAFE, self.outage, self.say)
        while True:
            outcome = self._attempt(method, target, path, body, content_type, waiter)
            if isinstance(outcome, Answer):
                return outcome
            retry.pause(outcome)

    def download(self, path: str, timeout: float, most: int) -> Iterator[tuple[bytes, str]]:
        """Yield the blocks of a public file, each with the file's tag. The token is not sent.

        Raise ``NotFound``, ``DeadlineExceeded`` or ``Unhealthy``; there is one attempt, and the caller must discard a
        partial file.
        """
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        waiter = Waiter(timeout, False, self._clock, self._sleep)
        headers = {"User-Agent": "spt.flow", "Accept-Encoding": "identity", **dict(self.config.headers)}
        limit = Timeout(connect=CONNECT_TIMEOUT, read=30.0)
        size = 0
        self.requests += 1
        try:
            response = self._connections().request(
                "GET", self.config.url + path, headers=headers, timeout=limit, retries=False, redirect=False,
                preload_content=False,
            )  # fmt: skip
            try:
                kind = response.headers.get("Content-Type", "")
                if response.status != 200 or kind.startswith("text/html"):
                    raise NotFound(f"The Coder server does not offer {path} (status {response.status}).")
                tag = response.headers.get("ETag", "").removeprefix("W/").strip('"')
                for block in response.stream(1 << 20, decode_content=False):
                    size += len(block)
                    if size > most or waiter.expired:
                        raise Unhealthy(f"{self.config.url}{path} is too large or takes too long.")
                    yield block, tag
            finally:
                response.close()
        except (HTTPError, OSError) as error:
            reason = getattr(root_cause(error), "strerror", None) or type(root_cause(error)).__name__
            raise Unhealthy(f"Cannot download {self.config.url}{path} ({reason}).") from None
        if not size:
            raise Unhealthy(f"{self.config.url}{path} is empty.")

    def _attempt(
        self, method: str, target: str, path: str, body: Any, content_type: str, waiter: Waiter
    ) -> Answer | Trouble:
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Accept": "application/json", "User-Agent": "spt.flow", **dict(self.config.headers)}
        if self.config.token:
            headers["Coder-Session-Token"] = self.config.token
        if data is not None:
            headers["Content-Type"] = content_type
        left = max(min(waiter.remaining, self.timeout), 0.001)
        limit = Timeout(connect=min(CONNECT_TIMEOUT, left), read=left)
        self.requests += 1
        try:
            response = self._connections().request(
                method,
                self.config.url + target,
                body=data,
                headers=headers,
                timeout=limit,
                retries=False,
                redirect=False,
                preload_content=False,
            )
            try:
                content = read_body(response, waiter)
            finally:
                response.release_conn()
        except (HTTPError, OSError, ValueError) as error:
            return self._broken(method, path, error)
        return self._parse(method, path, response, content)

    def _connections(self) -> urllib3.PoolManager:
        """The pool, created at the first request."""
        if self._pool is None:
            self._pool = pool.connect(self.config)
        return self._pool

    def _parse(self, method: str, path: str, response: urllib3.BaseHTTPResponse, content: bytes) -> Answer | Trouble:
        """Interpret a complete answer. Raise errors that a retry cannot fix."""
        status = response.status
        self.server_version = response.headers.get(VERSION_HEADER, "") or self.server_version
        self._date = response.headers.get("Date", "")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if 300 <= status < 400 and status != 304:
            raise self._redirected(response.headers.get("Location", ""))
        said = ErrorBody.of(content)
        if status == 500 and "rbac: forbidden" in said.text:
            status = 403  # some calls of Coder (v2.35.1) report a missing role as a server error
        if status in NOT_PROCESSED | AGAIN:
            error = Unhealthy(
                self._sentence(method, path, ": ".join(filter(None, (f"status {status}", said.text)))),
                "",
                said.details(status),
            )
            after = retry_after(response.headers.get("Retry-After", ""))
            down = status in (502, 503, 504) or DATABASE.search(said.text) is not None
            return Trouble(error, status in AGAIN, down, after)
        if status >= 400:
            raise self._refused(method, path, status, said, VERSION_HEADER in response.headers)
        if kind == "text/html":
            raise self._no_api()
        if kind != "application/json" or not content:
            return Answer(status, content.decode(errors="replace") or None, response.headers)
        try:
            return Answer(status, json.loads(content), response.headers)
        except ValueError:
            return Trouble(Unhealthy(self._sentence(method, path, "its answer is incomplete JSON")), sent=True)

    # Error messages

    def clean(self, text: str) -> str:
        """Return ``text`` without the token and the values of the caller's headers."""
        for secret in (self.config.token, *(value for _name, value in self.config.headers)):
            text = text.replace(secret, "***") if len(secret) > 3 else text
        return text

    def _sentence(self, method: str, path: str, what: str) -> str:
        return self.clean(f"The Coder server {self.config.url} failed to process {method} {path}: {what}.")

    def _refused(self, method: str, path: str, status: int, said: ErrorBody, coder: bool) -> FlowError:
        details = {
            key: self.clean(text) if isinstance(text, str) else text for key, text in said.details(status).items()
        }
        message = self.clean(f"The Coder server {self.config.url} refused {method} {path}: {said.text or status}.")
        if status == 401:
            asked = f"with the token from {self.config.source}" if self.config.token else "without a token"
            return AuthError(
                self.clean(f"The Coder server {self.config.url} rejected the login ({asked}): {said.text}."),
                f"Log in again (coder login {self.config.url}), or set CODER_SESSION_TOKEN to a valid token.",
                details,
            )
        if status == 404 and not coder and not said.json:
            return self._no_api()
        hint = "Ask an administrator of the server for the required role." if status == 403 else ""
        kinds: dict[int, type[FlowError]] = {
            400: InvalidInput, 403: AuthError, 404: NotFound, 406: Conflict, 409: Conflict, 410: NotFound, 412: Conflict
        }  # fmt: skip
        return kinds.get(status, FlowError)(message, hint, details)

    def _no_api(self) -> FlowError:
        return Unhealthy(
            f"{self.config.url} answers with a web page instead of the Coder API.",
            f"Use the server's own URL, without a path ({urlsplit(self.config.url).scheme}://coder.example.com). "
            "If a proxy in front of it asks for a login, set CODER_HEADER.",
        )

    def _redirected(self, where: str) -> FlowError:
        parts = urlsplit(where)
        base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "another page"
        return Unhealthy(
            f"{self.config.url} redirects to {base}; the token is not sent there.",
            f"If that is the server's own URL: export CODER_URL={base}" if parts.netloc else "",
        )

    def _broken(self, method: str, path: str, error: Exception) -> Trouble:
        """Interpret a failure below HTTP. Raise errors that a retry cannot fix."""
        import ssl

        from urllib3 import exceptions

        cause = root_cause(error)
        reason = self.clean(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            raise self._untrusted(cause, reason)
        if isinstance(cause, exceptions.NameResolutionError) or isinstance(error, exceptions.NameResolutionError):
            raise Unhealthy(
                f"The host {urlsplit(self.config.url).hostname} ({self.config.url}) does not exist.",
                "Check CODER_URL, the network and DNS.",
            )
        if isinstance(error, exceptions.ReadTimeoutError) or isinstance(cause, DeadlineExceeded):
            slow = f"The Coder server {self.config.url} did not answer {method} {path} in time."
            return Trouble(DeadlineExceeded(slow, "Check whether it is overloaded."), sent=True)
        away = isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ProxyError)) or isinstance(
            cause, ConnectionRefusedError
        )
        what = "cannot be reached" if away else f"closed the connection during its answer to {method} {path}"
        told = Unhealthy(
            f"The Coder server {self.config.url} {what} ({reason}).",
            "Check that it runs, and that CODER_URL is correct.",
        )
        return Trouble(told, sent=not away, outage=True)

    def _untrusted(self, cause: Exception, reason: str) -> FlowError:
        reason = getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or reason
        return Unhealthy(
            f"The Coder server {self.config.url} has an untrusted certificate or does not use TLS ({reason}).",
            "For a private certificate authority, set CODER_CLIENT_TLS_CA_FILE to its certificate. For a server "
            "without TLS, use http://.",
        )


def _query_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
