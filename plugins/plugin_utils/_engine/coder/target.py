# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Target coder: workspaces on a Coder server."""

from __future__ import annotations

import contextlib
import math
import time
from datetime import UTC, datetime

from ....module_utils._node.errors import (
    AuthError,
    Conflict,
    InvalidInput,
    NotFound,
    Unhealthy,
)
from ..common import untrusted
from ..common.progress import Progress
from ..common.version import release
from ..workspace.models import Workspace, WorkspaceSpec
from ..workspace.target import Login
from .builds import Builder
from .client import Json, is_deprecated
from .compatibility import refuse_old_server, refuse_other_release, refuse_other_template
from .jobs import ENDED
from .parse import CI_SUFFIX

DELETE_TIMEOUT = 90.0
"""Seconds that the end of a CI run waits for a blocking build, and then for the deletion itself."""
LEAST_EXTENSION = 1800.0
"""Seconds from now below which the server refuses to move a stop."""


class CoderTarget(Builder):
    """Implements ``Target`` and ``NeedsClient`` on one server."""

    def admit(self, spec: WorkspaceSpec, fresh: bool) -> None:
        """Reject requests that a Coder workspace cannot fulfil."""
        local = spec.repository is not None and spec.repository.kind == "local"
        if fresh and local and spec.kind != "ci" and spec.repository is not None:
            raise InvalidInput(
                f"A workspace on a Coder server cannot clone {spec.repository.path}: the server cannot read this "
                "directory.",
                "Push it to a server that the workspace can reach, or use target=docker.",
            )

    def create(self, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        template = self._open_template(spec.kind)
        refuse_old_server(self._client.http.server_version, self._client.http.config.url)
        version = self._client.template_version(template["active_version_id"]) or {}
        refuse_other_template(template["name"], str(version.get("name", "")), release())
        repo = {"repo": spec.repository.url} if spec.repository and spec.repository.url else {}
        ttl = None if spec.deadline is None else max(1.0, spec.deadline - time.time())
        wanted = {**repo, **_given(spec), **self._ci_parameters(spec, ttl)}
        self._refuse_unknown(template["name"], template["active_version_id"], wanted)
        name = self._free_name(spec)
        ttl_ms = None if ttl is None else math.ceil(ttl / 60) * 60_000
        try:
            made = self._client.create_workspace(
                name, template["id"], owner=spec.owner, rich_parameter_values=wanted, ttl_ms=ttl_ms
            )
        except NotFound as error:
            if spec.owner == "me":
                raise
            # The server answers the same for a missing user and for one the caller may not see.
            raise AuthError(
                f"The Coder server {self._client.http.config.url} cannot create a workspace of {spec.owner} for you: "
                "the user does not exist, or you lack the role.",
                "Omit owner for a workspace of your own, or ask an administrator of the server for the role.",
                error.details,
            ) from None
        self._built(made, made["latest_build"], progress)
        return self._seen(self._fresh(Workspace(spec.owner, name, "", id=made["id"])))

    def _ci_parameters(self, spec: WorkspaceSpec, ttl: float | None) -> dict[str, str]:
        """Return the parameters of a CI workspace.

        The deadline uses the server's clock, which may differ from this machine's.
        """
        if spec.kind != "ci":
            return {}
        values = {}
        if ttl is not None:
            ends = time.gmtime(self._client.http.server_clock + ttl)
            values["deadline"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", ends)
        if spec.repository is not None:
            values["directory"] = spec.repository.directory
            if spec.repository.kind == "local":
                values["seed"] = "true"
        return values

    def _open_template(self, kind: str) -> Json:
        name = self._template + (CI_SUFFIX if kind == "ci" else "")
        found = self._client.template(name)
        if found is None:
            raise NotFound(
                f"The Coder server {self._client.http.config.url} does not have the template {name}.",
                "The server's administrator installs it: ansible-playbook site.yml",
            )
        reason = is_deprecated(found)
        if reason:
            raise Conflict(
                f"The template {name} is deprecated: {reason}",
                "Use another: -e template=name. Existing workspaces keep working.",
            )
        return found

    def _refuse_unknown(self, template: str, version: str, wanted: dict[str, str]) -> None:
        """Reject unknown parameters, which the server would silently drop."""
        known = {parameter["name"] for parameter in self._client.version_parameters(version)}
        unknown = sorted(set(wanted) - known)
        if unknown:
            raise InvalidInput(
                f"The template {template} does not accept {' or '.join(unknown)}.",
                "Omit it, or ask the server's administrator to update the template: ansible-playbook site.yml",
            )

    def git_login(self, spec: WorkspaceSpec) -> Login | None:
        """Return the user's login by external authentication; its providers are named after their hosts."""
        repository = spec.repository
        if repository is None or repository.kind != "https":
            return None
        host = f"{repository.host}:{repository.port}" if repository.port else repository.host
        version = self._open_template(spec.kind)["active_version_id"]
        for provider in self._client.version_external_auth(version):
            if str(provider.get("display_name", "")).lower() == host:
                return Login(untrusted.line(provider["authenticate_url"]), provider["authenticated"] is True)
        return None

    def _free_name(self, spec: WorkspaceSpec) -> str:
        if spec.name or spec.repository is None:
            return spec.name
        slug = spec.repository.slug
        taken = self._one(slug, spec.owner)
        if taken is not None and taken.repo == spec.repository.identity:
            raise Conflict(f"Another client has just created workspace {slug}.", "Run the command again.")
        return spec.repository.slug_with_suffix() if taken else slug

    def start(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        found = self._settled(workspace, progress)
        refuse_other_release(found, release())
        status = found["latest_build"]["status"]
        if status == "running":
            return self._seen(found)
        if status in ("failed", "canceled"):
            # Leftovers of a failed start stay until a stop removes them.
            found = self._change(found, "stop", progress)
        return self._seen(self._change(found, "start", progress, values=_first_repository(workspace, spec)))

    def stop(self, workspace: Workspace, progress: Progress) -> Workspace:
        found = self._settled(workspace, progress)
        stopped = found["latest_build"]["status"] == "stopped"
        return self._seen(found if stopped else self._change(found, "stop", progress))

    def restart(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        """Stop, then start with the active version. Parameters stay, except those given."""
        found = self._settled(workspace, progress)
        refuse_other_release(found, release())
        active, given = found["template_active_version_id"], {**_first_repository(workspace, spec), **_given(spec)}
        if given:
            self._refuse_unknown(found["template_name"], active, given)
        if found["latest_build"]["status"] != "stopped":
            found = self._change(found, "stop", progress)
        return self._seen(self._change(found, "start", progress, active, given))

    def delete(self, workspace: Workspace, progress: Progress) -> None:
        """Delete the workspace, also during a build: a build that may be cancelled is cancelled."""
        timeout = DELETE_TIMEOUT if workspace.kind == "ci" else None
        found = self._fresh(workspace)
        build = found["latest_build"]
        if build["job"]["status"] not in ENDED and build["transition"] != "delete":
            with contextlib.suppress(AuthError):
                # Without the template's permission, only pending builds can be cancelled; others are waited for.
                self._client.cancel_build(build["id"])
        found = self._settled(workspace, progress, timeout)
        if workspace.kind != "ci":
            # Terraform deletes only what its state knows; after an outage, a stop brings volumes back into the state.
            with contextlib.suppress(Unhealthy):
                self._change(found, "stop", progress)
            found = self._fresh(workspace)
        self._built(found, self._client.create_build(found, "delete"), progress, timeout)

    def keepalive(self, workspace: Workspace, hours: float, by: str) -> Workspace:
        """Move the stop to ``hours`` from now; 0 returns to the template's own time."""
        found = self._fresh(workspace)
        seconds = hours * 3600 or max((found.get("ttl_ms") or 0) / 1000, LEAST_EXTENSION)
        if seconds < LEAST_EXTENSION:
            raise InvalidInput(
                f"Coder keeps a workspace alive for at least half an hour, not for {hours:g} hours.",
                "Use hours=0.5 or more, or stop it.",
            )
        try:
            self._client.extend(found["id"], datetime.fromtimestamp(time.time() + seconds, UTC))
        except Conflict as error:
            if "manual" not in error.message:
                raise
            return self._seen(found)  # it has no automatic stop
        return self._seen(self._fresh(workspace))

    def put(self, workspace: Workspace, directory: str, tar: bytes) -> None:
        done = self.exec(workspace, ["tar", "--extract", "--directory", directory], tar, timeout=600)
        if done.status:
            raise Unhealthy(
                f"Cannot copy files into workspace {workspace.name}: {untrusted.line(done.stderr.strip()[-200:])}."
            )


def _first_repository(workspace: Workspace, spec: WorkspaceSpec) -> dict[str, str]:
    """Return the parameters that give a repository to a workspace that was created without one."""
    repository = spec.repository
    if workspace.repo or repository is None or not repository.url:
        return {}
    return {"repo": repository.url, **({"ref": spec.ref} if spec.ref else {})}


def _given(spec: WorkspaceSpec) -> dict[str, str]:
    """Return the given parameters that a user may change at a restart."""
    return {name: value for name, value in (("ref", spec.ref), ("dotfiles", spec.dotfiles)) if value}
