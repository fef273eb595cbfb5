# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What workspace_reaper leaves: a timer that deletes what has outlived its time, and nothing else."""

from __future__ import annotations

import time

UNIT = "spt-flow-reaper"
METRIC = "/run/spt_flow_reaper.prom"


def labels(name: str, kind: str) -> str:
    now = int(time.time())
    found = {
        "owner": "x",
        "workspace": name,
        "kind": kind,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
    }
    found |= {"deadline": str(now + 10)} if kind == "ci" else {}
    return " ".join(f"--label spt.flow.{key}={value}" for key, value in found.items())


def test_timer_deletes_only_expired_workspaces(host) -> None:  # type: ignore[no-untyped-def]
    assert host.service(f"{UNIT}.timer").is_enabled
    host.check_output("tar c -T /dev/null | docker import - spt-flow-empty")
    made = {"spt-flow-x-run": labels("run", "ci"), "spt-flow-x-dev": labels("dev", "dev"), "ci-foreign": ""}
    for name, marks in made.items():
        host.check_output(f"docker create --name {name} {marks} spt-flow-empty /bin/true")
    host.check_output(f"docker volume create {labels('dev', 'dev')} --label spt.flow.part=home spt-flow-x-dev-home")
    try:
        end = time.monotonic() + 130
        while "spt-flow-x-run" in (names := host.check_output("docker ps -a --format '{{.Names}}'")):
            assert time.monotonic() < end, "TTL + 2 min are over"
            time.sleep(3)
        assert {"spt-flow-x-dev", "ci-foreign"} <= set(names.split())
        assert "spt-flow-x-dev-home" in host.check_output("docker volume ls --format '{{.Name}}'")
        text = host.file(METRIC).content_string
        assert "spt_flow_reaper_up 1" in text and "spt_flow_reaper_reaped_total 1" in text
    finally:
        host.run(
            "docker rm -f spt-flow-x-run spt-flow-x-dev ci-foreign; docker volume rm spt-flow-x-dev-home; "
            "docker rmi spt-flow-empty"
        )


def test_unit_fails_if_the_engine_does_not_answer(host) -> None:  # type: ignore[no-untyped-def]
    done = host.run("DOCKER_HOST=unix:///nowhere /usr/local/lib/spt-flow/spt-flow-reaper")
    assert done.rc == 8 and "Nothing was deleted" in done.stderr
