# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the reaper of a node deletes, and above all what it keeps."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import Conflict, FlowError, NotFound, Unhealthy
from ansible_collections.spt.flow.plugins.module_utils._node.reaper import engine as reaper_engine
from ansible_collections.spt.flow.plugins.module_utils._node.reaper.engine import Listed, Memory

NOW = 1_790_000_000.0
TTL = 1800
HOUR = 3600.0


def stamp(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def labels(name: str, kind: str = "ci", made: float = NOW, ttl: float = TTL, **more: str) -> dict[str, str]:
    found = {"owner": "alice", "workspace": name, "kind": kind, "created": stamp(made), **more}
    if kind == "ci":
        found = {"deadline": str(int(made + ttl)), **found}
    return {f"spt.flow.{key}": value for key, value in found.items()}


def container(name: str, kind: str = "ci", state: str = "running", skew: float = 0.0, **more: Any) -> dict[str, Any]:
    """A container created at ``NOW`` by the node's clock; the client's clock is ``skew`` seconds ahead."""
    marks = labels(name, kind, NOW + skew, **more)
    return {"Id": f"id-{name}", "Names": [f"/spt-flow-alice-{name}"], "State": state, "Created": NOW, "Labels": marks}


def volume(name: str, part: str, kind: str = "dev", **more: Any) -> dict[str, Any]:
    found = {"Name": f"spt-flow-alice-{name}-{part}", "CreatedAt": "x", "Labels": labels(name, kind, part=part)}
    return {**found, **more}


def names(listed: Listed, after: float, memory: Memory | None = None, wall: float | None = None) -> list[str]:
    """Return what is deleted ``after`` seconds from ``NOW``, when the node has been up for 10,000 s."""
    return [
        d.name
        for d in reaper_engine.plan(listed, memory or Memory(), 10_000 + after, NOW + after if wall is None else wall)
    ]


@pytest.mark.parametrize("skew", [-HOUR, -60.0, 0.0, 60.0, HOUR])
def test_container_is_deleted_at_its_ttl_whatever_the_client_clock_says(skew: float) -> None:
    listed = Listed([container("a", skew=skew)])
    assert names(listed, TTL - 1) == []
    assert names(listed, TTL) == ["spt-flow-alice-a"]


@pytest.mark.parametrize("jump", [-HOUR, HOUR, -86400.0, 86400.0])
def test_changing_the_clock_changes_nothing(jump: float) -> None:
    listed, memory = Listed([container("a")]), Memory()
    assert names(listed, 10, memory) == []
    assert names(listed, TTL - 1, memory, wall=NOW + TTL - 1 + jump) == []
    assert names(listed, TTL, memory, wall=NOW + TTL + jump) == ["spt-flow-alice-a"]


def test_container_from_the_future_gets_its_ttl_from_when_it_was_first_seen() -> None:
    listed, memory = Listed([{**container("a"), "Created": NOW + 10 * HOUR}]), Memory()
    assert names(listed, 0, memory) == []
    assert names(listed, TTL, memory) == ["spt-flow-alice-a"]


@pytest.mark.parametrize(
    "wrong",
    [{"deadline": ""}, {"deadline": "soon"}, {"created": "yesterday"}, {"deadline": "9" * 18}, {"deadline": "9" * 400}],
)
def test_unreadable_deadline_means_at_most_a_day(wrong: dict[str, str]) -> None:
    entry = container("a")
    entry["Labels"] |= {f"spt.flow.{key}": value for key, value in wrong.items()}
    assert names(Listed([entry]), 86399) == []
    assert names(Listed([entry]), 86400) == ["spt-flow-alice-a"]


def test_objects_of_users_and_others_are_never_deleted() -> None:
    foreign = {"Id": "f", "Names": ["/ci-build"], "State": "running", "Created": 0, "Labels": {}}
    borrowed = {**container("b"), "Names": ["/somebody-elses"]}
    unnamed = {**container("c"), "Names": None}
    half = {**container("d", state="removing")}
    ci_like = {**container("ci-x", kind="dev"), "Names": ["/spt-flow-alice-ci-x"]}
    listed = Listed(
        [foreign, borrowed, unnamed, half, ci_like],
        [
            volume("dev", "home"),
            volume("gone", "home"),
            volume("", "clones"),
            volume("ci", "clones", kind="ci"),
            volume("dev", "docker"),
            {"Name": "ci-data", "Labels": None},
            {**volume("x", "home", kind="ci"), "Name": "renamed"},
            volume("odd", "docker", kind=""),
        ],
        [
            {"Id": "n1", "Name": "spt-flow", "Labels": {"spt.flow.network": "1"}},
            {"Id": "n2", "Name": "ci-net", "Labels": {}},
            {"Id": "n3", "Name": "dev-net", "Labels": labels("dev", "dev")},
            {"Id": "n4", "Name": "another", "Labels": labels("gone")},
        ],
    )
    memory = Memory()
    for after in (0.0, HOUR, 100 * 86400.0):
        assert names(listed, after, memory) == []


def test_leftovers_are_deleted_only_after_the_grace_time() -> None:
    listed = Listed(
        [container("dev", kind="dev")],
        [volume("gone", "home", kind="ci"), volume("gone", "docker"), volume("dev", "docker"), volume("dev", "home")],
        [{"Id": "n1", "Name": "spt-flow-alice-gone", "Labels": labels("gone")}],
    )
    memory = Memory()
    assert names(listed, 0, memory) == []
    assert names(listed, reaper_engine.GRACE - 1, memory) == []
    gone = ["spt-flow-alice-gone-home", "spt-flow-alice-gone-docker", "spt-flow-alice-gone"]
    # This Docker volume of a user has a home of that name, though of another kind, and is therefore kept.
    assert names(listed, reaper_engine.GRACE, memory) == [name for name in gone if "docker" not in name]


def test_docker_volume_without_home_and_container_is_deleted() -> None:
    listed, memory = Listed([], [volume("gone", "docker")]), Memory()
    assert names(listed, 0, memory) == []
    assert names(listed, reaper_engine.GRACE, memory) == ["spt-flow-alice-gone-docker"]


def test_returning_workspace_restarts_the_grace_time() -> None:
    alone, memory = Listed([], [volume("a", "docker")]), Memory()
    names(alone, 0, memory)
    names(Listed([container("a", kind="dev")], [volume("a", "docker")]), 1800, memory)
    assert names(alone, 3600, memory) == []


def test_duplicate_names_of_two_owners_are_two_workspaces() -> None:
    other = container("a", skew=0, ttl=86400)
    other["Labels"]["spt.flow.owner"] = "bob"
    other |= {"Id": "other", "Names": ["/spt-flow-bob-a"]}
    assert names(Listed([container("a"), other]), TTL) == ["spt-flow-alice-a"]


def test_ended_and_never_started_containers_are_deleted_early() -> None:
    assert names(Listed([container("a", state="exited"), container("b", state="dead")]), 1) == [
        "spt-flow-alice-a",
        "spt-flow-alice-b",
    ]
    created = Listed([container("a", state="created")])
    assert names(created, reaper_engine.UNSTARTED - 1) == [] and names(created, reaper_engine.UNSTARTED) == [
        "spt-flow-alice-a"
    ]


# Deleting


class FakeEngine:
    """Answers lists and records deletions; ``fail`` maps a path to the error of its deletion."""

    def __init__(self, listed: Listed) -> None:
        self.listed = listed
        self.deleted: list[str] = []
        self.warned: list[str] = []
        self.fail: dict[str, BaseException] = {}
        self.broken = ""

    def get_json(self, path: str, query: Any = None) -> Any:
        if self.broken and path.startswith(self.broken):
            raise Unhealthy("The engine does not answer.")
        if path.startswith("/volumes/"):
            return next(v for v in self.listed.volumes if path.endswith(v["Name"]))
        lists = {"/containers/json": self.listed.containers, "/networks": self.listed.networks}
        return {"Volumes": self.listed.volumes} if path == "/volumes" else lists[path]

    def request_json(self, method: str, path: str, query: Any = None, **_more: Any) -> Any:
        assert method == "DELETE"
        if path in self.fail:
            raise self.fail[path]
        self.deleted.append(path)

    def run(self, container: str, argv: Any, **_more: Any) -> None:
        self.warned.append(container)


def sweep(engine: FakeEngine, folder: Path, after: float = TTL, dry: bool = False) -> reaper_engine.Report:
    path = str(folder / "state" / "reaper.json")
    return reaper_engine.sweep(path, dry, engine, lambda: 10_000 + after, lambda: NOW + after)  # type: ignore[arg-type]


def test_pass_deletes_by_id_and_warns_open_terminals(tmp_path: Path) -> None:
    engine = FakeEngine(Listed([container("a"), container("b", state="created"), container("dev", kind="dev")]))
    report = sweep(engine, tmp_path)
    assert sorted(engine.deleted) == ["/containers/id-a", "/containers/id-b"] and engine.warned == ["id-a"]
    assert sorted(report.reaped) == ["spt-flow-alice-a", "spt-flow-alice-b"]


def test_dry_run_changes_nothing(tmp_path: Path) -> None:
    engine = FakeEngine(Listed([container("a")]))
    report = sweep(engine, tmp_path, dry=True)
    assert reaper_engine.lines(report, True) == ["would delete container spt-flow-alice-a: its TTL has expired"]
    assert engine.deleted == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["/containers", "/volumes", "/networks"])
