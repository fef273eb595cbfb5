# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures of the server itself: the next `up`, `restart` or `delete` repairs the workspace, and nothing is left."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import Unhealthy
from ansible_collections.spt.flow.tests.live import conftest, failure_harness
from ansible_collections.spt.flow.tests.live.failure_harness import Site, kept, objects, put, running

VERBS = ("started", "restarted", "absent")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    reason = conftest.missing()
    if reason:
        pytest.skip(reason)
    with failure_harness.site(tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture(autouse=True)
def clean(site: Site) -> Iterator[None]:
    """Each test starts without a workspace, and must end without a refusal of the proxy."""
    before = site.proxied.refused()
    yield
    site.ensure("absent")
    assert site.proxied.refused() == before


def repaired(site: Site, identifier: str, verb: str) -> None:
    """Run one command; then the workspace runs or nothing of it is left, and it can be deleted without leftovers."""
    site.ensure(verb)
    if verb != "absent":
        assert running(identifier) == [f"spt-flow-{identifier}"]
        site.ensure("absent")
    assert objects(identifier) == []


def test_up_waits_for_a_database_that_is_down(site: Site) -> None:
    """Half a minute without a database, during an `up` on a running workspace."""
    site.create()
    site.ensure()
    site.database.stop()
    back = threading.Timer(30.0, site.database.start)
    back.start()
    said: list[str] = []
    try:
        result = site.ensure(said=said)
    finally:
        back.join()
    assert result.workspace is not None and result.workspace.state == "running"
    assert any("Waiting up to" in line and "database" in line for line in said), said
    # The server ends itself some minutes after it lost its database, and its service starts it again.
    site.server.stop()
    site.server.start()


@pytest.mark.parametrize("verb", VERBS)
def test_database_outage_during_a_build_is_repaired_by_the_next_command(site: Site, verb: str) -> None:
    """The result of the build is lost, although its container may run."""
    identifier = site.create()
    site.at("Starting")
    site.database.stop()
    time.sleep(20)
    site.database.start()
    site.server.stop()
    site.server.start()
    site.end_hung_builds()
    repaired(site, identifier, verb)


@pytest.mark.parametrize(
    ("stage", "verb"),
    [("Initializing", "started"), ("Planning", "restarted"), ("Planning", "absent"), *(("Starting", v) for v in VERBS)],
)
def test_server_killed_during_a_build_is_repaired_by_the_next_command(site: Site, stage: str, verb: str) -> None:
    """Terraform runs on without the server, so the container may exist although no state knows it."""
    identifier = site.create()
    site.at(stage)
    site.server.kill()
    time.sleep(3)
    site.server.start()
    site.end_hung_builds()
    repaired(site, identifier, verb)


@pytest.mark.parametrize("verb", VERBS)
def test_terraform_killed_during_a_build_is_repaired_by_the_next_command(site: Site, verb: str) -> None:
    """At once after its start, the container is created without a state that knows it."""
    identifier = site.create()
    site.at("Starting")
    assert site.kill_terraform()
    site.ended()
    repaired(site, identifier, verb)


def test_full_disk_of_the_server_is_reported_and_the_next_up_succeeds(site: Site) -> None:
    """Terraform works in a memory file system without space."""
    folders = [site.server.folder / f"cache/provisioner-{number}/work" for number in range(2)]
    with failure_harness.full(folders) as make_room:
        identifier = site.create()
        with pytest.raises(Unhealthy, match="no space left on device") as failed:
            site.ensure()
        assert "disk is full" in failed.value.hint
        make_room()
        repaired(site, identifier, "started")


@pytest.mark.parametrize("verb", ["started", "restarted"])
def test_lost_terraform_state_is_repaired_and_the_home_is_kept(site: Site, verb: str) -> None:
    identifier = site.create()
    site.ensure()
    put(identifier, "precious")
    site.lose_state()
    site.ensure(verb)
    assert kept(identifier) == "precious"
    site.lose_state()
    site.ensure("stopped")
    assert running(identifier) == []
    site.ensure(verb)
    assert kept(identifier) == "precious"


@pytest.mark.parametrize("state", ["started", "stopped"])
def test_delete_without_terraform_state_leaves_nothing(site: Site, state: str) -> None:
    identifier = site.create()
    site.ensure()
    site.ensure(state)
    site.lose_state()
    site.ensure("absent")
    assert objects(identifier) == []


def test_reap_lists_all_orphans_and_removes_exactly_them(site: Site) -> None:
    """A click on Delete in the dashboard does not stop first, so that a lost state leaves everything."""
    identifier = site.create()
    site.ensure()
    name = f"spt-flow-{identifier}"
    site.lose_state()
    site.click_delete()
    everything = [name, f"{name}-docker", f"{name}-home"]
    assert objects(identifier) == everything
    listed = site.check_reap()
    assert listed.returncode == 0, listed.stdout + listed.stderr
    for line in (f"would delete container {name}:", f"would delete volume {name}-docker:", f"kept home {name}-home:"):
        assert line in listed.stdout, listed.stdout
    assert objects(identifier) == everything, "a check changes nothing"
    done = site.reap(identifier)
    assert (done["reaped"], done["homes"], done["problems"]) == (everything[:2], [everything[2]], {})
    assert objects(identifier) == [everything[2]]
    subprocess.run(["docker", "volume", "rm", everything[2]], check=True, capture_output=True)
