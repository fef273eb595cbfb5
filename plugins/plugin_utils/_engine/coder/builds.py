# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait for the builds of workspaces on a Coder server, and say why one failed."""

from __future__ import annotations

from ....module_utils._node.errors import (
    Cancelled,
    DeadlineExceeded,
    Unhealthy,
)
from ..common import untrusted
from ..common.progress import Progress
from ..common.wait import Waiter
from ..workspace.models import Workspace
from .client import Json
from .jobs import ENDED, advice, follow, last_lines
from .reading import CoderReader

LAST_LINES = 5


class Builder(CoderReader):
    """Start builds of workspaces and wait for each."""

    def _settled(self, workspace: Workspace, progress: Progress, timeout: float | None = None) -> Json:
        """Wait for a build that another client started. Raises ``NotFound`` when it deletes the workspace."""
        found = self._fresh(workspace)
        while found["latest_build"]["job"]["status"] not in ENDED:
            build = found["latest_build"]
            who = untrusted.line(build.get("initiator_name"), 64) or "another client"
            progress.note(f"build: waiting for the {build['transition']} that {who} began")
            self._ended(build, progress, timeout)
            found = self._fresh(workspace)
        return found

    def _change(
        self,
        found: Json,
        transition: str,
        progress: Progress,
        version: str = "",
        values: dict[str, str] | None = None,
    ) -> Json:
        build = self._client.create_build(found, transition, version, values)
        self._built(found, build, progress)
        return self._fresh(Workspace(found["owner_name"], found["name"], "", id=found["id"]))

    def _built(self, workspace: Json, build: Json, progress: Progress, timeout: float | None = None) -> None:
        """Wait for a build. Raise ``Unhealthy`` with its last lines if it failed."""
        ended = self._ended(build, progress, timeout)
        job = ended["job"]
        if job["status"] == "succeeded":
            return
        last = last_lines(self._client, self._client.build_logs(build["id"]), LAST_LINES)
        cancelled = job["status"] == "canceled"
        reason = "the build was cancelled" if cancelled else untrusted.line(job.get("error") or job["status"])
        hints = advice(reason, *last)
        hints += ["The last lines of its build:", *last] if last else ["See the build on the server's dashboard."]
        raise Unhealthy(
            f"Coder could not {ended['transition']} workspace {workspace['name']}: {reason.rstrip('.')}.",
            "\n".join(hints),
            {"build": build["id"], "log": last, "matched_provisioners": ended.get("matched_provisioners")},
        )

    def _hung(self, build: Json) -> str:
        """Return what a person can do about a build that gives no sign of life."""
        owner, name = (untrusted.line(build.get(key), 64) for key in ("workspace_owner_name", "workspace_name"))
        page = f"{self._client.http.config.url}/@{owner}/{name}/builds/{build['build_number']}"
        return f"You can cancel it at {page}; Ctrl-C only stops waiting."

    def _ended(self, build: Json, progress: Progress, timeout: float | None = None) -> Json:
        """Return the build once its job has ended. The build continues if the wait times out."""
        waiter = Waiter(min(self._patience, timeout or self._patience))
        what = f"{build['transition']} workspace {build['workspace_name']}"
        again = (
            f"Continue waiting: ansible-playbook spt.flow.up -e workspace={build['workspace_name']}"
            if build["transition"] == "start"
            else "Run the command again to continue waiting."
        )
        hint = f"The server continues it. {again}"
        try:
            return follow(
                "build",
                waiter,
                lambda: self._client.build(build["id"]),
                lambda after: self._client.build_logs(build["id"], after),
                progress,
                self._hung(build),
            )
        except DeadlineExceeded as error:
            message = f"Coder did not {what} within {waiter.timeout:g} s."
            raise DeadlineExceeded(message, f"{error.hint} {hint}".strip(), error.details) from None
        except KeyboardInterrupt:
            raise Cancelled(f"The run was interrupted while Coder was to {what}.", hint) from None
