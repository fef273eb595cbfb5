# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read how to enter a container by its name, before the list of containers is read."""

from __future__ import annotations

import contextlib

from ....module_utils._node.docker import http as docker_http
from ....module_utils._node.errors import FlowError
from ..workspace.models import Session, Workspace
from . import session as docker_session


class SessionReader:
    """Implements ``EarlyReader`` for one container."""

    def __init__(self, container: str) -> None:
        self._container = container
        self._ran: docker_http.ContainerResult | None = None

    def read(self) -> None:
        with contextlib.suppress(FlowError):
            self._ran = docker_http.connect().run(self._container, docker_session.READ, user=docker_session.USER)

    def session(self, workspace: Workspace) -> Session | None:
        if self._ran is None or self._ran.status or self._ran.container != workspace.id:
            return None
        try:
            return docker_session.to_session(workspace.url, self._ran.stdout.decode(errors="replace"))
        except docker_session.UNREADABLE:
            return None  # the target says what is wrong
