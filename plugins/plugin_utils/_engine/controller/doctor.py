# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user's machine needs for workspaces: looked at, judged, and never changed.

A check is needed where the target cannot do without; what is merely of use is told as well. Each that is not as it
should be says how to get it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ....module_utils._node.errors import AuthError, FlowError, NotFound, Unhealthy
from ..common.progress import Progress

if TYPE_CHECKING:
    from ..coder.admin import CoderAdmin
    from ..coder.http import CoderHttp

Connect = Callable[[bool], "CoderHttp"]
TIMEOUT = 20.0
"""Seconds for each question to a program, an engine or a server."""
WORDS = {"ok": "ok", "missing": "MISSING", "note": "note"}
SECTIONS = ("access_url", "database", "derp", "websocket", "workspace_proxy", "provisioner_daemons")

SHARED_ORIGIN = (
    "The IDE shares the dashboard's address, so a hostile program in your workspace can act as you on the Coder server."
)


@dataclass(frozen=True)
class Check:
    """``state``: ok, missing (nothing works without) or note (something does not). ``hint``: how to get it."""

    name: str
    state: str
    message: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(target: str, kvm: str, template: str, engine: str, connect: Connect, fetch: bool = False) -> list[Check]:
    """Everything that ``target`` needs. ``kvm`` is the option, ``engine`` the address of another machine's engine;
    ``connect`` gives the way to the Coder server, without the caller's token where it is asked so, and may raise.
    """
    found = [git(), ssh(), agent()]
    if target == "coder":
        return [*found, *server(template, connect, fetch)]
    return [*found, docker(engine), *holes(engine), *protection(engine), *([] if engine else [device(kvm)])]


def missing(checks: Iterable[Check]) -> FlowError | None:
    """The error that names what is missing; ``None`` when nothing is."""
    names = [check.name for check in checks if check.state == "missing"]
    if not names:
        return None
    return Unhealthy(f"Workspaces cannot be used from here: {', '.join(names)}.", "See above what gets it.")


def lines(checks: Iterable[Check]) -> list[str]:
    """One line for each check, and one for what gets it."""
    shown = []
    for check in checks:
        shown.append(f"  {WORDS[check.state]:<8}{check.name:<12} {check.message}")
        if check.hint and check.state != "ok":
            shown += [f"  {'':<20} {line}" for line in check.hint.splitlines()]
    return shown


# Programs


def git() -> Check:
    said = _said("git", "--version")
    if said is None:
        return Check("git", "missing", "There is no program git.", "Install it: sudo apt-get install git")
    return Check("git", "ok", said[1])


def ssh() -> Check:
    said = _said("ssh", "-V")
    if said is None:
        hint = "Install OpenSSH's client: sudo apt-get install openssh-client"
        return Check("ssh", "missing", "There is no program ssh.", hint)
    return Check("ssh", "ok", said[1])


def agent() -> Check:
    """Whether an SSH agent with a key is there: it clones what needs its user's key."""
    hint = 'Private repositories are cloned with its keys: eval "$(ssh-agent)"; ssh-add'
    if not os.environ.get("SSH_AUTH_SOCK"):
        return Check("ssh agent", "note", "There is no SSH agent (SSH_AUTH_SOCK is not set).", hint)
    said = _said("ssh-add", "-l")
    if said is None or said[0] not in (0, 1):
        return Check("ssh agent", "note", "The SSH agent that SSH_AUTH_SOCK names does not answer.", hint)
    if said[0] == 1:
        return Check("ssh agent", "note", "The SSH agent holds no key.", "Add yours: ssh-add")
    return Check("ssh agent", "ok", "The SSH agent holds a key.")


def _said(*argv: str) -> tuple[int, str] | None:
    """Exit status and first line of a program; ``None`` when it is not there or does not end."""
    if not shutil.which(argv[0]):
        return None
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode, next(iter((done.stdout + done.stderr).splitlines()), "")


# Target docker


def docker(engine: str = "") -> Check:
    from ....module_utils._node.docker import http as docker_http

    try:
        answer = docker_http.connect(engine).get_json("/version", timeout=TIMEOUT)
    except FlowError as error:
        prepare = "Prepare one: make quickstart, or ansible-playbook spt.flow.engine"
        return Check("docker", "missing", error.message, f"{error.hint}\n{prepare}".strip())
    return Check("docker", "ok", f"Docker {answer.get('Version', '')} answers.")


def holes(engine: str = "") -> list[Check]:
    """Known holes of the engine's programs, of which an open one lets a workspace reach the host."""
    from ....module_utils._node.docker import holes as docker_holes
    from ....module_utils._node.docker import http as docker_http

    try:
        client = docker_http.connect(engine)
        options = client.get_json("/info", timeout=TIMEOUT).get("SecurityOptions") or []
        versions = client.get_json("/version", timeout=TIMEOUT)
    except FlowError:
        return []
    remapped = any(option.partition(",")[0] in ("name=userns", "name=rootless") for option in options)
    hints = {
        True: "Update it with the machine's package manager.",
        False: "Update it as soon as your distribution has the fix.",
    }
    return [
        Check(hole["program"], "missing" if hole["open"] else "note", hole["text"], hints[hole["open"]])
        for hole in docker_holes.found(versions, remapped)
    ]


