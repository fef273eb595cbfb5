# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Coder's API as methods, against the fake server: results, and what faults leave behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("urllib3", reason="the client's own library")

from ansible_collections.spt.flow.plugins.module_utils._node import errors as errors_module
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import admin as coder_admin
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import client as coder_client
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.retry import Unsure
from ansible_collections.spt.flow.tests.fake_coder import samples
from ansible_collections.spt.flow.tests.fake_coder.jobs import Clock
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.fake_coder.state import State
from ansible_collections.spt.flow.tests.unit import coder_harness

Json = coder_client.Json


@pytest.fixture
def fake() -> Iterator[Fake]:
    with coder_harness.running() as made:
        samples.prepare(made.state)
        yield made


@pytest.fixture
def person(fake: Fake) -> CoderAdmin:
    return coder_harness.connect(fake)


@pytest.fixture
def owner(fake: Fake) -> CoderAdmin:
    return coder_harness.connect(fake, samples.OWNER_TOKEN)


def template_id(fake: Fake) -> str:
    return next(iter(fake.state.templates))


def made(fake: Fake, client: CoderAdmin, name: str = "one", **more: str) -> Json:
    """A running, ready workspace."""
    client.create_workspace(name, template_id=template_id(fake), rich_parameter_values=more)
    fake.state.clock.advance(10)
    return client.workspace(name) or {}


def test_server_and_caller_are_read(fake: Fake, person: CoderAdmin) -> None:
    assert person.healthy() and person.version() == (2, 35, 1)
    assert person.me()["username"] == "dev"
    assert person.organization()["is_default"] is True
    assert person.user("nobody") is None
    assert person.http.server_version == fake.state.build_version


def test_workspace_is_created_stopped_and_deleted(fake: Fake, person: CoderAdmin) -> None:
    assert person.workspace("one") is None
    new = person.create_workspace(
        "one", template_id=template_id(fake), rich_parameter_values={"repository": "https://example.com/A.git"}
    )
    assert (new["latest_build"]["status"], coder_client.agents(new)) == ("pending", [])
    seen = []
    for _second in range(12):
        now = person.workspace("ONE") or {}
        seen += [(now["latest_build"]["status"], *(a["lifecycle_state"] for a in coder_client.agents(now)))]
        fake.state.clock.advance(0.5)
    assert list(dict.fromkeys(seen)) == [
        ("pending",), ("starting",), ("running", "created"), ("running", "starting"), ("running", "ready")
    ]  # fmt: skip
    assert person.build_parameters(now["latest_build"]["id"])["repository"] == "https://example.com/A.git"
    assert person.agent(coder_client.agents(now)[0]["id"]) is not None
    build = person.create_build(now, "delete")
    assert build["build_number"] == 2 and person.workspace("one") is not None
    fake.state.clock.advance(5)
    assert person.workspace("one") is None and person.workspace_by_id(now["id"]) is None
    assert (person.workspace("one", include_deleted=True) or {})["id"] == now["id"]


def test_logs_are_read_in_slices(fake: Fake, person: CoderAdmin) -> None:
    new = person.create_workspace("one", template_id=template_id(fake))
    build, after, told = new["latest_build"]["id"], 0, []
    for _second in range(20):
        lines = person.build_logs(build, after)
        told += [line["output"] for line in lines]
        after = lines[-1]["id"] if lines else after
        fake.state.clock.advance(0.3)
    assert told == [line["output"] for line in person.build_logs(build)]
    assert any(line.endswith("Creation complete") for line in told)
    agent = coder_client.agents(person.workspace("one") or {})[0]
    first = person.agent_logs(agent["id"])
    assert [line["output"] for line in first] == ["the workspace is ready"]
    assert person.agent_logs(agent["id"], first[-1]["id"]) == []


def test_failed_build_reports_its_reason(fake: Fake, person: CoderAdmin) -> None:
    fake.state.next("start", error="terraform apply: exit status 1", lines=("no space left on device",))
    new = person.create_workspace("one", template_id=template_id(fake))
    fake.state.clock.advance(5)
    build = person.build(new["latest_build"]["id"])
    assert build is not None and (build["status"], build["job"]["error"]) == (
        "failed",
        "terraform apply: exit status 1",
    )
    errors = [line["output"] for line in person.build_logs(build["id"]) if line["log_level"] == "error"]
    assert errors == ["no space left on device", "terraform apply: exit status 1"]
    assert person.builds(new["id"])[0]["id"] == build["id"]


