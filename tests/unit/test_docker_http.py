# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The small Docker client against a server with scripted answers."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.docker import versions as docker_versions
from ansible_collections.spt.flow.plugins.module_utils._node.errors import (
    Conflict,
    DeadlineExceeded,
    FlowError,
    NotFound,
    Unhealthy,
)

Answer = Callable[[socket.socket, bytes], None]


@contextmanager
def engine(folder: Path, *answers: Answer | bytes) -> Iterator[tuple[docker_http.Engine, list[bytes]]]:
    """An engine that gives its n-th connection the n-th answer, the last one to all others; and the requests it got."""
    path, asked = str(folder / "e.sock"), []
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(8)

    def request(client: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += client.recv(65536) or b"\r\n\r\n"
        head, _, body = data.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
        while len(body) < length:
            body += client.recv(65536)
        return head + b"\r\n\r\n" + body

    def serve() -> None:
        for number in range(100):
            try:
                client, _address = server.accept()
            except OSError:
                return
            with client:
                try:
                    asked.append(request(client))
                    answer = answers[min(number, len(answers) - 1)]
                    client.sendall(answer) if isinstance(answer, bytes) else answer(client, asked[-1])
                except OSError:
                    continue

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield docker_http.connect(f"unix://{path}"), asked
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def reply(status: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(data)) + data


def test_json_and_query_are_encoded(tmp_path):
    with engine(tmp_path, reply("200 OK", b'{"a": [1]}')) as (client, asked):
        found = client.get_json("/containers/json", {"all": True, "filters": {"label": ["x=y"]}, "tail": 3})
    assert found == {"a": [1]}
    line = asked[0].split(b"\r\n")[0].decode()
    assert line == "GET /v1.41/containers/json?all=true&filters=%7B%22label%22%3A+%5B%22x%3Dy%22%5D%7D&tail=3 HTTP/1.1"


def versioned(oldest: str, newest: str) -> Answer:
    """An engine that supports these API versions and refuses others with Docker's messages."""

    def answer(client: socket.socket, request: bytes) -> None:
        spoken = request.split(b" ")[1].decode().removeprefix("/v").partition("/")[0]
        minor = int(spoken.partition(".")[2])
        refusal = ""
        if minor < int(oldest.partition(".")[2]):
            refusal = f"client version {spoken} is too old. Minimum supported API version is {oldest}, please upgrade"
        elif minor > int(newest.partition(".")[2]):
            refusal = f"client version {spoken} is too new. Maximum supported API version is {newest}"
        body = json.dumps({"message": refusal} if refusal else {"spoken": spoken})
        status = "400 Bad Request" if refusal else "200 OK"
        head = f"HTTP/1.1 {status}\r\nApi-Version: {newest}\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body.encode())

    return answer


@pytest.mark.parametrize(
    ("oldest", "newest", "spoken", "requests"),
    [
        pytest.param("1.12", "1.41", "1.41", 2, id="docker-20.10"),
        pytest.param("1.24", "1.51", "1.41", 2, id="docker-28"),
        pytest.param("1.44", "1.52", "1.44", 3, id="docker-29"),
        pytest.param("1.60", "1.63", "1.63", 4, id="later"),
    ],
)
def test_api_version_is_negotiated_without_an_extra_request(tmp_path, oldest, newest, spoken, requests):
    with engine(tmp_path, versioned(oldest, newest)) as (client, asked):
        assert client.request_json("POST", "/containers/create", body={"Image": "x"}) == {"spoken": spoken}
        assert client.get_json("/info") == {"spoken": spoken}
    assert len(asked) == requests
    assert all(b'{"Image": "x"}' in request for request in asked[:-1]), "the body is sent again"


@pytest.mark.parametrize(
    ("status", "said", "newest"),
    [
        (400, "client version 1.41 is too new. Maximum supported API version is 1.40", "1.40"),
        (400, "client version 1.41 is too old.", ""),
        (400, "client version 1.41 is too old.", "a.b"),
        (400, "client version 1.41 is too old.", "1.41"),
        (400, "invalid reference format", "1.52"),
        (500, "client version 1.41 is too old.", "1.52"),
    ],
)
def test_other_refusals_keep_the_version(status, said, newest):
    assert docker_versions.after_refusal("1.41", status, said, newest) == ""


def test_body_is_json_or_a_tar(tmp_path):
    with engine(tmp_path, reply("201 Created", b"{}")) as (client, asked):
        client.request_json("POST", "/volumes/create", body={"Name": "x"})
        client.request_json("PUT", "/containers/x/archive", body=b"tar")
    assert b"Content-Type: application/json" in asked[0] and asked[0].endswith(b'{"Name": "x"}')
    assert b"Content-Type: application/x-tar" in asked[1] and asked[1].endswith(b"tar")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "200 OK"])
