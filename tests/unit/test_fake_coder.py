# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake Coder server behaves like the real one."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

pytest.importorskip("urllib3", reason="the client's own library")

from ansible_collections.spt.flow.tests.fake_coder import samples
from ansible_collections.spt.flow.tests.fake_coder.jobs import FOREVER, Clock, Script
from ansible_collections.spt.flow.tests.fake_coder.openapi import Checker
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.fake_coder.state import State
from ansible_collections.spt.flow.tests.unit import coder_harness

Json = dict[str, Any]
CHECKOUT = Path(__file__).resolve().parents[2]
OPENAPI = os.environ.get("CODER_OPENAPI", "")


class Caller:
    """Plain requests over one kept connection."""

    def __init__(self, fake: Fake, token: str) -> None:
        self.fake, self.token = fake, token
        self.connection = http.client.HTTPConnection(urlsplit(fake.url).netloc, timeout=10)
        self.headers: dict[str, str] = {}

    def __call__(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Coder-Session-Token": self.token, "Content-Type": kind}
        full = path if path.startswith("//") else f"/api/v2{path}"
        self.connection.request(method, full.replace("//", "/"), data, headers)
        response = self.connection.getresponse()
        text = response.read()
        self.headers = dict(response.getheaders())
        return response.status, json.loads(text) if text and "json" in self.headers.get("Content-Type", "") else text

    def workspace(self, name: str = "one", **more: Any) -> Json:
        body = {"name": name, "template_id": template_id(self.fake), **more}
        status, made = self("POST", "/users/me/workspaces", body)
        assert status == 201, made
        return dict(made)

    def wait(self, seconds: float = 10) -> None:
        self.fake.state.clock.advance(seconds)


def template_id(fake: Fake) -> str:
    return next(iter(fake.state.templates))


@pytest.fixture
def fake() -> Iterator[Fake]:
    with coder_harness.running() as made:
        samples.prepare(made.state)
        yield made


@pytest.fixture
def person(fake: Fake) -> Caller:
    return Caller(fake, samples.USER_TOKEN)


@pytest.fixture
def owner(fake: Fake) -> Caller:
    return Caller(fake, samples.OWNER_TOKEN)


# General rules


def test_caller_is_identified(fake: Fake, person: Caller) -> None:
    for token, detail in (("", "must be provided"), ("nonsense", "invalid"), (samples.USER_TOKEN[:-1], "invalid")):
        status, said = Caller(fake, token)("GET", "/users/me")
        assert status == 401 and detail in said["detail"]
    assert person("GET", "/users/me")[0] == 200
    assert person.headers["X-Coder-Build-Version"] == "v2.35.1+3ebe324"


def test_unknown_paths_and_objects_are_not_found(fake: Fake, person: Caller) -> None:
    assert person("GET", "/workspaces/not-an-id")[0] == 400
    unknown = "00000000-0000-4000-8000-000000000000"
    status, said = person("GET", f"/workspaces/{unknown}")
    assert status == 404 and "do not have access" in said["message"]
    status, page = person("GET", "//dashboard/anything")
    assert (status, person.headers["Content-Type"]) == (200, "text/html; charset=utf-8") and page.startswith(b"<!doc")
    if fake.checker:
        before = list(fake.checker.problems)
        assert person("GET", "/nothing/like/it") == (404, {"message": "Route not found."})
        fake.checker.problems = before


def test_unknown_fields_are_dropped_silently(fake: Fake, person: Caller) -> None:
    made = person.workspace(tll_ms=60_000, rich_parameter_values=[{"name": "no-such", "value": "x"}])
    assert made["ttl_ms"] == 7_200_000
    names = [value["name"] for value in person("GET", f"/workspacebuilds/{made['latest_build']['id']}/parameters")[1]]
    assert names == ["repository", "ref", "seed"]
    if fake.checker:
        assert [p for p in fake.checker.problems if "tll_ms" in p]
        fake.checker.problems.clear()


@pytest.mark.parametrize("body", [b"{", b"[1]", b"nothing"])
def test_invalid_json_is_refused(person: Caller, body: bytes) -> None:
    assert person("POST", "/users/me/workspaces", body)[0] == 400


def test_requests_are_rate_limited(fake: Fake, person: Caller) -> None:
    statuses = [person("GET", "/users/me")[0] for _request in range(513)]
    assert statuses == [200] * 512 + [429]
    assert person.headers["Retry-After"] == "60"
    assert person("GET", "/buildinfo")[0] == 200
    person.wait(61)
    assert person("GET", "/users/me")[0] == 200


def test_upload_size_is_limited(owner: Caller) -> None:
    statuses = [owner("POST", "/files", b"x", "application/x-tar")[0] for _request in range(13)]
    assert statuses == [201] + [200] * 11 + [429]


# First user and tokens


def test_missing_tokens_are_null(fake: Fake, owner: Caller) -> None:
    key = next(key for key in fake.state.keys.values() if key.user == fake.state.user("dev").id)
    del fake.state.keys[key.id]
    assert owner("GET", "/users/dev/keys/tokens") == (200, None)


def test_token_rules_hold(fake: Fake, owner: Caller) -> None:
    path = "/users/me/keys/tokens"
    day = 86400 * 10**9
    assert owner("POST", path, {"token_name": "a", "lifetime": 8 * day})[0] == 400
    assert owner("POST", path, {"token_name": "a", "lifetime": 6 * day})[0] == 201
    assert owner("POST", path, {"token_name": "a", "lifetime": day})[0] == 409
    assert owner("POST", path, {"scopes": ["all"]})[0] == 500
    assert owner("POST", path, {"scopes": ["coder:everything"]})[0] == 400
    if fake.checker:
        fake.checker.problems.clear()
    status, made = owner("POST", "/users/dev/keys/tokens", {"token_name": "long", "lifetime": 365 * day})
    assert status == 201
    dev = Caller(fake, made["key"])
    assert dev("GET", "/users/me")[1]["username"] == "dev"
    assert dev("GET", "/users/owner/keys/tokens")[0] == 404
    owner.wait(366 * 86400)
    status, said = dev("GET", "/users/me")
    assert status == 401 and "expired" in said["detail"]


def test_suspended_users_are_logged_out(fake: Fake, person: Caller, owner: Caller) -> None:
    assert owner("PUT", "/users/dev/status/suspend")[1]["status"] == "suspended"
    assert person("GET", "/users/me")[0] == 401


# Names and roles


@pytest.mark.parametrize("name", ["a_b", "-a", "a-", "a--b", "new", "x" * 33, ""])
def test_names_are_validated(fake: Fake, person: Caller, name: str) -> None:
    status, said = person("POST", "/users/me/workspaces", {"name": name, "template_id": template_id(fake)})
    assert (status, said["message"], said["validations"][0]["field"]) == (400, "Validation failed.", "name")


def test_other_users_have_limited_access_to_a_workspace(fake: Fake, person: Caller, owner: Caller) -> None:
    state = fake.state
    made = owner.workspace()
    path = f"/workspaces/{made['id']}"
    assert person("GET", path)[0] == 404 and person("GET", "/workspaces")[1]["count"] == 0
    assert owner("PUT", "/users/dev/roles", {"roles": ["template-admin"]})[0] == 200
    assert person("GET", path)[0] == 200 and person("PUT", f"{path}/ttl", {"ttl_ms": None})[0] == 403
    assert owner("PUT", "/organizations/default/members/dev/roles", {"roles": ["organization-admin"]})[0] == 200
    assert person("PUT", f"{path}/ttl", {"ttl_ms": None})[0] == 204
    assert person("PUT", "/organizations/default/members/dev/roles", {"roles": []})[0] == 400
    assert state.user("dev").organization_roles == {"organization-admin"}


def test_service_account_needs_a_licence(fake: Fake, owner: Caller) -> None:
    body = {"email": "x@example.com", "username": "x", "organization_ids": [fake.state.organization]}
    assert owner("POST", "/users", {**body, "service_account": True})[0] == 403
    assert owner("POST", "/users", {**body, "organization_ids": []})[0] == 400
    status, made = owner("POST", "/users", {**body, "login_type": "none"})
    assert (status, made["status"]) == (201, "dormant")
    assert owner("POST", "/users", {**body, "login_type": "none"})[0] == 409


# Files, versions and templates


def test_equal_bytes_are_one_file(owner: Caller) -> None:
    first = owner("POST", "/files", b"x", "application/x-tar")
    assert first[0] == 201 and owner("POST", "/files", b"x", "application/x-tar") == (200, first[1])
    assert list(first[1]) == ["hash"]
    assert owner("POST", "/files", b"x", "application/x-tar; charset=utf-8")[0] == 400


def push(owner: Caller, source: str = samples.SOURCE, **more: Any) -> Json:
    file = owner("POST", "/files", samples.archive({"main.tf": source}), "application/x-tar")[1]["hash"]
    body = {"storage_method": "file", "provisioner": "terraform", "file_id": file, **more}
    status, made = owner("POST", "/organizations/default/templateversions", body)
    assert status == 201, made
    return dict(made)


def test_values_of_variables_persist(fake: Fake, owner: Caller) -> None:
    """A changed default does not affect an existing template unless the variable is sent."""
    template = template_id(fake)
    changed = samples.SOURCE.replace("workspace:1", "workspace:2")
    left_out = push(owner, changed, name="v-2", template_id=template)
    sent = push(
        owner,
        changed,
        name="v-3",
        template_id=template,
        user_variable_values=[{"name": "image", "value": "workspace:2"}],
    )
    owner.wait()
    values = [
        {v["name"]: v["value"] for v in owner("GET", f"/templateversions/{one['id']}/variables")[1]}["image"]
        for one in (left_out, sent)
    ]
    assert values == ["spt-flow-workspace:1", "workspace:2"]


def test_importing_version_is_not_usable(fake: Fake, person: Caller, owner: Caller) -> None:
    version = push(owner, name="v-2", template_id=template_id(fake))
    body = {"name": "one", "template_version_id": version["id"]}
    assert person("POST", "/users/me/workspaces", body)[0] == 406
    assert owner("PATCH", f"/templates/{template_id(fake)}/versions", {"id": version["id"]})[0] == 403
    owner.wait()
    assert person("POST", "/users/me/workspaces", body)[0] == 201


def test_presets_have_capitalised_keys(fake: Fake, person: Caller) -> None:
    version = next(iter(fake.state.versions))
    presets = person("GET", f"/templateversions/{version}/presets")[1]
    assert presets[0]["Name"] == "Plain" and presets[0]["Parameters"] == [{"Name": "ref", "Value": "main"}]


def test_licensed_fields_are_ignored(owner: Caller) -> None:
    version = push(owner, name="v-1")
    body = {"name": "two", "template_version_id": version["id"], "failure_ttl_ms": 60_000, "dormant_ttl_ms": 60_000}
    status, made = owner("POST", "/organizations/default/templates", body)
    assert (status, made["failure_ttl_ms"], made["time_til_dormant_ms"]) == (201, 0, 0)
    path = f"/templates/{made['id']}"
    status, patched = owner("PATCH", path, {"deprecation_message": "old", "description": "d", "failure_ttl_ms": 60_000})
    assert (status, patched["deprecation_message"], patched["description"]) == (200, "", "d")
    assert owner("PATCH", path, {"failure_ttl_ms": 1})[1]["validations"][0]["field"] == "failure_ttl_ms"
    assert owner("PATCH", path, {"max_port_share_level": "owner"})[0] == 400
    assert owner("POST", "/organizations/default/templates", body)[0] == 409


def test_template_permissions_hold(fake: Fake, person: Caller) -> None:
    assert person("PATCH", f"/templates/{template_id(fake)}", {"description": "mine"})[0] == 403
    assert person("GET", f"/templates/{template_id(fake)}")[0] == 200


# Workspaces


def test_values_of_parameters_persist(fake: Fake, person: Caller) -> None:
    given = [{"name": "ref", "value": "main"}, {"name": "seed", "value": "once"}]
    made = person.workspace(rich_parameter_values=given)
    path = f"/workspaces/{made['id']}/builds"

    def values(build: Json) -> dict[str, str]:
        found = person("GET", f"/workspacebuilds/{build['id']}/parameters")[1]
        return {value["name"]: value["value"] for value in found}

    assert values(made["latest_build"]) == {"repository": "", "ref": "main", "seed": "once"}
    person.wait()
    assert values(person("POST", path, {"transition": "stop"})[1])["seed"] == "none"
    person.wait()
    status, said = person("POST", path, {"transition": "start", "rich_parameter_values": [
        {"name": "repository", "value": "https://example.com/other.git"}
    ]})  # fmt: skip
    assert (status, said["validations"][0]["field"]) == (400, "repository")
    started = person("POST", path, {"transition": "start", "rich_parameter_values": [{"name": "ref", "value": "v2"}]})[
        1
    ]
    assert values(started) == {"repository": "", "ref": "v2", "seed": "none"}


def test_build_keeps_its_version_until_changed(fake: Fake, person: Caller, owner: Caller) -> None:
    made = person.workspace()
    version = push(owner, name="v-2", template_id=template_id(fake))
    person.wait()
    assert owner("PATCH", f"/templates/{template_id(fake)}/versions", {"id": version["id"]})[0] == 200
    path = f"/workspaces/{made['id']}/builds"
    assert person("POST", path, {"transition": "stop"})[1]["template_version_id"] != version["id"]
    person.wait()
    assert person("GET", f"/workspaces/{made['id']}")[1]["outdated"] is True
    person("POST", path, {"transition": "start", "template_version_id": version["id"]})
    person.wait()
    assert person("GET", f"/workspaces/{made['id']}")[1]["outdated"] is False


def test_invalid_builds_are_refused(person: Caller) -> None:
    path = f"/workspaces/{person.workspace()['id']}/builds"
    assert person("POST", path, {"transition": "stop"})[0] == 409
    person.wait()
    assert person("POST", path, {"transition": "restart"})[0] == 400
    assert person("POST", path, {"transition": "stop", "orphan": True})[0] == 400
    assert person("POST", path, {"transition": "delete", "orphan": True})[0] == 403
    assert person("POST", path, {"transition": "stop", "log_level": "debug"})[0] == 400
    assert person("POST", path, {"transition": "stop", "template_version_id": path.split("/")[2]})[0] == 404
    if person.fake.checker:
        person.fake.checker.problems.clear()


def test_deleted_workspace_is_gone(person: Caller) -> None:
    made = person.workspace()
    person.wait()
    assert person("POST", f"/workspaces/{made['id']}/builds", {"transition": "delete"})[0] == 201
    person.wait()
    assert person("GET", f"/workspaces/{made['id']}")[0] == 410
    assert person("GET", f"/workspaces/{made['id']}?include_deleted=true")[0] == 200
    assert person("GET", "/users/me/workspace/one")[0] == 404
    assert person.workspace()["id"] != made["id"]


def test_ttl_is_validated(person: Caller) -> None:
    made = person.workspace(ttl_ms=90_000)
    assert made["ttl_ms"] == 60_000
    path = f"/workspaces/{made['id']}/ttl"
    for bad in (59_999, 2_592_000_001):
        assert person("PUT", path, {"ttl_ms": bad})[0] == 400
    assert person("PUT", path, {"ttl_ms": 3_659_999}) == (204, b"")
    assert person("GET", f"/workspaces/{made['id']}")[1]["ttl_ms"] == 3_600_000


def test_deadline_is_extended(person: Caller) -> None:
    made = person.workspace(ttl_ms=3_600_000)
    path = f"/workspaces/{made['id']}/extend"

    def until(minutes: float) -> Json:
        from ansible_collections.spt.flow.tests.fake_coder.jobs import iso

        return {"deadline": iso(person.fake.state.now + minutes * 60)}

    status, said = person("PUT", path, until(120))
    assert status == 409 and "still building" in said["message"]
    person.wait()
    assert person("PUT", path, until(28))[0] == 400
    assert person("PUT", path, until(30))[0] == 200
    assert person("PUT", path, until(60 * 24 * 400))[0] == 200
    person("POST", f"/workspaces/{made['id']}/builds", {"transition": "stop"})
    person.wait()
    assert "must be started" in person("PUT", path, until(120))[1]["message"]


def test_workspace_stops_at_its_ttl(person: Caller) -> None:
    """It stops within two minutes after the TTL, which starts with the end of the start, and not sooner."""
    made = person.workspace(ttl_ms=3_600_000)
    person.wait(3600)
    assert person("GET", f"/workspaces/{made['id']}")[1]["latest_build"]["transition"] == "start"
    person.wait(130)
    build = person("GET", f"/workspaces/{made['id']}")[1]["latest_build"]
    assert (build["transition"], build["reason"]) == ("stop", "autostop")


def test_agents_report_their_state(fake: Fake, person: Caller) -> None:
    def agent(name: str) -> Json:
        latest = person("GET", f"/users/me/workspace/{name}")[1]["latest_build"]
        return next(dict(one) for found in latest["resources"] for one in found["agents"] or [])

    fake.state.next("start", connect=FOREVER)
    person.workspace("never")
    fake.state.next(
        "start", scripts=(Script(seconds=5), Script("dotfiles", seconds=2, exit_code=3, output=("no such file",)))
    )
    person.workspace("bad")
    person.wait(20)
    assert (agent("never")["status"], agent("never")["lifecycle_state"]) == ("connecting", "created")
    assert person("GET", "/users/me/workspace/never")[1]["health"]["healthy"] is False
    bad = agent("bad")
    assert (bad["status"], bad["lifecycle_state"]) == ("connected", "start_error")
    assert [(s["display_name"], s["exit_code"], s["status"]) for s in bad["scripts"]] == [
        ("spt-flow", 0, "ok"), ("dotfiles", 3, "exit_failure")
    ]  # fmt: skip
    person.wait(120)
    assert agent("never")["status"] == "timeout"
    fake.state.find_workspace(fake.state.user("dev"), "bad").latest.agent.gone = fake.state.now  # type: ignore[union-attr]
    person.wait(31)
    assert agent("bad")["status"] == "disconnected"


def test_missing_provisioner_and_reaper_end_jobs(fake: Fake, person: Caller) -> None:
    fake.state.set_provisioners(0)
    first, second = person.workspace("one"), person.workspace("two")
    person.wait(600)
    found = person("GET", f"/workspaces/{first['id']}")[1]["latest_build"]
    assert (found["status"], found["matched_provisioners"]["available"]) == ("pending", 0)
    assert person("PATCH", f"/workspacebuilds/{found['id']}/cancel?expect_status=pending")[0] == 200
    person.wait(1300)
    statuses = [person("GET", f"/workspaces/{one['id']}")[1]["latest_build"]["status"] for one in (first, second)]
    assert statuses == ["canceled", "failed"]
    fake.state.set_provisioners(1)
    third = person.workspace("three")
    person.wait()
    assert person("GET", f"/workspaces/{third['id']}")[1]["latest_build"]["status"] == "running"


def test_builds_queue_behind_three_provisioners(person: Caller) -> None:
    for number in range(7):
        person.workspace(f"ws-{number}")
    person.wait(4)
    found = person("GET", "/workspaces")[1]["workspaces"]
    assert sorted(one["latest_build"]["status"] for one in found) == ["pending"] + ["running"] * 3 + ["starting"] * 3


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("owner:me", 200), ("dev/one", 200), ("colour:red", 400), ("name:a name:b", 400), ("name:", 400),
        ("status:fine", 400), ("detail:x", 400), ("param:ref=a=b", 400), ("param:ref=", 400),
        ("param:ref,nothing", 200),
        ('last_used_before:"2030-01-01T00:00:00Z"', 200), ("dormant:false healthy:true outdated:false", 200),
    ],
)  # fmt: skip
def test_searches_filter_workspaces(person: Caller, query: str, status: int) -> None:
    person.workspace()
    person.wait()
    got, answer = person("GET", f"/workspaces?q={quote(query)}")
    assert got == status and (got != 200 or answer["count"] == 1)