def test_incomplete_answers_delete_nothing(tmp_path: Path, broken: str) -> None:
    engine = FakeEngine(Listed([container("a")]))
    engine.broken = broken
    with pytest.raises(FlowError):
        sweep(engine, tmp_path)
    assert engine.deleted == []


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (NotFound("gone"), True),
        (Conflict("x", details={"said": "removal of container is already in progress"}), True),
        (Conflict("x", details={"said": "volume is in use"}), False),
        (Unhealthy("no"), False),
        (OSError("broken"), False),
    ],
)
def test_failed_deletion_does_not_block_the_others(tmp_path: Path, error: BaseException, counts: bool) -> None:
    engine = FakeEngine(Listed([container("a"), container("b")]))
    engine.fail["/containers/id-a"] = error
    report = sweep(engine, tmp_path, TTL + 50)
    assert ("spt-flow-alice-a" in report.reaped) is counts and "spt-flow-alice-b" in report.reaped
    assert report.overdue == (0 if counts else 50)


def test_killed_pass_is_resumed(tmp_path: Path) -> None:
    engine = FakeEngine(Listed([container("a"), container("b")], [volume("gone", "docker")]))
    sweep(engine, tmp_path, 0)
    engine.fail["/containers/id-b"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweep(engine, tmp_path)
    engine.fail, engine.listed = {}, Listed([container("b")], engine.listed.volumes)
    assert sweep(engine, tmp_path, reaper_engine.GRACE).reaped == ["spt-flow-alice-b", "spt-flow-alice-gone-docker"]


def test_volume_recreated_meanwhile_is_kept(tmp_path: Path) -> None:
    engine = FakeEngine(Listed([], [volume("gone", "docker")]))
    sweep(engine, tmp_path, 0)
    fresh = volume("gone", "docker", CreatedAt="y")
    engine.get_json = lambda path, query=None: (  # type: ignore[method-assign]
        fresh if path.startswith("/volumes/") else {"Volumes": [volume("gone", "docker")]} if path == "/volumes" else []
    )
    sweep(engine, tmp_path, reaper_engine.GRACE)
    assert engine.deleted == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"born": 1}', '{"born": {"a": "x"}, "lost": {}, "reaped": 0, "failed": 0}']
)
def test_broken_state_file_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "m").write_text(text)
    assert Memory.load(str(tmp_path / "m")) == Memory()


