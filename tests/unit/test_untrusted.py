# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values that a hostile workspace reports: they are cleaned, typed and limited, and harm no other workspace."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import action as ansible_action
from ansible_collections.spt.flow.plugins.plugin_utils._ansible import results as ansible_results
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import parse as coder_parse
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.jobs import last_lines
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common import child, untrusted
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Lines, Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.parse import from_container, with_events
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.session import to_session
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker.target import DockerTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace import forwarding, readiness, report
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import STATES, Workspace
from ansible_collections.spt.flow.tests.unit.fake_target import ready_lines, start_event
from hypothesis import given, settings
from hypothesis import strategies as st

quick = settings(max_examples=200, deadline=None, database=None)
NOW = 1_780_000_000.0
DANGEROUS = [
    "\x1b",
    "\x9b",
    "\x9d",
    "\x90",
    "\x07",
    "\x08",
    "\r",
    "\n",
    "\0",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u200f",
    "\ud800",
]
hostile_text = st.lists(
    st.one_of(
        st.sampled_from(
            [*DANGEROUS, "[2J", "]0;title", "]52;c;aGk=", "P1$r", "\\", "\x1b[31m", "\x1b]8;;http://x\x1b\\"]
        ),
        st.text(max_size=8),
    ),
    max_size=12,
).map("".join)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1, 2**63]),
    hostile_text,
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hostile_text, inner, max_size=4), max_leaves=12
)


def as_json(value: Any) -> str:
    """Return ``value`` as a hostile program writes it, with JavaScript's NaN and Infinity."""
    return json.dumps(value)


def assert_clean(text: str) -> None:
    assert text.isprintable() and not any(char in text for char in DANGEROUS)


@pytest.mark.parametrize(
    ("given_", "clean"),
    [
        ("plain ünïcode 漢字 🙂", "plain ünïcode 漢字 🙂"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x1b[31;1mred\x1b[0m", "red"),
        ("\x9b2Jgone", "gone"),
        ("\x1b]0;title\x07rest", "rest"),
        ("\x1b]52;c;cm0gLXJm\x1b\\rest", "rest"),
        ("\x9d52;c;cm0gLXJm\x9crest", "rest"),
        ("\x1bP1$r0m\x1b\\rest", "rest"),
        ("\x1b_apc\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\rest", "rest"),
        ("\x1b]0;never ended", ""),
        ("\x1b[", ""),
        ("\x1b", ""),
        ("\x1b]0;a\x1b[2Jb", "b"),
        ("\x1b(0lqk\x1b(B", "lqk"),
        ("\x1bc", ""),
        ("a\rb\nc\td", "a b c d"),
        ("a\x08\x08\x00b\x7f", "a???b?"),
        ("user\u202egpj.exe\u2066x\u2069", "user?gpj.exe?x?"),
        ("\ud800", "?"),
        (b"caf\xc3\xa9 \xff\x9b2J", "café \ufffd\ufffd2J"),
        (b"\xc2\x9b2Jx", "x"),
        ("x" * 5000, "x" * 3999 + "…"),
        ("\x1b[0m" * 100_000, "…"),
        *((value, "") for value in (None, 7, 1.5, True, ["x"], {"x": 1})),
    ],
)
def test_line_is_printable_and_short(given_: Any, clean: str) -> None:
    assert untrusted.line(given_) == clean


@quick
@given(hostile_text | st.binary(max_size=100))
def test_any_line_becomes_printable(value: Any) -> None:
    assert_clean(untrusted.line(value))
    assert untrusted.line(untrusted.line(value)) == untrusted.line(value)
    assert_clean(untrusted.output(value).replace("\t", ""))


@quick
@given(hostile_text)
def test_text_keeps_only_line_ends(value: str) -> None:
    cleaned = untrusted.text(value)
    assert_clean(cleaned.replace("\n", "").replace("\t", ""))
    assert cleaned.count("\n") == value.count("\n")


def test_cleaning_takes_linear_time() -> None:
    begun = time.monotonic()
    for piece in ("\x1b", "\x1b[", "\x1b]", "\x9d", "\x1b[;", "\x1bP\x1b"):
        untrusted.text(piece * 500_000)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("value", "known"),
    [
        (0, 0.0),
        (1.5, 1.5),
        (NOW, NOW),
        *((bad, None) for bad in (True, "1", None, [], {}, -1, math.nan, math.inf, -math.inf, 1e400, 1e300, 10**400)),
    ],
)
def test_moment_is_a_valid_calendar_time(value: Any, known: float | None) -> None:
    assert untrusted.moment(value) == known


@pytest.mark.parametrize("text", ["1\u00b2", "\u0661", "-1", "+1", " 1", "1" * 5000, 7, None, "", "1e3"])
def test_digits_are_ascii_and_few(text: Any) -> None:
    assert untrusted.digits(text) is None
    assert untrusted.digits("1700000000") == 1_700_000_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "{} {}",
        '{"a": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 40 + "]" * 40,
        '"' + "x" * (1 << 20) + '"',
        b"\xff\xfe{\x00}\x00",
    ],
)
def test_bad_json_is_refused(text: Any) -> None:
    with pytest.raises(ValueError):
        untrusted.parse(text)


