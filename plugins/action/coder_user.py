# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `coder_user`: who may use a Coder server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible_collections.spt.flow.plugins.module_utils import _ansible
from ansible_collections.spt.flow.plugins.module_utils._errors import InvalidInput

if TYPE_CHECKING:
    from ansible_collections.spt.flow.plugins.module_utils import _coder_server
    from ansible_collections.spt.flow.plugins.module_utils._coder_admin import CoderAdmin

USER = {
    "username": {"type": "str", "required": True},
    "email": {"type": "str", "default": ""},
    "name": {"type": "str", "default": ""},
    "state": {"type": "str", "choices": ["present", "offboarded"], "default": "present"},
    "roles": {"type": "list", "elements": "str"},
    "organization_roles": {"type": "list", "elements": "str"},
    "login_type": {"type": "str", "choices": ["none", "password", "oidc", "github"], "default": "none"},
    "password": {"type": "str", "default": "", "no_log": True},
}


class ActionModule(_ansible.CoderAction):
    OWN = {
        **_ansible.CoderAction.SERVER,
        "users": {"type": "list", "elements": "dict", "default": [], "options": USER},
        "first_username": {"type": "str", "default": ""},
        "first_name": {"type": "str", "default": ""},
    }
    VALUES = ("output",)
    DOING = "look after the users of the Coder server"

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.module_utils import _coder_server

        # Everything that can be refused is refused before the first user is touched.
        people = [_coder_server.Person.of(values) for values in self.own["users"]]
        client, login = self.anonymous(), self.login()
        check = bool(self._task.check_mode)
        rows: list[dict[str, Any]] = []
        fresh = bool(self.own["first_username"]) and not client.has_first_user()
        if fresh and not login:
            raise InvalidInput(
                f"The Coder server {client.http.config.url} has no user yet.",
                "Say who its owner is to be: login_email and login_password (the playbook bootstrap: coder_owner_email "
                "and coder_owner_password, in a vault).",
            )
        if self.own["first_username"] and login:
            rows.append(_first(login, fresh, check))
            if fresh and check:
                return self._answer(rows + [_row(_unmade(person), check) for person in people])
            if fresh:
                _coder_server.make_first(client, login)
        with self.operator(client) as signed:
            rows += self._people(signed, people, check)
        return self._answer(rows)

    def _people(self, client: CoderAdmin, people: list[_coder_server.Person], check: bool) -> list[dict[str, Any]]:
        from ansible_collections.spt.flow.plugins.module_utils import _coder_server

        plans = [_coder_server.plan(client, person) for person in people]
        for plan in plans:
            if plan.changed and not check:
                _coder_server.carry_out(client, plan, self.progress)
        return [_row(plan, check) for plan in plans]

    def _answer(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        shown = [row for row in rows if row["changed"]]
        msg = " ".join(row["msg"] for row in shown) or "Every user is as wished (unchanged)."
        diff = [row.pop("diff") for row in rows if row["changed"]]
        users = [{name: value for name, value in row.items() if name != "diff"} for row in rows]
        for row in shown:
            # A playbook's end shows the block of its last action only.
            self.progress.note(row["msg"])
        count = f"{len(shown)} user{'s' * (len(shown) != 1)} changed." if shown else msg
        return self.finish({"changed": bool(shown), "msg": msg, "users": users, "diff": diff}, ["", count])


def _unmade(person: _coder_server.Person) -> _coder_server.Plan:
    """The plan for a server that has no user yet and so answers nothing."""
    from ansible_collections.spt.flow.plugins.module_utils import _coder_server

    if person.state == _coder_server.OFFBOARDED:
        return _coder_server.Plan(person, (), {}, {})
    roles = {
        name: list(value) for name in ("roles", "organization_roles") if (value := getattr(person, name)) is not None
    }
    actions = ("create", "organization_roles") if roles.get("organization_roles") else ("create",)
    return _coder_server.Plan(person, actions, {}, {"status": "active", **roles})


def _first(login: _coder_server.Login, fresh: bool, check: bool) -> dict[str, Any]:
    said = "created" if fresh else "unchanged"
    return {
        "username": login.username,
        "changed": fresh,
        "actions": ["create"] if fresh else [],
        "msg": f"{'Check mode: first' if check else 'First'} user {login.username}: {said}.",
        "diff": _diff(login.username, {}, {"status": "active", "roles": ["owner"]} if fresh else {}),
    }


def _row(plan: _coder_server.Plan, check: bool) -> dict[str, Any]:
    return {
        "username": plan.person.username,
        "changed": plan.changed,
        "actions": list(plan.actions),
        "msg": plan.sentence(check),
        "diff": _diff(plan.person.username, plan.before, plan.after),
    }


def _diff(username: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {"before": before, "after": after, "before_header": username, "after_header": username}
