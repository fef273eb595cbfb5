# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's templates and workspaces, and how they change."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import hcl
from .accounts import Accounts, User
from .jobs import FOREVER, HUNG_LIMIT, PENDING_LIMIT, Agent, Behaviour, Clock, Job, new_id, terraform_lines
from .rules import (
    NO_SUCH,
    VERSION_NAME,
    Refused,
    check_durations,
    check_name,
    check_schedule,
    check_ttl,
    invalid,
    resolve_parameters,
)

VERSION = "v2.35.1+3ebe324"
REASONS = frozenset(
    {"dashboard", "cli", "ssh_connection", "vscode_connection", "jetbrains_connection", "task_manual_pause"}
)


@dataclass
class File:
    user: str
    content: bytes
    id: str = field(default_factory=new_id)


@dataclass
class Version:
    name: str
    message: str
    created: float
    creator: str
    job: Job
    source: hcl.Source
    values: dict[str, str]
    template: str = ""
    archived: bool = False
    id: str = field(default_factory=new_id)


@dataclass
class Template:
    name: str
    created: float
    creator: str
    active: str
    settings: dict[str, Any]
    updated: float = 0.0
    deleted: bool = False
    id: str = field(default_factory=new_id)


@dataclass
class Build:
    number: int
    transition: str
    version: str
    initiator: str
    reason: str
    created: float
    job: Job
    parameters: dict[str, str]
    agent: Agent | None = None
    deadline: float | None = None
    settled: bool = False
    id: str = field(default_factory=new_id)

    def status(self, now: float) -> str:
        """``running`` means only that Terraform has applied."""
        job = self.job.status(now)
        going = {"start": "starting", "stop": "stopping", "delete": "deleting"}
        done = {"start": "running", "stop": "stopped", "delete": "deleted"}
        return {"running": going[self.transition], "succeeded": done[self.transition]}.get(job, job)


@dataclass
class Workspace:
    name: str
    owner: str
    template: str
    created: float
    builds: list[Build] = field(default_factory=list)
    ttl_ms: int | None = None
    autostart: str | None = None
    automatic_updates: str = "never"
    used: float = 0.0
    dormant: float | None = None
    id: str = field(default_factory=new_id)

    @property
    def latest(self) -> Build:
        return self.builds[-1]

    def deleted(self, now: float) -> bool:
        return self.latest.status(now) == "deleted"


TEMPLATE_DEFAULTS: dict[str, Any] = {
    "display_name": "",
    "description": "",
    "icon": "",
    "default_ttl_ms": 0,
    "activity_bump_ms": 3_600_000,
    "time_til_autostop_notify_ms": 0,
    "allow_user_cancel_workspace_jobs": False,
    "use_classic_parameter_flow": False,
    "cors_behavior": "simple",
    "disable_module_cache": False,
    "disable_everyone_group_access": False,
}
LICENSED: dict[str, Any] = {
    "autostop_requirement": {"days_of_week": [], "weeks": 1},
    "autostart_requirement": {
        "days_of_week": ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
    },
    "allow_user_autostart": True,
    "allow_user_autostop": True,
    "failure_ttl_ms": 0,
    "time_til_dormant_ms": 0,
    "time_til_dormant_autodelete_ms": 0,
    "require_active_version": False,
    "deprecation_message": "",
    "max_port_share_level": "public",
}
"""Fields that a server without a licence silently ignores."""
CREATION_NAMES = {
    "dormant_ttl_ms": "time_til_dormant_ms",
    "delete_ttl_ms": "time_til_dormant_autodelete_ms",
    "template_use_classic_parameter_flow": "use_classic_parameter_flow",
}


