# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refuse runs that Ansible's own configuration makes unsafe or incomplete."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...module_utils._node.errors import InvalidInput
from .._engine.common.version import COLLECTION

CONNECT = "spt.flow.connect"
CONFIGURATION = Path(os.path.abspath(__file__)).parents[3] / "playbooks" / "ansible.cfg"
"""The collection's own configuration, as the user sees its path."""


def refuse_configuration_of(folder: str, active: str | None) -> None:
    """Raise an error if ``active``, Ansible's configuration file, is inside ``folder``, which may be untrusted.

    Programs that such a file names may already have run. This stops the run and says how to prevent it.
    """
    if not folder or not active:
        return
    file = Path(os.path.realpath(active))
    if not file.is_relative_to(os.path.realpath(folder)) or file.is_relative_to(COLLECTION):
        # A configuration next to the running collection's code is as trusted as the code.
        return
    raise InvalidInput(
        f"Ansible is configured by {active}, a file of the repository {folder}: "
        "it can make Ansible run the repository's programs on this machine.",
        f'Run Ansible elsewhere with another configuration: cd "$(mktemp -d)" && export ANSIBLE_CONFIG={CONFIGURATION}',
    )


def refuse_configuration_of_repository(repo: str, active: str | None) -> None:
    """Do the same for a repository as users write it; an address has no directory."""
    text = repo.strip(" ")
    if not text.startswith(("/", ".", "~")):
        return
    from .._engine.repository.address import Repository

    try:
        repository = Repository.parse(text)
    except InvalidInput:
        # The action that needs the repository reports its error.
        return
    if repository.kind == "local":
        refuse_configuration_of(repository.path, active)


def refuse_unheard_command(callbacks: Sequence[str]) -> None:
    """Raise an error for a command if the callback that runs it is not enabled."""
    if CONNECT in callbacks:
        return
    raise InvalidInput(
        f"Cannot run the command: Ansible's callback {CONNECT}, which runs it, is not enabled.",
        f"Enable it: export ANSIBLE_CONFIG={CONFIGURATION} (or ANSIBLE_CALLBACKS_ENABLED={CONNECT}).",
    )


def refuse_links_out_of_repository(repo: str, folder: Path) -> None:
    """Raise an error if links make ``folder``, inside the local repository ``repo`` by name, lead outside."""
    text = repo.strip(" ")
    root = Path(os.path.abspath(os.path.expanduser(text)))
    if not text.startswith(("/", ".", "~")) or not Path(os.path.abspath(folder)).is_relative_to(root):
        return
    real = Path(os.path.realpath(folder))
    if not real.is_relative_to(os.path.realpath(root)):
        raise InvalidInput(
            f"The directory for results {folder} leads out of the repository by a link, to {real}.",
            "Use another one: SPT_FLOW_ARTIFACTS_DIR",
        )
