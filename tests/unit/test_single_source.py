# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All renderings of the settings agree; unavoidable differences are listed here."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import template as coder_template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import container as docker_container
from ansible_collections.spt.flow.plugins.plugin_utils._engine.docker import devcontainer as docker_devcontainer
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository.address import Repository
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import resolve as settings_resolve
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.options import MEBIBYTE, OPTIONS
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.models import WorkspaceSpec
from ansible_collections.spt.flow.plugins.plugin_utils._engine.workspace.target import EngineFacts
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from hypothesis import given, settings
from hypothesis import strategies as st

CHECKOUT = Path(__file__).resolve().parents[2]
MAIN = (CHECKOUT / "templates/coder/spt-flow/main.tf").read_text(encoding="utf-8")
REPOSITORY = Repository.parse("https://example.com/o/demo.git")
FACTS = EngineFacts(
    version="26.1.5",
    remapped=True,
    remap_base=1000000,
    remap_size=1048576,
    runtime=True,
    seccomp=True,
    apparmor=True,
    cgroup_version="2",
    cpus=1024,
    memory=2**51,
    storage_driver="overlay2",
    log_driver="json-file",
    local=True,
)
SECCOMP = json.loads(docker_container.SECCOMP.read_text(encoding="utf-8"))

quick = settings(max_examples=60, deadline=None, database=None)
values = st.builds(
    Settings,
    cpus=st.sampled_from([0.5, 1.0, 2.5, 4.0, 64.0]),
    memory=st.integers(256, 2**20).map(lambda n: n * MEBIBYTE),
    pids=st.integers(128, 4194304),
    kvm=st.sampled_from(["auto", "required", "disabled"]),
    docker=st.sampled_from(["auto", "required", "disabled"]),
    depth=st.sampled_from([0, 1, 50]),
    submodules=st.booleans(),
    lfs=st.booleans(),
    profile=st.sampled_from(["slim", "fat"]),
    known_hosts=st.sampled_from(["", "h ssh-ed25519 AAAA\n"]),
)


