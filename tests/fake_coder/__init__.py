# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Coder server without Coder: its REST API's behaviour (v2.35.1), kept in memory, on a clock that tests move.

``state`` holds users, templates, workspaces and the rules; ``jobs`` what takes time; ``views`` the shapes of answers;
``routes`` and ``server`` speak HTTP; ``faults`` spoils answers; ``openapi`` holds them against the API description.
What a rule is taken from is cited as a section of the fact sheet (``§1.12``), or as ``live`` and a version when a
server taught it. There are no agents behind it: nothing can be run in its workspaces.
"""