def test_concurrent_builds_are_a_conflict(fake: Fake, person: CoderAdmin) -> None:
    one = made(fake, person)
    person.create_build(one, "stop")
    with pytest.raises(errors_module.Conflict, match="already active"):
        person.create_build(one, "start")
    with pytest.raises(errors_module.Conflict) as caught:
        person.create_workspace("one", template_id=template_id(fake))
    assert caught.value.details["fields"] == ["name"]


def test_build_is_cancelled(fake: Fake, person: CoderAdmin, owner: CoderAdmin) -> None:
    one = made(fake, person)
    build = person.create_build(one, "stop")["id"]
    fake.state.clock.advance(1)
    with pytest.raises(errors_module.AuthError, match="Owner role"):
        person.cancel_build(build)
    with pytest.raises(errors_module.Conflict, match="expected state"):
        owner.cancel_build(build, "pending")
    assert owner.cancel_build(build) is True and owner.cancel_build(build) is False
    fake.state.clock.advance(5)
    assert (person.build(build) or {})["status"] == "canceled"


def test_schedules_are_changed(fake: Fake, person: CoderAdmin) -> None:
    one = made(fake, person)
    until = datetime.fromtimestamp(fake.state.now, UTC) + timedelta(hours=9)
    person.extend(one["id"], until)
    now = person.workspace("one") or {}
    assert abs(datetime.fromisoformat(now["latest_build"]["deadline"]) - until) < timedelta(seconds=1)
    person.put_autostart(one["id"], "CRON_TZ=Europe/Berlin 30 9 * * 1-5")
    person.put_ttl(one["id"], 90_500)
    now = person.workspace("one") or {}
    assert (now["ttl_ms"], now["autostart_schedule"]) == (60_000, "CRON_TZ=Europe/Berlin 30 9 * * 1-5")
    person.put_autostart(one["id"], None)
    person.put_ttl(one["id"], None)
    now = person.workspace("one") or {}
    assert "autostart_schedule" not in now and "ttl_ms" not in now and now["latest_build"]["deadline"] is None
    with pytest.raises(errors_module.Conflict, match="manual"):
        person.extend(one["id"], until)
    with pytest.raises(ValueError, match="zone"):
        person.extend(one["id"], datetime(2026, 1, 1))


def test_pages_return_each_workspace_once(fake: Fake, person: CoderAdmin) -> None:
    state = fake.state
    samples.crowd(state, state.user("dev"), state.template_by_name("spt-flow"), 450)
    before = person.http.requests
    pages = list(person.workspaces(coder_client.search_query(owner="me", template="spt-flow")))
    assert [len(page) for page in pages] == [200, 200, 50]
    assert len({one["id"] for page in pages for one in page}) == 450
    assert person.http.requests - before == 3
    assert list(person.workspaces(coder_client.search_query(owner="me", name="none-such"))) == []


@pytest.mark.parametrize(
    ("more", "terms", "names"),
    [
        ({"status": "running"}, (), ["a", "b"]),
        ({"status": "stopped"}, (), []),
        ({"name": "A"}, (), ["a"]),
        ({}, (("param", "repository=https://example.com/b.git"),), ["b"]),
        ({}, (("has-agent", "connected"),), ["a", "b"]),
        ({"template": "another one"}, (), []),
    ],
)
def test_search_filters_workspaces(
    fake: Fake, person: CoderAdmin, more: dict[str, str], terms: list, names: list[str]
) -> None:
    for name in ("a", "b"):
        made(fake, person, name, repository=f"https://example.com/{name}.git")
    query = coder_client.search_query(terms, **more)
    assert [one["name"] for page in person.workspaces(query) for one in page] == names


def test_ambiguous_search_is_refused(fake: Fake, person: CoderAdmin) -> None:
    with pytest.raises(errors_module.InvalidInput, match="cannot search"):
        coder_client.search_query(name='x" owner:"y')
    for value in ("ref=a,repository=b", "ref=a=b"):
        with pytest.raises(errors_module.InvalidInput, match="cannot search"):
            coder_client.search_query(param=value)
    with pytest.raises(errors_module.InvalidInput, match="colour"):
        list(person.workspaces("colour:red"))


@pytest.mark.parametrize("name", ["../users", "a/b", "one?x=1", "%2e%2e"])
def test_name_cannot_change_the_request_path(person: CoderAdmin, name: str) -> None:
    assert person.workspace(name) is None


def test_invalid_name_is_refused(person: CoderAdmin) -> None:
    with pytest.raises(errors_module.InvalidInput):
        person.workspace("..")


# Lost answers


LOST = ["500", "502", "504", "reset", "truncated"]


