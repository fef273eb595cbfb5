# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answer the two extensions of the agent protocol by which a workspace asks for its user's credentials.

``query@spt.flow``: one JSON object, answered by one. ``stream@spt.flow``: becomes a connection to the GnuPG agent.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

from ....module_utils._node.errors import FlowError, InvalidInput, NotFound
from ..common import untrusted
from . import git, journal, messages, policy, registry, signing
from .program import Deadline

QUERY, STREAM = b"query@spt.flow", b"stream@spt.flow"
MOST_AT_ONCE = 4
"""Requests that run the user's programs at the same time."""
TURN = 4.0
"""Seconds for which a request waits for others."""
Answer = dict[str, Any]


class Queries:
    """Answers for one workspace."""

    def __init__(self, workspace: str) -> None:
        self._workspace = workspace
        self._git = git.Git()
        self._room = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._kinds: dict[str, Callable[[Answer, policy.Policy, list[str]], Answer]] = {
            "git": self._credential,
            "token": self._token,
            "docker": self._registry,
            "signing": self._signing,
        }

    def answer(self, payload: bytes) -> bytes:
        """Return the whole answer to a query."""
        try:
            query = untrusted.record(untrusted.parse(_payload(payload), messages.LARGEST))
            kind = query.get("kind")
            if not isinstance(kind, str) or kind not in self._kinds:
                raise InvalidInput("The request has an unknown kind.", "Restart the workspace to update its image.")
        except (ValueError, messages.Broken):
            return _encode(messages.SUCCESS, _sorry(InvalidInput("The request is not valid.")))
        except FlowError as error:
            return _encode(messages.SUCCESS, _sorry(error))
        return _encode(messages.SUCCESS, self._recorded(kind, lambda *known: self._kinds[kind](query, *known)))

    def stream(self, payload: bytes) -> tuple[bytes, socket.socket | None]:
        """Return the answer to a request for a stream, and the other end of the stream if it was granted."""
        opened: list[socket.socket] = []

        def connect(allowed: policy.Policy, _subject: list[str]) -> Answer:
            allowed.check()
            opened.append(signing.gpg_agent(Deadline()))
            return {"ok": True}

        try:
            wanted = untrusted.record(untrusted.parse(_payload(payload))).get("kind")
        except (ValueError, messages.Broken):
            wanted = None
        if wanted != "gpg":
            return _encode(messages.FAILURE, _sorry(InvalidInput("The request is not valid."))), None
        said = self._recorded("gpg", connect)
        return (bytes([messages.SUCCESS]), opened[0]) if opened else (_encode(messages.FAILURE, said), None)

    def _recorded(self, kind: str, act: Callable[[policy.Policy, list[str]], Answer]) -> Answer:
        """Return the answer of ``act``, which may put the kind's details and the subject into its list."""
        subject: list[str] = []
        if not self._room.acquire(timeout=TURN):
            return _sorry(FlowError("Your machine is busy with other requests."))
        try:
            answer, verdict = act(policy.read(self._workspace), subject), journal.GIVEN
        except policy.Refused as error:
            answer, verdict = _sorry(error), journal.REFUSED
        except NotFound as error:
            answer, verdict = _sorry(error), journal.MISSING
        except FlowError as error:
            answer, verdict = _sorry(error), journal.FAILED
        finally:
            self._room.release()
        if kind != "signing":
            journal.write(self._workspace, kind, " ".join(subject), verdict)
        return answer

    def _credential(self, query: Answer, allowed: policy.Policy, subject: list[str]) -> Answer:
        operation = query.get("operation")
        if operation not in git.OPERATIONS:
            raise InvalidInput("The request has an unknown operation.")
        subject.append(operation)
        fields = git.parse(_word(query, "input"))
        host = git.host_of(fields)
        subject.append(host)
        allowed.check(host)
        if operation == "get":
            return {"ok": True, "output": self._git.get(fields, host, Deadline())}
        self._git.tell(operation, fields, Deadline())
        return {"ok": True, "output": ""}

    def _token(self, query: Answer, allowed: policy.Policy, subject: list[str]) -> Answer:
        host = policy.canonical(_word(query, "host"))
        subject.append(host)
        allowed.check(host)
        deadline = Deadline()
        token = git.token_of(host, deadline)[1]
        if not token:
            answer = self._git.get([("protocol", "https"), ("host", host)], host, deadline)
            token = dict(git.parse(answer)).get("password", "")
        return {"ok": True, "token": token, "user": ""}

    def _registry(self, query: Answer, allowed: policy.Policy, subject: list[str]) -> Answer:
        if query.get("operation") == "list":
            subject.append("list")
            allowed.check()
            return {"ok": True, "servers": registry.listed(allowed)}
        server = _word(query, "server")
        host = registry.host_of(server)
        subject.append(host)
        allowed.check(host)
        return {"ok": True, **registry.get(server, Deadline())}

    def _signing(self, _query: Answer, allowed: policy.Policy, _subject: list[str]) -> Answer:
        """Every session is asked once, also those that may not use credentials: they do not sign."""
        facts = signing.facts(Deadline()) if allowed.credentials else signing.nothing()
        if facts["format"] == "ssh" and allowed.ssh_agent == "off":
            facts = signing.nothing()
        return {"ok": True, **facts}


def _payload(data: bytes) -> bytes:
    return messages.strings(data, 1)[0]


def _word(query: Answer, name: str) -> str:
    value = query.get(name)
    if not isinstance(value, str):
        raise InvalidInput(f"The request does not have {name} as text.")
    return value


def _sorry(error: FlowError) -> Answer:
    return {"ok": False, "error": error.message, "hint": error.hint}


def _encode(kind: int, answer: Answer) -> bytes:
    data = json.dumps(answer).encode()
    if len(data) > messages.LARGEST - 5:
        data = json.dumps(_sorry(FlowError("The answer of your machine is too large."))).encode()
    return bytes([kind]) + messages.string(data)
