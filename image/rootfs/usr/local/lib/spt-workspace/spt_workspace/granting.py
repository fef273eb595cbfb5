# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply a repository's ``devcontainer.json``: ports and variables at once, then extensions, then commands.

Commands run only with the user's consent, which is stored in the home, per repository.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import access, devcontainer
from .contract import Contract, Failure, Paths, alone, write_file
from .devcontainer import Wishes
from .processes import Children, end

EXTENSION_SECONDS = 180.0
COMMAND_SECONDS = 1800.0
COMMAND = "spt-workspace trust"


class Granting:
    """Applies the file of one clone; ``env`` is the environment of the user's programs."""

    def __init__(self, contract: Contract, paths: Paths, children: Children, env: Mapping[str, str]) -> None:
        self._directory = Path(contract.directory)
        self._repository = contract.repo_id or contract.directory
        self._paths = paths
        self._children = children
        self._env = {**env, "HOME": str(paths.home)}
        self._log = paths.state / "devcontainer.log"
        self._record = paths.state / "devcontainer.json"

    # Ports and variables

    def read(self) -> Wishes | None:
        """Return what the file asks for; ``None`` without a file."""
        wishes = devcontainer.read(self._directory, self.trusted)
        if wishes is not None:
            self._env |= wishes.environment
        return wishes

    def announce(self) -> Wishes | None:
        """Set the file's variables for new sessions and shells."""
        wishes = self.read()
        if wishes is not None:
            write_file(self._paths.run / "sshd_config", access.sshd_config(self._env, self._paths), 0o600)
            lines = [f"export {name}={shlex.quote(text)}\n" for name, text in wishes.environment.items()]
            write_file(self._paths.run / "environment.sh", "".join(lines))
        return wishes

    # Consent

    @property
    def trusted(self) -> bool:
        return self._repository in self._kept("trusted")

    def trust(self, yes: bool) -> None:
        """Store or withdraw consent to this repository's commands, for this start and later ones."""

        def change(known: dict[str, Any]) -> None:
            others = [name for name in known["trusted"] if name != self._repository]
            known["trusted"] = [*others, *([self._repository] if yes else [])]

        self._keep(change)

    # Extensions and commands

    def grant(self, wishes: Wishes) -> str:
        """Install extensions and, with consent, run commands that have not run; return a sentence."""
        said, wrong = self._extensions(wishes.extensions), ""
        try:
            said += self.run(wishes) if wishes.commands else []
        except Failure as failure:
            wrong = failure.sentence
        said += [f"ports: {', '.join(map(str, wishes.ports))}"] if wishes.ports else []
        said += [f"variables: {', '.join(wishes.environment)}"] if wishes.environment else []
        if wishes.unset:
            said.append(f"variables that need your consent: {', '.join(wishes.unset)}, {COMMAND} sets them")
        said += [f"ignored: {', '.join(wishes.ignored)}"] if wishes.ignored else []
        missing = [name for name in wishes.extensions if name not in self._kept("extensions")]
        if missing:
            wrong = f"{wrong} Not installed: {', '.join(missing)}; see {self._log}.".strip()
        if wrong:
            raise Failure(f"{wrong} {'; '.join(said)}".strip())
        return "; ".join(said) or "it asks for nothing"

    def run(self, wishes: Wishes, asked: bool = False) -> list[str]:
        """Run the commands once per repository, changed ones only if a user ``asked``; return sentences."""
        if not self.trusted:
            return [f"its postCreateCommand did not run, with your consent it does: {COMMAND}"]
        digest = hashlib.sha256(json.dumps(wishes.commands).encode()).hexdigest()
        busy = f"The repository's postCreateCommand is running already; see {self._log}."
        with alone(self._paths.run / "commands.lock", 5.0 if asked else COMMAND_SECONDS, busy):
            ran = self._kept("ran").get(self._repository)
            if ran and (ran == digest or not asked):
                changed = "" if ran == digest else f" and has changed since, {COMMAND} runs it again"
                return [f"its postCreateCommand ran earlier{changed}"]
            for argv in wishes.commands:
                status = self._into_log(argv, COMMAND_SECONDS, self._directory)
                if status:
                    raise Failure(f"The repository's postCreateCommand ended with status {status}; see {self._log}.")
            self._keep(lambda known: known["ran"].update({self._repository: digest}))
        return [f"its postCreateCommand ran; log: {self._log}"]

    def _extensions(self, wanted: Sequence[str]) -> list[str]:
        """Install each extension once, so that one that the user removes stays removed."""
        for name in wanted:
            if name in self._kept("extensions") or self._children.stopping.is_set():
                continue
            argv = ["code-server", "--config", str(self._paths.run / "code-server.yaml"), "--install-extension", name]
            with contextlib.suppress(Failure):
                if not self._into_log(argv, EXTENSION_SECONDS, self._paths.home):
                    self._keep(lambda known, name=name: known["extensions"].append(name))  # type: ignore[misc]
        installed = [name for name in wanted if name in self._kept("extensions")]
        return [f"extensions: {', '.join(installed)}"] if installed else []

    def _into_log(self, argv: Sequence[str], seconds: float, cwd: Path) -> int:
        """Run a command into the log; its background processes do not delay the step."""
        self._paths.state.mkdir(parents=True, exist_ok=True)
        with open(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            log.write(f"+ {shlex.join(argv)}\n".encode(errors="replace"))
            log.flush()
            child = self._children.start(argv, self._env, stdout=log.fileno(), cwd=str(cwd))
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"{argv[0]} took more than {seconds:.0f} s and was ended; see {self._log}.") from None
        finally:
            if child.poll() is None:
                end(child, signal.SIGKILL)
                child.wait()
            self._children.forget(child)

    # State that survives a restart

    def _known(self) -> dict[str, Any]:
        try:
            record = json.loads(self._record.read_text())
        except (OSError, ValueError):
            record = {}
        found = record if isinstance(record, dict) else {}
        kinds: dict[str, type] = {"trusted": list, "extensions": list, "ran": dict}
        return {name: found[name] if isinstance(found.get(name), kind) else kind() for name, kind in kinds.items()}

    def _kept(self, name: str) -> Any:
        return self._known()[name]

    def _keep(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Apply ``change`` to the record under a lock, because a session may change it too."""
        self._paths.state.mkdir(parents=True, exist_ok=True)
        with alone(self._paths.run / "devcontainer.lock", 5.0, f"{self._record} is being written by another process."):
            known = self._known()
            change(known)
            write_file(self._record, json.dumps(known), 0o600)
