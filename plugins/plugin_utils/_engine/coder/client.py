# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Coder's API as methods: workspaces, builds, logs, schedules, reading templates.

With ``_coder_admin`` the only file that knows Coder's URL paths. Objects are the API's own, as dictionaries with its
field names (v2.35.1; ``swagger.json`` of the server says the same), so one that a newer server adds is simply there.
Lists are lists, also where the server says ``null``. Where nothing is there (404, 410) reads give ``None``; everything
else raises what ``_coder_http`` raises. A request that makes something and whose answer got lost is looked for before
it is sent again, so ``Unsure`` leaves this file only when looking fails, too.
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
"""Workspaces a page: about 3 KB each, so one answer stays below 1 MiB."""
MOST_PAGES = 100
DEPRECATED = "Deprecated:"
"""What the description of a template begins with that no workspace is to be made of; Coder's own mark is licensed."""


class CoderClient:
    """What the verbs need of a server. ``left`` gives the seconds that the caller has, over all requests.

    ``me`` stands for the caller wherever a user is named, ``default`` for the only organization of a free server.
    """

    def __init__(self, http: CoderHttp, left: Callable[[], float] | None = None) -> None:
        self.http = http
        self._left = left

    # The server and the caller

    def buildinfo(self) -> Json:
        """``version`` (``v2.35.1+3ebe324``), ``dashboard_url``, ``deployment_id``, …; needs no token."""
        return self._object("GET", f"{API}/buildinfo")

    def app_host(self) -> str:
        """Address of subdomain apps (``*.apps.example.com``, with its port), empty where the server has none."""
        found = self._maybe(f"{API}/applications/host")
        return str((found or {}).get("host") or "")

    def me(self) -> Json:
        """Who the token belongs to: ``id``, ``username``, ``email``, ``status``, ``roles`` (``[{"name"}]``), …"""
        return self._object("GET", f"{API}/users/me")

    def user(self, user: str) -> Json | None:
        """A user by name or id; never by e-mail address."""
        return self._maybe(f"{API}/users/{_part(user)}")

    def organization(self, organization: str = "default") -> Json:
        """``id``, ``name``, ``is_default``, …"""
        return self._object("GET", f"{API}/organizations/{_part(organization)}")

    # Workspaces

    def workspace(self, name: str, owner: str = "me", include_deleted: bool = False) -> Json | None:
        """The owner's workspace of this name; case does not matter. A deleted one only when asked for."""
        query = {"include_deleted": True} if include_deleted else None
        return self._maybe(f"{API}/users/{_part(owner)}/workspace/{_part(name)}", query)

    def workspace_by_id(self, workspace_id: str) -> Json | None:
        """``None`` also once it is deleted (the server says 410)."""
        return self._maybe(f"{API}/workspaces/{_part(workspace_id)}")

    def workspaces(self, query: str = "", page: int = PAGE) -> Iterator[list[Json]]:
        """Pages of the workspaces that match ``query`` (see ``search_query``), each workspace once.

        What is made or deleted between two pages may be missed; a later page never repeats an earlier one's.
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
        """Create it and queue its first build; ``latest_build.resources`` is still empty. One of the ids is given.

        No or zero ``ttl_ms`` means the template's. Raises ``Conflict`` when the name is taken (409, ``name`` in
        ``details["fields"]``) or the version is still importing (406). Unknown parameters are dropped by the server:
        compare with ``version_parameters`` first. Exactly one workspace is made however many answers get lost.
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
        """A build: ``status``, ``transition``, ``build_number``, ``job`` (``status``, ``error``), ``resources``, …"""
        return self._maybe(f"{API}/workspacebuilds/{_part(build_id)}")

    def builds(self, workspace_id: str, limit: int = 10) -> list[Json]:
        """The newest ``limit`` builds, newest first."""
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

        Without ``template_version_id`` the last build's version is used, whatever is active now. Raises ``Conflict``
        while another build is active (409): wait for that one and look again. Starting what runs replaces its
        containers: look first. Exactly one build is queued however many answers get lost.
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
        """Ask the build to end; ``False`` when it has ended or is ending already (400).

        ``expect_status`` (``pending`` or ``running``): raise ``Conflict`` (412) in any other state. A template without
        ``allow_user_cancel_workspace_jobs`` lets only its pending builds be cancelled (403).
        """
        path, query = f"{API}/workspacebuilds/{_part(build_id)}/cancel", {"expect_status": expect_status or None}
        return self._unless_over(path, query)

    def build_parameters(self, build_id: str) -> dict[str, str]:
        """Parameter values of a build by name. They may be secrets."""
        found = self._list(f"{API}/workspacebuilds/{_part(build_id)}/parameters")
        return {value["name"]: value["value"] for value in found}

    def build_logs(self, build_id: str, after: int = 0) -> list[Json]:
        """Lines after this id: ``id``, ``created_at``, ``log_source``, ``log_level``, ``stage``, ``output``.

        Ask until the job has ended, then once more. They may hold secrets.
        """
        return self._list(f"{API}/workspacebuilds/{_part(build_id)}/logs", {"after": after or None})

    # Agents

    def agent(self, agent_id: str) -> Json | None:
        return self._maybe(f"{API}/workspaceagents/{_part(agent_id)}")

    def agent_logs(self, agent_id: str, after: int = 0) -> list[Json]:
        """Lines of its scripts after this id: ``id``, ``created_at``, ``output``, ``level``, ``source_id``."""
        return self._list(f"{API}/workspaceagents/{_part(agent_id)}/logs", {"after": after or None})

    # Schedules

    def extend(self, workspace_id: str, deadline: datetime) -> None:
        """Move the stop of the current build to ``deadline``, at least 29 minutes from now; it may also come nearer.

        Raises ``Conflict`` (409) when it does not run or its stop is manual.
        """
        self._send("PUT", f"{API}/workspaces/{_part(workspace_id)}/extend", {"deadline": rfc3339(deadline)})

    def put_ttl(self, workspace_id: str, ttl_ms: int | None) -> None:
        """Time from the next start to the stop, 1 minute to 30 days, in whole minutes.

        ``None`` makes the stop manual, and that at once.
        """
        self._send("PUT", f"{API}/workspaces/{_part(workspace_id)}/ttl", {"ttl_ms": ttl_ms})

    def put_autostart(self, workspace_id: str, schedule: str | None) -> None:
        """``CRON_TZ=Europe/Berlin 30 9 * * 1-5`` (day and month are ``*``); ``None`` switches it off."""
        body = {} if schedule is None else {"schedule": schedule}
        self._send("PUT", f"{API}/workspaces/{_part(workspace_id)}/autostart", body)

    # Templates, as far as workspaces need them

    def template(self, name: str, organization: str = "default") -> Json | None:
        """``id``, ``active_version_id``, ``default_ttl_ms``, ``activity_bump_ms``, ``deprecated``, … by its name."""
        return self._maybe(f"{API}/organizations/{_part(organization)}/templates/{_part(name)}")

    def templates(self, query: str = "", organization: str = "default") -> list[Json]:
        """All templates, or those that match ``query``; deprecated ones only by ``deprecated:true``."""
        return self._list(f"{API}/organizations/{_part(organization)}/templates", {"q": query or None})

    def template_version(self, version_id: str) -> Json | None:
        """``name``, ``job`` (``status``, ``file_id``, ``error``, ``error_code``), ``matched_provisioners``, …"""
        return self._maybe(f"{API}/templateversions/{_part(version_id)}")

    def version_parameters(self, version_id: str) -> list[Json]:
        """What a workspace is asked: ``name``, ``type``, ``default_value``, ``mutable``, ``required``, …

        Raises ``AuthError`` (403) while the version is still importing.
        """
        return self._list(f"{API}/templateversions/{_part(version_id)}/rich-parameters")

    # How requests are made

    def _request(self, method: str, path: str, **more: Any) -> Answer:
        return self.http.request(method, path, timeout=None if self._left is None else self._left(), **more)

    def _object(self, method: str, path: str, body: Any = None, **more: Any) -> Json:
        found: Json = self._request(method, path, body=body, **more).data
        return found

    def _send(self, method: str, path: str, body: Any = None, **more: Any) -> None:
        self._request(method, path, body=body, **more)

    def _maybe(self, path: str, query: Mapping[str, Any] | None = None) -> Json | None:
        try:
            return self._object("GET", path, query=query)
        except NotFound:
            return None

    def _list(self, path: str, query: Mapping[str, Any] | None = None) -> list[Json]:
        return self._request("GET", path, query=query).data or []

    def _pages(self, path: str, key: str, query: Mapping[str, Any], size: int) -> Iterator[list[Json]]:
        """Pages of an answer ``{key: [], "count": total}``; without a key the answer is the list itself."""
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

    def _unless_over(self, path: str, query: Mapping[str, Any] | None = None) -> bool:
        """PATCH what ends a job; ``False`` when that is over already."""
        try:
            self._request("PATCH", path, query=query, repeat=True)
        except InvalidInput:
            return False
        return True

    def _make(self, path: str, body: Mapping[str, Any], look: Callable[[], Json | None]) -> Json:
        """POST ``body`` without its empty fields. ``look`` finds what an earlier, unanswered try has made."""
        given = {name: value for name, value in body.items() if value not in (None, "")}
        unsure: Unsure | None = None
        for _try in range(BROKEN_TRIES):
            try:
                return self._object("POST", path, given)
            except Unsure as error:
                unsure = error
            except Conflict:
                # After an unanswered try this may be our own, slower than we looked; otherwise it is another's.
                found = look() if unsure else None
                if found is None:
                    raise
                return found
            found = look()
            if found is not None:
                return found
        if unsure is None:
            raise AssertionError("unsure is set by now")
        raise unsure


