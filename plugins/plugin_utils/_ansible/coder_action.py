# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Base class of actions that manage a Coder server from a host that keeps its secrets."""

from __future__ import annotations

import contextlib
import os
import shlex
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ...module_utils._node.errors import FlowError, InvalidInput
from .._engine.common import text as common_text
from .action import FlowAction
from .open import coder_http
from .results import NotYet

if TYPE_CHECKING:
    from .._engine.coder import login as coder_login
    from .._engine.coder.admin import CoderAdmin


class CoderAction(FlowAction):
    """An action for operators of a Coder server. Credentials come from options, a file of the task's host, or the
    caller.

    Secrets are only in memory, in headers, and on the standard input of one command.
    """

    SERVER: dict[str, Any] = {
        "url": {"type": "str", "default": ""},
        "token": {"type": "str", "default": "", "no_log": True},
        "login_email": {"type": "str", "default": ""},
        "login_password": {"type": "str", "default": "", "no_log": True},
        "wait": {"type": "int", "default": 60},
    }
    _requires_connection = True

    def anonymous(self) -> CoderAdmin:
        """Return a client without a token, once the server answers; wait as long as the task says."""
        from .._engine.coder import login as coder_login
        from .._engine.coder.admin import CoderAdmin

        client = CoderAdmin(coder_http(self.own["url"], anonymous=True))
        if self._task.check_mode and not client.healthy():
            raise NotYet(
                f"Check mode: the Coder server {client.http.config.url} does not answer;"
                f" a run would wait for it, and then {self.DOING}."
            )
        if self.own["wait"] > 0:
            coder_login.wait_healthy(client, self.own["wait"], self.progress)
        return client

    def login(self) -> coder_login.Login | None:
        from .._engine.coder import login as coder_login

        if not (self.own["login_email"] or self.own["login_password"]):
            return None
        login = coder_login.Login(
            self.own["login_email"],
            self.own["login_password"],
            self.own.get("first_username") or "",
            self.own.get("first_name") or "",
        )
        login.check()
        return login

    def operator(self, client: CoderAdmin) -> AbstractContextManager[CoderAdmin]:
        """Return a client with write access: logged in by password if given, otherwise by token."""
        from .._engine.coder import login as coder_login
        from .._engine.coder.admin import CoderAdmin

        login = self.login()
        if login:
            return coder_login.session(client, login)
        return contextlib.nullcontext(CoderAdmin(coder_http(self.own["url"], self.own["token"])))

    def read_secret(self, path: str) -> tuple[str, str]:
        """Return (content, mode in octal) of a file on the task's host; empty if it does not exist.

        Raise ``FlowError``.
        """
        quoted = shlex.quote(_absolute(path))
        command = f"if test -e {quoted}; then stat -c %a -- {quoted} && cat -- {quoted}; else exit 44; fi"
        done = self._quietly(command)
        if done["rc"] == 44:
            return "", ""
        if done["rc"] != 0:
            raise FlowError(f"Cannot read {path} on this host.", "Read it as its owner: become: true")
        mode, _newline, content = done["stdout"].partition("\n")
        return content.strip(), mode.strip()

    def write_secret(self, path: str, content: str) -> None:
        """Write a file that only its owner can read, atomically; the content is sent by standard input."""
        quoted, folder = shlex.quote(_absolute(path)), shlex.quote(os.path.dirname(path))
        fresh = shlex.quote(f"{path}.new")
        command = (
            f"mkdir -p -- {folder} && umask 077 && rm -f -- {fresh} && cat > {fresh} && test -s {fresh} && "
            f"chmod 0600 -- {fresh} && mv -f -- {fresh} {quoted} || {{ rm -f -- {fresh}; exit 1; }}"
        )
        if self._quietly(command, content.encode() + b"\n")["rc"] != 0:
            raise FlowError(
                f"Cannot write {path} on this host.",
                "Its directory may need root: become: true. Check that its disk has free space.",
            )

    def _quietly(self, command: str, in_data: bytes | None = None) -> dict[str, Any]:
        """Run a command whose input and output connections never show, at any verbosity."""
        kept, self._play_context.no_log = self._play_context.no_log, True
        try:
            done: dict[str, Any] = self._low_level_execute_command(command, in_data=in_data)
        finally:
            self._play_context.no_log = kept
        return done


def _absolute(path: str) -> str:
    if not os.path.isabs(path) or "\0" in path:
        raise InvalidInput(f"{common_text.redact_value(path)!r} is not an absolute path.")
    return path