def event(kind: str, **values: Any) -> str:
    return as_json({"spt_flow": 1, "event": kind, **values})


HOSTILE_EVENTS = [
    event(
        "life",
        reason="\x1b]0;pwned\x07busy\x1b[2J",
        stops_at=NOW + 60,
        keepalive_by="\x9b31m\u202eevil",
        keepalive_until=NOW + 50,
    ),
    event("life", reason="busy", stops_at="soon"),
    event("life", reason="busy", stops_at=1e308),
    '{"spt_flow": 1, "event": "life", "reason": "busy", "stops_at": 1e400}',
    '{"spt_flow": 1, "event": "life", "reason": "busy", "stops_at": NaN}',
    event("life", reason="busy", stops_at=-1),
    event("life", reason="busy", stops_at=[1]),
    event("life", reason={"a": 1}, stops_at=NOW),
    event("life", reason="x" * 100_000, stops_at=NOW),
    event("life", reason="busy", keepalive_until="later"),
    event("step", step="ide", state="failed", detail="\x1b]52;c;aGk=\x07no\x1b[8m"),
    event("step", step="\x1b[2J", state="failed", detail="x"),
    event("step", step="ide", state="\x1b[2J"),
    event("step", step=["ide"], state="ok"),
    event("step", step="ide", state="ok", started="x", ended={}),
    event("start", boot=["x"]),
    event("\x1b[2J"),
    '{"spt_flow": 1, "event": "step", "step": ' + "[" * 50_000,
    '{"spt_flow": 1, "event": "step"' + " " * 200_000 + "}",
    "\x1b]0;not an event\x07plain",
]


def shown(lines: list[str]) -> list[str]:
    """Return what ``status`` prints of a workspace with this log, and of its neighbour."""
    bad = Workspace("ada", "bad", "example.com/o/bad", state="running", started=NOW - 60)
    good = with_events(
        Workspace("ada", "good", "example.com/o/good", state="running", started=NOW - 60), ready_lines("b")
    )
    return report.status([with_events(bad, lines), good], 300, NOW)


@pytest.mark.parametrize("hostile", HOSTILE_EVENTS)
def test_bad_workspace_harms_no_other_in_status(hostile: str) -> None:
    lines = shown([*ready_lines("b"), hostile])
    for text in lines:
        assert_clean(text)
    assert "never" not in lines[1]
    assert "just started" in lines[2]


@pytest.mark.parametrize("value", ["soon", 1e308, math.nan, math.inf, -5, [1], {"a": 1}, True])
def test_status_shows_a_question_mark_for_an_invalid_time(value: Any) -> None:
    row = shown([*ready_lines("b"), event("life", reason="busy", stops_at=value)])[1]
    assert row.split()[-3:-1] == ["?", "?"], row


@quick
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                [
                    "spt_flow",
                    "event",
                    "step",
                    "state",
                    "started",
                    "ended",
                    "detail",
                    "reason",
                    "since",
                    "stops_at",
                    "keepalive_until",
                    "keepalive_by",
                    "boot",
                ]
            ),
            anything | st.sampled_from([1, "life", "step", "start", "ide", "failed"]),
            max_size=8,
        ),
        max_size=5,
    )
)
def test_no_event_breaks_status(events: list[dict[str, Any]]) -> None:
    lines = [as_json({"spt_flow": 1, "event": "life", **event}) for event in events]
    for text in shown([start_event("b"), *lines]):
        assert_clean(text)


@quick
@given(
    st.dictionaries(
        st.sampled_from(["ide", "steps", "life", "directory", "ports", "host_key", "reason"]), anything, max_size=7
    )
)
def test_no_session_file_reaches_the_terminal_uncleaned(data: dict[str, Any]) -> None:
    try:
        session = to_session("http://127.0.0.1:1/", as_json(data))
    except ValueError:
        return
    for text in (
        session.password,
        session.host_key,
        session.directory,
        session.clone,
        session.dotfiles,
        *session.refused_ports,
    ):
        assert_clean(text)
    assert session.clone in ("", *STATES) and session.dotfiles in ("", *STATES)
    assert len(session.ports) <= 32 and all(isinstance(port, int) for port in session.ports)


