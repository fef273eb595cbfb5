# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Coder's API: workspaces, builds, logs, schedules and reading templates.

Together with ``admin`` the only code of the engine that knows Coder's URL paths. Objects are dictionaries with the
API's field names (v2.35.1; see the server's ``swagger.json``), including fields of newer servers. Lists are always
lists, even if the server answers ``null``.

Reads return ``None`` for missing objects (404, 410); all other errors are raised by ``http``. If the answer to a
creating request is lost, its object is searched before the request is sent again. So ``Unsure`` is only raised if the
search fails too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from ....module_utils._node.errors import Conflict, InvalidInput, NotFound
from .http import Answer, CoderHttp
from .retry import BROKEN_TRIES, Unsure

Json = dict[str, Any]

API = "/api/v2"
PAGE = 200
"""Workspaces per page: about 3 KB each, so one answer stays below 1 MiB."""
MOST_PAGES = 100
DEPRECATED = "Deprecated:"
"""First words in the description of a deprecated template. Coder's own deprecation needs a licence."""


class CoderClient:
    """API calls for developers. ``left`` returns the caller's remaining seconds for all requests.

    ``me`` stands for the caller wherever a user is named, ``default`` for the only organization of a free server.
    """

    def __init__(self, http: CoderHttp, left: Callable[[], float] | None = None) -> None:
        self.http = http
        self._left = left

    # The server and the caller

    def buildinfo(self) -> Json:
        """Return ``version`` (``v2.35.1+3ebe324``), ``dashboard_url``, ``deployment_id``, …; needs no token."""
        return self._object("GET", f"{API}/buildinfo")

    def app_host(self) -> str:
        """Return the address of subdomain apps (``*.apps.example.com``, with its port), or nothing."""
        found = self._get_or_none(f"{API}/applications/host")
        return str((found or {}).get("host") or "")

    def me(self) -> Json:
        """Return the token's user: ``id``, ``username``, ``email``, ``status``, ``roles`` (``[{"name"}]``), …"""
        return self._object("GET", f"{API}/users/me")

    def user(self, user: str) -> Json | None:
        """Return a user by name or id; never by e-mail address."""
        return self._get_or_none(f"{API}/users/{_part(user)}")

    def organization(self, organization: str = "default") -> Json:
        """Return ``id``, ``name``, ``is_default``, …"""
        return self._object("GET", f"{API}/organizations/{_part(organization)}")

    # Workspaces

    def workspace(self, name: str, owner: str = "me", include_deleted: bool = False) -> Json | None:
        """Return the owner's workspace of this name, ignoring case. Deleted ones only on request."""
        query = {"include_deleted": True} if include_deleted else None
        return self._get_or_none(f"{API}/users/{_part(owner)}/workspace/{_part(name)}", query)

    def workspace_by_id(self, workspace_id: str) -> Json | None:
        """Return a workspace, ``None`` if it is deleted (410)."""
        return self._get_or_none(f"{API}/workspaces/{_part(workspace_id)}")

    def workspaces(self, query: str = "", page: int = PAGE) -> Iterator[list[Json]]:
        """Yield pages of the workspaces that match ``query`` (see ``search_query``), each workspace once.

        Workspaces that are created or deleted between two pages may be missed, but are never repeated.
        """
        yield from self._pages(f"{API}/workspaces", "workspaces", {"q": query or None}, page)

    def create_workspace(
        self,
        name: str,
        template_id: str = "",
        template_version_id: str = "",
        owner: str = "me",
        rich_parameter_values: Mapping[str, str] | None = None,
        ttl_ms: int | None = None,
        autostart_schedule: str | None = None,
        automatic_updates: str | None = None,
    ) -> Json:
        """Create a workspace and queue its first build; ``latest_build.resources`` is still empty.

        Pass one of the ids. No or zero ``ttl_ms`` means the template's. Raise ``Conflict`` if the name is taken (409,
        ``name`` in ``details["fields"]``) or the version is still importing (406). The server drops unknown parameters:
        compare with ``version_parameters`` first. Exactly one workspace is created, even if answers are lost.
        """
        body = {
            "name": name,
            "template_id": template_id,
            "template_version_id": template_version_id,
            "rich_parameter_values": _values(rich_parameter_values),
            "ttl_ms": ttl_ms,
            "autostart_schedule": autostart_schedule,
            "automatic_updates": automatic_updates,
        }
        return self._make(f"{API}/users/{_part(owner)}/workspaces", body, lambda: self.workspace(name, owner))

    # Builds

    def build(self, build_id: str) -> Json | None:
        """Return a build:

        ``status``, ``transition``, ``build_number``, ``job`` (``status``, ``error``), ``resources``, …
        """
        return self._get_or_none(f"{API}/workspacebuilds/{_part(build_id)}")

    def builds(self, workspace_id: str, limit: int = 10) -> list[Json]:
        """Return the newest ``limit`` builds, newest first."""
        return self._list(f"{API}/workspaces/{_part(workspace_id)}/builds", {"limit": limit})

    def create_build(
        self,
        workspace: Json,
        transition: str,
        template_version_id: str = "",
        rich_parameter_values: Mapping[str, str] | None = None,
        orphan: bool = False,
        reason: str = "cli",
    ) -> Json:
        """Queue a ``start``, ``stop`` or ``delete`` of ``workspace`` (as read: its id and its latest build's number).

        Without ``template_version_id`` the last build's version is used, not the active one. Raise ``Conflict`` while
        another build is active (409): wait for it and check again. Starting a running workspace replaces its
        containers: check first. Exactly one build is queued, even if answers are lost.
        """
        workspace_id, before = str(workspace["id"]), int(workspace["latest_build"]["build_number"])
        body = {
            "transition": transition,
            "template_version_id": template_version_id,
            "rich_parameter_values": _values(rich_parameter_values),
            "orphan": orphan or None,
            "reason": reason,
        }

        def queued() -> Json | None:
            now = self.builds(workspace_id, 1)
            ours = now and now[0]["build_number"] > before and now[0]["transition"] == transition
            return now[0] if ours else None

        return self._make(f"{API}/workspaces/{_part(workspace_id)}/builds", body, queued)

    def cancel_build(self, build_id: str, expect_status: str = "") -> bool:
        """Cancel the build. Return ``False`` if it has ended or is already ending (400).

        ``expect_status`` (``pending`` or ``running``): raise ``Conflict`` (412) in any other state. A template without
        ``allow_user_cancel_workspace_jobs`` only allows cancelling pending builds (403).
        """
        path, query = f"{API}/workspacebuilds/{_part(build_id)}/cancel", {"expect_status": expect_status or None}
        return self._patch_running(path, query)

    def build_parameters(self, build_id: str) -> dict[str, str]:
        """Return a build's parameter values by name. They may be secret."""
        found = self._list(f"{API}/workspacebuilds/{_part(build_id)}/parameters")
        return {value["name"]: value["value"] for value in found}

    def build_logs(self, build_id: str, after: int = 0) -> list[Json]:
        """Return lines after this id: ``id``, ``created_at``, ``log_source``, ``log_level``, ``stage``, ``output``.

        Call it until the job has ended, then once again. The lines may contain secrets.
        """
        return self._list(f"{API}/workspacebuilds/{_part(build_id)}/logs", {"after": after or None})

    # Agents

    def agent(self, agent_id: str) -> Json | None:
        return self._get_or_none(f"{API}/workspaceagents/{_part(agent_id)}")

    def agent_logs(self, agent_id: str, after: int = 0) -> list[Json]:
        """Return lines of the agent's scripts after this id:

        ``id``, ``created_at``, ``output``, ``level``, ``source_id``.
        """
        return self._list(f"{API}/workspaceagents/{_part(agent_id)}/logs", {"after": after or None})

    # Schedules

    def extend(self, workspace_id: str, deadline: datetime) -> None:
        """Move the stop of the current build to ``deadline``, at least 29 minutes from now; earlier or later.

        Raise ``Conflict`` (409) if it does not run or its stop is manual.
        """
        self._send("PUT", f"{API}/workspaces/{_part(workspace_id)}/extend", {"deadline": rfc3339(deadline)})

    def put_ttl(self, workspace_id: str, ttl_ms: int | None) -> None:
        """Set the time from start to stop:

        1 minute to 30 days, in whole minutes. ``None`` makes the stop manual at once.
        """
        self._send("PUT", f"{API}/workspaces/{_part(workspace_id)}/ttl", {"ttl_ms": ttl_ms})

    def put_autostart(self, workspace_id: str, schedule: str | None) -> None:
        """Set ``CRON_TZ=Europe/Berlin 30 9 * * 1-5`` (day and month are ``*``); ``None`` disables it."""
        body = {} if schedule is None else {"schedule": schedule}
        self._send("PUT", f"{API}/workspaces/{_part(workspace_id)}/autostart", body)

    # Templates (reading)

    def template(self, name: str, organization: str = "default") -> Json | None:
        """Return ``id``, ``active_version_id``, ``default_ttl_ms``, ``activity_bump_ms``, ``deprecated``, … by name."""
        return self._get_or_none(f"{API}/organizations/{_part(organization)}/templates/{_part(name)}")

    def templates(self, query: str = "", organization: str = "default") -> list[Json]:
        """Return all templates, or those that match ``query``; deprecated ones only with ``deprecated:true``."""
        return self._list(f"{API}/organizations/{_part(organization)}/templates", {"q": query or None})

    def template_version(self, version_id: str) -> Json | None:
        """Return ``name``, ``job`` (``status``, ``file_id``, ``error``, ``error_code``), ``matched_provisioners``, …"""
        return self._get_or_none(f"{API}/templateversions/{_part(version_id)}")

    def version_parameters(self, version_id: str) -> list[Json]:
        """Return a workspace's parameters: ``name``, ``type``, ``default_value``, ``mutable``, ``required``, …

        Raise ``AuthError`` (403) while the version is still importing.
        """
        return self._list(f"{API}/templateversions/{_part(version_id)}/rich-parameters")

    def version_external_auth(self, version_id: str) -> list[Json]:
        """Return the caller's logins that the version can use: ``id``, ``display_name``, ``authenticate_url``,
        ``authenticated``, ``optional``, …
        """
        return self._list(f"{API}/templateversions/{_part(version_id)}/external-auth")

    # Requests

    def _request(self, method: str, path: str, **more: Any) -> Answer:
        return self.http.request(method, path, timeout=None if self._left is None else self._left(), **more)

    def _object(self, method: str, path: str, body: Any = None, **more: Any) -> Json:
        found: Json = self._request(method, path, body=body, **more).data
        return found

    def _send(self, method: str, path: str, body: Any = None, **more: Any) -> None:
        self._request(method, path, body=body, **more)

    def _get_or_none(self, path: str, query: Mapping[str, Any] | None = None) -> Json | None:
        try:
            return self._object("GET", path, query=query)
        except NotFound:
            return None

    def _list(self, path: str, query: Mapping[str, Any] | None = None) -> list[Json]:
        return self._request("GET", path, query=query).data or []

    def _pages(self, path: str, key: str, query: Mapping[str, Any], size: int) -> Iterator[list[Json]]:
        """Yield pages of an answer ``{key: [], "count": total}``; without a key the answer is the list itself."""
        seen: set[str] = set()
        for number in range(MOST_PAGES):
            answer = self._request("GET", path, query={**query, "limit": size, "offset": number * size}).data
            found = (answer.get(key) if key else answer) or []
            fresh = [item for item in found if item["id"] not in seen]
            seen.update(item["id"] for item in fresh)
            if fresh:
                yield fresh
            if len(found) < size or (key and (number + 1) * size >= answer.get("count", 0)):
                return

    def _patch_running(self, path: str, query: Mapping[str, Any] | None = None) -> bool:
        """PATCH that ends a job. Return ``False`` if the job has ended already."""
        try:
            self._request("PATCH", path, query=query, repeat=True)
        except InvalidInput:
            return False
        return True

    def _make(self, path: str, body: Mapping[str, Any], look: Callable[[], Json | None]) -> Json:
        """POST ``body`` without its empty fields. ``look`` finds the object of an earlier attempt without an answer."""
        given = {name: value for name, value in body.items() if value not in (None, "")}
        unsure: Unsure | None = None
        for _try in range(BROKEN_TRIES):
            try:
                return self._object("POST", path, given)
            except Unsure as error:
                unsure = error
            except Conflict:
                # After an attempt without an answer this may be our own object, created late; otherwise it is
                # another's.
                found = look() if unsure else None
                if found is None:
                    raise
                return found
            found = look()
            if found is not None:
                return found
        if unsure is None:
            raise AssertionError("unsure must be set here")
        raise unsure


