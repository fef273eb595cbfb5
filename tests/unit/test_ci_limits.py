# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A hostile CI job cannot exhaust the runner: limits on its log, its files and its reports."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import DeadlineExceeded, FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import artifacts, job
from hypothesis import given, settings
from hypothesis import strategies as st

MIB = 1 << 20


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def peak_of(archive: Path, folder: Path) -> tuple[str, int, float]:
    """Unpack in a separate process; return its error, its peak memory in MiB, and its seconds."""
    program = (
        "import resource, sys, time\n"
        "from pathlib import Path\n"
        "from ansible_collections.spt.flow.plugins.plugin_utils._engine.ci import artifacts\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "begun, said = time.monotonic(), 'unpacked'\n"
        "try:\n"
        "    artifacts.unpack(Path(sys.argv[1]), Path(sys.argv[2]), artifacts.Limit(60))\n"
        "except Exception as error:\n"
        "    said = f'{type(error).__name__}: {error}'\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(said, (after - before) // 1024, time.monotonic() - begun, sep='\\n')\n"
    )
    path = next(entry for entry in sys.path if (Path(entry) / "ansible_collections/spt/flow").exists())
    argv = [sys.executable, "-c", program, str(archive), str(folder)]
    done = subprocess.run(argv, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=True)
    said, memory, seconds = done.stdout.splitlines()[-3:]
    return said, int(memory), float(seconds)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_long_name_of_300_mib_is_refused_without_reading_it(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "a.tar"
    with archive.open("wb") as file:
        file.write(header("././@LongLink", 300 * MIB, kind))
        file.truncate(300 * MIB + 512)
    said, memory, seconds = peak_of(archive, tmp_path)
    assert said == f"FlowError: the workspace sent a file name or header of {300 * MIB} bytes"
    assert memory < 100 and seconds < 2, (memory, seconds)


def test_many_long_names_in_a_row_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    one = header("././@LongLink", 512, tarfile.GNUTYPE_LONGNAME) + b"a" * 511 + b"\0"
    archive.write_bytes(one * 5000)
    said, memory, seconds = peak_of(archive, tmp_path)
    assert said.startswith("FlowError: the workspace sent a file name or header") and memory < 50 and seconds < 2


def test_million_tiny_files_stop_at_the_limit(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with archive.open("wb") as file:
        for start in range(0, 1_000_000, 10_000):
            file.write(b"".join(header(f"artifacts/{number}", 0) for number in range(start, start + 10_000)))
            if start >= 30_000:
                break  # The rest is never read.
        file.truncate(1_000_000 * 512)
    begun = time.process_time()
    with pytest.raises(FlowError, match="more than 20000 files"):
        artifacts.unpack(archive, tmp_path / "out", artifacts.Limit(600))
    assert time.process_time() - begun < 30


def pack(archive: Path, *names: str) -> None:
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))


@pytest.mark.parametrize(
    "name", ["artifacts/" + "d/" * 5000 + "x", "artifacts/" + "d/" * 100 + "x", "artifacts/" + "é" * 600]
)
def test_long_and_deep_names_are_refused(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "a.tar", name)
    with pytest.raises(FlowError):
        artifacts.unpack(tmp_path / "a.tar", tmp_path / "out", artifacts.Limit(60))
    assert not (tmp_path / "out").exists()


def test_long_names_within_the_limit_are_kept(tmp_path: Path) -> None:
    name = "artifacts/" + "/".join(["d" * 100] * 8) + "/ü"
    pack(tmp_path / "a.tar", name)
    assert artifacts.unpack(tmp_path / "a.tar", tmp_path / "out", artifacts.Limit(60)) == [name]


def test_unpacking_times_out(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", "artifacts/a")
    with pytest.raises(DeadlineExceeded):
        artifacts.unpack(tmp_path / "a.tar", tmp_path / "out", artifacts.Limit(-1))


def test_packing_command_that_closes_its_output_and_stays_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "LAST_SECONDS", 1.0)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="did not end"):
        artifacts.fetch(["sh", "-c", "exec >&- 2>&-; exec sleep 60"], tmp_path, 30)
    assert time.monotonic() - begun < 20


