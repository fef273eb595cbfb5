# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The address of a host's engine in an inventory, and hosts that have none."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput, NotFound
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import inventory as controller_inventory

HOSTS: dict[str, dict[str, Any]] = {"node1": {}, "node2": {}, "server1": {}}
GROUPS = {"flow_nodes": ["node1", "node2"], "flow_servers": ["server1"]}


@pytest.mark.parametrize(
    ("variables", "engine"),
    [
        ({}, "ssh://node1"),
        ({"ansible_host": "192.0.2.7", "ansible_user": "admin", "ansible_port": 2222}, "ssh://admin@192.0.2.7:2222"),
        ({"ansible_host": "2001:db8::7", "ansible_port": "22"}, "ssh://[2001:db8::7]:22"),
        ({"ansible_connection": "ansible.builtin.ssh", "ansible_user": None}, "ssh://node1"),
        ({"ansible_connection": "local", "ansible_host": "ignored"}, ""),
    ],
)
def test_host_variables_give_the_address_of_its_engine(variables: dict[str, Any], engine: str) -> None:
    assert controller_inventory.engine_of("node1", GROUPS, {**HOSTS, "node1": variables}) == engine


@pytest.mark.parametrize(
    "variables",
    [
        {"ansible_host": "-oProxyCommand=id"},
        {"ansible_host": "a b"},
        {"ansible_user": "-l"},
        {"ansible_user": "a@b"},
        {"ansible_port": "22;id"},
        {"ansible_port": 0},
        {"ansible_port": 70000},
        {"ansible_connection": "community.docker.docker"},
    ],
)
def test_impossible_address_is_refused(variables: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="node1"):
        controller_inventory.engine_of("node1", GROUPS, {**HOSTS, "node1": variables})


@pytest.mark.parametrize(
    ("node", "groups", "words"),
    [
        ("nod1", GROUPS, "Did you mean node1 or node2?"),
        ("zebra", GROUPS, "The group has: node1, node2."),
        ("server1", GROUPS, "not in the group flow_nodes"),
        ("node1", {}, "the inventory's group flow_nodes is empty"),
    ],
)
def test_unknown_host_is_refused_with_the_known_ones(node: str, groups: dict[str, Any], words: str) -> None:
    with pytest.raises(NotFound) as refused:
        controller_inventory.engine_of(node, groups, HOSTS)
    assert words in str(refused.value)


LOCAL = {"ansible_connection": "local"}


@pytest.mark.parametrize(
    ("groups", "node1", "engines"),
    [
        (GROUPS, {"ansible_user": "ops"}, {"node1": "ssh://coder@node1", "node2": "ssh://coder@node2"}),
        (
            {**GROUPS, "flow_servers": ["node1"]},
            {},
            {"node1": controller_inventory.PROXIED_ENGINE, "node2": "ssh://coder@node2"},
        ),
        (
            {**GROUPS, "flow_servers": ["node1"]},
            LOCAL,
            {"node1": controller_inventory.PROXIED_ENGINE, "node2": "ssh://coder@node2"},
        ),
        ({"flow_nodes": ["node1"]}, LOCAL, {"node1": controller_inventory.LOCAL_ENGINE}),
        ({"flow_servers": ["server1"]}, {}, {}),
    ],
    ids=["others", "server too", "server here", "all in one", "none"],
)
def test_coder_server_reaches_the_engines_by_their_addresses(
    groups: dict[str, list[str]], node1: dict[str, Any], engines: dict[str, str]
) -> None:
    assert controller_inventory.engines_for_server(groups, {**HOSTS, "node1": node1}) == engines


def test_engine_that_only_this_machine_reaches_is_refused_for_another_server() -> None:
    with pytest.raises(InvalidInput, match="node1 is this machine, which the Coder server cannot reach"):
        controller_inventory.engines_for_server(GROUPS, {**HOSTS, "node1": LOCAL})