@pytest.mark.parametrize("processed", [True, False])
@pytest.mark.parametrize("kind", LOST)
def test_lost_answer_creates_no_second_workspace(fake: Fake, person: CoderAdmin, kind: str, processed: bool) -> None:
    fake.faults.add(kind, processed, method="POST", path="/workspaces$")
    one = person.create_workspace("one", template_id=template_id(fake))
    assert one["name"] == "one" and len(fake.state.workspaces) == 1
    assert fake.faults.met == [kind]


@pytest.mark.parametrize("processed", [True, False])
@pytest.mark.parametrize("kind", LOST)
def test_lost_answer_queues_no_second_build(fake: Fake, person: CoderAdmin, kind: str, processed: bool) -> None:
    one = made(fake, person)
    fake.faults.add(kind, processed, method="POST", path="/builds$")
    build = person.create_build(one, "stop")
    assert (build["transition"], build["build_number"]) == ("stop", 2)
    assert len(next(iter(fake.state.workspaces.values())).builds) == 2


def test_foreign_build_is_not_taken_for_ours(fake: Fake, person: CoderAdmin) -> None:
    """The request got lost before it took effect, and meanwhile another client started another transition."""
    one = made(fake, person)
    fake.faults.add("502", method="POST", path="/builds$")
    state = fake.state
    workspace = state.workspace(one["id"])
    state.create_build(state.user("dev"), workspace, {"transition": "start"})
    with pytest.raises(errors_module.Conflict):
        person.create_build(one, "stop")
    assert [build.transition for build in workspace.builds] == ["start", "start"]


def test_missing_answer_times_out(fake: Fake) -> None:
    """By the wall clock: the server keeps working, but sends nothing for longer than a request may take."""
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.config import CoderConfig
    from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.http import CoderHttp

    http = CoderHttp(CoderConfig(url=fake.url, token=samples.USER_TOKEN), timeout=0.5)
    fake.faults.add("timeout", processed=True, method="POST", delay=1.0)
    one = CoderAdmin(http).create_workspace("one", template_id=template_id(fake))
    assert one["name"] == "one" and len(fake.state.workspaces) == 1


def test_unknown_outcome_is_reported(fake: Fake, person: CoderAdmin) -> None:
    fake.faults.add("500", method="POST", path="/workspaces$", times=9)
    with pytest.raises(Unsure, match="may have processed it"):
        person.create_workspace("one", template_id=template_id(fake))
    assert fake.state.workspaces == {}


@pytest.mark.parametrize("kind", ["429", "503"])
def test_request_without_effect_is_repeated_after_a_pause(fake: Fake, person: CoderAdmin, kind: str) -> None:
    fake.faults.add(kind, method="POST", retry_after=7)
    before = fake.state.now
    person.create_workspace("one", template_id=template_id(fake))
    assert fake.state.now - before >= 7 and len(fake.state.workspaces) == 1


def test_restarting_server_is_waited_for(fake: Fake, person: CoderAdmin) -> None:
    new = person.create_workspace("one", template_id=template_id(fake))
    fake.state.clock.advance(1)
    fake.restart(8)
    build = person.build(new["latest_build"]["id"])
    assert build is not None and build["status"] == "failed"


def test_web_page_is_not_an_answer(fake: Fake, person: CoderAdmin) -> None:
    fake.faults.add("html")
    with pytest.raises(errors_module.Unhealthy, match="web page"):
        person.workspace("one")


