# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers in the API's form, at the clock's time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .accounts import Key, User
from .jobs import Agent, Job, Script, iso
from .state import LICENSED, Build, State, Template, Version, Workspace

Json = dict[str, Any]
NEVER = "0001-01-01T00:00:00Z"
ZERO_ID = "00000000-0000-0000-0000-000000000000"
ORGANIZATION = "coder"


CI_TTL = 1800.0
"""Seconds that our template gives a CI workspace without a deadline."""


def present(**fields: Any) -> Json:
    """Remove empty values like Go's ``omitempty``."""
    return {name: value for name, value in fields.items() if value is not None}


def buildinfo(state: State, url: str) -> Json:
    return {
        "external_url": f"https://github.com/coder/coder/commit/{state.build_version.rpartition('+')[2]}",
        "version": state.build_version,
        "dashboard_url": url,
        "telemetry": False,
        "workspace_proxy": False,
        "agent_api_version": "1.0",
        "provisioner_api_version": "1.20",
        "upgrade_message": "",
        "deployment_id": state.deployment,
        "webpush_public_key": "",
    }


def roles(names: Iterable[str]) -> list[Json]:
    return [{"name": name, "display_name": name.replace("-", " ").title()} for name in sorted(names)]


def user(state: State, who: User) -> Json:
    return {
        "id": who.id,
        "username": who.username,
        "name": who.name,
        "email": who.email,
        "created_at": iso(who.created),
        "updated_at": iso(who.created),
        "last_seen_at": iso(who.created),
        "status": who.status,
        "login_type": who.login_type,
        "organization_ids": [state.organization],
        "roles": roles(who.roles),
        "is_service_account": False,
    }


def member(state: State, who: User) -> Json:
    return {
        "user_id": who.id,
        "organization_id": state.organization,
        "created_at": iso(who.created),
        "updated_at": iso(who.created),
        "roles": roles(who.organization_roles),
        "username": who.username,
        "name": who.name,
        "email": who.email,
        "avatar_url": "",
        "global_roles": roles(who.roles),
    }


def key(state: State, one: Key) -> Json:
    return {
        "id": one.id,
        "user_id": one.user,
        "username": state.users[one.user].username,
        "last_used": iso(one.used) or NEVER,
        "expires_at": iso(one.expires),
        "created_at": iso(one.created),
        "updated_at": iso(one.created),
        "login_type": one.login_type,
        "scope": "all",
        "scopes": one.scopes,
        "token_name": one.name,
        "lifetime_seconds": int(one.lifetime),
        "allow_list": [{"type": "*", "id": "*"}],
    }


def organization(state: State) -> Json:
    return {
        "id": state.organization,
        "name": ORGANIZATION,
        "display_name": "Coder",
        "icon": "",
        "description": "",
        "created_at": iso(state.created),
        "updated_at": iso(state.created),
        "is_default": True,
        "default_org_member_roles": [],
    }


def job(state: State, one: Job) -> Json:
    now, status = state.now, one.status(state.now)
    begun = now >= one.started
    return {
        "id": one.id,
        "created_at": iso(one.created),
        "status": status,
        "file_id": one.file_id,
        "tags": one.tags,
        "queue_position": 0 if begun else 1,
        "queue_size": 0 if begun else 1,
        "organization_id": state.organization,
        "initiator_id": one.initiator,
        "input": one.input,
        "type": one.kind,
        "logs_overflowed": False,
        **present(
            started_at=iso(one.started) if begun else None,
            completed_at=iso(one.completed()) if one.over(now) else None,
            canceled_at=iso(one.cancel_asked),
            error=(one.error or None) if status == "failed" else None,
            error_code=(one.error_code or None) if status == "failed" else None,
            worker_id=one.worker if begun else None,
            worker_name="fake" if begun else None,
        ),
    }


def job_logs(state: State, one: Job, after: int) -> list[Json]:
    return [
        {
            "id": number,
            "created_at": iso(at),
            "log_source": "provisioner",
            "log_level": line.level,
            "stage": line.stage,
            "output": line.output,
        }
        for number, at, line in one.log(state.now, after)
    ]


def matched(state: State) -> Json:
    count = len(state.slots)
    return {"count": count, "available": count, **present(most_recently_seen=iso(state.now) if count else None)}


def version(state: State, one: Version) -> Json:
    who = state.users[one.creator]
    return {
        "id": one.id,
        "organization_id": state.organization,
        "created_at": iso(one.created),
        "updated_at": iso(one.created),
        "name": one.name,
        "message": one.message,
        "job": job(state, one.job),
        "readme": one.source.readme,
        "created_by": {"id": who.id, "username": who.username, "name": who.name},
        "archived": one.archived,
        "matched_provisioners": matched(state),
        "has_external_agent": False,
        **present(template_id=one.template or None),
    }