def agents(workspace: Json) -> list[Json]:
    """Return the agents of the latest build, without those of inner dev containers."""
    resources = workspace["latest_build"].get("resources") or []
    found = [agent for resource in resources for agent in resource.get("agents") or []]
    return [agent for agent in found if not agent.get("parent_id")]


def app_url(url: str, host: Callable[[], str], workspace: Json, agent: Json, slug: str) -> str:
    """Return the address of an app: its own for a subdomain app, otherwise one below ``url``.

    ``host`` returns the address of subdomain apps and is only called for them.
    """
    app: Json = next((one for one in agent.get("apps") or () if one.get("slug") == slug), {})
    wildcard = host() if app.get("subdomain") and app.get("subdomain_name") else ""
    if wildcard:
        return f"{url.partition('://')[0]}://{wildcard.replace('*', app['subdomain_name'], 1)}/"
    return f"{url}/@{workspace['owner_name']}/{workspace['name']}.{agent['name']}/apps/{slug}/"


def is_deprecated(template: Json) -> str:
    """Return why a template is deprecated, or nothing."""
    said = str(template.get("deprecation_message") or "")
    if not said and str(template.get("description", "")).startswith(DEPRECATED):
        said = str(template["description"]).removeprefix(DEPRECATED).strip()
    return said