def test_number_and_length_of_steps_are_limited() -> None:
    watch = readiness.Watch(Progress())
    watch.feed(start_event("b"))
    for number in range(5000):
        watch.feed(event("step", step=f"s{number}", state="ok"))
    assert len(watch.steps) == readiness.MOST_STEPS


def test_notes_of_the_start_script_are_kept_clean_and_bounded() -> None:
    watch = readiness.Watch(Progress())
    for number in range(50):
        watch.feed(event("note", text=f"The node has no /dev/kvm.\x1b[31m {number}"))
    watch.feed(start_event("b"))
    workspace = watch.apply(Workspace("ada", "demo", ""))
    assert len(workspace.notes) == readiness.MOST_NOTES
    assert_clean(" ".join(workspace.notes))


# Ports


def test_many_ports_are_limited_and_well_known_ones_refused() -> None:
    asked = [*range(20_000, 20_400), 5432, 6379, 2375, 6443, 80]
    ports, refused = forwarding.chosen([5432, 6379, 2375, 6443, 6000, 5901, 9229, 80, *asked])
    assert ports == tuple(range(20_000, 20_032))
    assert refused[:3] == ("5432 (the port of PostgreSQL)", "6379 (the port of Redis)", "2375 (the port of Docker)")
    assert refused[-1].endswith(" more")


@pytest.mark.parametrize("port", [3000, 3001, 4200, 5000, 5173, 8000, 8080, 8081, 8888, 9000])
def test_ports_of_web_applications_are_forwarded(port: int) -> None:
    assert forwarding.chosen([port]) == ((port,), ())


@pytest.mark.parametrize(
    "port",
    [1433, 1521, 2375, 2376, 2379, 3306, 3389, 4566, 5005, 5037, 5432, 5678, 5901, 6000, 6379, 6443, 8085, 9042, 9092]
    + [9200, 9222, 9229, 10000, 10250, 11211, 27017],
)
def test_port_of_a_well_known_service_is_refused(port: int) -> None:
    assert forwarding.chosen([port])[0] == ()


def test_only_ports_of_devcontainer_json_are_forwarded() -> None:
    assert forwarding.chosen([3000, 3001], asked=[3000]) == (
        (3000,),
        ("3001 (devcontainer.json does not request it)",),
    )


