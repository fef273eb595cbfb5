# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proxy between the Coder server and a node's engine: what passes, and that everything else is refused.

Requests go over a real socket, as bytes. The accepted body is the one that Terraform's Docker provider 4.5.0 sent.
"""

from __future__ import annotations

import copy
import http.server
import json
import os
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.proxy import body as bodies
from ansible_collections.spt.flow.plugins.module_utils._node.proxy import server as proxies
from ansible_collections.spt.flow.plugins.module_utils._node.proxy.rules import Rules
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container

ID = "11111111-2222-3333-4444-555555555555"
NAME = f"spt-flow-{ID}"
CONTAINER = "a" * 64
OTHER = "b" * 64
ADRIFT = "c" * 64
IMAGE = "sha256:fc347de9d5373ef2a366314f138c9cae6050647bc0b8d3e1d4840b6b60881c3d"
FOREIGN = "sha256:" + "e" * 64
SECCOMP = docker_container.SECCOMP.read_text(encoding="utf-8")
PASSES: dict[str, Any] = json.loads((Path(__file__).parent / "data/engine_proxy_create.json").read_text())
PASSES["HostConfig"]["SecurityOpt"] = [f"seccomp={json.dumps(json.loads(SECCOMP))}"]
CREATE = f"/v1.41/containers/create?name={NAME}"


def labelled(number: str, name: str, owner: str, *networks: str) -> dict[str, Any]:
    labels = {bodies.OWNER: owner} if owner else {}
    return {
        "Id": number,
        "Name": f"/{name}",
        "Config": {"Labels": labels},
        "NetworkSettings": {"Networks": {n: {} for n in networks}},
    }


def volume(part: str, owner: str) -> dict[str, Any]:
    return {"Name": f"{NAME}-{part}", "Labels": {bodies.OWNER: owner}}


EXISTS = {
    f"/containers/{CONTAINER}/json": labelled(CONTAINER, NAME, ID, "spt-flow"),
    f"/containers/{NAME}/json": labelled(CONTAINER, NAME, ID, "spt-flow"),
    f"/containers/{ADRIFT}/json": labelled(ADRIFT, NAME, ID, "bridge", "spt-flow"),
    # A workspace of target docker, and a container that only has the owner's label.
    f"/containers/{OTHER}/json": labelled(OTHER, "spt-flow-ada-demo", ""),
    f"/containers/{'d' * 64}/json": labelled("d" * 64, "database", ID),
    f"/volumes/{NAME}-home": volume("home", ID),
    f"/volumes/{NAME}-docker": volume("docker", "0" * 8 + ID[8:]),
    f"/images/{IMAGE}/json": {"Id": IMAGE, "RepoTags": ["spt-flow/workspace:slim-1"]},
    "/images/spt-flow/workspace:slim-1/json": {"Id": IMAGE, "RepoTags": ["spt-flow/workspace:slim-1"]},
    f"/images/{FOREIGN}/json": {"Id": FOREIGN, "RepoTags": ["debian:12"]},
}


@dataclass
class Served:
    """A proxy on ``path``, and the requests that reached its engine, except look-ups."""

    path: str
    calls: list[tuple[str, str, Any]] = field(default_factory=list)

    def send(self, data: bytes) -> bytes:
        """Return everything that is answered to these bytes, until the proxy closes."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(self.path)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while block := client.recv(65536):
                answer += block
            return answer

    def call(self, method: str, target: str, body: Any = None) -> tuple[int, str]:
        """Return status and text of the answer."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {target} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
        answer = self.send(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        top, _, rest = answer.partition(b"\r\n\r\n")
        return int(top.split()[1]), rest.decode()


class _Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    calls: list[tuple[str, str, Any]]


class _Engine(http.server.BaseHTTPRequestHandler):
    """An engine that knows EXISTS and accepts everything else."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        path = self.path.removeprefix("/v1.41")
        server: Any = self.server
        found = EXISTS.get(path)
        if self.command == "GET" and path.endswith("/json") and "?" not in path and found is None:
            status, said = 404, {"message": "No such thing"}
        else:
            status, said = 200, found or {"Id": "done"}
        server.calls.append((self.command, path, json.loads(body) if body else None))
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Api-Version", "1.41")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT = answer

    def log_message(self, *_args: Any) -> None:
        return

    def address_string(self) -> str:
        return ""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    engine = _Unix(str(tmp_path / "engine.sock"), _Engine)
    engine.calls = []
    threading.Thread(target=engine.serve_forever, args=(0.05,), daemon=True).start()
    node = bodies.Node(
        "spt-flow", ("spt-flow",), frozenset({bodies.fingerprint(SECCOMP.encode())}), "spt-flow-workspace"
    )
    upstream = proxies.Engine(str(tmp_path / "engine.sock"))
    path = str(tmp_path / "proxy.sock")
    proxy = proxies.Proxy(proxies.listening(path), Rules(node, upstream.lookup), upstream)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    yield Served(path, engine.calls)
    proxy.stop()
    thread.join(10)
    assert not thread.is_alive()
    engine.shutdown()
    engine.server_close()