def search_query(terms: Sequence[tuple[str, str]] = (), **more: str) -> str:
    """Return the ``q`` of a list: ``search_query(owner="me", template="spt-flow", status="running")``.

    ``terms`` are for keys with a hyphen. The server ignores case and matches parts of ``name``. Results of
    ``param="repository=…"`` must be confirmed by ``build_parameters``. Raise ``InvalidInput`` for a value that the
    grammar does not allow: a quotation mark, and in ``param`` a comma or a second equals sign.
    """
    words = []
    for key, value in (*terms, *more.items()):
        if '"' in value or (key == "param" and ("," in value or value.count("=") > 1)):
            raise InvalidInput(
                f"A Coder server cannot search for {key} {value}: its query language does not allow these characters."
            )
        words.append(f'{key}:"{value}"' if not value.replace("-", "").isalnum() else f"{key}:{value}")
    return " ".join(words)


def moment(text: str) -> datetime:
    """Return a time of the API, truncated to microseconds."""
    return datetime.fromisoformat(text)


def rfc3339(moment: datetime) -> str:
    """Return ``2026-11-24T03:00:00Z``. Raise ``ValueError`` for a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _part(text: str) -> str:
    """Return one segment of a path, quoted so that it stays one segment."""
    if text in ("", ".", ".."):
        raise InvalidInput(f"{text!r} is not a name.")
    return quote(text, safe="")


def _values(values: Mapping[str, str] | None) -> list[dict[str, str]] | None:
    return [{"name": name, "value": value} for name, value in values.items()] if values else None
