# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files, programs and times: what all of the node library uses."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import atomic, clock, process


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("content", ["text \udcff", b"bytes"])
def test_file_is_replaced_with_its_mode(tmp_path, content, durable):
    path = tmp_path / "file"
    path.write_text("old")
    atomic.write(path, content, 0o640, durable)
    assert path.read_bytes() == (content if isinstance(content, bytes) else b"text \xff")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        atomic.write(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_readers_never_see_a_part(tmp_path):
    path = tmp_path / "file"
    texts = {letter * 200_000 for letter in "ab"}
    atomic.write(path, "a" * 200_000)
    writers = [threading.Thread(target=lambda t=t: [atomic.write(path, t) for _ in range(20)]) for t in texts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["file"]


def test_missing_folder_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic.write(tmp_path / "none/file", "x")


def test_program_gets_no_input_and_speaks_english(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    done = process.run(
        "sh", "-c", "cat; echo $LC_ALL $EXTRA; printf '\\377' >&2; exit 3", env={"EXTRA": "more"}, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "C more\n", "\ufffd")


def test_program_that_is_missing_or_hangs_is_a_status():
    assert process.ask("/no/such/program")[:2] == (127, "")
    began = time.monotonic()
    assert process.ask("sleep", "60", timeout=0.2)[0] == 127
    assert time.monotonic() - began < 20
    assert process.succeeds("true") and not process.succeeds("false") and not process.succeeds("/no/such/program")
    with pytest.raises(subprocess.TimeoutExpired):
        process.run("sleep", "60", timeout=0.2)


@pytest.mark.parametrize(
    ("date", "moment"),
    [("Thu, 01 Jan 1970 00:01:40 GMT", 100.0), ("", None), ("yesterday", None), ("Thu, 99 Foo 1970", None)],
)
def test_time_of_an_answer(date, moment):
    assert clock.from_header(date) == moment
