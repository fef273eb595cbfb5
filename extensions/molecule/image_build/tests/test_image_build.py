# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What image_build leaves: a build host that follows its repository, and one file that says what is current."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

UNIT = "spt-flow-image-build"
RECORD = "/var/lib/spt-flow/images/image.json"


def record(host: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.file(RECORD).content_string)["slim"]
    return found


def moves_to(host: Any, branch: str) -> Any:
    """The branch that is followed moves, and the timer's unit runs."""
    host.check_output("git -C /srv/flow.git branch --force main %s", branch)
    return host.run(f"systemctl start {UNIT}")


def images(host: Any) -> set[str]:
    return set(host.check_output("docker images --format '{{.Tag}}' spt-flow/workspace").split())


@pytest.fixture
def at_the_first(host: Any) -> Iterator[None]:
    """Each test begins, and leaves the machine, where converge left it."""
    assert moves_to(host, "first").succeeded
    yield
    assert moves_to(host, "first").succeeded


def test_image_is_verified_pushed_and_recorded_on_both_machines(host: Any) -> None:
    entry = record(host)
    assert entry["verified"]
    assert entry["reference"].startswith("127.0.0.1:5000/team/workspace@sha256:")
    home = json.loads((Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "release/image.json").read_text())
    assert home["slim"] == entry
    bill = json.loads(host.file(f"/var/lib/spt-flow/images/{entry['sbom']}").content_string)
    assert {"bash", "gh"} <= {package["name"] for package in bill["packages"]}


def test_node_has_the_recorded_image(host: Any) -> None:
    node = json.loads(host.file("/etc/spt-flow/image.json").content_string)
    assert node["hash"] == record(host)["hash"]
    assert host.run("/usr/local/lib/spt-flow/spt-flow-images").succeeded


def test_timer_builds_every_week(host: Any) -> None:
    timer = host.service(f"{UNIT}.timer")
    assert timer.is_enabled
    assert timer.is_running
    assert "OnCalendar=Sun *-*-* 03:00:00" in host.check_output(f"systemctl cat {UNIT}.timer")


@pytest.mark.usefixtures("at_the_first")
def test_build_without_changes_changes_nothing(host: Any) -> None:
    before = host.file(RECORD).content_string
    assert host.run(f"systemctl start {UNIT}").succeeded
    assert host.file(RECORD).content_string == before


@pytest.mark.usefixtures("at_the_first")
def test_new_gh_replaces_the_old_image_once_unused(host: Any) -> None:
    first = record(host)
    host.check_output("docker create --name busy %s", first["tag"])
    try:
        assert moves_to(host, "moved").succeeded
        second = record(host)
        assert second["hash"] != first["hash"]
        gh = f"docker run --rm --network none --entrypoint gh {second['tag']} --version"
        assert host.check_output(gh) == "gh version 1.1"
        assert {first["tag"].partition(":")[2], second["tag"].partition(":")[2]} == images(host)
    finally:
        host.check_output("docker rm busy")
    assert host.run(f"systemctl start {UNIT}").succeeded
    assert images(host) == {second["tag"].partition(":")[2]}
    assert not host.file(f"/var/lib/spt-flow/images/{first['sbom']}").exists


@pytest.mark.usefixtures("at_the_first")
def test_failed_verification_replaces_nothing_and_is_reported(host: Any) -> None:
    before = host.file(RECORD).content_string
    assert moves_to(host, "broken").failed
    assert host.file(RECORD).content_string == before
    said = host.check_output(f"journalctl -u {UNIT} --no-pager -o cat -n 40")
    assert "failed its verification: gh: gh version 1.2" in said
    assert f"{record(host)['tag']} stays current" in said
