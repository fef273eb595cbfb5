# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a start: each change is written to a file, for commands inside, and to stdout, for clients outside."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from .contract import CONTRACT, STEPS, Paths, write_file

ENDED = ("ok", "failed", "skipped", "needs-auth")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LONGEST = 4000


def printable(text: str) -> str:
    """Return ``text`` as one line without colours and control characters, at most 4,000 characters."""
    plain = _ESCAPES.sub("", text).replace("\t", " ").replace("\r", " ").replace("\n", " ")
    return "".join(c for c in plain if c.isprintable()).strip()[:_LONGEST]


class Journal:
    """Steps, liveness and notes of this start; thread-safe."""

    def __init__(self, paths: Paths, stdout: int = 1) -> None:
        self._paths = paths
        self._stdout = stdout
        self._lock = threading.Lock()
        self._secrets: list[str] = []
        self.boot = os.urandom(8).hex()
        self.steps: dict[str, dict[str, Any]] = {
            name: {"state": "pending", "started": None, "ended": None, "detail": ""} for name in STEPS
        }
        self.notes: list[str] = []
        self.ports: list[int] = []
        self.life: dict[str, Any] = {}

    def hide(self, secret: str) -> None:
        """Redact ``secret`` in all later output."""
        self._secrets.append(secret)

    def start(self) -> None:
        with self._lock:
            self._save()
            self._line({"event": "start", "boot": self.boot, "started": time.time()})
            for name in STEPS:
                self._line({"event": "step", "step": name, **self.steps[name]})

    def step(self, name: str, state: str, detail: str = "") -> None:
        """Record that step ``name`` is now ``state``; ``detail`` is a sentence without a secret."""
        now = time.time()
        with self._lock:
            entry = self.steps[name]
            if state == "running" and entry["state"] != "running":
                entry.update(started=now, ended=None)
            if state in ENDED:
                entry.update(started=entry["started"] or now, ended=now)
            entry.update(state=state, detail=printable(self._redact(detail)))
            self._save()
            self._line({"event": "step", "step": name, **entry})

    def record_life(self, record: dict[str, Any]) -> None:
        with self._lock:
            self.life = record
            write_file(self._paths.run / "life.json", json.dumps(record), 0o600)
            self._line({"event": "life", **record})

    def note(self, text: str) -> None:
        """Add a sentence to ``status`` that belongs to no step."""
        with self._lock:
            if text not in self.notes:
                self.notes.append(text)
                self._save()
        self.log("note", text)

    def forward(self, ports: Sequence[int]) -> None:
        """Record the ports that clients forward to their own machine."""
        with self._lock:
            self.ports = list(ports)
            self._save()

    def log(self, source: str, text: str) -> None:
        """Print a line of a tool; the prefix distinguishes it from the record's own lines."""
        text = printable(text)
        if text:
            with self._lock:
                self._write(f"[{source}] {self._redact(text)}\n")

    def _redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _save(self) -> None:
        data = {"boot": self.boot, "contract": CONTRACT, "steps": self.steps, "notes": self.notes, "ports": self.ports}
        try:
            write_file(self._paths.run / "steps.json", json.dumps(data), 0o600)
        except OSError as error:
            self._write(f"[record] cannot write steps.json: {error.strerror}\n")

    def _line(self, event: dict[str, Any]) -> None:
        self._write(json.dumps({"spt_flow": 1, **event}) + "\n")

    def _write(self, text: str) -> None:
        data = text.encode(errors="replace")
        try:
            while data:
                data = data[os.write(self._stdout, data) :]
        except OSError:
            return  # no reader is left; continue without a log


def tell(paths: Paths, message: dict[str, str]) -> bool:
    """Send the running workspace a step's change from another process, or ``{}`` for "check now"."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(2)
        try:
            sender.sendto(json.dumps(message).encode(), str(paths.run / "control.sock"))
        except OSError:
            return False
    return True


def hear(receiver: socket.socket) -> dict[str, str]:
    """Return what ``tell`` sent; a malformed message counts as "check now"."""
    try:
        message = json.loads(receiver.recv(65536))
    except (OSError, ValueError):
        return {}
    if not isinstance(message, dict) or not all(isinstance(value, str) for value in message.values()):
        return {}
    known = message.get("step") in STEPS and message.get("state") in ("running", *ENDED)
    return message if known else {}