class State(Accounts):
    """One server. ``behaviour`` describes builds and imports; ``upcoming`` has changes of it for the next ones."""

    def __init__(self, clock: Clock | None = None, version: str = VERSION) -> None:
        super().__init__(clock or Clock())
        self.build_version = version
        self.app_host = ""
        self.behaviour = Behaviour()
        self.upcoming: dict[str, deque[dict[str, Any]]] = {}
        self.slots = [0.0, 0.0, 0.0]
        self.cli = b""
        self.deployment = new_id()
        self.organization = new_id()
        self.created = self.now
        self.files: dict[str, File] = {}
        self.versions: dict[str, Version] = {}
        self.templates: dict[str, Template] = {}
        self.workspaces: dict[str, Workspace] = {}
        self.external_auth: list[dict[str, Any]] = []

    def next(self, kind: str, **changes: Any) -> None:
        """Change the next job of ``kind`` (import, start, stop, delete): ``next("start", error="no space left")``."""
        self.upcoming.setdefault(kind, deque()).append(changes)

    # Files, versions, templates

    def upload(self, user: User, content: bytes) -> tuple[File, bool]:
        """Return the file, and whether it is new to this uploader."""
        for file in self.files.values():
            if file.user == user.id and file.content == content:
                return file, False
        file = File(user.id, content)
        self.files[file.id] = file
        return file, True

    def create_version(self, user: User, body: Mapping[str, Any]) -> Version:
        file = self.files.get(body.get("file_id") or "")
        if file is None:
            raise Refused(404, "File not found.")
        template = self.template_by_id(body["template_id"]) if body.get("template_id") else None
        name = body.get("name") or f"random-{new_id()[:8]}"
        if len(name) > 64 or not VERSION_NAME.fullmatch(name):
            raise invalid(name="Validation failed.")
        if template and any(v.name.lower() == name.lower() for v in self.versions_of(template)):
            raise Refused(
                409,
                f'A template version with name "{name}" already exists for this template.',
                name="This value is already in use and should be unique.",
            )
        source = hcl.read(file.content)
        values, missing = self._variables(source, template, body.get("user_variable_values") or [])
        job = self._job("import", user, file.id, {}, problem=source.problem)
        if missing and not job.error:
            job.error = f"required template variables need values: {', '.join(missing)}"
            job.error_code = "REQUIRED_TEMPLATE_VARIABLES"
        version = Version(name, body.get("message") or "", self.now, user.id, job, source, values)
        version.template = template.id if template else ""
        job.input["template_version_id"] = version.id
        self.versions[version.id] = version
        return version

    def _variables(
        self, source: hcl.Source, template: Template | None, sent: list[dict[str, str]]
    ) -> tuple[dict[str, str], list[str]]:
        """Return the values of the declared variables and the missing ones. Values that were not sent persist.

        An empty value does not satisfy a required variable (live, v2.35.1).
        """
        given = {entry["name"]: entry.get("value", "") for entry in sent}
        sticky = self.versions[template.active].values if template else {}
        values, missing = {}, []
        for variable in source.variables:
            name = variable["name"]
            if variable["required"] and not given.get(name, sticky.get(name, "")):
                missing.append(name)
            elif name in given or name in sticky:
                values[name] = given.get(name, sticky.get(name, ""))
            else:
                values[name] = variable["default_value"]
        return values, missing

    def version(self, version_id: str) -> Version:
        if version_id not in self.versions:
            raise Refused(404, NO_SUCH)
        return self.versions[version_id]

    def versions_of(self, template: Template) -> list[Version]:
        found = [version for version in self.versions.values() if version.template == template.id]
        return sorted(found, key=lambda version: version.created, reverse=True)

    def template_by_id(self, template_id: str) -> Template:
        template = self.templates.get(template_id)
        if template is None or template.deleted:
            raise Refused(404, NO_SUCH)
        return template

    def template_by_name(self, name: str) -> Template:
        for template in self.templates.values():
            if template.name.lower() == name.lower() and not template.deleted:
                return template
        raise Refused(404, NO_SUCH)

    def create_template(self, user: User, body: Mapping[str, Any]) -> Template:
        check_name(body["name"])
        version = self.version(body["template_version_id"])
        if any(t.name.lower() == body["name"].lower() and not t.deleted for t in self.templates.values()):
            raise Refused(
                409,
                f'Template with name "{body["name"]}" already exists.',
                name="This value is already in use and should be unique.",
            )
        if version.template:
            raise Refused(400, "The template version is already associated with a template.")
        if body.get("max_port_share_level") is not None:
            raise Refused(400, "Restricting port sharing level is an enterprise feature that is not enabled.")
        given = {CREATION_NAMES.get(key, key): value for key, value in body.items() if value is not None}
        check_durations(given)
        if len(body.get("description") or "") > 127:
            raise invalid(description="Validation failed.")
        settings = {key: given.get(key, default) for key, default in TEMPLATE_DEFAULTS.items()}
        template = Template(body["name"], self.now, user.id, version.id, settings, self.now)
        version.template = template.id
        self.templates[template.id] = template
        return template

    def patch_template(self, template: Template, body: Mapping[str, Any]) -> None:
        if body.get("max_port_share_level") not in (None, "public"):
            raise Refused(400, "Restricting port sharing level is an enterprise feature that is not enabled.")
        given = {key: value for key, value in body.items() if value is not None}
        check_durations(given)
        name = given.get("name") or template.name
        check_name(name)
        if any(t.name.lower() == name.lower() and not t.deleted and t is not template for t in self.templates.values()):
            raise Refused(409, f'Template with name "{name}" already exists.')
        template.name = name
        template.settings.update({key: given[key] for key in TEMPLATE_DEFAULTS if key in given})
        template.updated = self.now

    def promote(self, template: Template, version_id: str) -> None:
        version = self.version(version_id)
        if version.template != template.id:
            raise Refused(400, "The provided template version doesn't belong to the specified template.")
        if version.archived:
            raise Refused(400, "The provided template version is archived.")
        if version.job.status(self.now) != "succeeded":
            raise Refused(403, "Only versions that have been built successfully can be promoted.")
        template.active = version.id

    def archive_versions(self, template: Template, everything: bool) -> list[str]:
        used = {w.latest.version for w in self.workspaces.values() if not w.deleted(self.now)} | {template.active}
        gone = []
        for version in self.versions_of(template):
            failed = version.job.status(self.now) in ("failed", "canceled")
            if version.id not in used and not version.archived and (everything or failed):
                version.archived = True
                gone.append(version.id)
        return gone

    def delete_template(self, template: Template) -> None:
        if any(w.template == template.id and not w.deleted(self.now) for w in self.workspaces.values()):
            raise Refused(400, "All workspaces must be deleted before a template can be removed.")
        template.deleted = True

    # Workspaces and builds

    def create_workspace(self, asker: User, owner: User, body: Mapping[str, Any]) -> Workspace:
        if asker.id != owner.id and not asker.may("organization-admin"):
            raise Refused(403, "Forbidden.")
        template, version = self._which(body)
        check_name(body["name"])
        if self.find_workspace(owner, body["name"]) is not None:
            raise Refused(
                409,
                f'Workspace "{body["name"]}" already exists.',
                name="This value is already in use and should be unique.",
            )
        self._usable(version)
        ttl = check_ttl(body.get("ttl_ms")) or template.settings["default_ttl_ms"] or None
        check_schedule(body.get("autostart_schedule"))
        parameters = resolve_parameters(version.source, body.get("rich_parameter_values") or [], None)
        workspace = Workspace(body["name"], owner.id, template.id, self.now, [], ttl, body.get("autostart_schedule"))
        workspace.automatic_updates = body.get("automatic_updates") or "never"
        workspace.used = self.now
        self._build(workspace, "start", version, asker, "initiator", parameters)
        self.workspaces[workspace.id] = workspace
        return workspace

    def _which(self, body: Mapping[str, Any]) -> tuple[Template, Version]:
        template_id, version_id = body.get("template_id"), body.get("template_version_id")
        if bool(template_id) == bool(version_id):
            text = "Only one of template_id or template_version_id can be specified."
            raise invalid(template_id=text, template_version_id=text)
        if version_id:
            version = self.version(version_id)
            if version.template not in self.templates:
                raise Refused(400, "The template version is not part of a template.")
            return self.templates[version.template], version
        if template_id not in self.templates or self.templates[template_id].deleted:
            raise Refused(400, f'Template "{template_id}" doesn\'t exist.', template_id="template not found")
        template = self.templates[template_id]
        return template, self.versions[template.active]

    def _usable(self, version: Version) -> None:
        """Return 406 while importing, 400 if the import failed."""
        status = version.job.status(self.now)
        if status in ("pending", "running", "canceling"):
            raise Refused(406, f"The provided template version is {status}. Wait for it to complete importing!")
        if status != "succeeded":
            raise Refused(400, f'The provided template version "{version.name}" has {status} to import.')
        if version.archived:
            raise Refused(400, "The provided template version is archived.")

    def find_workspace(self, owner: User, name: str, deleted: bool = False) -> Workspace | None:
        found = [w for w in self.workspaces.values() if w.owner == owner.id and w.name.lower() == name.lower()]
        present = [w for w in found if not w.deleted(self.now)]
        matching = present or (found if deleted else [])
        return matching[-1] if matching else None

    def workspace(self, workspace_id: str, deleted: bool = False) -> Workspace:
        workspace = self.workspaces.get(workspace_id)
        if workspace is None:
            raise Refused(404, NO_SUCH)
        if workspace.deleted(self.now) and not deleted:
            raise Refused(
                410,
                f'Workspace "{workspace_id}" was deleted, you can view this workspace by specifying '
                "'?include_deleted=true' and trying again.",
            )
        return workspace

    def create_build(self, asker: User, workspace: Workspace, body: Mapping[str, Any]) -> Build:
        transition = body.get("transition")
        if transition not in ("start", "stop", "delete"):
            raise invalid(transition='Validation failed for tag "oneof"')
        if body.get("reason") and body["reason"] not in REASONS:
            raise invalid(reason='Validation failed for tag "oneof"')
        self._check_orphan(asker, transition, body)
        if body.get("log_level"):
            raise Refused(400, "Terraform debug mode is disabled in the deployment configuration.")
        last = workspace.latest
        if not last.job.over(self.now):
            raise Refused(409, "A workspace build is already active.")
        version = self.version(body["template_version_id"]) if body.get("template_version_id") else None
        if version and version.template != workspace.template:
            raise Refused(400, "template version doesn't match template")
        version = version or self.versions[last.version]
        if transition == "start":
            self._usable(version)
        parameters = resolve_parameters(version.source, body.get("rich_parameter_values") or [], last.parameters)
        if transition == "start":
            workspace.dormant = None
        return self._build(workspace, transition, version, asker, body.get("reason") or "initiator", parameters)

    def _check_orphan(self, asker: User, transition: str, body: Mapping[str, Any]) -> None:
        if body.get("orphan") and transition != "delete":
            raise Refused(400, "Orphan is only permitted when deleting a workspace.")
        if body.get("orphan") and body.get("state"):
            raise Refused(400, "Only one of state or orphan can be provided.")
        if (body.get("orphan") or body.get("state")) and not asker.may("template-admin", "organization-admin"):
            raise Refused(403, "Only template managers may provide custom state")

    def _build(
        self,
        workspace: Workspace,
        transition: str,
        version: Version,
        asker: User,
        reason: str,
        parameters: dict[str, str],
    ) -> Build:
        job = self._job(transition, asker, version.job.file_id, {})
        build = Build(len(workspace.builds) + 1, transition, version.id, asker.id, reason, self.now, job, parameters)
        job.input["workspace_build_id"] = build.id
        if transition == "start" and not job.error:
            build.agent = Agent(job.ends, self._used)
        workspace.builds.append(build)
        return build

    def _job(self, kind: str, user: User, file_id: str, entry: dict[str, str], problem: str = "") -> Job:
        """Queue a job for the first idle provisioner; its behaviour is kept in ``_used``."""
        changes = self.upcoming.get(kind)
        behaviour = replace(self.behaviour, **(changes.popleft() if changes else {}))
        if problem and not behaviour.error:
            behaviour = replace(behaviour, error=problem)
        self._used = behaviour
        seconds = behaviour.load if kind == "import" else getattr(behaviour, kind)
        name = "template_version_import" if kind == "import" else "workspace_build"
        started = FOREVER
        if self.slots:
            free = min(range(len(self.slots)), key=self.slots.__getitem__)
            started = max(self.now + behaviour.queue, self.slots[free])
            self.slots[free] = started + seconds
        job = Job(name, self.now, user.id, file_id, entry, started, started + seconds, behaviour.error)
        job.seconds = seconds
        job.error_code = behaviour.error_code
        job.lines = terraform_lines(kind, seconds, behaviour)
        return job

    def cancel(self, job: Job, allowed: bool, expect: str = "") -> None:
        """Return 400 when it has ended, 412 in another state than expected, 403 when the template forbids it."""
        status = job.status(self.now)
        if expect and expect not in ("pending", "running"):
            raise Refused(400, "Invalid expect_status.")
        if job.over(self.now):
            raise Refused(400, "Job has already completed!")
        if status == "canceling":
            raise Refused(400, "Job has already been marked as canceled!")
        if not allowed and not (expect == "pending" and status == "pending"):
            raise Refused(403, "User is not allowed to cancel workspace builds. Owner role is required.")
        if expect and status != expect:
            raise Refused(412, f"Job is not in the expected state: {expect}.")
        job.cancel(self.now)

    def put_ttl(self, workspace: Workspace, ttl_ms: int | None) -> None:
        """Without a TTL the deadline of the running build is removed at once; a new TTL applies from the next start."""
        workspace.ttl_ms = check_ttl(ttl_ms)
        if workspace.ttl_ms is None:
            workspace.latest.deadline = None

    def extend(self, workspace: Workspace, deadline: float) -> None:
        build, status = workspace.latest, workspace.latest.status(self.now)
        if build.transition != "start":
            raise Refused(409, f"Workspace must be started, current status: {build.transition}")
        if status in ("pending", "starting"):
            raise Refused(409, "Workspace is still building!")
        if build.deadline is None:
            raise Refused(409, "Workspace shutdown is manual.")
        if deadline < self.now + 29 * 60:
            raise Refused(
                400,
                "Cannot extend workspace: new deadline must be at least 30 minutes in the future",
                deadline="too soon",
            )
        build.deadline = deadline

    # Automatic changes

    def settle(self) -> None:
        """Apply what was due by now: deadlines of finished starts, automatic stops, reaped jobs."""
        now = self.now
        for workspace in list(self.workspaces.values()):
            build = workspace.latest
            self._reap(build.job, now)
            if build.transition != "start" or build.job.status(now) != "succeeded":
                continue
            if not build.settled:
                build.settled = True
                build.deadline = build.job.ends + workspace.ttl_ms / 1000 if workspace.ttl_ms else None
            # The executor runs once a minute and evaluates the minute of its own run.
            if build.deadline is not None and build.deadline < now - now % 60 and self.slots:
                owner, version = self.users[workspace.owner], self.versions[build.version]
                self._build(workspace, "stop", version, owner, "autostop", build.parameters)
        for version in self.versions.values():
            self._reap(version.job, now)

    def _reap(self, job: Job, now: float) -> None:
        if job.status(now) == "pending" and now >= job.created + PENDING_LIMIT:
            job.fail(
                job.created + PENDING_LIMIT, "Build has been detected as pending for 30 minutes and was terminated."
            )

    def set_provisioners(self, count: int) -> None:
        """Set the number of provisioners; waiting jobs are taken first."""
        self.slots = [self.now] * count
        jobs = [w.latest.job for w in self.workspaces.values()] + [v.job for v in self.versions.values()]
        for job in sorted((job for job in jobs if job.started == FOREVER), key=lambda job: job.created):
            if self.slots and job.cancel_asked is None:
                free = min(range(count), key=self.slots.__getitem__)
                self._restart_job(job, self.slots[free] + self.behaviour.queue)
                self.slots[free] = job.ends

    def _restart_job(self, job: Job, started: float) -> None:
        job.started, job.ends = started, started + job.seconds
        for workspace in self.workspaces.values():
            if workspace.latest.job is job and workspace.latest.agent:
                workspace.latest.agent.begins = job.ends

    def interrupt(self, clean: bool = True) -> None:
        """Stop the server during its jobs: running ones fail at once or, if unclean, when the reaper finds them."""
        for job in [b.job for w in self.workspaces.values() for b in w.builds] + [
            v.job for v in self.versions.values()
        ]:
            if job.status(self.now) == "running":
                if clean:
                    job.fail(self.now, "terminate provisioner daemon: context canceled")
                else:
                    job.fail(self.now + HUNG_LIMIT, "Build has been detected as hung for 5 minutes and was terminated.")
