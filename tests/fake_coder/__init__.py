# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Coder server without Coder: the behaviour of its REST API (v2.35.1), in memory, with a clock that tests control.

``state`` has users, templates, workspaces and the rules; ``jobs`` has what takes time; ``views`` shapes answers;
``routes`` and ``server`` speak HTTP; ``faults`` breaks answers; ``openapi`` checks them against the API description.
Rules that were observed on a real server are marked ``live`` with its version. There are no agents: nothing can run in
its workspaces.
"""
