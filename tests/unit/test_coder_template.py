# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rolling out a template to the fake server: idempotent, safe with broken templates, without disturbing users."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import InvalidInput, Unhealthy
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as roll
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.client import is_deprecated
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.tests.fake_coder import hcl
from ansible_collections.spt.flow.tests.fake_coder.server import Fake
from ansible_collections.spt.flow.tests.unit import coder_harness

ADMIN = "c123456789-d123456789012345678901"
TEXT = coder_harness.TEMPLATE + 'variable "image" {\n  type = string\n  default = ""\n}\n'
SETTINGS = {"description": "Workspaces", "default_ttl_ms": 7_200_000, "activity_bump_ms": 7_200_000}


@pytest.fixture
def fake() -> Iterator[Fake]:
    with coder_harness.server() as made:
        made.state.give_token(made.state.user("admin"), ADMIN)
        yield made


@pytest.fixture
def client(fake: Fake) -> CoderAdmin:
    return CoderAdmin(coder_harness.client(fake, ADMIN).http)


@pytest.fixture
def wanted(tmp_path: Path) -> roll.Wanted:
    (tmp_path / "main.tf").write_text(TEXT)
    return roll.Wanted("mine", roll.pack(tmp_path), {"image": "spt-flow/workspace:slim-1"}, SETTINGS, "0.1.0")


def test_archive_depends_only_on_its_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        (folder / "more").mkdir(parents=True)
        (folder / "main.tf").write_text(TEXT)
        (folder / "more/file").write_text("x")
        (folder / ".terraform").mkdir()
        (folder / ".terraform/big").write_text(name)
    (tmp_path / "b/main.tf").chmod(0o600)
    assert roll.pack(tmp_path / "a") == roll.pack(tmp_path / "b")
    with tarfile.open(fileobj=io.BytesIO(roll.pack(tmp_path / "a", {"seccomp.json": b"{}"}))) as tar:
        assert tar.getnames() == ["main.tf", "more/file", "seccomp.json"]


