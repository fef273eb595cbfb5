# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the errors of an inventory before anything is changed, as sentences."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ....module_utils._node.errors import InvalidInput, NotFound
from ..common.text import redact_value
from ..settings.options import OPTIONS

GROUPS = ("flow_nodes", "flow_servers", "flow_builders")
OURS = (
    "coder_server_",
    "coder_template_",
    "host_audit_",
    "host_docker_",
    "host_images_",
    "host_kvm_",
    "host_snapshots_",
    "image_build_",
    "workspace_reaper_",
    "flow_",
    "spt_flow_",
)
PLAYBOOK_VARIABLES = (
    "flow_nodes_target",
    "flow_report_directory",
    "flow_workspaces",
    "coder_bot_email",
    "coder_bot_roles",
    "coder_bot_username",
    "coder_owner_email",
    "coder_owner_password",
    "coder_owner_username",
    "coder_token_file",
    "coder_token_lifetime",
    "coder_url",
    "coder_users",
)
SERVER_LOGIN = "coder"
LOCAL_ENGINE = "unix:///var/run/docker.sock"
PROXIED_ENGINE = "unix:///run/spt-flow-coder/engine.sock"

RENAMED: dict[str, str] = {"host_images_profile": "flow_profile"}
"""Old name: new name."""


def known(roles: Path) -> set[str]:
    """Return all variables with a meaning: those of the roles, ``flow_<option>`` and those of the playbooks."""
    import yaml

    names = {f"flow_{name}" for name in OPTIONS} | set(PLAYBOOK_VARIABLES)
    for path in roles.glob("*/meta/argument_specs.yml"):
        specification: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
        for entry in specification.values():
            names |= set(entry.get("options") or {})
    return names


def variables(given: Mapping[str, Iterable[str]], names: Collection[str]) -> list[str]:
    """Return a sentence for each unknown variable with one of our prefixes. ``given`` has the variables by host."""
    hosts: dict[str, list[str]] = {}
    for host, found in given.items():
        for name in found:
            if name not in names and not name.startswith("ansible_"):
                hosts.setdefault(name, []).append(host)
    said = (_variable(name, names, where) for name, where in sorted(hosts.items()))
    return [sentence for sentence in said if sentence]


def _variable(name: str, names: Collection[str], hosts: list[str]) -> str:
    where = f"{hosts[0]} and {len(hosts) - 1} more" if len(hosts) > 1 else hosts[0]
    if name in RENAMED:
        return f"The variable {name} (set for {where}) is now called {RENAMED[name]}."
    ours = name.startswith(OURS)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6 if ours else 0.88)
    if near:
        return f"The variable {name} (set for {where}) does not exist; did you mean {near[0]}?"
    return f"The variable {name} (set for {where}) does not exist; remove it." if ours else ""


def profiles(given: Mapping[str, str]) -> list[str]:
    """A sentence when hosts differ in `flow_profile`, which is ``given`` by host: templates and builds use only one."""
    hosts: dict[str, list[str]] = {}
    for host, profile in sorted(given.items()):
        hosts.setdefault(profile, []).append(host)
    if len(hosts) < 2:
        return []
    words = "; ".join(f"{profile} for {', '.join(names)}" for profile, names in sorted(hosts.items()))
    return [
        f"flow_profile differs between hosts ({words}), so that some builds would fail. Set it once, in group_vars/all."
    ]


def groups(found: Mapping[str, Collection[str]], example: str) -> list[str]:
    """Return a sentence for each group that is missing, empty or misspelt. ``example`` is the directory to copy."""
    said = []
    for name in sorted(set(found) - set(GROUPS)):
        near = difflib.get_close_matches(name, GROUPS, n=1, cutoff=0.75)
        if near and not found.get(near[0]):
            said.append(f"The inventory's group {name} does not exist; did you mean {near[0]}?")
    if said or found.get("flow_nodes"):
        return said
    if "flow_nodes" in found:
        return ["The inventory's group flow_nodes is empty; add the machines that run workspaces."]
    return [missing(example)]


