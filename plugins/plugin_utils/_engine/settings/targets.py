# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry of targets. To add a target, write its package and add one line here."""

from __future__ import annotations

TARGETS = {"coder": "coder.kind", "docker": "docker.kind"}
"""Module of the engine whose ``KIND`` describes the target, by the target's name. `target=auto` takes the first that is
available."""
