# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels and names that spt.flow gives to containers, volumes and networks."""

from __future__ import annotations

LABEL = "spt.flow."
"""Prefix of all labels on containers, volumes and networks."""
IMAGE = f"{LABEL}image"
"""Label with the content hash of an image (docs/decisions/image-identity.md)."""
