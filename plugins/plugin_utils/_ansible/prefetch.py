# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read how to enter a running workspace while Ansible is still preparing the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._engine.workspace import kinds

if TYPE_CHECKING:
    import threading

    from .._engine.workspace.models import Session, Workspace


class SessionPrefetch:
    """Read a session in a thread if the target can predict the workspace's name.

    Preparing the run takes half of the time of `up` on a running workspace.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._thread: threading.Thread | None = None
        kind = kinds.chosen(values)
        self._reader = kind.early_reader(values, kinds.owner_of(values)) if isinstance(kind, kinds.ReadsEarly) else None
        if self._reader:
            self._begin(self._reader)

    def session(self, workspace: Workspace) -> Session | None:
        """Return the session of ``workspace``, or ``None`` if another or none was found, or reading failed."""
        if self._thread:
            self._thread.join()
        return self._reader.session(workspace) if self._reader else None

    def _begin(self, reader: kinds.EarlyReader) -> None:
        import sys
        import threading

        # The thread does little, but must do it at once: with the default 5 ms it waits behind imports for each answer.
        sys.setswitchinterval(0.0005)
        self._thread = threading.Thread(target=reader.read, name="spt-flow-prefetch", daemon=True)
        self._thread.start()