@pytest.fixture(autouse=True, scope="module")
def _read_once() -> Iterator[None]:
    """Cache image identities, which read many files and are requested several times by each example."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_identity, "identity", functools.cache(image_identity.identity))
        yield


def image(chosen: Settings) -> str:
    return image_identity.identity(chosen.profile).tag


def docker(chosen: Settings, kind: str = "dev") -> dict[str, Any]:
    deadline = 1 if kind == "ci" else None
    spec = WorkspaceSpec("ada", chosen, "demo", REPOSITORY, kind=kind, image=image(chosen), deadline=deadline)
    body = docker_container.container_body(spec, docker_container.Plan.of(spec, FACTS, True, lambda path: True))
    host, environment = body["HostConfig"], dict(word.split("=", 1) for word in body["Env"])
    security = dict(option.split("=", 1) for option in host["SecurityOpt"])
    return {
        "image": body["Image"],
        "cpus": host["NanoCpus"] / 1e9,
        "memory": host["Memory"],
        "swap": host["MemorySwap"],
        "pids": host["PidsLimit"],
        "tmpfs": host["Tmpfs"],
        "devices": {device["PathOnHost"] for device in host["Devices"]},
        "capabilities": host["CapDrop"],
        "sysctls": host["Sysctls"],
        "seccomp": json.loads(security["seccomp"]) if "seccomp" in security else None,
        "apparmor": security.get("apparmor", ""),
        "runtime": host.get("Runtime", ""),
        "grace": body["StopTimeout"],
        "docker": environment["SPT_FLOW_DOCKER"],
        "environment": environment,
    }


def terraform(chosen: Settings, kind: str = "dev") -> dict[str, Any]:
    """Return what the template derives from its variables, by the lines that use them."""
    wanted = coder_template.ours(chosen, kind, "spt-flow", {}, apparmor=docker_container.APPARMOR)
    values = wanted.variables
    inside = values["docker"] == "true"

    def line(pattern: str) -> str:
        found = re.findall(pattern, MAIN, re.MULTILINE)
        assert len(found) == 1, pattern
        return found[0] if isinstance(found[0], str) else found[0][0]

    assert line(r"^  cpus +=( .*)$") == " var.cpus"
    assert line(r"^  memory +=( .*)$") == line(r"^  memory_swap +=( .*)$") == " var.memory"
    assert line(r"^  tmpfs +=( .*)$") == " jsondecode(var.tmpfs)"
    assert line(r"^  runtime +=( .*)$") == " var.runtime"
    assert line(r"^  security_opts +=( .*)$").startswith(' concat(["seccomp=${jsonencode(jsondecode(file(')
    devices = line(r"for_each = concat\(var\.kvm \? (.*)\)$")
    kvm, rest = re.findall(r"\[([^\]]+)\]", devices)
    literal = dict(re.findall(r'^    "(SPT_FLOW_\w+)=(.*)",$', MAIN, re.MULTILINE))
    return {
        "image": values["image"],
        "cpus": float(values["cpus"]),
        "memory": int(values["memory"]) * MEBIBYTE,
        "swap": int(values["memory"]) * MEBIBYTE,
        "tmpfs": json.loads(values["tmpfs"]),
        "devices": {
            *(json.loads(f"[{kvm}]") if values["kvm"] == "true" else []),
            *(json.loads(f"[{rest}]") if inside else []),
        },
        "capabilities": re.findall(r'"CAP_(\w+)"', line(r"^    drop = \[(.*)\]$")),
        "sysctls": dict(re.findall(r'"([\w.]+)" = "([^"]*)"', line(r"^  sysctls = \{(.*)\}$"))),
        "seccomp": SECCOMP,
        "apparmor": values["apparmor"],
        "runtime": values["runtime"],
        "grace": int(line(r"^  destroy_grace_seconds = (\d+)$")),
        "docker": "on" if inside else "off",
        "environment": {**literal, **json.loads(values["environment"])},
    }


def devcontainer(chosen: Settings, repository: Repository | None = REPOSITORY) -> dict[str, Any]:
    made = docker_devcontainer.files(chosen, image(chosen), repository, apparmor=True)
    configuration = json.loads(made["devcontainer.json"].removeprefix(docker_devcontainer.MARK))
    words = [word.removeprefix("--").partition("=")[::2] for word in configuration["runArgs"]]
    one, every = dict(words), lambda name: [value for key, value in words if key == name]
    security = dict(option.split("=", 1) for option in every("security-opt"))
    assert security.pop("seccomp", "x").rpartition("/")[2] in ("x", "seccomp.json")
    return {
        "image": configuration["image"],
        "cpus": int(one["cpu-quota"]) / int(one["cpu-period"]),
        "memory": int(one["memory"]),
        "swap": int(one["memory-swap"]),
        "pids": int(one["pids-limit"]),
        "tmpfs": dict(value.split(":", 1) for value in every("tmpfs")),
        "devices": set(every("device")),
        "capabilities": every("cap-drop"),
        "sysctls": dict(value.split("=", 1) for value in every("sysctl")),
        "seccomp": json.loads(made["seccomp.json"]) if "seccomp.json" in made else None,
        "apparmor": security.get("apparmor", ""),
        "runtime": one.get("runtime", ""),
        "grace": int(one["stop-timeout"]),
        "docker": configuration["containerEnv"]["SPT_FLOW_DOCKER"],
        "environment": configuration["containerEnv"],
    }


def decided(chosen: Settings) -> Settings:
    """Apply the decision about ``auto`` that an engine or server makes; a file cannot ask for one."""
    return replace(
        chosen,
        kvm="required" if chosen.kvm == "auto" else chosen.kvm,
        docker="required" if chosen.docker == "auto" else chosen.docker,
    )


@quick
@given(values)
def test_every_rendering_says_the_same(chosen: Settings) -> None:
    chosen = decided(chosen)
    wanted = docker(chosen)
    wanted_environment = wanted.pop("environment")
    for name, found in {
        "target docker, CI": docker(chosen, "ci"),
        "Terraform": terraform(chosen),
        "Terraform, CI": terraform(chosen, "ci"),
        "devcontainer.json": devcontainer(chosen),
        "devcontainer.json on a folder": devcontainer(chosen, None),
    }.items():
        environment = found.pop("environment")
        # A file requests nothing of ours from unprepared engines that the container can do without.
        plain = {"seccomp": None, "apparmor": "", "runtime": ""} if "json" in name and found["docker"] == "off" else {}
        for key, value in found.items():
            assert value == plain.get(key, wanted[key]), f"{name}: {key}"
        # The provider has no process limit; the runtime sets it (docs/decisions/runtime-wrapper.md).
        assert wanted.keys() - found.keys() == ({"pids"} if "Terraform" in name else set())
        for key in chosen.environment():
            assert environment[key] == wanted_environment[key], f"{name}: {key}"


@quick
@given(values)
def test_pipeline_gets_the_same_settings(chosen: Settings) -> None:
    environment = chosen.pipeline_environment()
    again = Settings.of(settings_resolve.resolve([settings_resolve.from_environment(environment)]))
    assert replace(again, known_hosts=chosen.known_hosts).hash() == chosen.hash()
    assert not any("\n" in value or "'" in value for value in environment.values())
    made = docker_devcontainer.files(chosen, "image")
    assert dict(line.split("=", 1) for line in made.get("ci.env", "").splitlines()) == environment


@quick
@given(values)
def test_file_requests_nothing_that_is_only_auto(chosen: Settings) -> None:
    found = devcontainer(chosen)
    assert ("/dev/kvm" in found["devices"]) == (chosen.kvm == "required")
    assert (found["docker"] == "on") == ("/dev/fuse" in found["devices"]) == (chosen.docker == "required")
    assert (found["runtime"] == "spt-flow") == (found["seccomp"] is not None) == (chosen.docker == "required")
    text = json.dumps(docker_devcontainer.files(chosen, "image"))
    assert "privileged" not in text and "docker.sock" not in text and "--network=host" not in text


def test_unsafe_requires_the_explicit_setting() -> None:
    for value in ("auto", "required", "disabled"):
        assert "systempaths" not in json.dumps(docker_devcontainer.files(Settings(docker=value), "image"))
    assert "--security-opt=systempaths=unconfined" in json.dumps(
        docker_devcontainer.files(Settings(docker="unsafe"), "image")
    )


ELSEWHERE = {
    "SPT_FLOW_TICK": "only tests set it",
    "SPT_FLOW_OWNER": "a label on target docker and on Coder; the workspace agent does not read it",
    "SPT_FLOW_IDE_AUTH": "Coder asks who it is before the IDE is reached",
    "SPT_FLOW_DISK": "the node's runtime reads it",
    "SPT_FLOW_DOCKER_DISK": "the node's runtime reads it",
}
LEFT_OUT = {
    "Terraform": {
        "SPT_FLOW_REPO_ID": "made of the address",
        "SPT_FLOW_CLONE_CACHE": "only target docker has one",
        "SPT_FLOW_IDE_PORT": "the default",
        "SPT_FLOW_DOCKER_REASON": "only an engine that was asked gives one",
    },
    "devcontainer.json": {
        "SPT_FLOW_OWNER": "the user who opens the file",
        "SPT_FLOW_SEED": "no client can upload one",
        "SPT_FLOW_CLONE_CACHE": "only target docker has one",
        "SPT_FLOW_DOTFILES": "personal; VS Code, DevPod and Codespaces have a setting of their own",
        "SPT_FLOW_GIT_NAME": "personal",
        "SPT_FLOW_GIT_EMAIL": "personal",
        "SPT_FLOW_DEADLINE": "CI only",
    },
}


def test_every_value_of_the_agent_is_rendered_or_its_absence_explained() -> None:
    source = (harness.LIBRARY / "spt_workspace/contract.py").read_text(encoding="utf-8")
    read = set(re.findall(r'(?:text\(|SPT_FLOW_)"?([A-Z_]+)"', source))
    read = {f"SPT_FLOW_{name}" for name in read}
    sent = set(docker(Settings())["environment"])
    assert read - sent <= set(ELSEWHERE) and sent - read <= set(ELSEWHERE)
    for name, found in {"Terraform": terraform, "devcontainer.json": devcontainer}.items():
        assert sent - set(found(Settings())["environment"]) == set(LEFT_OUT[name]), name


def test_published_template_matches_the_settings() -> None:
    folder = CHECKOUT / "templates/devcontainer"
    wanted = docker_devcontainer.template()
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(wanted)
    for name, text in wanted.items():
        assert (folder / name).read_text(encoding="utf-8") == text, f"{name}: make docs"


def test_limit_of_processes_is_the_same_on_coder() -> None:
    """Terraform's provider cannot set one, so the runtime of the nodes does."""
    defaults = yaml.safe_load((CHECKOUT / "roles/host_docker/defaults/main.yml").read_text())
    assert defaults["host_docker_pids_limit"] == f"{{{{ flow_pids | default({OPTIONS['pids'].default}) }}}}"
    assert Settings().docker_arguments()["PidsLimit"] == OPTIONS["pids"].default
