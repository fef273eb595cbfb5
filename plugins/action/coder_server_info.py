# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action `coder_server_info`: read the version and health of a Coder server."""

from __future__ import annotations

from typing import Any

from ansible_collections.spt.flow.plugins.module_utils._node.errors import Unhealthy
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import coder_action as ansible_coder_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import results as ansible_results


class ActionModule(ansible_coder_action.CoderAction):
    OWN = dict(ansible_coder_action.CoderAction.SERVER)
    VALUES = ("output",)
    DOING = "read the health of the Coder server"

    def act(self) -> dict[str, Any]:
        from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import health as coder_health

        client = self.anonymous()
        with self.operator(client) as signed:
            found = coder_health.read(signed, self.own["wait"])
        sections = [vars(one) | {"said": list(one.said)} for one in found.sections]
        server = {"version": found.version, "healthy": not found.failing, "sections": sections}
        url = client.http.config.url
        if found.failing:
            for line in found.lines():
                self.say(line)
            failing = "; ".join(f"{one.name}: {', '.join(one.said)}" for one in found.failing)
            error = Unhealthy(
                f"The Coder server {url} ({found.version}) is not healthy: {failing}.",
                "See the codes at https://coder.com/docs/admin/monitoring/health-check",
            )
            return ansible_results.failed(error, server=server)
        msg = f"The Coder server {url} is healthy, version {found.version}."
        return self.finish({"changed": False, "msg": msg, "server": server}, ["", *found.lines()])
