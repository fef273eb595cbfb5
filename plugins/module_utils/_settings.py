# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of a workspace and where a user's values come from (private to the collection)."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ._errors import InvalidInput

_TRUE = ("1", "true", "yes", "on", "y", "t")
_FALSE = ("0", "false", "no", "off", "n", "f", "")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", re.IGNORECASE)


def as_bool(value: Any, name: str = "value") -> bool:
    """Ansible's words for true and false; raises ``InvalidInput`` for anything else."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise InvalidInput(f"Cannot read {name}: it must be true or false.", f"For example: {name}=true.")


def parse_size(value: Any, name: str = "size") -> int:
    """Bytes from a number or ``8g``, ``512MiB`` (binary units)."""
    match = _SIZE.fullmatch(str(value).strip())
    if not match:
        raise InvalidInput(f"Cannot read {name}: it must be a size.", f"For example: {name}=8g.")
    power = "kmgt".index(match[2].lower()) + 1 if match[2] else 0
    return int(float(match[1]) * 1024**power)


def parse_duration(value: Any, name: str = "duration") -> int:
    """Seconds from a number of seconds or ``2h``, ``90m``, ``1h30m``, ``1d``."""
    text = str(value).strip()
    match = _DURATION.fullmatch(text)
    if not text or not match:
        raise InvalidInput(f"Cannot read {name}: it must be a length of time.", f"For example: {name}=90m or {name}=2h.")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True)
class Option:
    """One value that a user can give. ``group`` is verb, setting or image; ``default`` is as the user would write it."""

    name: str
    kind: str
    default: Any
    group: str
    help: str
    choices: tuple[str, ...] = ()


def _options() -> dict[str, Option]:
    rows = [
        Option("repo", "str", "", "verb", "Repository: URL, owner/name or local path."),
        Option("ref", "str", "", "verb", "Branch, tag or commit to check out; empty is the remote's HEAD."),
        Option("workspace", "str", "", "verb", "Name of the workspace; without it the repository's."),
        Option("owner", "str", "", "verb", "Owner of the workspace; without it the login name."),
        Option("target", "str", "docker", "verb", "Where workspaces run.", ("docker",)),
        Option("dotfiles", "str", "", "verb", "Repository with personal settings, applied after the start."),
        Option("connect", "bool", True, "verb", "Enter the workspace at the end when there is a terminal."),
        Option("output", "str", "text", "verb", "Text for people or one JSON object.", ("text", "json")),
        Option("command", "str", "", "verb", "Command to run in the workspace instead of a shell."),
        Option("confirm", "bool", False, "verb", "Yes to the question that delete asks."),
        Option("hours", "float", 4.0, "verb", "Hours of keep-alive from now, at most 24; 0 takes it back."),
        Option("size", "bool", False, "verb", "Also measure the volumes."),
        Option("follow", "bool", False, "verb", "Follow the log until the workspace stops."),
        Option("tail", "int", 200, "verb", "Lines of the log to show; 0 for all."),
        Option("profile", "str", "slim", "setting", "Profile of the workspace image.", ("slim",)),
        Option("cpus", "float", 4.0, "setting", "CPUs that a workspace may use."),
        Option("memory", "size", "8g", "setting", "Memory that a workspace may use."),
        Option("pids", "int", 4096, "setting", "Processes and threads that a workspace may have."),
        Option("kvm", "str", "auto", "setting", "Whether the workspace gets /dev/kvm.", ("auto", "required", "disabled")),
        Option(
            "docker",
            "str",
            "auto",
            "setting",
            "Docker inside the workspace; unsafe allows it on an engine without user-namespace remapping.",
            ("auto", "required", "disabled", "unsafe"),
        ),
        Option("idle_stop", "duration", "2h", "setting", "Stop after this time without activity; 0 never."),
        Option("ide_port", "int", 0, "setting", "Port of the IDE on this machine; 0 takes a free one."),
        Option("depth", "int", 0, "setting", "Depth of the clone; 0 is everything."),
        Option("submodules", "bool", False, "setting", "Clone submodules too."),
        Option("lfs", "bool", True, "setting", "Fetch Git LFS objects."),
        Option("clone_cache", "bool", False, "setting", "Keep a cache of clones on the engine's machine."),
        Option("disk", "size", "0", "setting", "Quota of the workspace's own disk, where the engine can; 0 is none."),
        Option("tick", "float", 1.0, "setting", "Speed of the start contract's clock (for tests)."),
        Option("wait_timeout", "duration", "10m", "verb", "How long to wait until the workspace is ready."),
        Option("default_host", "str", "github.com", "verb", "Host of repositories given as owner/name."),
        Option("git_name", "str", "", "verb", "Name of the author of commits; without it git's own setting."),
        Option("git_email", "str", "", "verb", "E-mail address of the author of commits; without it git's own setting."),
        Option("known_hosts", "str", "", "setting", "Further lines of known_hosts for the workspace."),
        Option("host_reserve_memory", "size", "1g", "verb", "Memory that workspaces leave to the machine."),
        Option("image_base", "str", "auto", "image", "Where the base system comes from.", ("auto", "registry", "bootstrap")),
        Option("mirror_apt", "str", "", "image", "Debian mirror for the image."),
        Option("mirror_npm", "str", "", "image", "npm registry for the image."),
        Option("mirror_pypi", "str", "", "image", "PyPI index for the image."),
        Option("mirror_files", "str", "", "image", "Base URL that replaces the origin of plain files."),
        Option("ca_bundle", "path", "", "image", "CA certificates to trust while the image is built."),
    ]
    return {option.name: option for option in rows}


OPTIONS = _options()
"""Every value that a user can give, by name; documentation and argument specs are checked against it."""


def convert(option: Option, value: Any) -> Any:
    """``value`` as the option's kind; raises ``InvalidInput`` naming the option. Sizes in bytes, durations in seconds."""
    converters: dict[str, Callable[[Any], Any]] = {
        "bool": lambda v: as_bool(v, option.name),
        "size": lambda v: parse_size(v, option.name),
        "duration": lambda v: parse_duration(v, option.name),
        "int": lambda v: _number(v, option.name, int),
        "float": lambda v: _number(v, option.name, float),
    }
    if option.kind in converters:
        return converters[option.kind](value)
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise InvalidInput(f"Cannot read {option.name}: it must be text.", f"Put quotes around it: {option.name}='…'.")
    text = str(value)
    if option.choices and text not in option.choices:
        near = difflib.get_close_matches(text, option.choices, 1)
        hint = f"Did you mean {near[0]}?" if near else f"One of: {', '.join(option.choices)}."
        raise InvalidInput(f"Cannot use this value of {option.name}.", hint)
    return text


