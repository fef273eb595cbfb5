# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine API calls that the Coder server may make on a node: only those that the template needs.

``Rules.engine_call`` turns a request into a call to the engine, or raises ``Refused``. Existing objects are looked up
first, so that a call never reaches a container or volume of another owner.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import body as bodies
from .fit import fit
from .http import Refused, Request, canonical, strict_json

OLDEST_API = 40
"""Oldest minor version of the API whose bodies the rules know; every supported engine has a newer one."""
LONGEST_STOP = 600
_ID = r"(?P<id>[0-9a-f]{12,64}|spt-flow-[0-9a-f-]{36})"
_IMAGE = rf"(?P<image>{bodies.IMAGE.pattern})"
_VOLUME = r"(?P<volume>spt-flow-[0-9a-f-]{36}-(?:home|docker))"
_NETWORK = r"(?P<network>[A-Za-z0-9][A-Za-z0-9_.-]{0,63})"
_FLAG = re.compile(r"|0|1|true|false")
_CONDITIONS = re.compile(r"|not-running|next-exit|removed")
_SECONDS = re.compile(r"\d{1,3}")
_ANY_NAME = re.compile(r"spt-flow-[0-9a-f-]{36}")

Lookup = Callable[[str], Any]
"""The engine's JSON answer to a GET of that path, ``None`` if the object does not exist."""


@dataclass(frozen=True)
class Call:
    """A call to the engine. ``long``: the answer may take as long as a container runs.

    ``leftover`` is the id of a container of the same workspace that has to be removed first.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    long: bool = False
    leftover: str = ""


@dataclass(frozen=True)
class Route:
    """A call of the template. ``make`` gets the request and the parts of its path."""

    methods: str
    pattern: str
    make: Callable[[Rules, Request, Mapping[str, str]], Call]
    query: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    body: bool = False


@dataclass(frozen=True)
class Rules:
    """The rules of one node; ``lookup`` queries its engine."""

    node: bodies.Node
    lookup: Lookup

    def engine_call(self, request: Request) -> Call:
        """Return the engine call for this request. Raise ``Refused``."""
        for route in ROUTES:
            matched = re.fullmatch(route.pattern, request.path)
            if matched is None or request.method not in route.methods.split():
                continue
            if request.path != "/_ping" and request.version < OLDEST_API:
                raise Refused(f"the call does not name an API version of at least 1.{OLDEST_API}")
            for name, value in request.query.items():
                if name not in route.query or not route.query[name].fullmatch(value):
                    raise Refused(f"{name[:40]!r} in the query is not a value that the template uses")
            if request.body and not route.body:
                raise Refused("this call must not have a body")
            call = route.make(self, request, matched.groupdict())
            prefix = f"/v1.{request.version}" if request.version else ""
            return replace(call, path=prefix + call.path)
        raise Refused("the template does not make such a call")

    def container(self, name: str) -> dict[str, Any] | None:
        """Return the container as the engine describes it, ``None`` if it does not exist.

        Raise ``Refused`` for other owners' containers.
        """
        found = self.lookup(f"/containers/{name}/json")
        if found is None:
            return None
        owner = (found["Config"].get("Labels") or {}).get(bodies.OWNER, "")
        if not owner or found["Name"] != f"/spt-flow-{owner}":
            raise Refused("this container was not made by the Coder server's template")
        return dict(found)

    def leftover(self, name: str) -> str:
        """Return the id of the container of this name, empty where there is none.

        Terraform removes its own container before it creates the next one or deletes a volume, and creates a home
        before its container. One that is still there comes from a build whose state was lost, as in an outage of the
        server's database.
        """
        found = self.container(name)
        return str(found["Id"]) if found else ""

    def image(self, name: str) -> str:
        """Return the id of our image, or ``name`` if it does not exist. Raise ``Refused`` for any other image."""
        found = self.lookup(f"/images/{name}/json")
        if found is None:
            return name
        if not any(tag.startswith(f"{bodies.REPOSITORY}:") for tag in found.get("RepoTags") or ()):
            raise Refused(f"the image is not one of {bodies.REPOSITORY} from the role host_images")
        return str(found["Id"])


def _plain(_rules: Rules, request: Request, _parts: Mapping[str, str]) -> Call:
    return Call(request.method, request.path)


def _images(_rules: Rules, _request: Request, _parts: Mapping[str, str]) -> Call:
    return Call("GET", "/images/json", {"filters": json.dumps({"reference": [bodies.REPOSITORY]})})


def _image(rules: Rules, _request: Request, parts: Mapping[str, str]) -> Call:
    return Call("GET", f"/images/{rules.image(parts['image'])}/json")


def _containers(_rules: Rules, request: Request, _parts: Mapping[str, str]) -> Call:
    return Call("GET", "/containers/json", {**request.query, "filters": json.dumps({"label": [bodies.OWNER]})})


def _create(rules: Rules, request: Request, _parts: Mapping[str, str]) -> Call:
    name, body = request.query.get("name", ""), strict_json(request.body)
    bodies.container(name, body, rules.node)
    # Use the id, so that the name cannot point to another image in the meantime.
    body["Image"] = rules.image(body["Image"])
    body = fit(body, rules.lookup("/info") or {}, os.path.exists(rules.node.kvm))
    return Call("POST", "/containers/create", {"name": name}, canonical(body), leftover=rules.leftover(name))


def _of_container(end: str, long: bool = False) -> Callable[[Rules, Request, Mapping[str, str]], Call]:
    def make(rules: Rules, request: Request, parts: Mapping[str, str]) -> Call:
        found = rules.container(parts["id"])
        name = found["Id"] if found else parts["id"]
        return Call(request.method, f"/containers/{name}{end}", request.query, long=long)

    return make


def _start(rules: Rules, request: Request, parts: Mapping[str, str]) -> Call:
    found = rules.container(parts["id"])
    if found is not None:
        networks = set(found["NetworkSettings"]["Networks"] or ())
        if not networks or not networks <= set(rules.node.networks):
            raise Refused(
                f"the workspace is not on the network {' or '.join(rules.node.networks)}, or on another as well"
            )
    return _of_container("/start")(rules, request, parts)


def _create_volume(rules: Rules, request: Request, _parts: Mapping[str, str]) -> Call:
    body = strict_json(request.body)
    bodies.volume(body)
    owner, _dash, part = body["Name"].rpartition("-")
    # Terraform creates a home only while it knows of no container, so that a stop also ends a forgotten one.
    leftover = rules.leftover(owner) if part == "home" else ""
    return Call("POST", "/volumes/create", body=canonical(body), leftover=leftover)


def _volume(rules: Rules, request: Request, parts: Mapping[str, str]) -> Call:
    name = parts["volume"]
    found = rules.lookup(f"/volumes/{name}")
    if found is not None:
        matched = bodies.VOLUME.fullmatch(name)
        if matched is None or (found.get("Labels") or {}).get(bodies.OWNER) != matched[2]:
            raise Refused("this volume was not made by the Coder server's template")
    leftover = rules.leftover(name.rpartition("-")[0]) if request.method == "DELETE" else ""
    return Call(request.method, f"/volumes/{name}", request.query, leftover=leftover)


def _network(rules: Rules, request: Request, parts: Mapping[str, str]) -> Call:
    """Connect a workspace to its network, or disconnect it from Docker's default network."""
    join = request.path.endswith("/connect")
    if parts["network"] not in (rules.node.networks if join else (*rules.node.networks, "bridge")):
        raise Refused(f"workspaces are not on the network {parts['network']}")
    body = strict_json(request.body)
    name = body.get("Container") if isinstance(body, dict) else None
    if not isinstance(name, str) or not re.fullmatch(_ID, name):
        raise Refused("the call does not name a container of the template")
    rest = "EndpointConfig" if join else "Force"
    allowed: dict[str, Callable[[Any], bool]] = {
        "Container": bool,
        rest: bodies.blank if join else lambda value: isinstance(value, bool),
    }
    bodies.known("the call", body, allowed)
    found = rules.container(name)
    sent = {"Container": found["Id"] if found else name, rest: {} if join else body.get("Force", False)}
    return Call("POST", request.path, body=canonical(sent))


