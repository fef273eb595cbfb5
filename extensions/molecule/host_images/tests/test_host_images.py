# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What host_images leaves: an image known by its content, and a node that tells when it is gone."""

from __future__ import annotations

import json
import re

import pytest

UNIT = "spt-flow-images"
METRIC = "/run/spt_flow_images.prom"


@pytest.fixture
def image(host) -> dict[str, str]:  # type: ignore[no-untyped-def]
    return json.loads(host.file("/etc/spt-flow/image.json").content_string)


def test_image_exists_and_the_node_reports_it(host, image: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    label = '{{index .Config.Labels "spt.flow.image"}}'
    assert host.check_output("docker image inspect --format %s %s", label, image["tag"]) == image["hash"]
    assert host.run(f"systemctl start {UNIT}").succeeded
    assert f'{{image="{image["tag"]}"}} 1' in host.file(METRIC).content_string
    assert host.run("ls /var/tmp/spt-flow-image-*").failed


def test_unit_of_a_node_without_the_image_fails_with_a_reason(host, image: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    timer = host.service(f"{UNIT}.timer")
    assert timer.is_enabled
    assert timer.is_running
    assert re.search(r"OnCalendar=.*:0?/2", host.check_output(f"systemctl cat {UNIT}.timer"))
    archive = "/var/tmp/kept.tar"  # noqa: S108
    host.check_output("docker save --output %s %s && docker rmi %s", archive, image["tag"], image["tag"])
    try:
        assert host.run(f"systemctl start {UNIT}").failed
        assert f'{{image="{image["tag"]}"}} 0' in host.file(METRIC).content_string
        words = (
            f"{image['node']} does not have the image {image['tag']}. "
            f"Install it: ansible-playbook site.yml --limit {image['node']} --tags host_images"
        )
        assert words in host.check_output(f"journalctl -u {UNIT} --no-pager -o cat")
        assert host.run(f"systemctl is-failed {UNIT}").stdout.strip() == "failed"
    finally:
        host.check_output("docker load --input %s", archive)
    assert host.run(f"systemctl start {UNIT}").succeeded


def test_image_with_the_same_name_and_other_content_does_not_count(host, image: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    host.check_output("docker tag %s spt-flow-kept", image["tag"])
    host.check_output("tar c -T /dev/null | docker import - %s", image["tag"])
    try:
        assert host.run(f"systemctl start {UNIT}").failed
    finally:
        host.check_output("docker tag spt-flow-kept %s && docker rmi spt-flow-kept", image["tag"])
    assert host.run(f"systemctl start {UNIT}").succeeded


def test_timer_detects_a_missing_image_within_five_minutes(host, image: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    """Only the timer starts the unit: the metric turns to 0, and to 1 again when the image is back."""
    assert f'{{image="{image["tag"]}"}} 1' in host.file(METRIC).content_string
    archive = "/var/tmp/kept.tar"  # noqa: S108
    host.check_output("docker save --output %s %s && docker rmi %s", archive, image["tag"], image["tag"])
    try:
        found = host.run(f"timeout 300 sh -c 'until grep -q \" 0$\" {METRIC}; do sleep 2; done'")
        assert found.succeeded
        assert host.run(f"systemctl is-failed {UNIT}").stdout.strip() == "failed"
    finally:
        host.check_output("docker load --input %s", archive)
        host.check_output("rm %s", archive)
    assert host.run(f"systemctl start {UNIT}").succeeded
