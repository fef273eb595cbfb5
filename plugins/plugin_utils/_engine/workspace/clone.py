# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Explain why a running workspace does not have a clone of its repository."""

from __future__ import annotations

import shlex

from ....module_utils._node.errors import AuthError, CloneFailed, FlowError
from .models import Workspace

LOCAL = "local/"
"""The identity of a repository that is a directory of the client's machine starts with it."""


def missing(workspace: Workspace) -> FlowError | None:
    """Return the error of a clone that failed or needs credentials, or ``None``."""
    step = workspace.step("clone")
    what = f"{workspace.repo or 'the repository'} into workspace {workspace.name}"
    reason = f": {step.detail.rstrip('.')}" if step.detail else ""
    enter = f"ansible-playbook spt.flow.ssh -e workspace={workspace.name}"
    if step.state == "failed":
        # The directory of a local repository is uploaded again only by a run that names it.
        local = workspace.repo.startswith(LOCAL)
        again = f" -e repo={shlex.quote(workspace.repo.removeprefix(LOCAL[:-1]))}" if local else ""
        restart = f"ansible-playbook spt.flow.restart -e workspace={workspace.name}"
        return CloneFailed(
            f"Cannot clone {what}{reason}. The workspace is kept and runs.",
            f"Remove the cause, then clone again: {restart}{again}\nTo enter it without the clone: {enter}",
        )
    if step.state == "needs-auth":
        return AuthError(
            f"Cannot clone {what} without your credentials{reason}. The workspace is kept and runs.",
            "Load your key into an SSH agent (ssh-add), or for https log in on your machine (gh auth login). "
            f"Then finish the clone in a session: {enter}",
        )
    return None
