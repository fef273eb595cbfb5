# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reaper of a Coder server: deletes expired CI workspaces, which a server without a licence only stops.

Standard library only, because it runs on servers. ``assess`` is pure: it takes the server's list and clock, and returns
which workspaces to delete and why. Workspaces of other templates are never deleted, whatever their name.
"""

from __future__ import annotations

import calendar
import contextlib
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from .. import clock
from ..errors import AuthError, Conflict, FlowError, InvalidInput, NotFound, Unhealthy
from .engine import LONGEST, Expired, Memory, Report, locked

STATE = "/run/spt-flow/coder-reaper.json"
METRICS = "spt_flow_coder_reaper"
TEMPLATE = "spt-flow-ci"
CI_SUFFIX = "-ci"
"""Suffix of the CI template's name."""
NEVER = "0001-01-01T00:00:00Z"
"""Value that stands for no deadline: the workspace does not stop on its own."""
SLACK = 300.0
"""Tolerance in seconds for stops beyond the longest stay: a client with another clock may just have set them."""
USUAL = 1800.0
"""Seconds that a CI workspace without a readable deadline may live:

the template's default for workspaces made in the dashboard.
"""
GRACE = 120.0
"""Seconds that a stopped or failed workspace stays before its deadline: its client may be deleting it."""
TRIES, AGAIN = 3, 5.0
"""How often a restarting server is retried, and after how many seconds.

Waiting for the next pass, a minute later, would be late.
"""
CANCELLING = 20.0
"""Seconds to wait for a cancelled build in one pass."""
PAGE = 100
MOST_PAGES = 1000
LARGEST = 64 << 20
ENDED = ("succeeded", "failed", "canceled")
Json = dict[str, Any]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Do not follow redirects, so that the token is never sent elsewhere."""

    def redirect_request(self, *_args: Any, **_named: Any) -> None:
        return None


class Api:
    """A Coder server's API, with a token that may delete workspaces of other users (``organization-admin``)."""

    def __init__(self, url: str, token: str, ca_file: str = "", timeout: float = 20.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidInput(f"The Coder server's address {url!r} is neither http:// nor https://.")
        self.url = url.rstrip("/")
        self.requests = 0
        self._token = token
        self._timeout = timeout
        self._date = ""
        context = ssl.create_default_context(cafile=ca_file or None)
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))

    @property
    def clock(self) -> float:
        """The server's time (epoch) at its last answer. Raise ``Unhealthy`` if the answer had none."""
        moment = clock.from_header(self._date)
        if moment is None:
            raise Unhealthy(f"The Coder server {self.url} does not send the time.")
        return moment

    def __call__(self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Json | None = None) -> Any:
        """Return the JSON of the answer. Raise children of ``FlowError``."""
        words = f"?{urlencode(query)}" if query else ""
        request = urllib.request.Request(
            f"{self.url}/api/v2{path}{words}",
            None if body is None else json.dumps(body).encode(),
            {"Coder-Session-Token": self._token, "Content-Type": "application/json", "User-Agent": "spt.flow"},
            method=method,
        )
        self.requests += 1
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                self._date = answer.headers.get("Date", "")
                content = answer.read(LARGEST)
        except urllib.error.HTTPError as error:
            raise self._refused(method, path, error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise Unhealthy(f"The Coder server {self.url} did not answer {method} {path} ({reason}).") from None
        try:
            return json.loads(content)
        except ValueError:
            raise Unhealthy(f"{self.url} does not answer as a Coder server does.") from None

    def _refused(self, method: str, path: str, error: urllib.error.HTTPError) -> FlowError:
        try:
            said = str(json.loads(error.read(65536))["message"])
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
            said = f"status {error.code}"
        kinds: dict[int, type[FlowError]] = {400: InvalidInput, 401: AuthError, 403: AuthError, 404: NotFound}
        kinds |= {409: Conflict, 410: NotFound}
        message = f"The Coder server {self.url} refused {method} {path}: {said.replace(self._token, '***')}"
        return kinds.get(error.code, Unhealthy)(message, "", {"status": error.code})

    def workspaces(self, template: str, status: str = "") -> Iterator[Json]:
        """Return all workspaces of a template; the server compares whole names
        (docs/decisions/coder-server-behaviour.md).
        """
        seen: set[str] = set()
        wanted = f"template:{template}" + (f" status:{status}" if status else "")
        for number in range(MOST_PAGES):
            query = {"q": wanted, "limit": PAGE, "offset": number * PAGE}
            answer = self("GET", "/workspaces", query)
            found = answer["workspaces"] or []
            for one in found:
                if one["id"] not in seen and one["template_name"] == template:
                    seen.add(one["id"])
                    yield one
            if len(found) < PAGE:
                return

    def requested_deadline(self, workspace: Json) -> str:
        """Return the deadline that a workspace was created with, which an unfinished build does not show yet."""
        found = self("GET", f"/workspacebuilds/{quote(workspace['latest_build']['id'], safe='')}/parameters")
        return next((str(value["value"]) for value in found or [] if value["name"] == "deadline"), "")


@dataclass(frozen=True)
class Verdict:
    """Why a workspace is deleted, and by how many seconds it is overdue. Without ``why`` it stays."""

    why: str = ""
    overdue: float = 0.0


def epoch(text: str) -> float:
    """Return epoch seconds of the API's times: ``2026-11-24T03:00:00.123456Z``. Raise ``ValueError``."""
    return float(calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")))


def shown_deadline(workspace: Json) -> str:
    """Return the deadline in the home's metadata, or nothing before the first build."""
    for resource in workspace["latest_build"].get("resources") or []:
        for item in resource.get("metadata") or []:
            if item.get("key") == "deadline":
                return str(item.get("value") or "")
    return ""


def assess(workspace: Json, deadline: str, now: float) -> Verdict:
    """Decide about one workspace.

    ``deadline`` is the value set at creation. ``now`` and all other times use the server's clock.
    """
    made = epoch(workspace["created_at"])
    try:
        ends = min(epoch(deadline), made + LONGEST)
    except ValueError:
        ends = made + USUAL
    if now >= ends:
        return Verdict("its deadline has passed", now - ends)
    build = workspace["latest_build"]
    job = build["job"]
    if job["status"] not in ENDED or (job["status"] == "succeeded" and build["transition"] == "start"):
        return Verdict()
    since = now - epoch(job.get("completed_at") or build["created_at"])
    if since < GRACE:
        return Verdict()
    return Verdict("it has ended" if job["status"] == "succeeded" else "its start failed")


def _plan(api: Api, template: str) -> list[tuple[Json, Expired]]:
    listed = list(api.workspaces(template))
    now = api.clock if listed else 0.0
    entries = []
    for workspace in listed:
        verdict = assess(workspace, shown_deadline(workspace) or api.requested_deadline(workspace), now)
        if verdict.why:
            name = f"{workspace['owner_name']}/{workspace['name']}"
            entries.append((workspace, Expired("workspace", workspace["id"], name, verdict.why, verdict.overdue)))
    return entries


def _planned(api: Api, template: str, sleep: Callable[[float], None]) -> list[tuple[Json, Expired]]:
    for _try in range(TRIES - 1):
        with contextlib.suppress(Unhealthy):
            return _plan(api, template)
        sleep(AGAIN)
    return _plan(api, template)


def sweep(
    api: Api,
    template: str = TEMPLATE,
    path: str = STATE,
    dry: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Run one pass; with ``dry`` nothing is deleted, capped or stored.

    Raise ``FlowError`` if the server's lists cannot be read completely: then nothing is deleted. A workspace counts as
    deleted once the server has accepted the deletion; the next pass sees and retries failed ones.
    """
    with locked(path, dry):
        planned = _planned(api, template, sleep)
        report = Report([entry for _workspace, entry in planned])
        report.overdue = max((entry.overdue for entry in report.expired), default=0.0)
        if dry:
            _cap(api, template, dry, report)
            return report
        memory = Memory.load(path)
        for workspace, entry in planned:
            try:
                _delete(api, workspace, sleep)
                report.reaped.append(entry.name)
            except FlowError as error:
                report.failed[entry.name] = error.message
        _cap(api, template, dry, report)
        memory.reaped += len(report.reaped)
        memory.failed += len(report.failed)
        memory.save(path)
        report.overdue = max((entry.overdue for entry in report.expired if entry.name in report.failed), default=0.0)
        return report


def _cap(api: Api, template: str, dry: bool, report: Report) -> None:
    """Cap deadlines that users extended beyond a day in the dashboard (docs/decisions/coder-server-behaviour.md).

    The server takes no deadline for a workspace whose automatic stop a user switched off. Such a workspace is stopped
    once it was not used for a day.
    """
    people = template.removesuffix(CI_SUFFIX)
    if people == template:
        return
    try:
        running = list(api.workspaces(people, "running"))
        latest = api.clock + LONGEST
        late = [w for w in running if epoch(w["latest_build"].get("deadline") or NEVER) > latest + SLACK]
        idle = [w for w in running if _unused(w, latest - 2 * LONGEST)]
    except (FlowError, ValueError) as error:
        report.failed[f"workspaces of {people}"] = str(error)
        return
    for workspace in late:
        name = f"{workspace['owner_name']}/{workspace['name']}"
        try:
            if not dry:
                body = {"deadline": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(latest))}
                api("PUT", f"/workspaces/{quote(workspace['id'], safe='')}/extend", body=body)
            report.capped.append(name)
        except FlowError as error:
            report.failed[name] = error.message
    for workspace in idle:
        name = f"{workspace['owner_name']}/{workspace['name']}"
        try:
            if not dry:
                api("POST", f"/workspaces/{quote(workspace['id'], safe='')}/builds", body={"transition": "stop"})
            report.stopped.append(name)
        except FlowError as error:
            report.failed[name] = error.message


def _unused(workspace: Json, since: float) -> bool:
    """Return whether a workspace without a deadline was neither started nor used after ``since``."""
    build = workspace["latest_build"]
    if (build.get("deadline") or NEVER) != NEVER:
        return False
    times = (build["created_at"], build["job"].get("completed_at"), workspace.get("last_used_at"))
    return max(epoch(text or NEVER) for text in times) < since


def _delete(api: Api, workspace: Json, sleep: Callable[[float], None]) -> None:
    """Delete one workspace, by its id. A running build is cancelled first, unless it is the deletion."""
    build = workspace["latest_build"]
    path = f"/workspaces/{quote(workspace['id'], safe='')}"
    if build["job"]["status"] not in ENDED:
        if build["transition"] == "delete":
            return
        _cancel(api, str(build["id"]), sleep)
    try:
        api("POST", f"{path}/builds", body={"transition": "delete"})
    except NotFound:
        return
    except Conflict as error:
        # Another build has just started; if it is a deletion, all is well.
        latest = api("GET", path)["latest_build"]
        if latest["transition"] != "delete":
            raise Conflict(f"{error.message} The next pass tries again.") from None


def _cancel(api: Api, build_id: str, sleep: Callable[[float], None]) -> None:
    path = f"/workspacebuilds/{quote(build_id, safe='')}"
    try:
        api("PATCH", f"{path}/cancel")
    except (InvalidInput, NotFound):
        return
    for _second in range(int(CANCELLING)):
        if api("GET", path)["job"]["status"] in ENDED:
            return
        sleep(1.0)


def read_token(path: str) -> str:
    """Return the token in a file that only root can read. Raise ``AuthError``."""
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        hint = "Run ansible-playbook spt.flow.bootstrap, or name your own: workspace_reaper_coder_token_file."
        raise AuthError(f"Cannot read the reaper's token in {path}: {reason}.", hint) from None
    if not token:
        raise AuthError(
            f"The file {path} does not contain a token.", "Remove it and run ansible-playbook spt.flow.bootstrap."
        )
    return token
