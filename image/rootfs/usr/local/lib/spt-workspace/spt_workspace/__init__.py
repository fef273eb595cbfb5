# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs inside every workspace, whatever target started it. Nothing here needs root."""
