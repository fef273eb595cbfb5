# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``spt-workspace verify``: test the contents of the image and the promises of a workspace by using them."""
