#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action of the same name; nothing of it runs as a module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: workspace
short_description: Manage a workspace
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Creates, starts, stops, restarts or deletes a workspace, a development environment for one repository.
  - >-
    A workspace of the same owner and repository is found under any name. Only O(state=restarted) applies changed
    settings or a newer image to an existing workspace.
requirements:
  - python >= 3.11 on the controller
  - docker >= 7.0 (Python package) where an image is built, loaded or pulled
  - urllib3 >= 2.0 (Python package) for Coder servers
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.action
  - spt.flow.values
  - spt.flow.values.settings
attributes:
  idempotent:
    support: partial
    details:
      - O(state=restarted) and O(state=kept) act every time.
options:
  state:
    description:
      - V(started) creates the workspace if O(create=true), starts it if it is stopped, and waits until its IDE answers.
      - V(stopped) stops it; its home stays.
      - V(restarted) replaces the container with the current settings and the newest image; its home stays.
      - V(kept) delays the idle stop of a running workspace by O(hours).
      - V(absent) deletes it with its home. This needs O(confirm=true).
    type: str
    choices: [started, stopped, restarted, kept, absent]
    default: started
  create:
    description: Whether O(state=started) creates a missing workspace; V(false) fails instead.
    type: bool
    default: true
  ref:
    description: Branch, tag or commit of a new clone; by default the repository's own.
    type: str
    default: ''
  from_run:
    description:
      - Directory of a finished CI run (or its C(run.json)); O(state=started) creates a workspace with its commit and
        settings.
      - Differences from the run are reported in one line.
    type: str
    default: ''
  dotfiles:
    description: Your dotfiles repository, installed and updated at each start; append C(#branch) for a branch.
    type: str
    default: ''
  trust:
    description:
      - Whether the postCreateCommand of the repository's C(devcontainer.json) may run. It runs at once. The consent
        is stored in the workspace's home, for this repository.
    type: bool
    default: false
  hours:
    description: Number of hours by which O(state=kept) delays the idle stop, at most 24; 0 ends the delay.
    type: float
    default: 8
  confirm:
    description: Must be V(true) for O(state=absent).
    type: bool
    default: false
  connect:
    description:
      - Whether the run ends in a shell of the workspace if there is a terminal; see P(spt.flow.connect#callback).
      - Without a shell, a clone that needs credentials is tried once with the caller's SSH agent.
    type: bool
    default: true
  command:
    description: Shell command to run in the workspace instead of opening a shell; see P(spt.flow.connect#callback).
    type: str
    default: ''
seealso:
  - module: spt.flow.workspace_info
  - module: spt.flow.workspace_exec
  - module: spt.flow.ssh_config
"""

EXAMPLES = r"""
- name: Bring up a workspace for a repository
  spt.flow.workspace:
    repo: https://github.com/ansible-collections/community.docker
    connect: false

- name: Apply a newer image and more memory
  spt.flow.workspace:
    state: restarted
    workspace: community-docker
    memory: 16g
    connect: false

- name: Delete the workspace
  spt.flow.workspace:
    state: absent
    workspace: community-docker
    confirm: true
"""

RETURN = r"""
msg:
  description: What was done, or would be done in check mode, as a sentence.
  type: str
  returned: always
  sample: Workspace demo is running (unchanged).
workspace:
  description: The workspace after the task; V(null) if it does not exist.
  type: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
      returned: success
      sample: demo
    owner:
      description: Owner of the workspace.
      type: str
      returned: success
      sample: alice
    repo:
      description: Identity of the repository.
      type: str
      returned: success
      sample: github.com/o/demo
    state:
      description: V(running), V(stopped), V(failed), V(building) or V(unknown).
      type: str
      returned: success
      sample: running
    outdated:
      description: Differences from what a restart would use, V(settings) and V(image).
      type: list
      elements: str
      returned: success
      sample: [image]
    url:
      description: Address of the IDE; empty unless it runs.
      type: str
      returned: success
      sample: http://127.0.0.1:32768
    steps:
      description: Steps of the start with V(name), V(state), V(started), V(ended), V(detail).
      type: list
      elements: dict
      returned: success
    life:
      description: Why it is still running (V(reason)) and when it stops (V(stops_at), seconds since the epoch).
      type: dict
      returned: success
session:
  description: How to enter it. Every start generates a new password.
  type: dict
  returned: when the workspace runs
  contains:
    url:
      description: Address of the IDE.
      type: str
      returned: success
      sample: http://127.0.0.1:32768
    password:
      description: Password of the IDE.
      type: str
      returned: success
      sample: 4b825dc642cb6eb9
    directory:
      description: Directory of the clone in the workspace.
      type: str
      returned: success
      sample: /home/coder/demo
    ssh:
      description: The command that opens a shell in it.
      type: str
      returned: success
      sample: ssh -F /run/user/1000/spt-flow/ssh_config spt-flow-alice-demo
actions:
  description: What was done, in order.
  type: list
  elements: str
  returned: success
  sample: [create, start]
stages:
  description: Names and seconds of the stages.
  type: list
  elements: list
  returned: success
  sample: [[create, 0.6], [ide, 1.1]]
notes:
  description: Warnings, as sentences.
  type: list
  elements: str
  returned: success
confirmed:
  description: Whether O(confirm) was V(true), from any source.
  type: bool
  returned: with O(state=absent)
  sample: false
ask:
  description: Whether the user should be asked before O(state=absent) is carried out.
  type: bool
  returned: with O(state=absent)
  sample: true
error:
  description: What went wrong. With O(create=false), a clone that failed or needs credentials is not a failure.
  type: dict
  returned: failure, or when there is no clone
  contains:
    code:
      description: 1 failed, 2 cancelled, 4 no access, 5 timeout, 6 not found, 7 conflict, 8 unhealthy, 9 no clone.
      type: int
      returned: failure
      sample: 6
    kind:
      description: The code as a word.
      type: str
      returned: failure
      sample: not_found
    message:
      description: What failed and why.
      type: str
      returned: failure
      sample: Cannot find workspace demo of alice.
    hint:
      description: What to do.
      type: str
      returned: failure
      sample: "See what there is: ansible-playbook spt.flow.status"
    details:
      description: Facts for programs.
      type: dict
      returned: failure
"""
