# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `coder_template`: upload the collection's templates to a Coder server."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ansible_collections.spt.flow.plugins.module_utils._node.errors import AuthError, NotFound
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import coder_action as ansible_coder_action
from ansible_collections.spt.flow.plugins.plugin_utils._engine.controller import inventory as controller_inventory
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import workspace as settings_workspace

if TYPE_CHECKING:
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin


class ActionModule(ansible_coder_action.CoderAction):
    OWN = {
        **ansible_coder_action.CoderAction.SERVER,
        "kinds": {"type": "list", "elements": "str", "choices": ["dev", "ci"], "default": ["dev", "ci"]},
        "token_file": {"type": "str", "default": ""},
        "lock_file": {"type": "str", "default": ""},
        "deprecated": {"type": "str", "default": ""},
        "network": {"type": "str", "default": ""},
        "apparmor": {"type": "str", "default": ""},
        "presets": {"type": "list", "elements": "dict", "default": []},
        "external_auth": {"type": "list", "elements": "str", "default": []},
    }
    VALUES = (
        "image_release",
        "output",
        "template",
        *(option.name for option in settings_options.OPTIONS.values() if option.scope == "workspace"),
    )
    DOING = "upload the template to the Coder server"

    def act(self) -> dict[str, Any]:
        path = self.own["token_file"]
        if path and self._task.check_mode and not self.read_secret(path)[0]:
            # Before the first run there is no token yet.
            msg = f"Check mode: the templates would be uploaded once {path} has a token."
            return self.finish({"changed": True, "msg": msg, "templates": [], "diff": []}, ["", msg])
        with self.operator(self.anonymous()) as client:
            return self._rolled_out(client)

    def operator(self, client: CoderAdmin) -> AbstractContextManager[CoderAdmin]:
        if not self.own["token_file"]:
            return super().operator(client)
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin

        secret, _mode = self.read_secret(self.own["token_file"])
        if not secret:
            raise AuthError(
                f"{self.own['token_file']} on this host does not contain a token.",
                "Create one: ansible-playbook spt.flow.bootstrap -i <inventory>",
            )
        return nullcontext(CoderAdmin(client.http.signed(secret, self.own["token_file"])))

    def _lock(self) -> bytes:
        """Return the server's own lock file of Terraform providers, with their digests."""
        path = self.own["lock_file"]
        content, _mode = self.read_secret(path) if path else ("", "")
        if path and not content:
            raise NotFound(
                f"The Terraform lock file {path} does not exist on this host.",
                "Create it from the server's mirror: run terraform providers lock -fs-mirror=<directory> in the "
                "template's directory.",
            )
        return f"{content}\n".encode() if content else b""

    def _rolled_out(self, client: CoderAdmin) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import external_auth as coder_external_auth
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import parse as coder_parse
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity

        settings = settings_workspace.Settings.of(self.values)
        image = image_identity.current(settings.profile, self.values["image_release"])
        nodes = controller_inventory.engines_for_server(
            self.task_vars.get("groups") or {}, self.task_vars.get("hostvars") or {}
        )
        more = {name: self.own[name] for name in ("network", "apparmor") if self.own[name]}
        more |= {"image": image.tag, "image_hash": image.hash, "subdomain": str(bool(client.app_host())).lower()}
        more["presets"] = coder_template.presets(self.own["presets"])
        more["external_auth"] = coder_external_auth.variable(self.own["external_auth"])
        lock = self._lock()
        rows = []
        for kind in self.own["kinds"]:
            name = self.values["template"] + (coder_parse.CI_SUFFIX if kind == "ci" else "")
            wanted = coder_template.ours(settings, kind, name, nodes, lock, **more)
            wanted = coder_template.deprecated(wanted, self.own["deprecated"])
            done = coder_template.roll_out(client, wanted, bool(self._task.check_mode), self.progress)
            rows.append({"name": name, "kind": kind, "msg": sentence(name, done), **vars(done)})
        changed = any(row["changed"] for row in rows)
        mode = "Check mode: " if self._task.check_mode else ""
        diff = [{**row["diff"], "before_header": row["name"], "after_header": row["name"]} for row in rows]
        result = {"changed": changed, "msg": " ".join(row["msg"] for row in rows), "templates": rows, "diff": diff}
        refused = coder_external_auth.refusals(client.entitlements()) if len(self.own["external_auth"]) > 1 else []
        return self.finish(result, ["", *(mode + row["msg"] for row in rows), *refused])


def sentence(name: str, done: Any) -> str:
    """Describe the changes of a template, and the settings that the server ignored."""
    words = {
        "import": f"version {done.version} imported",
        "create": "created",
        "activate": "activated",
        "change": "settings changed",
    }
    said = ", ".join(words[action] for action in done.actions) or f"unchanged ({done.version})"
    ignored = (
        f" Not changed, because the server has no licence for it: {', '.join(done.ignored)}." if done.ignored else ""
    )
    return f"Template {name}: {said}.{ignored}"
