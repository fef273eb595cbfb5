# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the restic program.

The password is passed to restic as the name of a root-only file, never as argument or environment variable.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote

from .. import process
from ..errors import AuthError, Conflict, FlowError, NotFound, Unhealthy
from .policy import Snapshot

MARK = "spt-flow"
INCOMPLETE = "incomplete"


@dataclass
class Restic:
    """A repository. ``environment`` has credentials of S3 and similar, and is merged over the process's own."""

    repository: str
    password_file: str
    cache: str = "/var/cache/spt-flow/restic"
    program: str = "restic"
    environment: dict[str, str] = field(default_factory=dict)

    def run(
        self, *args: str, cwd: str | None = None, accept: tuple[int, ...] = (0,)
    ) -> subprocess.CompletedProcess[str]:
        """Run restic with ``args``. Raise an error with restic's own message for any exit status not in ``accept``.

        If a lock is in the way, locks of dead processes are removed and restic is run again.
        """
        try:
            return self._once(args, cwd, accept)
        except Conflict:
            if args[0] == "unlock":
                raise
            self.unlock()
            return self._once(args, cwd, accept)

    def _once(
        self, args: tuple[str, ...], cwd: str | None, accept: tuple[int, ...]
    ) -> subprocess.CompletedProcess[str]:
        env = {**self.environment, "RESTIC_REPOSITORY": self.repository}
        env.update(RESTIC_PASSWORD_FILE=self.password_file, RESTIC_CACHE_DIR=self.cache, RESTIC_PROGRESS_FPS="0.1")
        try:
            done = process.run(self.program, *args, cwd=cwd, env=env)
        except FileNotFoundError as error:
            raise NotFound(
                f"Cannot run {self.program}: it is not installed.", "Run the role host_snapshots on this node."
            ) from error
        if done.returncode not in accept:
            raise _failure(args[0], self.repository, done)
        return done

    def exists(self) -> bool:
        """Return whether the repository exists and opens with the password."""
        try:
            self.run("cat", "config")
        except AuthError:
            raise
        except FlowError as error:
            if "unable to open config file" in str(error.details) or "does not exist" in str(error.details):
                return False
            raise
        return True

    def init(self) -> None:
        """Create the repository."""
        self.run("init")

    def unlock(self) -> None:
        """Remove locks of dead processes only."""
        self.run("unlock")

    def snapshots(self) -> list[Snapshot]:
        """Return all our snapshots, oldest first."""
        raw = json.loads(self.run("snapshots", "--json", "--tag", MARK).stdout or "null") or []
        return sorted((_snapshot(item) for item in raw), key=lambda s: s.time)

    def backup(self, source: str, host: str, tags: Iterable[str], options: Iterable[str]) -> dict[str, Any]:
        """Store directory ``source`` under its last path component.

        Return restic's summary plus ``errors`` (sentences) and ``id``. Restic's exit status 3 means that something
        could not be read. Files that vanished in the meantime are no error on a running system.
        """
        tagging = [word for tag in (MARK, *tags) for word in ("--tag", tag)]
        parent, name = os.path.split(source.rstrip("/"))
        done = self.run("backup", "--json", "--host", host, *tagging, *options, "--", name, cwd=parent, accept=(0, 3))
        lines = [json.loads(line) for line in (done.stdout + done.stderr).splitlines() if line.startswith("{")]
        summary: dict[str, Any] = next((line for line in lines if line.get("message_type") == "summary"), {})
        if not summary.get("snapshot_id"):
            raise FlowError(
                f"Cannot snapshot {source}: restic ended without a summary.",
                "Check its journal: journalctl -u spt-flow-snapshots.",
            )
        problems = [line for line in lines if line.get("message_type") == "error" and not _vanished(line)]
        summary["errors"] = [f"{line.get('item', '?')}: {_reason(line)}" for line in problems]
        summary["id"] = summary["snapshot_id"]
        if summary["errors"]:
            self.run("tag", "--add", INCOMPLETE, "--", summary["id"])
        return summary

    def forget(self, ids: list[str]) -> None:
        """Delete exactly these snapshots and the data that only they use."""
        if ids:
            self.run("forget", "--prune", "--max-unused", "10%", "--", *ids)

    def check(self, part: int, parts: int) -> None:
        """Read part ``part`` of ``parts`` of the data and check the whole structure."""
        self.run("check", f"--read-data-subset={part}/{parts}")

    def restore(self, snapshot: str, target: str, include: str = "") -> None:
        """Restore into ``target`` and verify the data; ``include`` is a path of the snapshot, taken literally."""
        only = ["--include", "".join(f"\\{c}" if c in "\\[]*?" else c for c in include)] if include else []
        self.run("restore", "--verify", "--target", target, *only, "--", snapshot)


def label_tag(name: str, value: str) -> str:
    """Return a volume's label as a tag; commas separate tags in restic."""
    return f"label:{quote(name, safe=':/.-_@')}={quote(value, safe=':/.-_@')}"


def _snapshot(item: dict[str, Any]) -> Snapshot:
    tags: list[str] = item.get("tags") or []
    named = dict(tag.split("=", 1) for tag in tags if "=" in tag)
    labels = tuple((unquote(k[6:]), unquote(v)) for k, v in sorted(named.items()) if k.startswith("label:"))
    return Snapshot(
        id=item["short_id"],
        volume=named.get("volume", ""),
        time=_seconds(item["time"]),
        good=INCOMPLETE not in tags,
        labels=labels,
    )


def _seconds(text: str) -> float:
    """Return restic's time stamp (nanoseconds and a zone) as epoch seconds.

    Python 3.9 reads six digits and no ``Z``.
    """
    text = text.replace("Z", "+00:00")
    head, dot, rest = text.partition(".")
    if not dot:
        return datetime.fromisoformat(text).timestamp()
    digits = len(rest) - len(rest.lstrip("0123456789"))
    return datetime.fromisoformat(f"{head}.{rest[:digits][:6].ljust(6, '0')}{rest[digits:]}").timestamp()


def _reason(line: dict[str, Any]) -> str:
    error = line.get("error") or {}
    if isinstance(error, dict) and isinstance(error.get("Err"), int):
        return os.strerror(error["Err"])
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _vanished(line: dict[str, Any]) -> bool:
    return "no such file" in _reason(line).lower()


def _failure(verb: str, repository: str, done: subprocess.CompletedProcess[str]) -> FlowError:
    """Return restic's failure as one of our errors. Its last lines are in ``details``, the last one in the sentence."""
    words = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
    text = "\n".join(words)
    sentence = f"restic {verb} on {repository} failed ({done.returncode}): {(words or ['no message'])[-1].strip()}"
    details = {"lines": words[-20:]}
    if "wrong password" in text or "no key found" in text:
        return AuthError(
            f"The password does not open the repository {repository}.", "Restore the password that created it.", details
        )
    if "unable to create lock" in text or "already locked" in text:
        return Conflict(
            sentence, "Another snapshot, check or prune is in progress; try again when it has finished.", details
        )
    if "no space left" in text:
        return FlowError(
            sentence, "The repository's disk is full: free space there. Older snapshots are unharmed.", details
        )
    if verb == "check":
        return Unhealthy(
            sentence, "The repository is damaged: copy it, then follow restic's documentation on repairs.", details
        )
    return FlowError(sentence, "", details)