def test_refused_stream_leaves_nothing(tmp_path: Path) -> None:
    stream = tmp_path / "stream"
    pack(stream, "artifacts/good", "artifacts/../../evil")
    with pytest.raises(FlowError, match="not a regular file"):
        artifacts.fetch(["cat", str(stream)], tmp_path, 30)
    assert [path.name for path in tmp_path.iterdir()] == ["stream"]


def test_messages_of_the_packing_command_are_cleaned_and_limited(tmp_path: Path) -> None:
    pack(tmp_path / "stream", "artifacts/a")
    noise = (
        "i=0; while [ $i -lt 99 ]; do printf 'note: \\033]0;x\\007hello\\033[2J\\n' >&2; i=$((i+1)); done; cat \"$0\""
    )
    found = artifacts.fetch(["sh", "-c", noise, str(tmp_path / "stream")], tmp_path, 30)
    assert found.notes == ["hello."] * artifacts.MOST_NOTES


# Reports

CASES = "<testcase/><testcase><failure/><failure/></testcase><testcase><skipped/><a><error/></a></testcase>"
REPORT = f'<testsuites><testsuite name="a">{CASES}</testsuite></testsuites>'
COUNTS = {"tests": 3, "failures": 1, "errors": 0, "skipped": 1}
BOMB = "<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;'>]>"
EXTERNAL = "<!DOCTYPE x SYSTEM 'file:///etc/passwd'>"


def counted(tmp_path: Path, data: bytes) -> dict[str, int] | str:
    path = tmp_path / "x.xml"
    path.write_bytes(data)
    try:
        return artifacts.junit(path, artifacts.Limit(300))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (REPORT.encode(), COUNTS),
        (f'<?xml version="1.0" encoding="UTF-8"?>\n{REPORT}'.encode(), COUNTS),
        (f"\ufeff<?xml version='1.0' encoding='utf-8'?>{REPORT}".encode(), COUNTS),
        (f"<?xml version='1.0' encoding='us-ascii'?>{REPORT}".encode(), COUNTS),
        ("<testsuite><testcase name='ü'/></testsuite>".encode(), {**COUNTS, "tests": 1, "failures": 0, "skipped": 0}),
        (f"<?xml version='1.0' encoding='UTF-16'?>{BOMB}{REPORT}".encode("utf-16"), "it is not UTF-8"),
        (f"<?xml version='1.0' encoding='UTF-16'?>{BOMB}{REPORT}".encode("utf-16-be"), "it is not UTF-8"),
        (f"{REPORT}".encode("utf-16-le"), "it is not UTF-8"),
        (f"{REPORT}".encode("utf-32"), "it is not UTF-8"),
        (f"<?xml version='1.0' encoding='ISO-8859-1'?>{REPORT}".encode("latin-1"), "it is not UTF-8"),
        (f"<?xml version='1.0' encoding='UTF-7'?>{REPORT}".encode("utf-7"), "it is not UTF-8"),
        (b"<testsuite>\xff</testsuite>", "it is not UTF-8"),
        (f"{BOMB}{REPORT}".encode(), "it declares a document type or entities"),
        (f"{EXTERNAL}{REPORT}".encode(), "it declares a document type or entities"),
        (b"<testsuite>&undefined;</testsuite>", "it is not valid XML"),
        (b"<testsuite>", "it is not valid XML"),
        (b"", "it is not valid XML"),
        (b"<testsuite>\0</testsuite>", "it is not UTF-8"),
        (b"<html/>", "it is not a JUnit report"),
        (b"<testsuite>" + b"<a>" * 1_000_000, "it holds more than 64 levels or 2000000 elements"),
        (b"<testsuite>" + b"<a/>" * 2_100_000, "it holds more than 64 levels or 2000000 elements"),
        (b"<testsuite>" + b" " * (33 * MIB) + b"</testsuite>", "it is larger than 32 MiB"),
    ],
    ids=range(22),
)
def test_report_is_counted_or_refused_with_a_reason(tmp_path: Path, data: bytes, found: dict[str, int] | str) -> None:
    assert counted(tmp_path, data) == found


@settings(max_examples=100, deadline=None, database=None)
@given(st.binary(max_size=200) | st.text(alphabet="<>/!?[]&; testsuite='\"DOCTYPEN-", max_size=60).map(str.encode))
def test_any_bytes_are_counted_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    assert counted(tmp_path_factory.mktemp("xml"), data)