def variables(one: Version) -> list[Json]:
    shown = []
    for variable in one.source.variables:
        value = "*redacted*" if variable["sensitive"] else one.values.get(variable["name"], "")
        default = "*redacted*" if variable["sensitive"] else variable["default_value"]
        shown.append({**variable, "value": value, "default_value": default})
    return shown


def template(state: State, one: Template) -> Json:
    owners = {w.owner for w in state.workspaces.values() if w.template == one.id and not w.deleted(state.now)}
    settings = {name: value for name, value in one.settings.items() if name != "disable_everyone_group_access"}
    times = {transition: {"P50": None, "P95": None} for transition in ("start", "stop", "delete")}
    return {
        "id": one.id,
        "created_at": iso(one.created),
        "updated_at": iso(one.updated),
        "organization_id": state.organization,
        "organization_name": ORGANIZATION,
        "organization_display_name": "Coder",
        "organization_icon": "",
        "name": one.name,
        "provisioner": "terraform",
        "active_version_id": one.active,
        "active_user_count": len(owners),
        "build_time_stats": times,
        "deprecated": False,
        "deleted": one.deleted,
        "created_by_id": one.creator,
        "created_by_name": state.users[one.creator].username,
        **settings,
        **LICENSED,
    }


def script(one: Script, agent: Agent, now: float) -> Json:
    ended = now >= agent.connects + one.seconds
    status = "timed_out" if one.timed_out else "exit_failure" if one.exit_code else "ok"
    return {
        "id": one.id,
        "log_source_id": one.log_source,
        "log_path": "",
        "script": "",
        "cron": "",
        "run_on_start": True,
        "run_on_stop": False,
        "start_blocks_login": False,
        "timeout": 0,
        "display_name": one.name,
        **present(exit_code=one.exit_code if ended else None, status=status if ended else None),
    }


def agent(state: State, one: Agent) -> Json:
    now, lifecycle = state.now, one.lifecycle(state.now)
    connected, reason = now >= one.connects, one.unhealthy(now)
    scripts = one.behaviour.scripts
    sources = [
        {
            "id": s.log_source,
            "workspace_agent_id": one.id,
            "created_at": iso(one.begins),
            "display_name": s.name,
            "icon": "",
        }
        for s in scripts
    ]
    return {
        "id": one.id,
        "parent_id": None,
        "created_at": iso(one.begins),
        "updated_at": iso(one.begins),
        "status": one.status(now),
        "lifecycle_state": lifecycle,
        "name": one.name,
        "resource_id": one.resource,
        "architecture": "amd64",
        "environment_variables": {},
        "operating_system": "linux",
        "logs_length": sum(len(text) for _n, _at, text, _s in one.log(now, 0)),
        "logs_overflowed": False,
        "version": state.build_version if connected else "",
        "api_version": "2.8" if connected else "",
        "apps": [],
        "connection_timeout_seconds": int(one.behaviour.connection_timeout),
        "troubleshooting_url": "",
        "subsystems": [],
        "health": {"healthy": not reason, **present(reason=reason or None)},
        "display_apps": ["vscode", "web_terminal", "ssh_helper", "port_forwarding_helper"],
        "log_sources": sources,
        "scripts": [script(s, one, now) for s in scripts],
        "startup_script_behavior": "non-blocking",
        **present(
            directory="/home/coder",
            expanded_directory="/home/coder" if connected else None,
            first_connected_at=iso(one.connects) if connected else None,
            last_connected_at=iso(min(now, one.gone)) if connected else None,
            disconnected_at=iso(one.gone) if now >= one.gone else None,
            started_at=iso(one.connects) if connected else None,
            ready_at=iso(one.ready_at()) if lifecycle not in ("created", "starting") else None,
        ),
    }


def agent_logs(state: State, one: Agent, after: int) -> list[Json]:
    return [
        {"id": number, "created_at": iso(at), "output": text, "level": "info", "source_id": source.log_source}
        for number, at, text, source in one.log(state.now, after)
    ]


def metadata(build: Build) -> list[Json] | None:
    """What our template attaches to the home (``coder_metadata``); a template without its parameters has none."""
    if "repo" not in build.parameters:
        return None
    items = {"repo": build.parameters["repo"], "contract": "1"}
    if build.parameters.get("directory"):
        items["directory"] = build.parameters["directory"]
    if "deadline" in build.parameters:
        items["deadline"] = build.parameters["deadline"] or iso(build.created + CI_TTL)[:19] + "Z"  # type: ignore[index]
    return [{"key": key, "value": value, "sensitive": False} for key, value in items.items()]