def changed(**host: Any) -> dict[str, Any]:
    """Return the accepted body with these values in its HostConfig."""
    body = copy.deepcopy(PASSES)
    body["HostConfig"].update(host)
    return body


def asked(served: Served) -> list[tuple[str, str]]:
    """Return the requests to the engine, without look-ups, which change nothing."""
    return [(method, path) for method, path, _ in served.calls if (method, path) != ("GET", path) or path not in EXISTS]


PASSING = [
    ("HEAD", "/_ping"),
    ("GET", "/_ping"),
    ("GET", "/v1.41/version"),
    ("GET", "/v1.41/info"),
    ("GET", "/v1.41/images/json"),
    ("GET", "/v1.41/images/spt-flow/workspace:slim-1/json"),
    ("GET", f"/v1.41/images/{IMAGE}/json"),
    ("GET", "/v1.41/containers/json?all=1"),
    ("GET", f"/v1.41/containers/{CONTAINER}/json"),
    ("POST", f"/v1.41/containers/{CONTAINER}/start"),
    ("POST", f"/v1.41/containers/{CONTAINER}/stop?t=30"),
    ("POST", f"/v1.41/containers/{CONTAINER}/wait?condition=not-running"),
    ("DELETE", f"/v1.41/containers/{CONTAINER}?force=1&v=1"),
    ("GET", f"/v1.41/volumes/{NAME}-home"),
    ("DELETE", f"/v1.41/volumes/{NAME}-home?force=1"),
]


@pytest.mark.parametrize(("method", "target"), PASSING)
def test_calls_of_the_template_reach_the_engine(method: str, target: str, served: Served) -> None:
    status, _ = served.call(method, target)
    assert status == 200
    assert any(call[0] == method for call in served.calls)


def test_container_of_the_template_uses_the_image_id(served: Served) -> None:
    body = copy.deepcopy(PASSES)
    body["Image"] = "spt-flow/workspace:slim-1"
    status, text = served.call("POST", CREATE, body)
    assert status == 200, text
    method, path, sent = served.calls[-1]
    assert (method, path) == ("POST", f"/containers/create?name={NAME}")
    assert sent == {**body, "Image": IMAGE}


@pytest.mark.parametrize(
    ("method", "target", "body"), [("POST", CREATE, PASSES), ("DELETE", f"/v1.41/volumes/{NAME}-home", None)]
)
def test_container_left_by_a_lost_build_is_removed_first(method: str, target: str, body: Any, served: Served) -> None:
    """Otherwise a start fails because the name is in use, and a deletion because the volume is in use."""
    assert served.call(method, target, body)[0] == 200
    *removed, (last, _, _) = [call for call in served.calls if call[0] != "GET"]
    path = f"/containers/{CONTAINER}"
    assert removed == [("POST", f"{path}/stop?t=30", None), ("DELETE", f"{path}?force=true", None)]
    assert last == method


def test_body_of_target_docker_satisfies_the_proxy() -> None:
    """The template follows it, and would otherwise be refused by its own proxy."""
    assert set(docker_container.DROPPED) >= bodies.DROPPED
    assert dict(docker_container.SYSCTLS) == bodies.SYSCTLS
    assert docker_container.RUNTIME == "spt-flow" and docker_container.APPARMOR == "spt-flow-workspace"