def test_counting_times_out(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(REPORT)
    with pytest.raises(DeadlineExceeded):
        artifacts.junit(tmp_path / "x.xml", artifacts.Limit(-1))


def test_missing_package_is_reported_only_where_reports_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "defusedxml"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "defusedxml", None)
    with pytest.raises(FlowError, match="defusedxml is missing") as caught:
        artifacts.check_reader()
    assert "pip install defusedxml" in caught.value.hint
    pack(tmp_path / "stream", "artifacts/a")
    assert artifacts.fetch(["cat", str(tmp_path / "stream")], tmp_path, 30).files == ["artifacts/a"]


# The log


@pytest.fixture
def log(tmp_path: Path) -> job.Log:
    return job.Log(tmp_path / "job.log")


def test_log_of_100_mib_keeps_its_beginning_and_end(tmp_path: Path, log: job.Log) -> None:
    lines = 100 * MIB // 1000
    shown = sum(log.add(f"{number:08d} {'x' * 990}") for number in range(lines))
    assert log.last(2)[-1].startswith(f"{lines - 1:08d} ")
    log.close()
    data = (tmp_path / "job.log").read_bytes()
    assert len(data) < 33 * MIB and 15 * MIB < shown * 1000 <= 16 * MIB
    kept = data.splitlines()
    assert kept[0].startswith(b"00000000 ") and kept[-1].startswith(f"{lines - 1:08d} ".encode())
    (mark,) = [line for line in kept if line.startswith(b"[spt.flow] ")]
    assert mark == f"[spt.flow] {log.cut} bytes of output were cut here.".encode()
    assert len(data) - len(mark) - 1 + log.cut == lines * 1000


def test_short_log_is_kept_whole(tmp_path: Path, log: job.Log) -> None:
    assert all(log.add(f"line {number}") for number in range(1000)) and not log.cut and not log.last(5)
    log.close()
    assert (tmp_path / "job.log").read_text().splitlines() == [f"line {number}" for number in range(1000)]


def said_by(script: str, *secrets: str) -> tuple[int | None, list[str]]:
    told: list[str] = []
    argv = ["sh", "-c", job.remote_command("/")]
    stdin = job.payload(script, {})
    status = job.run(argv, stdin, job.Mask(secrets), told.append, lambda: False).status
    return status, [line for text in told for line in text.split("\n")]


def test_output_of_a_job_is_cleaned() -> None:
    script = r"printf '\033]0;title\007a\033[2Jb\033[31mc\033[0m\n\tindented\r\n\233bad"
    script += r"\302\2332Jx\342\200\256y\n10%%\r20%%\n'"
    assert said_by(script) == (0, ["abc", "\tindented", "\ufffdbadx?y", "10% 20%"])


def test_secret_with_an_escape_sequence_inside_is_hidden() -> None:
    assert said_by(r"printf 's3\033[0mcret\ns3cret\n'", "s3cret") == (0, ["***", "***"])


@pytest.mark.parametrize("status", ["9" * 5000, "1000", "-1", ""])
def test_invalid_exit_status_is_not_accepted(status: str) -> None:
    script = f"printf '\\nspt-flow-ci-status {status}\\n' >/proc/$PPID/fd/2; exit 3"
    assert said_by(script)[0] == 3


def test_progress_messages_are_cleaned() -> None:
    argv = ["sh", "-c", r"printf '\033]0;x\007no\033[2J route\n' >&2; exit 255"]
    assert job.run(argv, b"", job.Mask([]), str, lambda: False).words == ["no route"]


def test_slow_input_does_not_hide_the_messages_of_a_connection_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(child: subprocess.Popen[bytes], data: bytes) -> None:
        assert child.stdin is not None
        child.stdin.write(data)
        time.sleep(0.5)
        with contextlib.suppress(OSError):
            child.stdin.close()

    monkeypatch.setattr(job.child_process, "feed", feed)
    argv = ["sh", "-c", "exec <&-; echo 'no route' >&2; exit 255"]
    assert job.run(argv, b"true", job.Mask([]), str, lambda: False).words == ["no route"]
