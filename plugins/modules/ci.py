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
    Makes a workspace with a generated name, clones exactly one commit, runs one command there with its output shown as
    it comes, brings artifacts and JUnit reports home and deletes the workspace, whatever happened.
  - >-
    The workspace has no volume, and deletes itself when its C(ttl) is over, counted from its creation. Nothing moves
    that. The last tenth of it, at most 30 seconds, is kept for collecting.
  - >-
    Each run is of one class. C(job) - the command, or what was asked for, decided how it ended; C(environment) -
    engine, network or workspace failed; C(cancelled) - SIGTERM, SIGINT or SIGHUP came, or what had started it ended.
  - >-
    The exit status of C(ansible-playbook) is the command's (P(spt.flow.connect#callback) sees to it). V(124) stands
    for a command that the TTL ended, V(125) for one that did not run or whose outcome is not known, V(130) and V(143)
    for a run that was cancelled. The command may use these too; RV(ran) tells.
  - >-
    Variables reach the command by standard input only; their values are hidden in what it prints. Under ansible-runner
    use O(env_file), since the runner writes its whole environment to a file.
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
      - Nothing is run, and the task reports that it would change something.
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
  description: One word about it, such as V(passed), V(failed), V(ttl), V(unhealthy) or V(sigterm).
  type: str
  returned: when it was begun
  sample: passed
exit_status:
  description: What C(ansible-playbook) ends with.
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
  description: Folder with C(job.log), C(run.json), C(artifacts) and C(reports).
  type: str
  returned: when it was begun
artifacts:
  description: Files that were brought home, relative to RV(folder).
  type: list
  elements: str
  returned: when it was begun
reports:
  description: Sums over the JUnit reports, C(tests), C(failures), C(errors) and C(skipped).
  type: dict
  returned: when it was begun
counts:
  description: How many of the runs recorded in O(artifacts_dir) are of each class.
  type: dict
  returned: when it was begun
seconds:
  description: Duration of the run.
  type: float
  returned: when it was begun
left:
  description: Name of the workspace where it could not be deleted, else empty.
  type: str
  returned: when it was begun
notes:
  description: Sentences about what is as it should not be, though nothing failed.
  type: list
  elements: str
  returned: when it was begun
error:
  description: What went wrong; see M(spt.flow.workspace).
  type: dict
  returned: failure
"""
