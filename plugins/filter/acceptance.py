# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of verify.yml and preflight.yml: the table of requirements, and the errors of an inventory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.spt.flow.plugins.module_utils._node.acceptance import report as acceptance_report_module
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import inventory as controller_inventory
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.options import OPTIONS

COLLECTION = Path(__file__).resolve().parents[2]
FORMS: dict[str, Callable[[acceptance_report_module.Report], Any]] = {
    "lines": acceptance_report_module.lines,
    "json": acceptance_report_module.as_json,
    "junit": acceptance_report_module.as_junit,
    "failures": acceptance_report_module.failures,
}


def acceptance_report(hosts: Sequence[str], hostvars: Mapping[str, Any], form: str = "lines") -> Any:
    """Return the results that acceptance_info registered as ``flow_acceptance`` on ``hosts``, in one of the formats."""
    if form not in FORMS:
        raise AnsibleFilterError(f"Unknown format {form}; use one of {', '.join(FORMS)}.")
    results = {}
    for host in hosts:
        variables = hostvars[host]
        results[host] = dict(variables["flow_acceptance"]) if "flow_acceptance" in variables else {}
    return FORMS[form](acceptance_report_module.gather(results))


def inventory_problems(
    groups: Mapping[str, Collection[str]], hostvars: Mapping[str, Any], sources: Sequence[str] = ()
) -> list[str]:
    """Return sentences about a missing inventory, wrong groups and unknown variables, or nothing."""
    example = COLLECTION / "inventories/example"
    # The checkout's default inventory is for developers; preparing a machine needs an inventory named by the user.
    default = [COLLECTION / "inventories/local"]
    if [Path(source).resolve() for source in sources] == default and not _inventory_given():
        return [controller_inventory.missing(_short(example))]
    found = controller_inventory.groups(groups, _short(example))
    if found:
        return found
    ours = {host for group in controller_inventory.GROUPS for host in groups.get(group, ())}
    given = {host: [str(name) for name in hostvars[host]] for host in sorted(ours)}
    profiles = {host: str(hostvars[host]["flow_profile"]) for host, names in given.items() if "flow_profile" in names}
    # Hosts without the variable have the default.
    profiles = {host: profiles.get(host, OPTIONS["profile"].default) for host in given} if profiles else {}
    return [
        *controller_inventory.variables(given, controller_inventory.known(COLLECTION / "roles")),
        *controller_inventory.profiles(profiles),
    ]


def _inventory_given() -> bool:
    return any(word.startswith(("-i", "--inv")) for word in sys.argv[1:])


def _short(path: Path) -> str:
    """Return ``path`` relative to the current directory if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"acceptance_report": acceptance_report, "inventory_problems": inventory_problems}