def test_missing_answer_is_none(tmp_path, status):
    with engine(tmp_path, reply(status)) as (client, _asked):
        assert client.request_json("POST", "/containers/x/start") is None


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        ("404 Not Found", NotFound, 6),
        ("409 Conflict", Conflict, 7),
        ("500 Oh", FlowError, 1),
        ("400 Bad", FlowError, 1),
    ],
)
def test_refusals_repeat_the_message_of_the_engine(tmp_path, status, kind, code):
    server = engine(tmp_path, reply(status, b'{"message": "no such thing"}'))
    with server as (client, _asked), pytest.raises(FlowError) as caught:
        client.get_json("/containers/x/json")
    error = caught.value
    assert type(error) is kind and error.code == code
    assert error.message == "The Docker engine refused GET /containers/x/json: no such thing."
    assert error.details == {"status": int(status.split()[0]), "said": "no such thing"}


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"other": 1}', b"\xff\xfe"])
def test_refusals_without_a_message_are_described(tmp_path, body):
    with engine(tmp_path, reply("502 Bad Gateway", body)) as (client, _asked), pytest.raises(FlowError) as caught:
        client.get_json("/info")
    assert "refused GET /info" in caught.value.message and caught.value.details["status"] == 502


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"",
        b"nonsense\r\n\r\n",
        reply("200 OK", b"not JSON"),
        reply("200 OK", b"\xff\xfe"),
        b"HTTP/1.1 500 Oh\r\nContent-Length: 100\r\n\r\n{",
    ],
    ids=["truncated", "truncated chunk", "nothing", "no HTTP", "no JSON", "no text", "truncated refusal"],
)
def test_broken_answers_are_unhealthy(tmp_path, answer):
    with engine(tmp_path, answer) as (client, _asked), pytest.raises(Unhealthy) as caught:
        client.get_json("/info")
    assert str(tmp_path) in caught.value.message and caught.value.hint


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"], ids=["no head", "no body"])
def test_slow_answers_time_out(tmp_path, head):
    def slow(client: socket.socket, request: bytes) -> None:
        client.sendall(head)
        time.sleep(1)

    begun = time.monotonic()
    with engine(tmp_path, slow) as (client, _asked), pytest.raises(DeadlineExceeded) as caught:
        client.get_json("/info", timeout=0.2)
    assert time.monotonic() - begun < 0.9
    assert caught.value.code == 5 and "in time" in caught.value.message


def test_unreachable_engine_is_reported(tmp_path):
    with pytest.raises(Unhealthy) as caught:
        docker_http.connect(f"unix://{tmp_path}/none").get_json("/info")
    assert caught.value.code == 8 and "No such file" in caught.value.message


def test_tcp_is_supported(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: _once(server), daemon=True).start()
        client = docker_http.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        assert client.get_json("/version") == {"ok": True} and not client.local


def _once(server: socket.socket) -> None:
    client, _address = server.accept()
    with client:
        client.recv(65536)
        client.sendall(reply("200 OK", b'{"ok": true}'))