def protection(engine: str = "") -> list[Check]:
    """What an engine that answers lacks of what the role host_docker sets up."""
    from ..docker import container as docker_container
    from ..docker.target import DockerTarget

    try:
        lacking = docker_container.unprotected(DockerTarget(engine).probe_engine())
    except FlowError:
        return []
    if lacking:
        return [
            Check("protection", "note", lacking, "Prepare it: make quickstart, or ansible-playbook spt.flow.engine")
        ]
    return [Check("protection", "ok", "The role spt.flow.host_docker has prepared the engine.")]


def device(wish: str) -> Check:
    """/dev/kvm, needed only where the workspace's settings say so."""
    from ....module_utils._node.kvm import probe as kvm_probe

    if wish == "disabled":
        return Check("kvm", "ok", "Workspaces get no /dev/kvm (kvm=disabled).")
    found = kvm_probe.verdict()
    if found.works:
        return Check("kvm", "ok", "/dev/kvm works.")
    hint = "Prepare this machine: ansible-playbook spt.flow.hosts, or do without: -e kvm=disabled"
    return Check("kvm", "missing" if wish == "required" else "note", found.message, hint)


# Target coder


def server(template: str, connect: Connect, fetch: bool = False) -> list[Check]:
    """The server, the program that enters workspaces, the caller's token, our template there, the server's health.

    With ``fetch`` a program that is missing is had from the server: without one nobody can log in.
    """
    from ..coder.compatibility import refuse_old_server

    try:
        client = _client(connect, anonymous=True)
        about = client.buildinfo()
        version = about.get("version") or "an unknown version"
        refuse_old_server(version, client.http.config.url)
    except FlowError as error:
        return [Check("server", "missing", error.message, error.hint)]
    found = [Check("server", "ok", f"{client.http.config.url} answers ({version})."), _program(client, fetch)]
    try:
        client = _client(connect, anonymous=False)
        user = client.me()
    except FlowError as error:
        return [*found, Check("token", "missing", error.message, error.hint)]
    found.append(Check("token", "ok", f"It is {user['username']}'s, from {client.http.config.source}."))
    return [*found, _template(client, template), _apps(client), *_health(client)]


def _client(connect: Connect, anonymous: bool) -> CoderAdmin:
    from ..coder.admin import CoderAdmin

    client = CoderAdmin(connect(anonymous))
    client.http.outage = 0.0
    client.http.timeout = TIMEOUT
    return client


def _template(client: CoderAdmin, name: str) -> Check:
    from ..coder.client import is_deprecated

    bring = "Whoever runs the server brings it there: ansible-playbook site.yml"
    try:
        template = client.template(name)
    except FlowError as error:
        return Check("template", "missing", error.message, error.hint)
    if template is None:
        return Check("template", "missing", f"The server has no template {name}.", bring)
    if is_deprecated(template):
        return Check("template", "note", f"Template {name} is deprecated: nothing new is made of it.", "-e template=…")
    return Check("template", "ok", f"Template {name} is there.")


def _apps(client: CoderAdmin) -> Check:
    """Whether programs of a workspace share the dashboard's origin."""
    try:
        host = client.app_host()
    except FlowError as error:
        return Check("apps", "note", error.message, error.hint)
    if host:
        return Check("apps", "ok", f"The IDE of each workspace has an address of its own ({host}).")
    return Check(
        "apps", "note", SHARED_ORIGIN, "The server's administrator sets coder_server_wildcard (docs/operations.md)."
    )


def _program(client: CoderAdmin, fetch: bool) -> Check:
    from ..coder import cli as coder_cli

    path = shutil.which("coder")
    version = coder_cli.asked(path) if path else ""
    if path and coder_cli.goes_with(version, client.http.server_version):
        return Check("coder", "ok", f"{path} ({version}) goes with the server.")
    words = f"{path} ({version or 'of an unknown version'}) does not go with the server." if path else "There is none."
    if fetch and not _fetched(client):
        coder_cli.ready(client.http, Progress())
    if _fetched(client):
        return Check("coder", "ok", f"{words} {coder_cli.folder() / 'coder'} is the server's own.".strip())
    return Check("coder", "note", words, "`up` and `init` fetch the server's own.")


def _fetched(client: CoderAdmin) -> bool:
    from ..coder import cli as coder_cli

    program = coder_cli.folder() / "coder"
    return os.access(program, os.X_OK) and coder_cli.goes_with(
        f"v{program.resolve().parent.name}", client.http.server_version
    )


def _health(client: CoderAdmin) -> list[Check]:
    """The server's own verdict, which it tells its owners only, with its codes (EDB02, EPD01 …)."""
    try:
        report = client.debug_health()
    except (AuthError, NotFound):
        return []
    except FlowError as error:
        return [Check("health", "note", error.message, error.hint)]
    worst = [line for name in SECTIONS for line in complaints(name, report.get(name) or {})]
    if report.get("healthy") and not worst:
        return [Check("health", "ok", "The server calls itself healthy.")]
    state = "note" if report.get("healthy") else "missing"
    hint = "\n".join([*worst, "Each code is explained at https://coder.com/docs/admin/monitoring/health-check"])
    verdict = "healthy with warnings" if report.get("healthy") else "unhealthy"
    return [Check("health", state, f"The server calls itself {verdict}.", hint)]


def complaints(name: str, section: Mapping[str, Any]) -> list[str]:
    """A line for the error and each warning of a section that nobody dismissed."""
    if section.get("dismissed"):
        return []
    said = [f"{one.get('code', '')} {one.get('message', '')}".strip() for one in section.get("warnings") or []]
    error = [str(section["error"])] if section.get("error") else []
    return [f"{name}: {line}" for line in (*error, *said)]
