# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A local mirror of everything that an image build downloads, reachable from builds on the engine's bridge.

It answers from ``folder`` and fetches missing files from their public source, like a company's mirror.
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PLACES = {
    "apt/debian": "http://deb.debian.org/debian",
    "apt/debian-security": "http://deb.debian.org/debian-security",
    "crates/crates": "https://static.crates.io/crates",
    "crates": "https://index.crates.io",
    "go": "https://proxy.golang.org",
    "npm": "https://registry.npmjs.org",
    "pypi": "https://files.pythonhosted.org",
    "files/static.rust-lang.org": "https://static.rust-lang.org",
}
"""The source for each path; the first match applies."""
KINDS = ("apt", "crates", "files", "go", "npm", "pypi")
TIMEOUT = 120


class Mirror(ThreadingHTTPServer):
    """``asked`` records each path; files named in ``cut`` are sent only by half."""

    daemon_threads = True

    def __init__(self, host: str, folder: Path, known: Mapping[str, Path]) -> None:
        super().__init__((host, 0), _Handler)
        self.folder = folder
        self.known = dict(known)
        self.asked: list[str] = []
        self.cut: set[str] = set()
        self.address = f"http://{host}:{self.server_address[1]}"

    @property
    def options(self) -> dict[str, str]:
        """Return the image build options that use this mirror."""
        return {f"mirror_{kind}": f"{self.address}/{kind}" for kind in KINDS}

    def file(self, path: str) -> Path:
        """Return the file of an address; fetch it if it is missing."""
        name = path.rsplit("/", 1)[-1]
        if name in self.known:
            return self.known[name]
        target = self.folder / path.strip("/").replace("/", "%2f")[-200:]
        if not target.exists():
            place = next(place for place in PLACES if path.startswith(f"/{place}/"))
            request = urllib.request.Request(PLACES[place] + path[len(place) + 1 :])
            with urllib.request.urlopen(request, timeout=TIMEOUT, context=ssl.create_default_context()) as answer:
                half = target.with_name(f"{target.name}.{threading.get_ident()}")
                with half.open("wb") as out:
                    shutil.copyfileobj(answer, out)
                half.replace(target)
        return target


class _Handler(BaseHTTPRequestHandler):
    server: Mirror
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT

    def do_GET(self) -> None:
        path = self.path.split("?", 1)[0]
        self.server.asked.append(path)
        if path == "/crates/config.json":
            self._send(json.dumps({"dl": f"{self.server.address}/crates/crates"}).encode())
            return
        try:
            file = self.server.file(self.path)
        except (OSError, StopIteration) as error:
            self._send(b"", getattr(error, "code", 404))
            return
        self._send(file.read_bytes(), name=path.rsplit("/", 1)[-1])

    def _send(self, body: bytes, status: int = 200, name: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if name in self.server.cut:
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Print nothing."""


def bridge() -> str:
    """Return this machine's address on the engine's bridge."""
    argv = ["ip", "-4", "-o", "address", "show", "dev", "docker0"]
    shown = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout
    return shown.split(" inet ")[1].split("/")[0]


@contextmanager
def mirror(folder: Path, known: Mapping[str, Path] | None = None) -> Iterator[Mirror]:
    """Start a mirror in ``folder``; ``known`` has its initial files, by the last part of their address."""
    folder.mkdir(parents=True)
    with Mirror(bridge(), folder, known or {}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)