def test_invalid_settings_are_refused_before_sending(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not have a Terraform file"):
        roll.pack(tmp_path)
    (tmp_path / "main.tf").write_text("x" * roll.LARGEST)
    with pytest.raises(InvalidInput, match="the server accepts 1024 KiB"):
        roll.pack(tmp_path)


def test_second_run_changes_nothing(fake: Fake, client: CoderAdmin, wanted: roll.Wanted) -> None:
    said: list[str] = []
    planned = roll.roll_out(client, wanted, check=True)
    assert planned.changed
    assert planned.actions == ["import", "create"]
    assert [one.name for one in fake.state.templates.values()] == ["spt-flow", "spt-flow-ci"]
    first = roll.roll_out(client, wanted, progress=Progress(said.append))
    assert (first.changed, first.actions, first.ignored) == (True, ["import", "create"], [])
    assert any("import: " in line for line in said)
    template = client.template("mine")
    assert template is not None
    assert {name: template[name] for name in SETTINGS} == SETTINGS
    versions = len(fake.state.versions)
    for check in (False, True):
        again = roll.roll_out(client, wanted, check)
        assert (again.changed, again.actions) == (False, [])
    assert len(fake.state.versions) == versions


@pytest.mark.parametrize("what", ["file", "variable"])
def test_changed_content_becomes_a_new_active_version(
    what: str, fake: Fake, client: CoderAdmin, wanted: roll.Wanted
) -> None:
    roll.roll_out(client, wanted)
    new = replace(wanted, variables={"image": "2"}) if what == "variable" else replace(wanted, archive=changed(wanted))
    assert new.version != wanted.version
    done = roll.roll_out(client, new)
    assert done.actions == ["import", "activate"]
    template = client.template("mine")
    assert template is not None
    assert client.template_version(template["active_version_id"])["name"] == new.version  # type: ignore[index]
    back = roll.roll_out(client, wanted)
    assert back.actions == ["import", "activate"]
    assert client.template("mine")["active_version_id"] != template["active_version_id"]  # type: ignore[index]


def changed(wanted: roll.Wanted) -> bytes:
    return coder_harness.archive(TEXT + "# more\n")


def test_failed_import_keeps_the_active_version_and_shows_the_reason(
    fake: Fake, client: CoderAdmin, wanted: roll.Wanted
) -> None:
    roll.roll_out(client, wanted)
    active = client.template("mine")["active_version_id"]  # type: ignore[index]
    new = replace(wanted, archive=changed(wanted))
    fake.state.next("import", error="exit status 1", lines=("Error: Missing provider",))
    with pytest.raises(Unhealthy) as failed:
        roll.roll_out(client, new)
    assert "Missing provider" in failed.value.hint
    assert client.template("mine")["active_version_id"] == active  # type: ignore[index]
    # The name of the failed version stays taken.
    assert roll.roll_out(client, new).changed
    assert client.template("mine")["active_version_id"] != active  # type: ignore[index]


def test_only_differences_are_sent_and_licensed_settings_are_named(
    fake: Fake, client: CoderAdmin, wanted: roll.Wanted
) -> None:
    roll.roll_out(client, wanted)
    new = replace(wanted, settings={**SETTINGS, "description": "Other", "failure_ttl_ms": 600_000})
    done = roll.roll_out(client, new)
    assert done.actions == ["change"]
    assert done.ignored == ["failure_ttl_ms"]
    assert client.template("mine")["description"] == "Other"  # type: ignore[index]


def test_running_workspaces_are_unchanged(fake: Fake, client: CoderAdmin, wanted: roll.Wanted) -> None:
    mine = replace(wanted, name="spt-flow")
    workspace = fake.state.create_workspace(
        fake.state.user("ada"),
        fake.state.user("ada"),
        {"name": "demo", "template_id": fake.state.template_by_name("spt-flow").id},
    )
    fake.state.clock.advance(60)
    before = [build.id for build in workspace.builds]
    assert roll.roll_out(client, mine).changed
    assert [build.id for build in workspace.builds] == before
    assert client.workspace("demo", "ada")["outdated"] is True  # type: ignore[index]


def test_our_template_has_every_variable_and_ci_is_strict(fake: Fake, client: CoderAdmin) -> None:
    settings = Settings(cpus=2.0)
    for kind, name in (("dev", "ours"), ("ci", "ours-ci")):
        done = roll.roll_out(client, roll.ours(settings, kind, name, {"n1": "ssh://ops@n1"}))
        assert done.actions == ["import", "create"]
        assert done.ignored == []
    dev, ci = client.template("ours"), client.template("ours-ci")
    assert dev is not None
    assert ci is not None
    assert (dev["default_ttl_ms"], dev["activity_bump_ms"]) == (7_200_000, 7_200_000)
    assert (ci["default_ttl_ms"], ci["activity_bump_ms"]) == (1_800_000, 0)
    values = {one["name"]: one["value"] for one in client.version_variables(ci["active_version_id"])}
    assert values["kind"] == "ci"
    assert values["cpus"] == "2"
    assert values["nodes"] == '{"n1": "ssh://ops@n1"}'
    assert roll.ours(settings, "dev", "ours", {}).version != roll.ours(Settings(cpus=3.0), "dev", "ours", {}).version


def test_lock_file_is_included_and_changes_the_version() -> None:
    plain, locked = (roll.ours(Settings(), "dev", "ours", {}, lock) for lock in (b"", b"# sums\n"))
    with tarfile.open(fileobj=io.BytesIO(locked.archive)) as tar:
        inside = tar.extractfile(".terraform.lock.hcl")
        assert inside is not None and inside.read() == b"# sums\n"
    assert plain.version != locked.version
    assert len(locked.archive) < roll.LARGEST


def test_template_is_formatted() -> None:
    if not shutil.which("terraform"):
        pytest.skip("no terraform on PATH")
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-diff", str(roll.FOLDER)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_empty_value_is_unset_on_the_server(client: CoderAdmin, wanted: roll.Wanted) -> None:
    text = TEXT + 'variable "must" {\n  type = string\n}\n'
    with pytest.raises(Unhealthy, match="must"):
        roll.roll_out(client, replace(wanted, archive=coder_harness.archive(text), variables={"must": ""}))


def test_version_is_that_of_the_collection() -> None:
    text = (roll.COLLECTION / "galaxy.yml").read_text()
    assert f"version: {roll.release()}\n" in text


def test_deprecation_is_set_and_removed_without_a_new_version(
    fake: Fake, client: CoderAdmin, wanted: roll.Wanted
) -> None:
    roll.roll_out(client, wanted)
    done = roll.roll_out(client, roll.deprecated(wanted, "use the other"))
    assert done.actions == ["change"] and not done.ignored
    template = client.template("mine")
    assert template is not None and is_deprecated(template) == "use the other"
    assert "deprecated" in template["display_name"]
    roll.roll_out(client, wanted)
    template = client.template("mine")
    assert template is not None and is_deprecated(template) == ""
    with pytest.raises(InvalidInput, match="characters"):
        roll.deprecated(wanted, "x" * 200)


@pytest.mark.parametrize(("kind", "display"), [("dev", "Workspace"), ("ci", "CI workspace")])
def test_template_shows_users_an_icon_a_description_and_a_readme(kind: str, display: str) -> None:
    wanted = roll.ours(Settings(), kind, "spt-flow", {})
    assert wanted.settings["display_name"] == display
    assert wanted.settings["icon"].startswith("/icon/") and wanted.settings["icon"].endswith(".svg")
    assert 10 < len(wanted.settings["description"]) < roll.LONGEST_DESCRIPTION
    with tarfile.open(fileobj=io.BytesIO(wanted.archive)) as tar:
        readme = tar.extractfile("README.md")
        assert readme is not None
        text = readme.read().decode()
    # The dashboard shows comments of HTML as text.
    assert text.startswith("# Workspace\n") and "<!--" not in text and "](https://" in text


def test_every_parameter_says_in_a_sentence_what_it_is_for() -> None:
    text = (roll.FOLDER / "main.tf").read_text(encoding="utf-8")
    found = hcl.read(roll.pack(roll.FOLDER)).parameters
    assert [one["name"] for one in found] == ["repo", "ref", "dotfiles", "node", "deadline", "directory", "seed"]
    for one in found:
        words = one["description"].removesuffix(" [Help](${local.docs})")
        assert words.endswith(".") and words[0].isupper() and one["display_name"], one["name"]
    assert 'docs    = "https://' in text


def test_presets_are_complete_and_named_once() -> None:
    given = [{"name": "Website", "repo": "https://git.example.com/web.git", "ref": "main"}]
    icon = roll.PRESET["icon"]
    assert json.loads(roll.presets(given)) == [{**given[0], "description": "", "icon": icon}]
    assert roll.presets([]) == "[]"
    for wrong in ([{"name": "Website"}], [{"repo": "r"}], [*given, *given], [{**given[0], "cpus": 4}]):
        with pytest.raises(InvalidInput, match="needs a name of its own and a repo"):
            roll.presets(wrong)
