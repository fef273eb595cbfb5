# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `coder_user`: manage users of a Coder server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import coder_action as ansible_coder_action

if TYPE_CHECKING:
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import login as coder_login
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import users as coder_users
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin

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


class ActionModule(ansible_coder_action.CoderAction):
    OWN = {
        **ansible_coder_action.CoderAction.SERVER,
        "users": {"type": "list", "elements": "dict", "default": [], "options": USER},
        "first_username": {"type": "str", "default": ""},
        "first_name": {"type": "str", "default": ""},
    }
    VALUES = ("output",)
    DOING = "manage the users of the Coder server"

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import login as coder_login
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import users as coder_users

        # Validate everything before the first user is changed.
        people = [coder_users.Person.of(values) for values in self.own["users"]]
        client, login = self.anonymous(), self.login()
        check = bool(self._task.check_mode)
        rows: list[dict[str, Any]] = []
        fresh = bool(self.own["first_username"]) and not client.has_first_user()
        if fresh and not login:
            raise InvalidInput(
                f"The Coder server {client.http.config.url} does not have a user yet.",
                "Set its owner: login_email and login_password (the playbook bootstrap: coder_owner_email "
                "and coder_owner_password, in a vault).",
            )
        if self.own["first_username"] and login:
            rows.append(_first(login, fresh, check))
            if fresh and check:
                return self._answer(rows + [_row(_plan_for_new_server(person), check) for person in people])
            if fresh:
                coder_login.make_first(client, login)
        with self.operator(client) as signed:
            rows += self._people(signed, people, check)
        return self._answer(rows)

    def _people(self, client: CoderAdmin, people: list[coder_users.Person], check: bool) -> list[dict[str, Any]]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import users as coder_users

        plans = [coder_users.plan(client, person) for person in people]
        for plan in plans:
            if plan.changed and not check:
                coder_users.carry_out(client, plan, self.progress)
        return [_row(plan, check) for plan in plans]

    def _answer(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        shown = [row for row in rows if row["changed"]]
        msg = " ".join(row["msg"] for row in shown) or "All users are up to date (unchanged)."
        diff = [row.pop("diff") for row in rows if row["changed"]]
        users = [{name: value for name, value in row.items() if name != "diff"} for row in rows]
        for row in shown:
            # The end of a playbook shows only the block of its last action.
            self.progress.note(row["msg"])
        count = f"{len(shown)} user{'s' * (len(shown) != 1)} changed." if shown else msg
        return self.finish({"changed": bool(shown), "msg": msg, "users": users, "diff": diff}, ["", count])


def _plan_for_new_server(person: coder_users.Person) -> coder_users.Plan:
    """Return the plan for a server without users, which answers no queries."""
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import users as coder_users

    if person.state == coder_users.OFFBOARDED:
        return coder_users.Plan(person, (), {}, {})
    roles = {
        name: list(value) for name in ("roles", "organization_roles") if (value := getattr(person, name)) is not None
    }
    actions = ("create", "organization_roles") if roles.get("organization_roles") else ("create",)
    return coder_users.Plan(person, actions, {}, {"status": "active", **roles})


def _first(login: coder_login.Login, fresh: bool, check: bool) -> dict[str, Any]:
    said = "created" if fresh else "unchanged"
    return {
        "username": login.username,
        "changed": fresh,
        "actions": ["create"] if fresh else [],
        "msg": f"{'Check mode: first' if check else 'First'} user {login.username}: {said}.",
        "diff": _diff(login.username, {}, {"status": "active", "roles": ["owner"]} if fresh else {}),
    }


def _row(plan: coder_users.Plan, check: bool) -> dict[str, Any]:
    return {
        "username": plan.person.username,
        "changed": plan.changed,
        "actions": list(plan.actions),
        "msg": plan.sentence(check),
        "diff": _diff(plan.person.username, plan.before, plan.after),
    }


def _diff(username: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {"before": before, "after": after, "before_header": username, "after_header": username}