def test_volume_and_network_of_the_template_are_created(served: Served) -> None:
    made = {"Name": f"{NAME}-home", "Labels": {bodies.OWNER: ID, "spt.flow.part": "home", "coder.owner": "ada"}}
    assert served.call("POST", "/v1.41/volumes/create", made)[0] == 200
    ends = {"IPAMConfig": {}, "Links": None, "Aliases": [], "MacAddress": "", "DriverOpts": {}, "IPPrefixLen": 0}
    join = {"Container": CONTAINER, "EndpointConfig": ends}
    assert served.call("POST", "/v1.41/networks/spt-flow/connect", join)[0] == 200
    assert served.calls[-1][2] == {"Container": CONTAINER, "EndpointConfig": {}}
    leave = {"Container": CONTAINER, "Force": False}
    assert served.call("POST", "/v1.41/networks/bridge/disconnect", leave)[0] == 200


def test_lists_show_only_our_objects(served: Served) -> None:
    served.call("GET", "/v1.41/containers/json?all=1")
    served.call("GET", "/v1.41/images/json")
    paths = [path for _, path, _ in served.calls]
    assert "spt.flow.coder" in paths[0] and "spt-flow%2Fworkspace" in paths[1]


def test_missing_image_is_reported_by_the_engine(served: Served) -> None:
    status, text = served.call("GET", "/v1.41/images/spt-flow/workspace:gone/json")
    assert status == 404 and "No such thing" in text


HOST: dict[str, dict[str, Any]] = {
    "privileged": {"Privileged": True},
    "privileged as a number": {"Privileged": 1},
    "bind of the root": {"Binds": ["/:/host"]},
    "bind of the engine's socket": {"Binds": ["/var/run/docker.sock:/var/run/docker.sock"]},
    "bind next to the home": {"Binds": [*PASSES["HostConfig"]["Binds"], "/etc:/mnt:ro"]},
    "home of another workspace": {"Binds": [f"spt-flow-{'0' * 8}{ID[8:]}-home:/home/coder:rw"]},
    "volume of another user": {"Binds": ["database:/home/coder:rw"]},
    "snapshots to write": {"Binds": ["spt-flow-snapshots:/var/lib/spt-flow-snapshots:rw"]},
    "mount": {"Mounts": [{"Type": "bind", "Source": "/", "Target": "/host"}]},
    "volumes of another container": {"VolumesFrom": ["database"]},
    "volume driver": {"VolumeDriver": "evil"},
    "capability": {"CapAdd": ["SYS_ADMIN"]},
    "all capabilities": {"CapAdd": ["ALL"]},
    "raw sockets kept": {"CapDrop": ["MKNOD", "SETFCAP"]},
    "no capability dropped": {"CapDrop": None},
    "process ids of the node": {"PidMode": "host"},
    "process ids of another": {"PidMode": "container:database"},
    "network of the node": {"NetworkMode": "host"},
    "network of another": {"NetworkMode": "container:database"},
    "no network": {"NetworkMode": "none"},
    "ipc of the node": {"IpcMode": "host"},
    "ipc of another": {"IpcMode": "container:database"},
    "host name of the node": {"UTSMode": "host"},
    "no user namespace": {"UsernsMode": "host"},
    "cgroups of the node": {"CgroupnsMode": "host"},
    "other runtime": {"Runtime": "runc"},
    "runtime of the engine": {"Runtime": ""},
    "no system call filter": {"SecurityOpt": ["seccomp=unconfined"]},
    "filter that allows all": {"SecurityOpt": ['seccomp={"defaultAction":"SCMP_ACT_ALLOW"}']},
    "engine's own filter": {"SecurityOpt": []},
    "two filters": {"SecurityOpt": [*PASSES["HostConfig"]["SecurityOpt"], "seccomp=unconfined"]},
    "filter by the old name": {"SecurityOpt": ["seccomp:unconfined"]},
    "no AppArmor": {"SecurityOpt": [*PASSES["HostConfig"]["SecurityOpt"], "apparmor=unconfined"]},
    "paths unmasked": {"SecurityOpt": [*PASSES["HostConfig"]["SecurityOpt"], "systempaths=unconfined"]},
    "no SELinux": {"SecurityOpt": [*PASSES["HostConfig"]["SecurityOpt"], "label=disable"]},
    "nothing masked": {"MaskedPaths": []},
    "nothing read-only": {"ReadonlyPaths": []},
    "disk as a device": {
        "Devices": [{"PathOnHost": "/dev/vda", "PathInContainer": "/dev/vda", "CgroupPermissions": "rwm"}]
    },
    "device under another name": {
        "Devices": [{"PathOnHost": "/dev/mem", "PathInContainer": "/dev/kvm", "CgroupPermissions": "rw"}]
    },
    "devices by rule": {"DeviceCgroupRules": ["a *:* rwm"]},
    "graphics card": {"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]},
    "kernel setting": {"Sysctls": {"net.ipv4.ip_forward": "1"}},
    "kernel setting next to ours": {"Sysctls": {**bodies.SYSCTLS, "net.ipv4.ip_forward": "1"}},
    "kernel setting without a value": {"Sysctls": {"kernel.shm_rmid_forced": ""}},
    "published port": {"PortBindings": {"8080/tcp": [{"HostPort": "443"}]}},
    "port published anywhere": {"PortBindings": {"8080/tcp": []}},
    "all ports published": {"PublishAllPorts": True},
    "cgroup of the system": {"CgroupParent": "/system.slice"},
    "restarted by the engine": {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 0}},
    "no memory limit": {"Memory": 0},
    "swap without a limit": {"MemorySwap": -1},
    "no processor limit": {"NanoCpus": 0},
    "processors by fraction": {"NanoCpus": 1.5},
    "no limit of processes": {"PidsLimit": -1},
    "never killed": {"OomKillDisable": True},
    "killed last": {"OomScoreAdj": -1000},
    "limits raised": {"Ulimits": [{"Name": "nofile", "Soft": 1 << 30, "Hard": 1 << 30}]},
    "log to another machine": {"LogConfig": {"Type": "syslog", "Config": {"syslog-address": "udp://192.0.2.1"}}},
    "log without a bound": {"LogConfig": {"Type": "json-file", "Config": {}}},
    "file written on the node": {"ContainerIDFile": "/etc/cron.d/x"},
    "link": {"Links": ["database:db"]},
    "host name of a service": {"ExtraHosts": ["coder.example.com:192.0.2.1"]},
    "name servers": {"Dns": ["192.0.2.1"]},
    "groups": {"GroupAdd": ["0"]},
    "storage": {"StorageOpt": {"size": "10T"}},
    "memory file system over a path up": {"Tmpfs": {"/tmp/../etc": ""}},
    "annotation for the runtime": {"Annotations": {"run.oci.handler": "krun"}},
    "name in other letters": {"privileged": True},
    "name of a later engine": {"HostAccess": "all"},
    "hyperv": {"Isolation": "hyperv"},
}