def test_docker_host_and_default_are_used(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    assert docker_http.connect().host == "tcp://10.0.0.1:2375"
    monkeypatch.setenv("DOCKER_HOST", "")
    assert docker_http.connect().host == docker_http.DEFAULT_HOST and docker_http.connect().local


def test_ssh_uses_the_helper_of_docker(tmp_path, monkeypatch):
    """`ssh` is a stand-in that records its arguments and connects to a real socket."""
    words = tmp_path / "words"
    program = tmp_path / "ssh"
    program.write_text(
        f'#!/usr/bin/env python3\nimport sys\nopen({str(words)!r}, "w").write("\\n".join(sys.argv[1:]))\n'
        "data = b''\nwhile b'\\r\\n\\r\\n' not in data: data += sys.stdin.buffer.read1()\n"
        'sys.stdout.buffer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")\nsys.stdout.flush()\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert docker_http.connect("ssh://me@far.example:2222").get_json("/info") == {}
    said = words.read_text().split("\n")
    assert said[-5:] == ["--", "me@far.example", "docker", "system", "dial-stdio"] and "2222" in said


def test_log_frames_are_joined(tmp_path):
    data = frame(1, b"out\n") + frame(2, b"err\n") + frame(1, b"") + frame(1, b"x" * 100_000)
    with engine(tmp_path, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + data) as (client, _asked):
        connection, answer = client.request("GET", "/containers/x/logs")
        found = list(client.frames(answer))
        connection.close()
    assert found == [(1, b"out\n"), (2, b"err\n"), (1, b""), (1, b"x" * 100_000)]


def test_truncated_frames_end_the_log(tmp_path):
    data = frame(1, b"whole\n") + frame(1, b"cut off")[:-3]
    with engine(tmp_path, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + data) as (client, _asked):
        connection, answer = client.request("GET", "/containers/x/logs")
        found = list(client.frames(answer))
        connection.close()
    assert found[0] == (1, b"whole\n") and len(found) <= 2


def test_frames_of_a_broken_answer_are_unhealthy(tmp_path):
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nab"
    with engine(tmp_path, answer) as (client, _asked):
        connection, stream = client.request("GET", "/containers/x/logs")
        with pytest.raises(Unhealthy):
            list(client.frames(stream))
        connection.close()


def test_plain_stream_is_read(tmp_path):
    with engine(tmp_path, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nraw bytes") as (client, _asked):
        connection, answer = client.request("GET", "/build")
        assert b"".join(block for _stream, block in client.frames(answer, multiplexed=False)) == b"raw bytes"
        connection.close()


@pytest.mark.parametrize("upgraded", [True, False])
@pytest.mark.parametrize("stdin", [b"", b"words for stdin" * 5000])
def test_run_returns_output_and_status(tmp_path, upgraded, stdin):
    got = []

    def start(client: socket.socket, request: bytes) -> None:
        head = b"101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp" if upgraded else b"200 OK\r\nConnection: close"
        client.sendall(b"HTTP/1.1 " + head + b"\r\n\r\n")
        data = b""
        while upgraded and stdin and len(data) < len(stdin):
            data += client.recv(65536)
        got.append(data)
        client.sendall(frame(1, b"out 1 ") + frame(2, b"err") + frame(1, b"out 2"))

    answers = (reply("201 Created", b'{"Id": "e1"}'), start, reply("200 OK", b'{"ExitCode": 3, "ContainerID": "c1"}'))
    with engine(tmp_path, *answers) as (client, asked):
        assert client.run("box", ["a", "-b; c"], stdin, user="1000:1000") == (3, b"out 1 out 2", b"err", "c1")
    made = json.loads(asked[0].partition(b"\r\n\r\n")[2])
    assert made["Cmd"] == ["a", "-b; c"] and made["User"] == "1000:1000" and made["AttachStdin"] is bool(stdin)
    assert b"/exec/e1/start" in asked[1] and b"/exec/e1/json" in asked[2]
    assert got == [stdin if upgraded else b""]


def test_silent_run_times_out(tmp_path):
    def start(client: socket.socket, request: bytes) -> None:
        client.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        time.sleep(1)

    server = engine(tmp_path, reply("201 Created", b'{"Id": "e1"}'), start)
    with server as (client, _asked), pytest.raises(DeadlineExceeded):
        client.run("box", ["sleep", "9"], timeout=0.2)


def test_run_in_a_missing_container_fails(tmp_path):
    server = engine(tmp_path, reply("404 Not Found", b'{"message": "No such container: box"}'))
    with server as (client, _asked), pytest.raises(NotFound):
        client.run("box", ["true"])


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + frame(1, b"half"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n" + frame(1, b"half"),
    ],
    ids=["upgraded", "chunked"],
)
def test_truncated_run_is_not_a_success(tmp_path, start):
    answers = (reply("201 Created", b'{"Id": "e1"}'), start, reply("200 OK", b'{"Running": true, "ExitCode": null}'))
    with engine(tmp_path, *answers) as (client, _asked), pytest.raises(Unhealthy):
        client.run("box", ["true"])
