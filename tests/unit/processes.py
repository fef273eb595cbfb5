# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watch every command line of this machine for secrets."""

from __future__ import annotations

import threading
from pathlib import Path


class Processes(threading.Thread):
    """Looks ten times a second, from ``start`` to ``stop``, and returns the command lines with one of ``secrets``."""

    def __init__(self, *secrets: str) -> None:
        super().__init__(daemon=True)
        self._secrets = [secret.encode() for secret in secrets]
        self._found: set[str] = set()
        self._stop_now = threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:
                    continue
                if any(secret in line for secret in self._secrets):
                    self._found.add(line.replace(b"\0", b" ").decode(errors="replace"))

    def stop(self) -> set[str]:
        self._stop_now.set()
        self.join()
        return self._found