@pytest.mark.parametrize("host", HOST.values(), ids=HOST)
def test_container_that_the_template_does_not_create_is_refused(
    host: dict[str, Any], served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    status, text = served.call("POST", CREATE, changed(**host))
    assert status == 403, text
    refused(served, text, capfd.readouterr().err)


def refused(served: Served, text: str, journal: str) -> None:
    """Expect a sentence for the build's log, one line in the journal, and no request to the engine."""
    sentence = json.loads(text)["message"]
    assert sentence.startswith("spt.flow refuses ") and sentence.endswith(".")
    (line,) = journal.splitlines()
    assert line.startswith("<4>refused: ") and f"uid={os.getuid()} pid={os.getpid()}" in line
    assert asked(served) == []


def body(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    made = copy.deepcopy(PASSES)
    change(made)
    return made


CONFIG: dict[str, dict[str, Any]] = {
    "other image": body(lambda b: b.update(Image="debian:12")),
    "image by the id of another": body(lambda b: b.update(Image=FOREIGN)),
    "image of a registry": body(lambda b: b.update(Image="evil.example/spt-flow/workspace:slim-1")),
    "root": body(lambda b: b.update(User="0:0")),
    "no user": body(lambda b: b.pop("User")),
    "no labels": body(lambda b: b.pop("Labels")),
    "labels of another workspace": body(lambda b: b["Labels"].update({bodies.OWNER: "0" * 8 + ID[8:]})),
    "labels of others": body(lambda b: b["Labels"].update({"com.docker.compose.project": "x"})),
    "no HostConfig": body(lambda b: b.pop("HostConfig")),
    "HostConfig as a list": body(lambda b: b.update(HostConfig=[])),
    "second HostConfig": body(lambda b: b.update(hostconfig={"Privileged": True})),
    "volume of an image": body(lambda b: b.update(Volumes={"/etc": {}})),
    "joined to the node's network": body(lambda b: b.update(NetworkingConfig={"EndpointsConfig": {"host": {}}})),
    "ports": body(lambda b: b.update(ExposedPorts={"22/tcp": {}})),
    "health check": body(lambda b: b.update(Healthcheck={"Test": ["CMD", "true"]})),
    "hardware address": body(lambda b: b.update(MacAddress="02:00:00:00:00:01")),
    "half of a character": body(lambda b: b["Env"].append("A=\ud800")),
}


@pytest.mark.parametrize("made", CONFIG.values(), ids=CONFIG)
def test_container_that_is_not_an_object_is_refused(
    made: dict[str, Any], served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    status, text = served.call("POST", CREATE, made)
    assert status == 403, text
    refused(served, text, capfd.readouterr().err)


RAW = json.dumps(PASSES)
UNREADABLE = {
    "privileged twice": RAW.replace('"Privileged": false', '"Privileged": true, "Privileged": false').encode(),
    "image twice": RAW.replace('"Image":', '"Image": "debian:12", "Image":').encode(),
    "no number": RAW.replace('"ShmSize": 0', '"ShmSize": NaN').encode(),
    "fraction": RAW.replace('"ShmSize": 0', '"ShmSize": 0.0').encode(),
    "two bodies": (RAW + RAW).encode(),
    "not UTF-8": RAW.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + RAW.encode(),
    "nested beyond reading": b"[" * 200000,
    "nothing": b"",
    "a list": b"[]",
    "text": b'"x"',
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_ambiguous_body_is_refused(data: bytes, served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    status, text = served.call("POST", CREATE, data)
    assert status == 403, text
    refused(served, text, capfd.readouterr().err)


CALLS: dict[str, tuple[str, str, Any]] = {
    "build": ("POST", "/v1.41/build", None),
    "commit": ("POST", f"/v1.41/commit?container={CONTAINER}", None),
    "pull": ("POST", "/v1.41/images/create?fromImage=debian", None),
    "load": ("POST", "/v1.41/images/load", None),
    "tag": ("POST", "/v1.41/images/debian/tag?repo=spt-flow/workspace", None),
    "remove an image": ("DELETE", f"/v1.41/images/{IMAGE}", None),
    "look at another image": ("GET", f"/v1.41/images/{FOREIGN}/json", None),
    "exec": ("POST", f"/v1.41/containers/{CONTAINER}/exec", {"Cmd": ["id"]}),
    "start an exec": ("POST", "/v1.41/exec/0123456789ab/start", {}),
    "attach": ("POST", f"/v1.41/containers/{CONTAINER}/attach?stream=1", None),
    "logs": ("GET", f"/v1.41/containers/{CONTAINER}/logs?stdout=1", None),
    "processes": ("GET", f"/v1.41/containers/{CONTAINER}/top", None),
    "write files": ("PUT", f"/v1.41/containers/{CONTAINER}/archive?path=/", None),
    "read files": ("GET", f"/v1.41/containers/{CONTAINER}/archive?path=/", None),
    "export": ("GET", f"/v1.41/containers/{CONTAINER}/export", None),
    "update": ("POST", f"/v1.41/containers/{CONTAINER}/update", {"Memory": 0}),
    "rename": ("POST", f"/v1.41/containers/{CONTAINER}/rename?name=x", None),
    "prune": ("POST", "/v1.41/containers/prune", None),
    "workspace of target docker": ("GET", f"/v1.41/containers/{OTHER}/json", None),
    "stop that one": ("POST", f"/v1.41/containers/{OTHER}/stop?t=0", None),
    "delete that one": ("DELETE", f"/v1.41/containers/{OTHER}?force=1", None),
    "container that only says whose it is": ("DELETE", f"/v1.41/containers/{'d' * 64}?force=1", None),
    "container by a name": ("DELETE", "/v1.41/containers/database?force=1", None),
    "start on two networks": ("POST", f"/v1.41/containers/{ADRIFT}/start", None),
    "start with a body": ("POST", f"/v1.41/containers/{CONTAINER}/start", {"Privileged": True}),
    "stop with a signal": ("POST", f"/v1.41/containers/{CONTAINER}/stop?signal=KILL", None),
    "name of another kind": ("POST", "/v1.41/containers/create?name=database", PASSES),
    "no name": ("POST", "/v1.41/containers/create", PASSES),
    "name twice": ("POST", f"{CREATE}&name={NAME}", PASSES),
    "platform": ("POST", f"{CREATE}&platform=windows", PASSES),
    "old version of the API": ("POST", CREATE.replace("1.41", "1.24"), PASSES),
    "no version of the API": ("POST", CREATE.replace("/v1.41", ""), PASSES),
    "list of all volumes": ("GET", "/v1.41/volumes", None),
    "volume of another workspace": ("DELETE", f"/v1.41/volumes/{NAME}-docker", None),
    "any volume": ("DELETE", "/v1.41/volumes/database", None),
    "volume that is a folder of the node": (
        "POST",
        "/v1.41/volumes/create",
        {
            "Name": f"{NAME}-home",
            "Labels": {bodies.OWNER: ID},
            "DriverOpts": {"type": "none", "o": "bind", "device": "/"},
        },
    ),
    "volume of another driver": (
        "POST",
        "/v1.41/volumes/create",
        {"Name": f"{NAME}-home", "Labels": {bodies.OWNER: ID}, "Driver": "evil"},
    ),
    "volume without labels": ("POST", "/v1.41/volumes/create", {"Name": f"{NAME}-home"}),
    "volume of another name": ("POST", "/v1.41/volumes/create", {"Name": "database", "Labels": {bodies.OWNER: ID}}),
    "network of the node": ("POST", "/v1.41/networks/host/connect", {"Container": CONTAINER}),
    "bridge of others": ("POST", "/v1.41/networks/bridge/connect", {"Container": CONTAINER}),
    "address of another": (
        "POST",
        "/v1.41/networks/spt-flow/connect",
        {"Container": CONTAINER, "EndpointConfig": {"IPAMConfig": {"IPv4Address": "172.18.0.1"}}},
    ),
    "network for another container": ("POST", "/v1.41/networks/spt-flow/connect", {"Container": OTHER}),
    "make a network": ("POST", "/v1.41/networks/create", {"Name": "x"}),
    "remove a network": ("DELETE", "/v1.41/networks/spt-flow", None),
    "plugin": ("POST", "/v1.41/plugins/pull?remote=evil", None),
    "swarm": ("POST", "/v1.41/swarm/init", {}),
    "service": ("POST", "/v1.41/services/create", {}),
    "secrets": ("GET", "/v1.41/secrets", None),
    "configurations": ("GET", "/v1.41/configs", None),
    "session": ("POST", "/session", None),
    "grpc": ("POST", "/grpc", None),
    "events": ("GET", "/v1.41/events", None),
    "disk usage": ("GET", "/v1.41/system/df", None),
    "login": ("POST", "/v1.41/auth", {}),
    "path up": ("GET", "/v1.41/containers/../images/json", None),
    "path encoded": ("GET", f"/v1.41/containers/{CONTAINER}%2fexec/json", None),
    "path doubled": ("GET", "/v1.41//containers/json", None),
    "filters of the caller": ("GET", "/v1.41/containers/json?filters=%7B%7D", None),
    "method in other letters": ("PATCH", "/v1.41/version", None),
}


@pytest.mark.parametrize(("method", "target", "data"), CALLS.values(), ids=CALLS)
def test_call_that_the_template_does_not_make_is_refused(
    method: str, target: str, data: Any, served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    status, text = served.call(method, target, data)
    assert status == 403, text
    refused(served, text, capfd.readouterr().err)


HEAD = b"GET /v1.41/version HTTP/1.1\r\nHost: x\r\n"
SMUGGLED = b"POST /v1.41/build HTTP/1.1\r\nHost: x\r\n\r\n"
FRAMES = {
    "two lengths": HEAD + b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n" + SMUGGLED,
    "length and chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks in other letters": HEAD + b"tRANSFER-eNCODING : chunked\r\n\r\n" + SMUGGLED,
    "length with a sign": HEAD + b"Content-Length: +0\r\n\r\n" + SMUGGLED,
    "length with a list": HEAD + b"Content-Length: 0, 0\r\n\r\n" + SMUGGLED,
    "length in hexadecimal": HEAD + b"Content-Length: 0x0\r\n\r\n" + SMUGGLED,
    "length of nothing": HEAD + b"Content-Length: \r\n\r\n" + SMUGGLED,
    "length beyond the limit": HEAD + b"Content-Length: 99999999\r\n\r\n" + SMUGGLED,
    "line feed alone": HEAD.replace(b"\r\n", b"\n") + b"\n" + SMUGGLED,
    "carriage return in a value": HEAD + b"X: a\rTransfer-Encoding: chunked\r\n\r\n" + SMUGGLED,
    "header over two lines": HEAD + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n" + SMUGGLED,
    "header without a name": HEAD + b": x\r\n\r\n" + SMUGGLED,
    "zero byte": HEAD + b"X: \0\r\n\r\n" + SMUGGLED,
    "old version of HTTP": HEAD.replace(b"1.1", b"1.0") + b"\r\n" + SMUGGLED,
    "no version": b"GET /v1.41/version\r\n\r\n" + SMUGGLED,
    "address of another server": HEAD.replace(b"/v1.41", b"http://x/v1.41") + b"\r\n" + SMUGGLED,
    "two spaces": HEAD.replace(b"GET ", b"GET  ") + b"\r\n" + SMUGGLED,
    "upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + SMUGGLED,
    "expectation": HEAD + b"Expect: 100-continue\r\n\r\n" + SMUGGLED,
    "line beyond the limit": HEAD + b"X: " + b"a" * 9000 + b"\r\n\r\n" + SMUGGLED,
    "headers beyond the limit": HEAD + b"".join(b"X%d: a\r\n" % n for n in range(60)) + b"\r\n" + SMUGGLED,
    "empty line first": b"\r\n" + HEAD + b"\r\n",
}


@pytest.mark.parametrize("data", FRAMES.values(), ids=FRAMES)
def test_ambiguous_bytes_close_the_connection(data: bytes, served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    answer = served.send(data)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1
    assert capfd.readouterr().err.count("<4>refused: not a request by uid=") == 1
    assert served.calls == []


def test_connection_serves_several_requests(served: Served) -> None:
    one = HEAD + b"\r\n"
    answer = served.send(one + SMUGGLED + one)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"403", b"200"]
    assert [path for _, path, _ in served.calls] == ["/version", "/version"]


def test_journal_line_is_one_line_of_printable_characters(capfd: pytest.CaptureFixture[str]) -> None:
    proxies.note("refused: \x1b[2J\n<0>panic\u202e " + "a" * 1000)
    assert capfd.readouterr().err == f"<4>refused: ?[2J?<0>panic? {'a' * 1000}"[:403] + "\n"


def test_silent_engine_is_reported(tmp_path: Path) -> None:
    upstream = proxies.Engine(str(tmp_path / "gone.sock"))
    path = str(tmp_path / "proxy.sock")
    node = bodies.Node("spt-flow", ("spt-flow",), frozenset())
    proxy = proxies.Proxy(proxies.listening(path), Rules(node, upstream.lookup), upstream)
    threading.Thread(target=proxy.serve, daemon=True).start()
    status, text = Served(path).call("GET", "/v1.41/version")
    proxy.stop()
    assert status == 502 and "The engine of this node does not answer" in text


def test_lookup_works_on_an_engine_that_refuses_old_versions(tmp_path: Path) -> None:
    class New(_Engine):
        def answer(self) -> None:
            if self.path.startswith("/v1.44/"):
                self.path = self.path.replace("/v1.44", "/v1.41")
                super().answer()
                return
            data = json.dumps({"message": "client version 1.41 is too old."}).encode()
            self.send_response(400)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Api-Version", "1.52")
            self.end_headers()
            self.wfile.write(data)

        do_GET = answer

    engine = _Unix(str(tmp_path / "engine.sock"), New)
    engine.calls = []
    threading.Thread(target=engine.serve_forever, args=(0.05,), daemon=True).start()
    upstream = proxies.Engine(str(tmp_path / "engine.sock"))
    path = f"/containers/{CONTAINER}/json"
    assert upstream.lookup(path) == EXISTS[path]
    assert upstream.lookup(f"/containers/{'9' * 64}/json") is None
    assert [call[1] for call in engine.calls] == [path, f"/containers/{'9' * 64}/json"], "negotiated once"
    engine.shutdown()
    engine.server_close()


def test_socket_is_private_to_owner_and_group(tmp_path: Path) -> None:
    with proxies.listening(str(tmp_path / "proxy.sock")):
        assert (tmp_path / "proxy.sock").stat().st_mode & 0o777 == 0o660