def test_all_requests_succeed_when_a_fifth_of_the_answers_fails() -> None:
    """Clients that request the same name get the same workspace, and each workspace is stopped once."""
    with coder_harness.running(State(Clock(speed=50))) as fake:
        samples.prepare(fake.state)
        fake.faults.share = 0.2
        problems: list[str] = []

        def up(number: int) -> None:
            client, name = coder_harness.connect(fake, timeout=600), f"ws-{number % 30}"
            try:
                found = client.workspace(name)
                if found is None:
                    try:
                        client.create_workspace(name, template_id=template_id(fake))
                    except errors_module.Conflict:
                        assert client.workspace(name)
                if number < 30:
                    stop(client, name)
            except errors_module.FlowError as error:
                problems.append(f"{name}: {error!r}")

        def stop(client: CoderAdmin, name: str) -> None:
            found = client.workspace(name) or {}
            while found["latest_build"]["status"] != "running":
                fake.state.clock.sleep(1)
                found = client.workspace(name) or {}
            client.create_build(found, "stop")

        threads = [threading.Thread(target=up, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert problems == [] and len(fake.faults.met) > 20
        made = fake.state.workspaces.values()
        assert sorted(one.name for one in made) == sorted(f"ws-{n}" for n in range(30))
        assert [[build.transition for build in one.builds] for one in made] == [["start", "stop"]] * 30


# Operators


def test_new_server_gets_an_owner_and_a_bot_with_a_token() -> None:
    with coder_harness.running() as fake:
        nobody = coder_harness.connect(fake, "")
        assert not nobody.has_first_user()
        with pytest.raises(errors_module.InvalidInput, match="password"):
            nobody.create_first_user("a@example.com", "admin", "weak")
        nobody.create_first_user("a@example.com", "admin", "Correct-horse-battery-1")
        assert nobody.has_first_user()
        with pytest.raises(errors_module.Conflict):
            nobody.create_first_user("a@example.com", "admin", "Correct-horse-battery-1")
        with pytest.raises(errors_module.AuthError):
            nobody.login("a@example.com", "wrong")
        admin = coder_harness.connect(fake, nobody.login("a@example.com", "Correct-horse-battery-1"))
        bot = admin.create_user("bot@example.com", "bot", [admin.organization()["id"]])
        assert (bot["status"], bot["login_type"]) == ("active", "none")
        admin.update_member_roles("bot", ["organization-admin"])
        assert admin.member_roles("bot") == ["organization-admin"]
        assert admin.tokens("bot") == [] and admin.token("ci", "bot") is None
        assert admin.max_token_lifetime("bot") > 365 * 86400 > admin.max_token_lifetime() == 7 * 86400
        token = admin.create_token("ci", 30 * 86400, "bot")
        assert coder_harness.connect(fake, token).me()["username"] == "bot"
        assert (admin.token("ci", "bot") or {})["id"] == token.partition("-")[0]
        with pytest.raises(errors_module.InvalidInput, match="lifetime"):
            admin.create_token("mine", 30 * 86400)
        admin.delete_token(token.partition("-")[0], "bot")
        admin.delete_token(token.partition("-")[0], "bot")
        with pytest.raises(errors_module.AuthError):
            coder_harness.connect(fake, token).me()


def test_token_with_a_lost_secret_is_replaced(fake: Fake, owner: CoderAdmin) -> None:
    fake.faults.add("reset", processed=True, method="POST", path="/tokens$")
    token = owner.create_token("ci", 3600, "dev")
    assert coder_harness.connect(fake, token).me()["username"] == "dev"
    assert [one["token_name"] for one in owner.tokens("dev")].count("ci") == 1


def test_departed_user_is_suspended(fake: Fake, person: CoderAdmin, owner: CoderAdmin) -> None:
    made(fake, person)
    assert [one["username"] for page in owner.users("status:active") for one in page] == ["dev", "owner"]
    owner.suspend("dev")
    with pytest.raises(errors_module.AuthError, match="suspended"):
        person.me()
    assert [one["name"] for page in owner.workspaces("owner:dev") for one in page] == ["one"]
    owner.activate("dev")
    assert person.me()["status"] == "active"
    assert [role["name"] for role in owner.update_roles("dev", ["template-admin"])["roles"]] == ["template-admin"]


def test_template_is_pushed_and_rolled_out(fake: Fake, person: CoderAdmin, owner: CoderAdmin) -> None:
    one = made(fake, person)
    template = owner.template("spt-flow")
    assert template is not None and owner.template("none") is None
    assert [found["name"] for found in owner.templates("exact_name:spt-flow")] == ["spt-flow"]
    file = owner.upload(samples.archive({"main.tf": samples.SOURCE + "# two\n"}))
    assert file == owner.upload(samples.archive({"main.tf": samples.SOURCE + "# two\n"}))
    version = owner.create_version(file, "v-2", template["id"], "two", {"image": "new:2", "secret": "hidden"})
    with pytest.raises(errors_module.AuthError, match="successfully"):
        owner.promote(template["id"], version["id"])
    with pytest.raises(errors_module.AuthError, match="hasn't completed"):
        owner.version_parameters(version["id"])
    with pytest.raises(errors_module.Conflict, match="importing"):
        person.create_workspace("two", template_version_id=version["id"])
    fake.state.clock.advance(5)
    assert (owner.template_version(version["id"]) or {})["job"]["status"] == "succeeded"
    assert [line["stage"] for line in owner.version_logs(version["id"])][0] == "Setting up"
    values = {entry["name"]: entry["value"] for entry in owner.version_variables(version["id"])}
    assert values == {"image": "new:2", "secret": "*redacted*"}
    assert [p["name"] for p in owner.version_parameters(version["id"])] == ["repository", "ref", "seed"]
    owner.promote(template["id"], version["id"])
    assert [v["name"] for page in owner.versions(template["id"]) for v in page] == ["v-2", "v-1"]
    assert (owner.version_by_name(template["id"], "v-2") or {})["id"] == version["id"]
    now = person.workspace("one") or {}
    assert now["outdated"] and now["latest_build"]["id"] == one["latest_build"]["id"]
    job = owner.provisioner_job(version["job"]["id"])
    assert job is not None and job["status"] == "succeeded"


def test_fields_ignored_without_a_licence_are_shown_in_the_comparison(owner: CoderAdmin) -> None:
    template = owner.template("spt-flow") or {}
    wanted = {
        "description": "ours",
        "default_ttl_ms": 3_600_000,
        "failure_ttl_ms": 60_000,
        "require_active_version": True,
    }
    got = owner.patch_template(template["id"], wanted)
    assert {name for name, value in wanted.items() if got[name] != value} == {
        "failure_ttl_ms",
        "require_active_version",
    }


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({"main.tf": 'variable "must" {\n  type = string\n}\n'}, "REQUIRED_TEMPLATE_VARIABLES", "must"),
        ({"README.md": "nothing"}, "", "no Terraform file"),
    ],
)
def test_failed_import_is_reported(fake: Fake, owner: CoderAdmin, files: dict[str, str], code: str, words: str) -> None:
    version = owner.create_version(owner.upload(samples.archive(files)), "v-1")
    fake.state.clock.advance(5)
    job = (owner.template_version(version["id"]) or {})["job"]
    assert (job["status"], job.get("error_code", "")) == ("failed", code) and words in job["error"]
    assert words in owner.version_logs(version["id"])[-1]["output"] or code


