#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ci
short_description: Run a job in a temporary workspace
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - >-
    Creates a workspace with a generated name, clones exactly one commit, runs one command in it and shows its output,
    collects artifacts and JUnit reports, and always deletes the workspace.
  - >-
    The workspace has no volume, and deletes itself when its C(ttl) has passed since its creation. This deadline cannot
    be extended. The last tenth of it, at most 30 seconds, is reserved for collecting.
  - >-
    Each run has one class. C(job) - the command or the input decided the result; C(environment) - engine, network or
    workspace failed; C(cancelled) - SIGTERM, SIGINT or SIGHUP arrived, or the parent process ended.
  - >-
    The exit status of C(ansible-playbook) is the command's (set by P(spt.flow.connect#callback)). V(124) means that the
    TTL ended the command, V(125) that it did not run or that its result is unknown, V(130) and V(143) that the run was
    cancelled. The command may return these too; RV(ran) tells the difference.
  - >-
    Variables are passed to the command by standard input only, and their values are masked in its output. Under
    ansible-runner use O(env_file), because the runner writes its whole environment to a file.
requirements:
  - python >= 3.11 on the controller
  - docker >= 7.0 (Python package) where an image is built, loaded or pulled
  - urllib3 >= 2.0 (Python package) for Coder servers
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values.ci
  - spt.flow.values.settings
attributes:
  check_mode:
    support: partial
    details:
      - Runs nothing and reports a change.
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - Each run has a workspace of its own.
options: {}
seealso:
  - module: spt.flow.workspace
  - module: spt.flow.workspace_exec
"""

EXAMPLES = r"""
- name: Test a commit
  spt.flow.ci:
    repo: https://github.com/ansible-collections/community.docker
    commit: 0123456789abcdef0123456789abcdef01234567
    command: make test
    ttl: 20m
    junit: build/junit/*.xml
    artifacts: dist/*
"""

RETURN = r"""
kind:
  description: Class of the run, V(job), V(environment) or V(cancelled).
  type: str
  returned: when it was begun
  sample: job
reason:
  description: A word that describes the result, such as V(passed), V(failed), V(ttl), V(unhealthy) or V(sigterm).
  type: str
  returned: when it was begun
  sample: passed
exit_status:
  description: Exit status of C(ansible-playbook).
  type: int
  returned: when it was begun
  sample: 0
ran:
  description: Whether RV(exit_status) is the command's own.
  type: bool
  returned: when it was begun
workspace:
  description: Name of the workspace that the job ran in.
  type: str
  returned: when it was begun
  sample: ci-demo-1a2b3c4d
commit:
  description: The commit that the command ran on.
  type: str
  returned: when it was cloned
folder:
  description: Directory with C(job.log), C(run.json), C(artifacts) and C(reports).
  type: str
  returned: when it was begun
artifacts:
  description: Collected files, relative to RV(folder).
  type: list
  elements: str
  returned: when it was begun
reports:
  description: Sums over the JUnit reports, C(tests), C(failures), C(errors) and C(skipped).
  type: dict
  returned: when it was begun
counts:
  description: Number of runs in O(artifacts_dir) by class.
  type: dict
  returned: when it was begun
seconds:
  description: Duration of the run.
  type: float
  returned: when it was begun
left:
  description: Name of the workspace if it could not be deleted, otherwise empty.
  type: str
  returned: when it was begun
notes:
  description: Warnings, as sentences.
  type: list
  elements: str
  returned: when it was begun
error:
  description: The error, if the task failed; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