ROUTES = (
    Route("GET HEAD", "/_ping", _plain),
    Route("GET", "/(?:version|info)", _plain),
    Route("GET", "/images/json", _images, {"all": _FLAG}),
    Route("GET", rf"/images/{_IMAGE}/json", _image),
    Route("GET", "/containers/json", _containers, {"all": _FLAG}),
    Route("POST", "/containers/create", _create, {"name": _ANY_NAME}, body=True),
    Route("GET", rf"/containers/{_ID}/json", _of_container("/json"), {"size": _FLAG}),
    Route("POST", rf"/containers/{_ID}/start", _start),
    Route("POST", rf"/containers/{_ID}/stop", _of_container("/stop"), {"t": _SECONDS}),
    Route("POST", rf"/containers/{_ID}/wait", _of_container("/wait", long=True), {"condition": _CONDITIONS}),
    Route("DELETE", rf"/containers/{_ID}", _of_container(""), {"v": _FLAG, "force": _FLAG}),
    Route("POST", "/volumes/create", _create_volume, body=True),
    Route("GET", rf"/volumes/{_VOLUME}", _volume),
    Route("DELETE", rf"/volumes/{_VOLUME}", _volume, {"force": _FLAG}),
    Route("POST", rf"/networks/{_NETWORK}/(?:connect|disconnect)", _network, body=True),
)
"""All calls that Terraform's Docker provider (4.5.0) makes for the template, and only these."""
