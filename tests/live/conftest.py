# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Coder server with PostgreSQL, Terraform and both providers, for one test run.

It listens only on the address of Docker's own bridge, where workspaces reach it. If a requirement is missing on this
machine, the tests are skipped with the reason.
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.admin import CoderAdmin
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.config import CoderConfig
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.http import CoderHttp
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder.target import CoderTarget
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import build as image_build
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings

CHECKOUT = Path(__file__).resolve().parents[2]
PLUGINS = Path("/usr/local/share/terraform/plugins/registry.terraform.io")
AGENT = "coder-linux-amd64"
AS_POSTGRES = ("runuser", "-u", "postgres", "--")
START = 300.0


@dataclass
class LiveServer:
    """The server, clients of its two users, and the settings of our template."""

    url: str
    folder: Path
    gateway: str
    image: image_identity.Image
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    admin: CoderAdmin | None = None
    token: str = ""
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    def target(self) -> CoderTarget:
        return CoderTarget(self.client(self.token))

    def client(self, token: str) -> CoderAdmin:
        return CoderAdmin(CoderHttp(CoderConfig(self.url, token, "the test")))

    def wanted(self, settings: Settings, kind: str = "dev", name: str = "spt-flow") -> coder_template.Wanted:
        """The collection's template for Docker's own bridge, on which the server is reachable."""
        return coder_template.ours(settings, kind, name, {}, network="bridge")

    def start(self) -> None:
        """Start the server, also again after ``stop``; return when it answers."""
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                ["coder", "server"],
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
            )
        client, end = self.client(""), time.monotonic() + START
        while not client.healthy(1.0):
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError((self.folder / "server.log").read_text()[-3000:])
            time.sleep(0.3)

    def kill(self) -> None:
        """End the server at once, as a power cut does to it alone; its Terraform may run on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(2)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def missing() -> str:
    """Return why a server cannot run here; empty if it can."""
    for program in ("coder", "terraform"):
        if not shutil.which(program):
            return f"no {program} on PATH"
    if subprocess.run(["coder", "server", "--help"], capture_output=True, timeout=60, check=False).returncode:
        return "the coder on PATH has no server command"
    for provider in ("coder/coder", "kreuzwerker/docker"):
        if not (PLUGINS / provider).is_dir():
            return f"Terraform's provider {provider} is not in {PLUGINS}"
    if not shutil.which(AGENT):
        return f"no {AGENT} (the agent that the server hands out) on PATH"
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return "no PostgreSQL server"
    return "" if os.geteuid() == 0 else "needs root, to run PostgreSQL as another user"


@dataclass
class Database:
    """A PostgreSQL server with its own socket in ``folder``, run by the user postgres."""

    folder: Path
    programs: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgres://coder@/coder?host={self.folder}&sslmode=disable"

    def run(self, program: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a client program on the database's socket."""
        command = [str(self.programs / program), "-h", str(self.folder), "-U", "coder", *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def start(self) -> None:
        settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}", "-c", "fsync=off"]
        self.process = subprocess.Popen(
            [*AS_POSTGRES, str(self.programs / "postgres"), "-D", str(self.folder / "data"), *settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while self.run("pg_isready").returncode:
            assert time.monotonic() < end, "PostgreSQL does not answer"
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it at once, with all connections, as a crash does."""
        assert self.process is not None
        main = (self.folder / "data/postmaster.pid").read_text().split()[0]
        os.kill(int(main), signal.SIGQUIT)
        self.process.wait(60)


@contextmanager
def database_server() -> Iterator[Database]:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    folder = Path(f"/tmp/spt-flow-live-{secrets.token_hex(4)}")
    folder.mkdir(mode=0o700)
    shutil.chown(folder, "postgres")
    made = Database(folder, programs)
    initdb = [*AS_POSTGRES, str(programs / "initdb"), "-D", str(folder / "data"), "-U", "coder", "-A", "trust"]
    subprocess.run(initdb, check=True, capture_output=True, timeout=120)
    made.start()
    try:
        done = made.run("createdb", "coder")
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.stop()
        shutil.rmtree(folder)


@contextmanager
def postgres() -> Iterator[str]:
    """URL of a database that runs as long as the block."""
    with database_server() as made:
        yield made.url


@contextmanager
def server(database: str, folder: Path) -> Iterator[LiveServer]:
    """The server with its first user, ``ada`` with a token, and the image. Raises ``FlowError``."""
    bridge = docker_http.connect().get_json("/networks/bridge")
    place = bridge["IPAM"]["Config"][0]
    # The engine names its own bridge's gateway only from its second start on (20.10.24); it is the first address.
    gateway = place.get("Gateway") or str(next(ipaddress.ip_network(place["Subnet"]).hosts()))
    with socket.socket() as probe:
        probe.bind((gateway, 0))
        port = probe.getsockname()[1]
    image = image_identity.identity()
    image_build.ensure(image, {"ca_bundle": os.environ.get("SSL_CERT_FILE", "")}, Progress(print))
    made = LiveServer(f"http://{gateway}:{port}", folder, gateway, image)
    binaries = made.folder / "cache/site/orig/bin"
    binaries.mkdir(parents=True)
    agent = shutil.which(AGENT)
    assert agent is not None
    shutil.copy(agent, binaries / AGENT)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    made.environment = {
        **kept,
        "CODER_ACCESS_URL": made.url,
        "CODER_HTTP_ADDRESS": f"{gateway}:{port}",
        "CODER_PG_CONNECTION_URL": database,
        "CODER_CACHE_DIRECTORY": str(made.folder / "cache"),
        "CODER_CONFIG_DIR": str(made.folder / "config"),
        "CODER_TELEMETRY_ENABLE": "false",
        "CODER_UPDATE_CHECK": "false",
        "CODER_DERP_SERVER_STUN_ADDRESSES": "disable",
        "CODER_BLOCK_DIRECT": "true",
        "CODER_PROVISIONER_DAEMONS": "2",
    }
    try:
        made.start()
        settle(made)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with postgres() as made:
        yield made


@pytest.fixture(scope="session")
def live_server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    try:
        docker_http.connect().get_json("/version")
    except FlowError as error:
        pytest.skip(error.message)
    with server(database, tmp_path_factory.mktemp("coder")) as made:
        yield made


def settle(live_server: LiveServer) -> None:
    """Create the first user, a working user and her token with the playbook, like an operator."""
    assert not live_server.client("").has_first_user()
    done = bootstrap(live_server)
    assert done.returncode == 0, done.stdout + done.stderr
    live_server.admin = live_server.client(live_server.client("").login("admin@example.com", live_server.password))
    live_server.token = live_server.admin.create_token("test", 86400, "ada")


def bootstrap(
    live_server: LiveServer, *argv: str, playbook: str = "bootstrap", nodes: Sequence[str] = (), **more: object
) -> subprocess.CompletedProcess[str]:
    """Run a playbook for servers against this server, on this machine, which can also be ``nodes``."""
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "coder_url": live_server.url,
        "coder_owner_email": "admin@example.com",
        "coder_owner_password": live_server.password,
        "coder_token_file": str(live_server.folder / "etc/coder.token"),
        "coder_template_token_file": str(live_server.folder / "etc/coder.token"),
        "workspace_reaper_coder_token_file": str(live_server.folder / "etc/reaper.token"),
        "coder_users": [{"username": "ada", "email": "ada@example.com", "name": "Ada Lovelace"}],
        **more,
    }
    inventory = live_server.folder / "hosts.yml"
    inventory.touch(0o600)
    connection = {name: value for name, value in variables.items() if name.startswith("ansible_")}
    groups: dict[str, object] = {"flow_servers": {"hosts": {"server1": variables}}}
    if nodes:
        groups["flow_nodes"] = {"hosts": dict.fromkeys(nodes, connection)}
    inventory.write_text(json.dumps({"all": {"children": groups}}), encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SPT_FLOW_", "ANSIBLE_", "CODER_"))}
    env["ANSIBLE_COLLECTIONS_PATH"] = str(CHECKOUT / ".ansible/collections")
    program = Path(sys.executable).parent / "ansible-playbook"
    command = [str(program), f"playbooks/{playbook}.yml", "-i", str(inventory), *argv]
    return subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=900, check=False)