@pytest.mark.parametrize("processed", [True, False])
def test_lost_answers_leave_one_template_and_one_version(fake: Fake, owner: CoderAdmin, processed: bool) -> None:
    template = owner.template("spt-flow") or {}
    file = owner.upload(samples.archive({"main.tf": "# other\n"}))
    fake.faults.add("502", processed, method="POST", path="/templateversions$")
    version = owner.create_version(file, "v-2", template["id"])
    assert [one.name for one in fake.state.versions.values()] == ["v-1", "v-2"] and version["name"] == "v-2"
    first = owner.create_version(file, "v-1")
    fake.faults.add("reset", processed, method="POST", path="/templates$")
    owner.create_template("spt-flow-ci", first["id"], {"activity_bump_ms": 0})
    assert [one["name"] for one in owner.templates()] == ["spt-flow", "spt-flow-ci"]


def test_template_in_use_is_not_deleted(fake: Fake, person: CoderAdmin, owner: CoderAdmin) -> None:
    one = made(fake, person)
    template = owner.template("spt-flow") or {}
    with pytest.raises(errors_module.InvalidInput, match="All workspaces must be deleted"):
        owner.delete_template(template["id"])
    person.create_build(one, "delete")
    fake.state.clock.advance(5)
    owner.delete_template(template["id"])
    assert owner.template("spt-flow") is None


def test_versions_are_archived_and_cancelled(fake: Fake, owner: CoderAdmin) -> None:
    template = owner.template("spt-flow") or {}
    version = owner.create_version(owner.upload(samples.archive()), "v-2", template["id"])
    assert owner.cancel_version(version["id"]) is True
    fake.state.clock.advance(5)
    assert owner.cancel_version(version["id"]) is False
    assert owner.archive_versions(template["id"]) == [version["id"]]
    assert [v["name"] for page in owner.versions(template["id"]) for v in page] == ["v-1"]
    assert [v["name"] for page in owner.versions(template["id"], True) for v in page] == ["v-2", "v-1"]


def test_health_is_read(fake: Fake, person: CoderAdmin, owner: CoderAdmin) -> None:
    assert owner.debug_health()["healthy"] and len(owner.provisioner_daemons()) == 3
    fake.state.set_provisioners(0)
    report = owner.debug_health(force=True)
    assert not report["healthy"] and report["provisioner_daemons"]["warnings"][0]["code"] == "EPD01"
    assert (owner.entitlements() or {})["has_license"] is False
    with pytest.raises(errors_module.AuthError):
        person.debug_health()
    fake.stop()
    assert not owner.healthy()


def test_download_address_of_the_command_line_is_known() -> None:
    assert coder_admin.cli_url("https://c.example.com", "windows", "arm64") == (
        "https://c.example.com/bin/coder-windows-arm64.exe"
    )


def test_callers_deadline_limits_each_request(fake: Fake, person: CoderAdmin) -> None:
    hurried = coder_client.CoderClient(person.http, left=lambda: 3.0)
    fake.faults.add("503", retry_after=10)
    with pytest.raises(errors_module.DeadlineExceeded, match="after the 3 s"):
        hurried.workspace("one")