def resources(state: State, build: Build) -> list[Json]:
    """Present from the end of the job on: the container while started, the home until deleted."""
    if build.job.status(state.now) != "succeeded" or build.transition == "delete":
        return []
    kinds: list[tuple[str, str, Agent | None]] = [("docker_volume", "home", None)]
    if build.agent:
        kinds.insert(0, ("docker_container", "workspace", build.agent))
    return [
        {
            "id": one.resource if one else build.id,
            "created_at": iso(build.job.ends),
            "job_id": build.job.id,
            "workspace_transition": build.transition,
            "type": kind,
            "name": name,
            "hide": False,
            "icon": "",
            "daily_cost": 0,
            "agents": [agent(state, one)] if one else None,
            "metadata": metadata(build) if name == "home" else None,
        }
        for kind, name, one in kinds
    ]


def build(state: State, workspace: Workspace, one: Build) -> Json:
    owner, initiator = state.users[workspace.owner], state.users[one.initiator]
    return {
        "id": one.id,
        "created_at": iso(one.created),
        "updated_at": iso(one.created),
        "workspace_id": workspace.id,
        "workspace_name": workspace.name,
        "workspace_owner_id": owner.id,
        "workspace_owner_name": owner.username,
        "workspace_owner_avatar_url": "",
        "template_version_id": one.version,
        "template_version_name": state.versions[one.version].name,
        "build_number": one.number,
        "transition": one.transition,
        "initiator_id": initiator.id,
        "initiator_name": initiator.username,
        "job": job(state, one.job),
        "reason": one.reason,
        "resources": resources(state, one),
        "deadline": iso(one.deadline),
        "max_deadline": None,
        "status": one.status(state.now),
        "daily_cost": 0,
        "matched_provisioners": matched(state),
        "template_version_preset_id": None,
        "has_ai_task": False,
        "has_external_agent": False,
    }


def workspace(state: State, one: Workspace) -> Json:
    owner, of = state.users[one.owner], state.templates[one.template]
    latest = one.latest
    failing = [latest.agent.id] if latest.agent and running(state, one) and latest.agent.unhealthy(state.now) else []
    return {
        "id": one.id,
        "created_at": iso(one.created),
        "updated_at": iso(latest.created),
        "owner_id": owner.id,
        "owner_name": owner.username,
        "owner_avatar_url": "",
        "organization_id": state.organization,
        "organization_name": ORGANIZATION,
        "template_id": of.id,
        "template_name": of.name,
        "template_display_name": of.settings["display_name"],
        "template_icon": of.settings["icon"],
        "template_allow_user_cancel_workspace_jobs": of.settings["allow_user_cancel_workspace_jobs"],
        "template_active_version_id": of.active,
        "template_require_active_version": False,
        "template_use_classic_parameter_flow": of.settings["use_classic_parameter_flow"],
        "latest_build": build(state, one, latest),
        "latest_app_status": None,
        "outdated": latest.version != of.active,
        "name": one.name,
        "last_used_at": iso(one.used),
        "deleting_at": None,
        "dormant_at": iso(one.dormant),
        "health": {"healthy": not failing, "failing_agents": failing},
        "automatic_updates": one.automatic_updates,
        "allow_renames": False,
        "favorite": False,
        "next_start_at": None,
        "is_prebuild": False,
        "task_id": None,
        **present(autostart_schedule=one.autostart or None, ttl_ms=one.ttl_ms),
    }


def running(state: State, one: Workspace) -> bool:
    return one.latest.status(state.now) == "running"


def provisioner(state: State, number: int) -> Json:
    return {
        "id": f"{number:08d}-0000-4000-8000-000000000000",
        "organization_id": state.organization,
        "key_id": "00000000-0000-0000-0000-000000000001",
        "key_name": "built-in",
        "created_at": iso(state.created),
        "last_seen_at": iso(state.now),
        "name": f"fake-{number}",
        "version": state.build_version,
        "api_version": "1.20",
        "provisioners": ["terraform"],
        "tags": {"scope": "organization", "owner": ""},
        "status": "idle" if state.slots[number] <= state.now else "busy",
        "current_job": None,
        "previous_job": None,
    }


def health(state: State) -> Json:
    section: Json = {"error": None, "severity": "ok", "warnings": [], "dismissed": False}
    report: Json = {
        "time": iso(state.now),
        "healthy": True,
        "severity": "ok",
        "access_url": {**section, "healthy": True, "reachable": True, "status_code": 200, "access_url": ""},
        "database": {**section, "healthy": True, "reachable": True, "latency": "1ms", "latency_ms": 1},
        "derp": {**section, "healthy": True},
        "websocket": {**section, "healthy": True, "code": 101, "body": ""},
        "workspace_proxy": {**section, "healthy": True},
        "provisioner_daemons": {**section, "items": []},
        "coder_version": state.build_version,
    }
    if not state.slots:
        warning = {"code": "EPD01", "message": "No provisioner daemons found!"}
        report["provisioner_daemons"] = {**section, "severity": "error", "warnings": [warning], "items": []}
        report.update(healthy=False, severity="error")
    return report
