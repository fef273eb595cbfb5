#!/usr/bin/python
# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: kvm_info
short_description: Test KVM by running a virtual machine
version_added: 0.1.0
author:
  - spt.flow contributors (@spt-flow)
description:
  - Opens the device as the task's user, creates a virtual machine with a processor and runs a few bytes of guest code
    to their C(HLT). Flags and modules are reported too, but do not decide the result; a para-virtual KVM has none.
requirements:
  - python >= 3.9 on the host
extends_documentation_fragment:
  - spt.flow.attributes
  - spt.flow.attributes.info
options:
  device:
    description: The device to test.
    type: path
    default: /dev/kvm
  nested:
    description: The wanted nested flag; C(host.reload) says what is needed to change it.
    type: bool
    default: true
  files:
    description: Paths for whose content, mode and owner a digest is read, which M(spt.flow.host_files) can compare.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Test KVM
  spt.flow.kvm_info:
  register: kvm

- name: Report the result
  ansible.builtin.debug:
    msg: "{{ kvm.kvm.message }}"
"""

RETURN = r"""
kvm:
  description: The result and the facts behind it.
  type: dict
  returned: always
  contains:
    state:
      description: State of KVM.
      type: str
    message:
      description: The same as a sentence.
      type: str
    guest_ran:
      description: Whether guest code reached its end.
      type: bool
    api_version:
      description: Version of the kernel's interface, 12 if it works.
      type: int
    kvm_ok:
      description: Output of the program C(kvm-ok), if installed.
      type: str
    nested:
      description: The nested flag of the loaded module, empty without one.
      type: str
    cpu_flags:
      description: Which of C(vmx) and C(svm) the processor shows.
      type: list
      elements: str
    virtualization:
      description: What this machine itself runs on.
      type: str
    architecture:
      description: The processor's architecture.
      type: str
    device:
      description: The tested device.
      type: str
host:
  description:
    - What kind of host this is (intel, amd, builtin, paravirtual, arm64, none), the module to load and
      whether it is, its nested flag, how many virtual machines use it, how a changed flag takes effect (reload is no,
      now or reboot).
    - Its release, whether systemd is process 1, and the device's mode as octal text, empty without one.
    - Digests by path (files), for the option O(spt.flow.host_files#module:seen).
  type: dict
  returned: always
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spt.flow.plugins.module_utils._node.kvm import host as kvm_host
from ansible_collections.spt.flow.plugins.module_utils._node.kvm import probe as kvm_probe
from ansible_collections.spt.flow.plugins.module_utils._node.machine import facts as machine_facts
from ansible_collections.spt.flow.plugins.module_utils._node.machine import files as machine_files


def main() -> None:
    spec = {
        "device": {"type": "path", "default": "/dev/kvm"},
        "nested": {"type": "bool", "default": True},
        "files": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(spec, supports_check_mode=True)
    verdict = kvm_probe.verdict(module.params["device"])
    host = kvm_host.read("/", module.params["nested"])
    system = machine_facts.system(Path("/"))
    about = {
        **host.to_dict(),
        "release": system["release"],
        "systemd": system["systemd"],
        "device_mode": machine_facts.mode(Path(module.params["device"])),
        "files": machine_files.digests(module.params["files"]),
    }
    module.exit_json(changed=False, msg=verdict.message, kvm=asdict(verdict), host=about)


if __name__ == "__main__":
    main()