def _number(value: Any, name: str, kind: Callable[[Any], Any]) -> Any:
    try:
        number = kind(str(value).strip())
    except ValueError:
        raise InvalidInput(f"Cannot read {name}: it must be a number.", f"For example: {name}=4.") from None
    if not 0 <= number < 1e12:
        raise InvalidInput(f"Cannot use {name}: it is out of range.", f"For example: {name}=4.")
    return number


def check_names(names: Any, source: str) -> None:
    """Refuse names that no option has, with the nearest that one has."""
    for name in names:
        if name not in OPTIONS:
            near = difflib.get_close_matches(str(name), OPTIONS, 1)
            hint = f"Did you mean {near[0]}?" if near else "The README lists all options."
            raise InvalidInput(f"{source} has the unknown option {str(name)[:64]!r}.", hint)


def resolve(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values of all options. ``layers`` maps the name of a source to its values, strongest first; defaults come last."""
    values: dict[str, Any] = {}
    for option in OPTIONS.values():
        value = next((layer[option.name] for layer in layers.values() if option.name in layer), option.default)
        values[option.name] = convert(option, value)
    return values


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The layer of ``SPT_FLOW_<OPTION>`` variables; empty ones count as not given."""
    found = {name: environ.get(f"SPT_FLOW_{name.upper()}", "") for name in OPTIONS}
    return {name: value for name, value in found.items() if value}


def user_settings_file(environ: Mapping[str, str] = os.environ) -> str:
    """Path of the user's settings file."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "spt-flow", "config.yml")


def load_user_settings(path: str = "") -> dict[str, Any]:
    """The layer of the user's settings file; empty when there is none."""
    path = path or user_settings_file()
    try:
        with open(path, encoding="utf-8") as handle:
            if os.fstat(handle.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise InvalidInput(f"{path} can be written by others.", f"Take the right away: chmod go-w {path}")
            text = handle.read()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"Cannot read {path}: {error}.", "Correct or remove the file.") from None
    import yaml

    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        raise InvalidInput(f"{path} is not valid YAML.", "One line per option: name: value") from None
    if not isinstance(data, dict):
        raise InvalidInput(f"{path} does not hold options.", "One line per option: name: value")
    check_names(data, path)
    return data


@dataclass(frozen=True)
class Settings:
    """What a workspace is given. ``memory`` and ``disk`` in bytes, ``idle_stop`` in seconds (0: never)."""

    profile: str = "slim"
    cpus: float = 4.0
    memory: int = 8 << 30
    pids: int = 4096
    kvm: str = "auto"
    docker: str = "auto"
    idle_stop: int = 7200
    ide_port: int = 0
    depth: int = 0
    submodules: bool = False
    lfs: bool = True
    clone_cache: bool = False
    disk: int = 0
    tick: float = 1.0
    known_hosts: str = ""

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Settings:
        """From the result of ``resolve``; raises ``InvalidInput`` for limits that cannot work."""
        settings = cls(**{name: values[name] for name in cls.__dataclass_fields__})
        for name, least in (("cpus", 0.1), ("memory", 256 << 20), ("pids", 100)):
            if getattr(settings, name) < least:
                raise InvalidInput(f"Cannot use {name}: it is too small to run a workspace.", f"At least {least}.")
        if settings.ide_port > 65535 or 0 < settings.ide_port < 1024:
            raise InvalidInput("Cannot use ide_port: it must be 0 or from 1024 to 65535.")
        return settings

    def hash(self) -> str:
        """64 hex digits over everything that is fixed when a workspace is created."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def cap(self, cpus: int, memory: int, reserve: int) -> tuple[Settings, list[str]]:
        """The settings a machine of ``cpus`` and ``memory`` bytes can give, less ``reserve`` bytes, and why."""
        notes = []
        capped = self
        if self.cpus > cpus:
            capped = replace(capped, cpus=float(cpus))
            notes.append(f"{self.cpus:g} CPUs asked for, {cpus} given: this machine has no more.")
        most = max(memory - reserve, 256 << 20)
        if self.memory > most:
            capped = replace(capped, memory=most)
            notes.append(
                f"{self.memory / 2**30:.1f} GiB of memory asked for, {most / 2**30:.1f} GiB given: the machine has "
                f"{memory / 2**30:.1f} GiB and keeps {reserve / 2**30:.1f} GiB."
            )
        return capped, notes

    def tmpfs(self) -> dict[str, str]:
        """Mount point to options of the workspace's memory file systems (decision A10)."""
        own = "nosuid,nodev,mode=0700,uid=1000,gid=1000,size=64m"
        return {
            "/tmp": f"exec,nosuid,nodev,mode=1777,size={self.memory // 4}",
            "/run": "nosuid,nodev,noexec,mode=0755,size=64m",
            "/run/spt-flow": own,
            "/run/user/1000": own,
        }

    def docker_arguments(self) -> dict[str, Any]:
        """The limits as keys of the Docker API's HostConfig."""
        return {
            "NanoCpus": int(self.cpus * 1e9),
            "Memory": self.memory,
            "MemorySwap": self.memory,
            "PidsLimit": self.pids,
            "Tmpfs": self.tmpfs(),
        }