def engine_of(node: str, found: Mapping[str, Collection[str]], hostvars: Mapping[str, Any], login: str = "") -> str:
    """Return the address of the engine of ``node``, in the form of ``DOCKER_HOST``; empty for this machine's own.

    ``found`` has the hosts by group; ``login`` replaces ``ansible_user``. Raise ``NotFound`` for a host outside
    flow_nodes, ``InvalidInput`` if its variables do not make an address.
    """
    nodes = sorted(found.get("flow_nodes") or ())
    if node not in nodes:
        raise NotFound(
            f"Unknown workspace host {redact_value(node)!r}: {_no_node(node, nodes, hostvars)}",
            _similar(node, nodes),
        )
    variables = hostvars[node]
    connection = str(variables.get("ansible_connection", "ssh")).removeprefix("ansible.builtin.")
    if connection == "local":
        return ""
    if connection not in ("ssh", "smart", "paramiko_ssh"):
        raise InvalidInput(
            f"The workspace host {node} uses the connection {redact_value(connection)} instead of ssh.",
            "Engines are reached by ssh://. Set ansible_host and remove ansible_connection.",
        )
    user, port = (
        "" if variables.get(name) is None else str(variables[name]) for name in ("ansible_user", "ansible_port")
    )
    user = login or user
    if not re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)?", user):
        raise InvalidInput(f"ansible_user of {node} is {redact_value(user)!r}, which is not a user name.")
    if not re.fullmatch(r"\d{0,5}", port, re.ASCII) or int(port or 1) not in range(1, 65536):
        raise InvalidInput(f"ansible_port of {node} is {redact_value(port)!r}, which is not a port.")
    host = _address(node, str(variables.get("ansible_host") or node))
    return f"ssh://{user}{'@' if user else ''}{host}{':' if port else ''}{port}"


def engines_for_server(found: Mapping[str, Collection[str]], hostvars: Mapping[str, Any]) -> dict[str, str]:
    """Return the addresses of the engines of flow_nodes as the Coder server reaches them, by node.

    Every engine is behind the proxy of role coder_node. On other nodes the server signs in as ``coder``, whose key only
    opens the proxy. On the server's own node it uses the proxy's socket. Raise ``InvalidInput`` for a node that only
    this machine can reach.
    """
    servers = found.get("flow_servers") or ()
    addresses = {}
    for node in sorted(found.get("flow_nodes") or ()):
        if node in servers:
            addresses[node] = PROXIED_ENGINE
            continue
        address = engine_of(node, found, hostvars, SERVER_LOGIN if servers else "")
        if not address and servers:
            raise InvalidInput(
                f"The workspace host {node} is this machine, which the Coder server cannot reach.",
                "Give it an address (ansible_host, and no local connection), or list it in flow_servers if it is one.",
            )
        addresses[node] = address or LOCAL_ENGINE
    return addresses


def _no_node(node: str, nodes: list[str], hostvars: Mapping[str, Any]) -> str:
    if not nodes:
        return "the inventory's group flow_nodes is empty."
    if node in hostvars:
        return "it is in the inventory, but not in the group flow_nodes."
    return "it is not in the inventory's group flow_nodes."


def _similar(node: str, nodes: list[str]) -> str:
    """Return the hosts that may have been meant, or all hosts if none is similar and they are few."""
    close = difflib.get_close_matches(node, nodes, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    if not nodes:
        return "Name your inventory with -i, and list the machines that run workspaces in flow_nodes."
    return f"The group has: {', '.join(nodes[:10])}{', …' if len(nodes) > 10 else ''}."


def _address(node: str, text: str) -> str:
    """Return a host name, or an IP address in the form that URLs use."""
    try:
        return f"[{text}]" if ipaddress.ip_address(text).version == 6 else text
    except ValueError:
        if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", text):
            return text
    raise InvalidInput(f"ansible_host of {node} is {redact_value(text)!r}, which is not a host name.")


def missing(example: str) -> str:
    """Return the error of a run without an inventory."""
    return (
        f"The inventory is missing: copy the folder {example}, list your machines in its hosts.yml "
        "and run again with -i <your copy> (this machine itself: -i inventories/local)."
    )
