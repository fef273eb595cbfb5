# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow a Coder server's jobs, builds and imports alike, to their end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ....module_utils._node.errors import DeadlineExceeded, NotFound
from ..common import untrusted
from ..common.progress import Progress
from ..common.wait import Waiter

if TYPE_CHECKING:
    from .client import CoderClient, Json

NOBODY = "no provisioner of the server was available"
QUIET = 45.0
"""Seconds without a line of its log after which a job that runs may hang: Terraform writes one every ten seconds."""
HUNG = "Coder ends a hung build after 5 minutes, then run the command again."
ADVICE = {
    "insufficient quota": "Your quota is used up: delete a workspace (spt.flow.status lists yours), or request more.",
    "detected as hung": "The server or its provisioner stopped during the build: run the command again.",
    "did not find docker image": "The node does not have the image. An administrator copies it there: "
    "ansible-playbook site.yml --tags host_images",
    "no space left on device": "The disk is full, either the node's or the server's: ask the administrator to free "
    "space, then run the command again.",
}
"""Hints by text of a failed job."""
ENDED = frozenset({"succeeded", "failed", "canceled"})


def follow(
    what: str,
    waiter: Waiter,
    read: Callable[[], Json | None],
    logs: Callable[[int], list[Json]] = lambda after: [],
    progress: Progress | None = None,
    advice: str = "",
) -> Json:
    """What ``read`` gives (an object with a ``job``) once that job has ended.

    Each new stage of ``logs`` (lines after an id) is reported as progress. So are, once, a missing provisioner, and
    each time that a running job is silent for ``QUIET``, with ``advice``. Raises ``DeadlineExceeded``, with a hint if
    no provisioner was there, and ``NotFound``.
    """
    progress = progress or Progress()
    stage, after, idle, told, heard = "", 0, False, False, waiter.remaining

    def look() -> Json | None:
        nonlocal stage, after, idle, told, heard
        for line in logs(after):
            after, heard = line["id"], waiter.remaining
            if line["stage"] != stage:
                stage = line["stage"]
                progress.note(f"{what}: {untrusted.line(stage, 200)}")
        found = read()
        if found is None:
            raise NotFound(f"The {what} was deleted while waiting for it.", "Run the command again.")
        # Older servers do not report available provisioners; then nothing is shown.
        idle = found["job"]["status"] == "pending" and (found.get("matched_provisioners") or {}).get("available") == 0
        if idle and not told:
            told = True
            progress.note(f"{what}: {NOBODY}; waiting for one")
        if found["job"]["status"] != "running":
            heard = waiter.remaining
        elif heard - waiter.remaining >= QUIET:
            heard = waiter.remaining
            progress.note(f"{what}: no news for {QUIET:g} s. {HUNG} {advice}".rstrip())
        return found if found["job"]["status"] in ENDED else None

    try:
        ended = waiter.until(f"the {what}", look, 0.2, 2.0)
    except DeadlineExceeded as error:
        hint = (
            f"All the time, {NOBODY}: run ansible-playbook spt.flow.doctor as an owner of the server." if idle else ""
        )
        raise DeadlineExceeded(error.message, hint) from None
    if ended is None:
        raise AssertionError("ended must be set here")
    return ended


def advice(*texts: str) -> list[str]:
    """Return the hints for a job that failed with these texts."""
    said = "\n".join(texts).lower()
    return [hint for words, hint in ADVICE.items() if words in said]


def last_lines(client: CoderClient, lines: Iterable[Json], count: int) -> list[str]:
    """Return the useful part of a job's log:

    its last errors, otherwise its last lines, without the caller's secrets.
    """
    said = [line for line in lines if line["output"].strip()]
    worst = [line for line in said if line["log_level"] == "error"] or said
    return [client.http.clean(untrusted.line(line["output"])) for line in worst[-count:]]
