# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sphinx's settings for the documentation site; tools/docs-site collects the sources and runs it."""

project = "spt.flow"
author = "spt.flow contributors"
extensions = ["myst_parser", "sphinx.ext.intersphinx", "sphinx_antsibull_ext"]
root_doc = "index"
exclude_patterns = ["collection/environment_variables.rst"]
html_theme = "furo"
html_title = "spt.flow"
myst_heading_anchors = 4
# Addresses of Ansible's own plugins, kept here so that a build needs no network.
intersphinx_mapping = {"ansible": ("https://docs.ansible.com/projects/ansible/latest", "ansible.inv")}
