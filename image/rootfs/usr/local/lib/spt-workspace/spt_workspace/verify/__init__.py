# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``spt-workspace verify``: what the image says it holds, and what a workspace promises, each proved by doing it."""