def test_dormant_workspaces_are_handled(person: Caller) -> None:
    path = f"/workspaces/{person.workspace()['id']}"
    person.wait()
    assert person("PUT", f"{path}/dormant", {"dormant": True})[0] == 200
    assert person("PUT", f"{path}/dormant", {"dormant": True})[0] == 304
    assert person("POST", f"{path}/builds", {"transition": "start"})[0] == 201
    assert person("GET", path)[1]["dormant_at"] is None


# The server itself


def test_tls_is_served(fake: Fake, tmp_path: Path) -> None:
    """A client that does not know the certificate authority fails; one that knows it succeeds."""
    from ansible_collections.spt.flow.plugins.module_utils._node import errors
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import http as coder_http
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.config import CoderConfig

    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = [
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-days",
        "2",
        "-subj",
        "/CN=x",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run([*command, *names], cwd=tmp_path, check=True, capture_output=True)
    cert = str(tmp_path / "cert.pem")
    with coder_harness.running(tls=(cert, str(tmp_path / "key.pem"))) as secure:
        http_ = coder_http.CoderHttp(CoderConfig(url=secure.url, ca_file=cert))
        assert http_.request("GET", "/api/v2/buildinfo").status == 200
        with pytest.raises(errors.Unhealthy, match="untrusted certificate"):
            coder_http.CoderHttp(CoderConfig(url=secure.url)).request("GET", "/api/v2/buildinfo")
        with pytest.raises(ssl.SSLError):
            plain = ssl.create_default_context()
            http.client.HTTPSConnection(urlsplit(secure.url).netloc, context=plain, timeout=5).request("GET", "/")


def test_stopped_server_refuses_connections_and_keeps_its_state(fake: Fake, person: Caller) -> None:
    person.workspace()
    fake.stop()
    with pytest.raises(OSError):
        person("GET", "/users/me")
    fake.start()
    again = Caller(fake, samples.USER_TOKEN)
    assert again("GET", "/users/me/workspace/one")[0] == 200


def test_unclean_restart_leaves_jobs_to_the_reaper(fake: Fake, person: Caller) -> None:
    made = person.workspace()
    person.wait(1)
    fake.restart(2, clean=False)
    with pytest.raises(OSError):
        person("GET", "/users/me")
    person.wait(3)
    assert person("GET", f"/workspaces/{made['id']}")[1]["latest_build"]["status"] == "starting"
    person.wait(300)
    build = person("GET", f"/workspaces/{made['id']}")[1]["latest_build"]
    assert build["status"] == "failed" and "hung" in build["job"]["error"]


@pytest.mark.skipif(not OPENAPI, reason="CODER_OPENAPI names no API description")
def test_api_description_finds_violations() -> None:
    checker = Checker(OPENAPI)
    checker.request("POST", "/api/v2/users/{user}/workspaces", {}, {"name": "one", "tll_ms": 1, "ttl_ms": "1"})
    checker.answer("GET", "/api/v2/workspaces/{workspace}", 200, {"id": "x", "latest_build": {"status": "fine"}})
    checker.answer("GET", "/api/v2/workspaces", 200, {"workspaces": None, "count": 0})
    checker.request("GET", "/api/v2/no/such", {}, None)
    text = "\n".join(checker.problems)
    assert len(checker.problems) == 5, text
    assert all(word in text for word in ("tll_ms", "'1' is no integer", "'x' is no uuid", "'fine'", "no/such"))


def test_thousand_workspaces_are_listed_in_time(fake: Fake, person: Caller) -> None:
    state = fake.state
    samples.crowd(state, state.user("dev"), state.template_by_name("spt-flow"), 1000)
    checker, fake.checker = fake.checker, None
    began = time.monotonic()
    counts = [len(person("GET", f"/workspaces?limit=200&offset={n}")[1]["workspaces"]) for n in range(0, 1000, 200)]
    assert counts == [200] * 5 and time.monotonic() - began < 2
    fake.checker = checker


def test_command_line_program_runs(tmp_path: Path) -> None:
    """Start it like a unit: first user by its token, state kept over a restart."""
    command = [sys.executable, "-m", "tests.fake_coder", "--port", "0", "--token", samples.OWNER_TOKEN]
    for round_ in (1, 2):
        file = tmp_path / f"url{round_}"
        more = ["--data", str(tmp_path / "state"), "--url-file", str(file), "--speed", "50"]
        process = subprocess.Popen([*command, *more], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
        try:
            until = time.monotonic() + 20
            while not (file.exists() and file.read_text()) and time.monotonic() < until:
                time.sleep(0.02)
            fake = Fake(State(Clock()))
            fake.url = file.read_text()
            owner = Caller(fake, samples.OWNER_TOKEN)
            assert owner("GET", "/users/me")[1]["username"] == "admin"
            if round_ == 1:
                body = {"email": "bot@example.com", "username": "bot", "login_type": "none"}
                organization = owner("GET", "/organizations/default")[1]["id"]
                assert owner("POST", "/users", {**body, "organization_ids": [organization]})[0] == 201
            assert owner("GET", "/users/bot")[0] == 200
        finally:
            process.send_signal(signal.SIGTERM)
            said, _errors = process.communicate(timeout=10)
        assert process.returncode == 0 and "fake Coder server v2.35.1" in said
