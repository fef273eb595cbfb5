# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's identity, reached through the SSH agents that live sessions forward (docs/identity.md)."""
