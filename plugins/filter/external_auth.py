# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters `external_auth_environment` and `external_auth_ids`: external authentication of a Coder server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

from ansible.errors import AnsibleFilterError
from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import external_auth

T = TypeVar("T")
Providers = Sequence[Mapping[str, Any]]


def _filter(function: Callable[[Providers], T]) -> Callable[[Providers], T]:
    """Report invalid providers as Ansible reports errors of filters."""

    @wraps(function)
    def run(providers: Providers) -> T:
        try:
            return function(providers)
        except InvalidInput as error:
            raise AnsibleFilterError(f"{error.message} {error.hint}") from None

    return run


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "external_auth_environment": _filter(external_auth.environment),
            "external_auth_ids": _filter(external_auth.ids),
        }
