# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Coder server's jobs, builds and imports alike: followed to their end (private to the collection)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ._errors import NotFound
from ._progress import Progress
from ._wait import Waiter

if TYPE_CHECKING:
    from ._coder_client import CoderClient, Json

ENDED = frozenset({"succeeded", "failed", "canceled"})


def follow(
    what: str,
    waiter: Waiter,
    read: Callable[[], Json | None],
    logs: Callable[[int], list[Json]] = lambda after: [],
    progress: Progress | None = None,
) -> Json:
    """What ``read`` gives (an object with a ``job``) once that job has ended.

    Each new stage of ``logs`` (lines after an id) is told as progress; so is, once, that nobody is there to take the
    job. Raises ``DeadlineExceeded`` and ``NotFound``.
    """
    progress = progress or Progress()
    stage, after, told = "", 0, False

    def look() -> Json | None:
        nonlocal stage, after, told
        for line in logs(after):
            after = line["id"]
            if line["stage"] != stage:
                stage = line["stage"]
                progress.note(f"{what}: {stage}")
        found = read()
        if found is None:
            raise NotFound(f"The {what} vanished while it was waited for.", "Run the command again.")
        matched = found.get("matched_provisioners") or {}
        if found["job"]["status"] == "pending" and not told and matched.get("count") and not matched.get("available"):
            told = True
            progress.note(f"{what}: no provisioner of the server is free or alive; waiting for one")
        return found if found["job"]["status"] in ENDED else None

    ended = waiter.until(f"the {what}", look, 0.2, 2.0)
    assert ended is not None
    return ended


def last_lines(client: CoderClient, lines: Iterable[Json], count: int) -> list[str]:
    """What a person needs of a job's log: its last errors, else its last lines; no secret of the caller's."""
    said = [line for line in lines if line["output"].strip()]
    worst = [line for line in said if line["log_level"] == "error"] or said
    return [client.http.clean(line["output"]) for line in worst[-count:]]
