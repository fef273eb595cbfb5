# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read how to enter a running workspace while Ansible still prepares the run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...module_utils._node.errors import FlowError
from .open import owner_of, target_name

if TYPE_CHECKING:
    import threading

    from ...module_utils._node.docker import http as docker_http
    from .._engine.workspace.models import Session, Workspace


class SessionPrefetch:
    """Reads how to enter a running workspace while the run is still being prepared, half of the time of `up` (B1).

    Only where the container's name can be told beforehand, on the engine of this machine.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._ran: docker_http.Ran | None = None
        self._thread: threading.Thread | None = None
        name, repo = values["workspace"], values["repo"]
        if not values["engine"] and (name or repo) and target_name(values) == "docker":
            self._begin(values, name, repo)

    def session(self, workspace: Workspace) -> Session | None:
        """The session of ``workspace``; ``None`` when another or none was found, or reading failed."""
        from .._engine.docker.session import UNREADABLE, to_session

        if self._thread:
            self._thread.join()
        if self._ran is None or self._ran.status or self._ran.container != workspace.id:
            return None
        try:
            return to_session(workspace.url, self._ran.stdout.decode(errors="replace"))
        except UNREADABLE:
            return None  # the target says what is wrong

    def _begin(self, values: Mapping[str, Any], name: str, repo: str) -> None:
        import sys
        import threading

        # Imported before the thread starts: side by side with the other imports it would take twice as long.
        from ...module_utils._node.docker import http as docker_http
        from .._engine.docker import session as docker_session
        from .._engine.repository.address import Repository

        def read() -> None:
            # Whoever asks in earnest gets the error.
            with contextlib.suppress(FlowError):
                self._ran = docker_http.connect().run(container, docker_session.READ, user=docker_session.USER)

        name = name or Repository.parse(repo, values["default_host"]).slug
        container = docker_session.container_name(owner_of(values), name)
        # The thread has little to do, but at once: with the usual 5 ms it waits behind imports for each answer.
        sys.setswitchinterval(0.0005)
        self._thread = threading.Thread(target=read, name="spt-flow-ahead", daemon=True)
        self._thread.start()
