# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check what a user needs for the target coder: the server, its client program, a token and the template."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from ....module_utils._node.errors import AuthError, FlowError, NotFound
from ..common.progress import Progress
from ..common.version import release
from ..workspace.checks import TIMEOUT, Check, clock_skew
from . import cli as coder_cli
from .admin import CoderAdmin
from .client import is_deprecated
from .compatibility import refuse_old_server, refuse_other_template
from .http import CoderHttp

Connect = Callable[[bool], CoderHttp]
"""Gives the way to the server; without the user's token when its argument says so."""
SECTIONS = ("access_url", "database", "derp", "websocket", "workspace_proxy", "provisioner_daemons")
SHARED_ORIGIN = (
    "The IDE shares the dashboard's address, so a malicious program in your workspace can act as you on the Coder "
    "server."
)


def examine(template: str, connect: Connect, fetch: bool = False) -> list[Check]:
    """Check the server, the program that enters workspaces, the caller's token, our template and the server's health.

    With ``fetch``, download a missing program from the server, because login needs it.
    """
    try:
        client = _client(connect, anonymous=True)
        about = client.buildinfo()
        version = about.get("version") or "an unknown version"
        refuse_old_server(version, client.http.config.url)
    except FlowError as error:
        return [Check("server", "missing", error.message, error.hint)]
    found = [Check("server", "ok", f"{client.http.config.url} answers ({version})."), _program(client, fetch)]
    found += clock_skew(client.http.server_clock - time.time(), "the server's")
    try:
        client = _client(connect, anonymous=False)
        user = client.me()
    except FlowError as error:
        return [*found, Check("token", "missing", error.message, error.hint)]
    found.append(Check("token", "ok", f"It belongs to {user['username']}, from {client.http.config.source}."))
    return [*found, _template(client, template), _apps(client), *_health(client)]


def _client(connect: Connect, anonymous: bool) -> CoderAdmin:
    client = CoderAdmin(connect(anonymous))
    client.http.outage = 0.0
    client.http.timeout = TIMEOUT
    return client


def _template(client: CoderAdmin, name: str) -> Check:
    bring = "The server's administrator installs it: ansible-playbook site.yml"
    try:
        template = client.template(name)
        if template is None:
            return Check("template", "missing", f"The server does not have the template {name}.", bring)
        version = client.template_version(template["active_version_id"]) or {}
        refuse_other_template(name, str(version.get("name", "")), release())
    except FlowError as error:
        return Check("template", "missing", error.message, error.hint)
    if is_deprecated(template):
        return Check(
            "template", "note", f"Template {name} is deprecated: create no new workspaces from it.", "-e template=…"
        )
    return Check("template", "ok", f"Template {name} exists.")


def _apps(client: CoderAdmin) -> Check:
    """Check whether programs of a workspace share the dashboard's origin."""
    try:
        host = client.app_host()
    except FlowError as error:
        return Check("apps", "note", error.message, error.hint)
    if host:
        return Check("apps", "ok", f"The IDE of each workspace has an address of its own ({host}).")
    return Check(
        "apps", "note", SHARED_ORIGIN, "The server's administrator can set coder_server_wildcard (docs/operations.md)."
    )


def _program(client: CoderAdmin, fetch: bool) -> Check:
    path = shutil.which("coder")
    version = coder_cli.asked(path) if path else ""
    if path and coder_cli.is_compatible(version, client.http.server_version):
        return Check("coder", "ok", f"{path} ({version}) is compatible with the server.")
    words = (
        f"{path} ({version or 'of an unknown version'}) is not compatible with the server."
        if path
        else "It is not installed."
    )
    if fetch and not _fetched(client):
        coder_cli.ready(client.http, Progress())
    if _fetched(client):
        return Check("coder", "ok", f"{words} {coder_cli.folder() / 'coder'} is the server's version.".strip())
    return Check("coder", "note", words, "`up` and `init` download the server's version.")


def _fetched(client: CoderAdmin) -> bool:
    program = coder_cli.folder() / "coder"
    return os.access(program, os.X_OK) and coder_cli.is_compatible(
        f"v{program.resolve().parent.name}", client.http.server_version
    )


def _health(client: CoderAdmin) -> list[Check]:
    """Report the server's own verdict with its codes (EDB02, EPD01 …). It is only visible to owners."""
    try:
        report = client.debug_health()
    except (AuthError, NotFound):
        return []
    except FlowError as error:
        return [Check("health", "note", error.message, error.hint)]
    worst = [line for name in SECTIONS for line in complaints(name, report.get(name) or {})]
    if report.get("healthy") and not worst:
        return [Check("health", "ok", "The server reports that it is healthy.")]
    state = "note" if report.get("healthy") else "missing"
    hint = "\n".join([*worst, "Each code is explained at https://coder.com/docs/admin/monitoring/health-check"])
    verdict = "healthy with warnings" if report.get("healthy") else "unhealthy"
    return [Check("health", state, f"The server reports that it is {verdict}.", hint)]


def complaints(name: str, section: Mapping[str, Any]) -> list[str]:
    """Return a line for the error and each warning of a section that was not dismissed."""
    if section.get("dismissed"):
        return []
    said = [f"{one.get('code', '')} {one.get('message', '')}".strip() for one in section.get("warnings") or []]
    error = [str(section["error"])] if section.get("error") else []
    return [f"{name}: {line}" for line in (*error, *said)]