def agents(workspace: Json) -> list[Json]:
    """The agents that make a workspace ready: those of its latest build, without those of inner dev containers."""
    resources = workspace["latest_build"].get("resources") or []
    found = [agent for resource in resources for agent in resource.get("agents") or []]
    return [agent for agent in found if not agent.get("parent_id")]


def app_url(url: str, host: Callable[[], str], workspace: Json, agent: Json, slug: str) -> str:
    """Return the address of an app: its own where it is a subdomain app, else one below ``url``.

    ``host`` tells where subdomain apps are. It is asked only for one.
    """
    app: Json = next((one for one in agent.get("apps") or () if one.get("slug") == slug), {})
    wildcard = host() if app.get("subdomain") and app.get("subdomain_name") else ""
    if wildcard:
        return f"{url.partition('://')[0]}://{wildcard.replace('*', app['subdomain_name'], 1)}/"
    return f"{url}/@{workspace['owner_name']}/{workspace['name']}.{agent['name']}/apps/{slug}/"


def is_deprecated(template: Json) -> str:
    """Why no workspace is to be made of a template; nothing when there may."""
    said = str(template.get("deprecation_message") or "")
    if not said and str(template.get("description", "")).startswith(DEPRECATED):
        said = str(template["description"]).removeprefix(DEPRECATED).strip()
    return said