def test_metrics_report_a_silent_engine() -> None:
    assert "spt_flow_reaper_up 0\n" in reaper_engine.metrics(None, Memory(), NOW)
    text = reaper_engine.metrics(reaper_engine.Report(overdue=7.4), Memory(reaped=3), NOW)
    assert "spt_flow_reaper_up 1\n" in text and "spt_flow_reaper_reaped_total 3\n" in text
    assert "spt_flow_reaper_overdue_seconds 7\n" in text and f"last_run_seconds {NOW:.0f}\n" in text


def test_thousand_containers_with_a_hundred_expired(tmp_path: Path) -> None:
    many = [container(f"n{number}", ttl=TTL if number < 100 else 86400) for number in range(1000)]
    engine = FakeEngine(Listed(many))
    assert len(sweep(engine, tmp_path).reaped) == 100 and len(engine.deleted) == 100


def test_program_fails_without_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).resolve().parents[2]
    shutil.copytree(root / "plugins/module_utils/_node", tmp_path / "lib" / "spt_flow_node")
    monkeypatch.setenv("SPT_FLOW_LIB", str(tmp_path / "lib"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setattr(
        "sys.argv", ["spt-flow-reaper", "--textfile", str(tmp_path), "--state", str(tmp_path / "s/reaper.json")]
    )
    path = root / "roles/workspace_reaper/files/spt-flow-reaper"
    loader = importlib.machinery.SourceFileLoader("spt_flow_reaper", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("spt_flow_reaper", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    assert module.main() == 8
    assert "Nothing was deleted" in capsys.readouterr().err
    assert "spt_flow_reaper_up 0" in (tmp_path / "spt_flow_reaper.prom").read_text()


ID = "28daeffd-1cdb-486c-8cef-cce30d63ee54"


def on_coder(entry: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return ``entry`` as the template creates it on a node, named after the server's id."""
    times = {"spt.flow.created": stamp(NOW), "spt.flow.deadline": stamp(NOW + TTL)}
    marks = {**entry["Labels"], "spt.flow.coder": ID}
    marks |= times if marks["spt.flow.kind"] == "ci" else {}
    part = marks.get("spt.flow.part")
    name = {"Name": f"spt-flow-{ID}-{part}"} if part else {"Names": [f"/spt-flow-{ID}"]}
    return {**entry, **name, "Labels": marks, **more}


def test_containers_of_a_coder_server_follow_the_same_rules() -> None:
    alive = Listed([on_coder(container("a"))], [on_coder(volume("a", "home", kind="ci"))])
    assert names(alive, TTL - 1) == []
    assert names(alive, TTL) == [f"spt-flow-{ID}"]
    memory = Memory()
    orphan = Listed([], [on_coder(volume("a", "home", kind="ci")), on_coder(volume("a", "docker"))])
    assert names(orphan, TTL, memory) == []
    assert names(orphan, TTL + reaper_engine.GRACE, memory) == [f"spt-flow-{ID}-home"]
    assert names(Listed([], [on_coder(volume("a", "docker"))]), TTL, Memory(lost=dict(memory.lost))) == []


def test_workspace_of_a_user_on_a_coder_server_is_kept() -> None:
    volumes = [on_coder(volume("a", "home")), on_coder(volume("a", "docker"))]
    memory = Memory()
    for listed in (Listed([on_coder(container("a", kind="dev"))], volumes), Listed([], volumes)):
        for after in (0.0, HOUR, 100 * 86400.0):
            assert names(listed, after, memory) == []
    renamed = Listed([on_coder(container("a"), Names=["/borrowed"])])
    assert names(renamed, 100 * 86400.0) == []