@quick
@given(anything)
def test_any_reported_ports_are_safe(value: Any) -> None:
    ports, refused = forwarding.chosen(value)
    assert len(ports) <= 32 and len(set(ports)) == len(ports)
    assert all(1024 <= port <= 65535 and not forwarding.service(port) for port in ports)
    for text in refused:
        assert_clean(text)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ('// a\n{"forwardPorts": [3000, "localhost:3001", "db:3002", true, 1e400,], /* b */}', {3000, 3001}),
        ("{}", set()),
        ('{"forwardPorts": "3000"}', set()),
        ("[" * 10_000, None),
        ("x" * 300_000, None),
        ("\ufeff{", None),
    ],
)
def test_ports_of_a_local_repository_are_known(tmp_path: Path, text: str, asked: set[int] | None) -> None:
    assert forwarding.requested_ports(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert forwarding.requested_ports(tmp_path) == set()
    (tmp_path / ".devcontainer.json").write_text(text)
    assert forwarding.requested_ports(tmp_path) == asked


# Sources of reports


def test_log_lines_of_an_engine_are_cleaned_and_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    target = DockerTarget("unix:///nowhere")
    blocks = [b"\x1b]0;x\x07one\r\ntw\x1b[2", b"Jo\tx\n", b"y" * 200_000, b"\n\xff\x9b2Jlast"]
    monkeypatch.setattr(target._engine, "request", lambda *args, **more: (io.BytesIO(), None))
    monkeypatch.setattr(target._engine, "frames", lambda answer: iter([(1, block) for block in blocks]))
    lines = list(target.logs(Workspace("ada", "demo", "", id="c1")))
    assert lines[:2] == ["one", "two\tx"] and lines[-1] == "\ufffd\ufffd2Jlast"
    assert all(len(line) <= untrusted.LONGEST_LINE for line in lines)


def test_labels_are_cleaned() -> None:
    labels = {"spt.flow.owner": "ada", "spt.flow.workspace": "demo", "spt.flow.repo": "\x1b[2Jexample.com/o/r"}
    entry = {"Id": "c1", "Names": ["/spt-flow-ada-demo"], "State": "running", "Status": "Up 1 minute"}
    for deadline, known in (("1700000000", 1_700_000_000), ("\u00b2", None), ("9" * 5000, None)):
        found = from_container({**entry, "Labels": {**labels, "spt.flow.deadline": deadline}}, NOW)
        assert found is not None and (found.repo, found.deadline) == ("example.com/o/r", known)


def test_output_of_a_command_is_cleaned_line_by_line() -> None:
    said: list[str] = []
    script = r"printf '\033]52;c;aGk=\007one\n'; head -c 200000 /dev/zero | tr '\0' x"
    assert ansible_action.stream(["sh", "-c", script], said.append) == 0
    assert said[0] == "one" and max(map(len, said)) <= untrusted.LONGEST_LINE and sum(map(len, said)) == 200_003


def test_stored_output_is_limited() -> None:
    lines = Lines(lambda text: None, batch=False)
    for _ in range(1000):
        lines.add("x" * 60_000)
    assert sum(map(len, lines.kept)) <= 16 << 20


def test_error_of_an_action_is_cleaned() -> None:
    result = ansible_results.failed(FlowError("Step ide failed: \x1b[2J\u202eno.", "Last lines:\n\x1b]0;x\x07a\n\tb"))
    assert result["error"]["message"] == "Step ide failed: ?no." and result["error"]["hint"] == "Last lines:\na\n\tb"


def test_metadata_of_a_coder_workspace_are_cleaned() -> None:
    item = {"key": "repo", "value": "\x1b[2Jhttps://example.com/o/r\u202e"}
    deadline = {"key": "deadline", "value": "\x1b[2Jsoon"}
    found = {"latest_build": {"resources": [{"metadata": [item, deadline]}]}}
    assert coder_parse.metadata(found) == {"repo": "https://example.com/o/r?", "deadline": "soon"}
    for text in ("soon", "9999-99-99T00:00:00Z", "1" * 5000, "2026-01-01"):
        assert coder_parse.seconds(text) is None or text == "2026-01-01"


def test_lines_of_a_build_are_cleaned() -> None:
    line = {"output": "\x1b[31mError:\x1b]0;x\x07 no\u202e", "log_level": "error"}
    client = SimpleNamespace(http=SimpleNamespace(clean=lambda text: text))
    assert last_lines(client, [line], 5) == ["Error: no?"]


def test_unreadable_coder_workspace_is_listed_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"template_name": "spt-flow", "id": "1", "name": "\x1b[2Jbad", "owner_name": "eve", "latest_build": "soon"}
    client = SimpleNamespace(
        http=SimpleNamespace(config=SimpleNamespace(url="https://coder.example.com"), server_clock=NOW),
        app_host=lambda: "",
        workspaces=lambda query: [[bad, {"template_name": 7}, {**bad, "name": None}]],
    )
    found = CoderTarget(client).list()
    assert [(w.name, w.owner, w.state) for w in found] == [("bad", "eve", "unknown"), ("?", "eve", "unknown")]
    for text in report.status(found, 300, NOW):
        assert_clean(text)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("yes", "printed more than 16 MiB"),
        ("yes >&2", "printed more than 16 MiB"),
        ("sleep 60", "did not end within 2 s"),
        ("exec 2>&1; trap '' TERM; sleep 60", "did not end within 2 s"),
    ],
)
def test_output_and_time_of_a_command_are_limited(script: str, said: str) -> None:
    begun = time.monotonic()
    with pytest.raises(FlowError, match=said):
        child.run(["bash", "-c", f"exec {script}" if script[0] in "ys" else script], b"", 2)
    assert time.monotonic() - begun < 15
    assert child.run(["sh", "-c", "cat; echo no >&2; exit 3"], b"x" * 100_000, 20) == (3, b"x" * 100_000, b"no\n")


def test_endless_docker_exec_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = docker_http.connect("unix:///nowhere")
    frame = b"\1\0\0\0" + (32768).to_bytes(4, "big") + b"x" * 32768
    source = io.BufferedReader(Endless(frame))
    answer = SimpleNamespace(status=200, read=source.read)
    monkeypatch.setattr(engine, "request_json", lambda *args, **more: {"Id": "e1"})
    monkeypatch.setattr(engine, "request", lambda *args, **more: (SimpleNamespace(close=lambda: None), answer))
    with pytest.raises(FlowError, match="printed more than 16 MiB"):
        engine.run("c1", ["cat"])


class Endless(io.RawIOBase):
    """Returns ``data`` endlessly."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        self._rest = self._rest or self._data
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
