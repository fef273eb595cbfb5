# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Up, stop, restart, delete on the real engine (decisions C7, C12, A9)."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from ansible_collections.spt.flow.plugins.module_utils import _docker_target
from ansible_collections.spt.flow.plugins.module_utils._errors import Conflict, FlowError, NotFound, Unhealthy
from ansible_collections.spt.flow.tests.integration.lab import Lab, git


def test_up_twice_changes_once(lab: Lab) -> None:
    source = lab.repository()
    first = lab.ensure(lab.spec(source))
    second = lab.ensure(lab.spec(source))
    assert first.changed and first.workspace and second.workspace
    assert (second.changed, second.actions) == (False, [])
    assert "unchanged" in second.msg
    assert second.workspace.id == first.workspace.id
    assert lab.inside(first.workspace, "git -C ~/demo rev-parse HEAD") == git(source, "rev-parse", "HEAD")
    lab.is_exactly("demo")