def search_query(terms: Sequence[tuple[str, str]] = (), **more: str) -> str:
    """``q`` of a list: ``search_query(owner="me", template="spt-flow", status="running")``.

    ``terms`` are for keys with a hyphen. The server compares in lower case, and ``name`` as a part of the name; what it
    finds by ``param="repository=…"`` is to be confirmed by ``build_parameters``. Raises ``InvalidInput`` for a value
    that the grammar cannot hold: a quotation mark, and in ``param`` a comma or a second equals sign.
    """
    words = []
    for key, value in (*terms, *more.items()):
        if '"' in value or (key == "param" and ("," in value or value.count("=") > 1)):
            raise InvalidInput(f"A Coder server cannot search for {key} {value}: its query has no words for that.")
        words.append(f'{key}:"{value}"' if not value.replace("-", "").isalnum() else f"{key}:{value}")
    return " ".join(words)


def moment(text: str) -> datetime:
    """A time of the API's; what is finer than microseconds is cut off."""
    return datetime.fromisoformat(text)


def rfc3339(moment: datetime) -> str:
    """``2026-11-24T03:00:00Z``. Raises ``ValueError`` for a time that names no zone."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _part(text: str) -> str:
    """One segment of a path; whatever is in it stays within it."""
    if text in ("", ".", ".."):
        raise InvalidInput(f"{text!r} names nothing.")
    return quote(text, safe="")


def _values(values: Mapping[str, str] | None) -> list[dict[str, str]] | None:
    return [{"name": name, "value": value} for name, value in values.items()] if values else None
