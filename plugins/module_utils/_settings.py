# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything a user can choose (private to the collection): one table, one validation, one precedence.

``OPTIONS`` is the source of module documentation and of the README's table. ``resolve`` turns what people wrote in
several places into typed values; ``Settings`` holds those that make a workspace and renders them for a target.
Sizes are bytes, times are seconds, once they are resolved.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ._errors import InvalidInput

PREFIX = "SPT_FLOW_"
TEXT_LIMIT = 1024
"""Longest text of an option that is not told otherwise, in characters."""
MANY_LINES = {
    "known_hosts": 65536,
    "command": 131072,
    "artifacts": 4096,
    "junit": 4096,
    "env": 4096,
    "git_hooks": 65536,
}
"""Options that may hold several lines, with their longest text in characters."""
DAY = 86400
MEBIBYTE = 1024**2
GIBIBYTE = 1024**3

_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s?)?", re.ASCII)
_SIZE = re.compile(r"(\d{1,15})(?:\.(\d{1,3}))?\s*([kmgt]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})
_FALSE = frozenset({"0", "false", "no", "off", "n", "f"})


@dataclass(frozen=True)
class Option:
    """One value that a user can give.

    ``type``: str, bool, int, float, duration (text, seconds once resolved) or size (text, bytes once resolved).
    ``scope``: ``verb`` (asked of one run), ``workspace`` (fixed when the workspace is created or restarted; part of
    ``Settings.hash``), ``client`` (how this client works) or ``image``. ``low`` and ``high`` bound numbers; 0 passes
    where ``zero`` gives it a meaning.
    """

    name: str
    type: str
    default: Any
    description: str
    scope: str = "verb"
    choices: tuple[str, ...] = ()
    secret: bool = False
    low: float | None = None
    high: float | None = None
    zero: str = ""

    @property
    def ansible_type(self) -> str:
        return "str" if self.type in ("duration", "size") else self.type

    @property
    def environment(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def inventory(self) -> str:
        return f"flow_{self.name}"


GIT_HOOKS = (
    "applypatch-msg",
    "commit-msg",
    "post-applypatch",
    "post-checkout",
    "post-commit",
    "post-merge",
    "post-rewrite",
    "pre-applypatch",
    "pre-auto-gc",
    "pre-commit",
    "pre-merge-commit",
    "pre-push",
    "pre-rebase",
    "prepare-commit-msg",
)
"""What the start contract can install (``hooks.NAMES``); a test compares them."""

PROFILES = ("slim", "fat", "fat-ubuntu-24.04", "fat-debian-13", "fat-packages")
"""What image/versions.yml describes; a test compares them."""

OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option(
            "repo", "str", "", "Repository: https, ssh or git@host:path, owner/name on default_host, or a local path."
        ),
        Option("ref", "str", "", "Branch, tag or commit that a new clone starts on; by default the repository's own."),
        Option("workspace", "str", "", "Name of the workspace; by default made from the name of the repository."),
        Option("owner", "str", "", "Whose workspace it is; by default the login name."),
        Option("target", "str", "auto", "Where workspaces run.", choices=("auto", "docker", "coder")),
        Option(
            "node",
            "str",
            "",
            "Host of the inventory's group flow_nodes that workspaces run on; by default this machine.",
        ),
        Option("template", "str", "spt-flow", "Template of the Coder server that new workspaces are made of."),
        Option(
            "dotfiles",
            "str",
            "",
            "Repository with your dotfiles (#branch at its end for one), installed and updated at each start.",
        ),
        Option("trust", "bool", False, "Whether the postCreateCommand of the repository's devcontainer.json may run."),
        Option("connect", "bool", True, "Whether the run ends in a shell of the workspace where there is a terminal."),
        Option("output", "str", "text", "Text, or one JSON object on standard output.", choices=("text", "json")),
        Option("command", "str", "", "A shell command that the run ends with instead of a shell."),
        Option("confirm", "bool", False, "Whether deleting is confirmed."),
        Option("hours", "float", 8.0, "For how long keep-alive holds off the idle stop.", low=0, high=24),
        Option("size", "bool", False, "Whether status measures the sizes of volumes."),
        Option("follow", "bool", False, "Whether logs goes on until the workspace stops."),
        Option("tail", "int", 0, "How many of the last lines logs shows.", low=0, high=1_000_000, zero="all"),
        Option("from_run", "str", "", "Folder of a CI run here; up makes a workspace of its commit and settings."),
        Option("commit", "str", "", "Commit, in full, that a CI job runs on; without it the one that ref names."),
        Option(
            "ttl", "duration", "30m", "Time from its creation after which a CI workspace is deleted.", low=20, high=DAY
        ),
        Option("artifacts", "str", "", "What a CI job leaves for you: globs below the clone, by commas or lines."),
        Option("junit", "str", "", "JUnit reports of a CI job: globs below the clone, by commas or lines."),
        Option("artifacts_dir", "str", "spt-flow-ci", "Folder here in which each CI run gets one of its own."),
        Option("env", "str", "", "Names of variables of this environment that a CI job gets, by commas or lines."),
        Option("env_file", "str", "", "File here of NAME=value lines that a CI job gets; removed once it is read."),
        Option("profile", "str", "slim", "What the image holds.", "workspace", choices=PROFILES),
        Option("cpus", "float", 4.0, "Processors that a workspace may use.", "workspace", low=0.1, high=1024),
        Option("memory", "size", "8g", "Memory that a workspace may use.", "workspace", low=256 * MEBIBYTE, high=2**50),
        Option(
            "pids", "int", 4096, "Processes and threads that a workspace may have.", "workspace", low=128, high=4194304
        ),
        Option(
            "kvm",
            "str",
            "auto",
            "Whether a workspace gets /dev/kvm.",
            "workspace",
            choices=("auto", "required", "disabled"),
        ),
        Option(
            "docker",
            "str",
            "auto",
            "Whether Docker runs inside; unsafe allows it on an engine without user namespaces, where a workspace"
            " can become root on the machine.",
            "workspace",
            choices=("auto", "required", "disabled", "unsafe"),
        ),
        Option(
            "idle_stop",
            "duration",
            "2h",
            "Time without activity after which a workspace stops.",
            "workspace",
            low=60,
            high=30 * DAY,
            zero="never",
        ),
        Option(
            "ide_port",
            "int",
            0,
            "Port of this machine for the IDE.",
            "workspace",
            low=1024,
            high=65535,
            zero="any free one",
        ),
        Option(
            "depth", "int", 0, "Commits of history that a clone fetches.", "workspace", low=1, high=10**6, zero="all"
        ),
        Option("submodules", "bool", False, "Whether a clone fetches submodules.", "workspace"),
        Option("lfs", "bool", True, "Whether a clone fetches files of Git LFS.", "workspace"),
        Option("clone_cache", "bool", False, "Whether clones share objects in a cache on the machine.", "workspace"),
        Option("tick", "float", 1.0, "Speed of a workspace's clock, for tests.", "workspace", low=0.01, high=100_000),
        Option(
            "disk",
            "size",
            "20g",
            "Size of a workspace's home, and of the files it writes outside volumes.",
            "workspace",
            low=256 * MEBIBYTE,
            high=2**43,
            zero="no limit",
        ),
        Option(
            "docker_disk",
            "size",
            "20g",
            "Size of the data of Docker inside a workspace.",
            "workspace",
            low=256 * MEBIBYTE,
            high=2**43,
            zero="no limit",
        ),
        Option("known_hosts", "str", "", "Lines for known_hosts beside those that the image pins.", "workspace"),
        Option(
            "git_hooks",
            "str",
            "",
            "Git hooks that run before a clone's own: scripts by name, as a mapping or its JSON.",
            "workspace",
        ),
        Option(
            "host_reserve_memory",
            "size",
            "1g",
            "Memory of the machine that no workspace may have.",
            "workspace",
            low=0,
            high=2**50,
        ),
        Option("git_name", "str", "", "Your name in commits; by default what git says here.", "client"),
        Option("git_email", "str", "", "Your e-mail address in commits; by default what git says here.", "client"),
        Option("default_host", "str", "github.com", "The host that owner/name alone stands for.", "client"),
        Option("wait_timeout", "duration", "10m", "How long to wait until the IDE answers.", "client", low=1, high=DAY),
        Option(
            "image_base",
            "str",
            "auto",
            "Where the image's base comes from: a registry, or the distribution's mirror by bootstrap.",
            "image",
            choices=("auto", "registry", "bootstrap"),
        ),
        Option(
            "image_release",
            "str",
            "",
            "File that records each profile's verified image; empty takes what this collection describes.",
            "image",
        ),
        Option("mirror_apt", "str", "", "Address of a mirror of the distribution's packages.", "image"),
        Option(
            "mirror_crates",
            "str",
            "",
            "Address of a mirror of crates.io: its sparse index, and crates below crates/.",
            "image",
        ),
        Option("mirror_go", "str", "", "Address of a Go module proxy.", "image"),
        Option("mirror_npm", "str", "", "Address of an npm registry.", "image"),
        Option("mirror_pypi", "str", "", "Address of a Python package index.", "image"),
        Option("mirror_files", "str", "", "Address below which released files are mirrored.", "image"),
        Option("ca_bundle", "str", "", "File with certificates that are trusted beside the system's.", "image"),
    )
}


# One value


def shown(value: Any, limit: int = 60) -> str:
    """``value`` for a message: no credentials, no control characters, not long."""
    text = value if isinstance(value, str) else repr(value)
    if "@" in text:
        text = "***@" + text.rpartition("@")[2]
    text = re.sub(r"[?#].*", "?***", text, flags=re.DOTALL)
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= limit else text[:limit] + "…"


def as_bool(value: Any, name: str = "value") -> bool:
    """A boolean as Ansible, YAML and environments write it; anything else is refused."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise InvalidInput(
        f"{name} is {shown(value)!r}, which is neither true nor false.", f"Use {name}=true or {name}=false."
    )


def parse_duration(value: Any, name: str = "duration") -> int:
    """Seconds of ``90``, ``45s``, ``10m``, ``2h``, ``1h30m``, ``1d``."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _DURATION.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None or not any(match.groups()):
        raise InvalidInput(
            f"{name} is {shown(value)!r}, which is no duration.", f"Examples: {name}=45s, 10m, 2h, 1h30m."
        )
    return sum(int(part or 0) * unit for part, unit in zip(match.groups(), (DAY, 3600, 60, 1), strict=True))


def parse_size(value: Any, name: str = "size") -> int:
    """Bytes of ``512m``, ``8g``, ``1.5GiB``; units are binary, as Docker's are."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise InvalidInput(f"{name} is {shown(value)!r}, which is no size.", f"Examples: {name}=512m, 8g.")
    number = float(f"{match[1]}.{match[2] or 0}")
    return int(number * 1024 ** " kmgt".index(match[3].lower() or " "))


def _number(option: Option, value: Any) -> int | float:
    text = value if isinstance(value, str) else ("" if isinstance(value, bool) else str(value))
    pattern = r"-?\d{1,15}" if option.type == "int" else r"-?\d{1,15}(\.\d{1,9})?"
    if not re.fullmatch(pattern, text.strip(), re.ASCII):
        kind = "whole number" if option.type == "int" else "number"
        raise InvalidInput(f"{option.name} is {shown(value)!r}, which is no {kind}.", _range(option))
    return int(text) if option.type == "int" else float(text)


def _range(option: Option) -> str:
    """A hint with the allowed range in the option's own unit."""
    if option.low is None or option.high is None:
        return ""
    if option.type == "size":
        low, high = f"{option.low / MEBIBYTE:.0f}m", f"{option.high / GIBIBYTE:.0f}g"
    elif option.type == "duration":
        low, high = f"{option.low:.0f}s", f"{option.high / 3600:.0f}h"
    else:
        low, high = f"{option.low:g}", f"{option.high:.15g}"
    zero = f", or 0 for {option.zero}" if option.zero and option.low > 0 else ""
    return f"Use {option.name} from {low} to {high}{zero}."


def _bounded(option: Option, number: float, value: Any) -> None:
    if option.low is None or option.high is None or (number == 0 and option.zero):
        return
    if not math.isfinite(number) or not option.low <= number <= option.high:
        raise InvalidInput(f"{option.name} is {shown(value)!r}, which is out of range.", _range(option))


def _text(option: Option, value: Any) -> str:
    """A string without what no option may hold."""
    name = option.name
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        hint = "Quote it, YAML reads the bare word as a boolean." if isinstance(value, bool) else ""
        raise InvalidInput(f"{name} must be a single value as text, not {type(value).__name__}.", hint)
    text = str(value)
    limit = MANY_LINES.get(name, TEXT_LIMIT)
    if len(text) > limit:
        raise InvalidInput(f"{name} is {len(text)} characters long, at most {limit} are allowed.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidInput(f"{name} is not valid UTF-8.", "Check the terminal's or the file's encoding.") from None
    allowed = "\n\t" if name in MANY_LINES else ""
    if any(not c.isprintable() and c not in allowed for c in text):
        raise InvalidInput(f"{name} holds control or invisible characters.", "Type it anew rather than pasting it.")
    return text


def nearest(word: str, words: Iterable[str]) -> str:
    """The word of ``words`` that ``word`` was probably meant to be, or nothing."""
    import difflib

    return next(iter(difflib.get_close_matches(word.lower().replace("-", "_"), list(words), 1, 0.6)), "")


def _chosen(option: Option, text: str) -> str:
    if text not in option.choices:
        close = nearest(text, option.choices)
        hint = f"Use one of {', '.join(option.choices)}" + (f"; did you mean {close}?" if close else ".")
        raise InvalidInput(f"{option.name} is {shown(text)!r}, which is not known.", hint)
    return text


def convert(option: Option, value: Any) -> Any:
    """``value`` in the option's resolved type, bounds and choices checked; raises ``InvalidInput``."""
    if option.type == "bool":
        return as_bool(value, option.name)
    if option.name == "git_hooks":
        return _hooks(option, value)
    if isinstance(value, str) or not isinstance(value, (int, float)):
        value = _text(option, value)
        if value == "" and option.default == "":
            return 0 if option.type in ("duration", "size") else ""
    if option.type == "str":
        text = _text(option, value)
        return _chosen(option, text) if option.choices else text
    if option.type == "duration":
        number: float = parse_duration(value, option.name)
    elif option.type == "size":
        number = parse_size(value, option.name)
    else:
        number = _number(option, value)
    _bounded(option, number, value)
    return number


# Texts with a form of their own


def _hooks(option: Option, value: Any) -> str:
    """Scripts by hook as JSON in a fixed order; raises ``InvalidInput``."""
    import json

    found = value
    if not isinstance(value, Mapping):
        text = _text(option, value)
        if not text:
            return ""
        try:
            found = json.loads(text)
        except ValueError:
            found = None
    if not isinstance(found, Mapping) or not all(isinstance(part, str) for pair in found.items() for part in pair):
        raise InvalidInput(
            "git_hooks is no mapping of hooks to scripts.",
            "In YAML, one hook each: `pre-commit: |` and the script below it; elsewhere the same as JSON.",
        )
    for name, script in found.items():
        if name not in GIT_HOOKS:
            close = nearest(name, GIT_HOOKS)
            hint = f"Did you mean {close}?" if close else f"Use {', '.join(GIT_HOOKS)}."
            raise InvalidInput(f"git_hooks names {shown(name)!r}, which git runs on no user's command.", hint)
        if not script.startswith("#!/"):
            raise InvalidInput(f"The script of git_hooks' {name} does not begin with #!.", "For example: #!/bin/sh")
    return _text(option, json.dumps(dict(found), sort_keys=True)) if found else ""


def _check_forms(values: Mapping[str, Any]) -> None:
    """Refuse names, references, addresses and repositories that nothing may be started with."""
    from ._repository import Repository, parse_dotfiles, validate_host, validate_name, validate_ref

    for name in ("workspace", "owner"):
        if values[name]:
            validate_name(values[name], name)
    validate_ref(values["ref"])
    validate_host(values["default_host"], "default_host")
    if values["repo"]:
        Repository.parse(values["repo"], values["default_host"])
    if values["dotfiles"]:
        parse_dotfiles(values["dotfiles"], values["default_host"])
    for name in (name for name in OPTIONS if name.startswith("mirror_")):
        _check_address(name, values[name])
    if values["ca_bundle"] and not os.path.isabs(os.path.expanduser(values["ca_bundle"])):
        raise InvalidInput("ca_bundle is not an absolute path.", "Give the file's whole path.")
    if re.search(r"[<>]", values["git_name"] + values["git_email"]) or re.search(r"\s", values["git_email"]):
        raise InvalidInput("git_name or git_email holds characters that git does not allow there.")


def _check_address(name: str, text: str) -> None:
    if not text:
        return
    match = re.fullmatch(r"https?://([^/@?#\s]+)(/[A-Za-z0-9._~+%/-]*)?", text)
    if not match or ".." in text:
        raise InvalidInput(
            f"{name} is no plain http or https address.", "User names, passwords and queries have no place in it."
        )
    from ._repository import validate_host

    validate_host(match[1], name)


# Several sources


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Values of ``SPT_FLOW_*``; an empty variable counts as absent, so that callers may always set it."""
    return {o.name: environ[o.environment] for o in OPTIONS.values() if environ.get(o.environment)}


def user_settings_file() -> str:
    """Path of the user's settings file, whether it exists or not."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "spt-flow", "config.yml")


def load_user_settings(path: str = "") -> dict[str, Any]:
    """The user's settings file as written, empty when there is none; ``InvalidInput`` when it cannot be trusted."""
    path = path or user_settings_file()
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read(MEBIBYTE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidInput(f"Cannot read the settings file {path}: {error.strerror}.") from None
    if status.st_mode & 0o022:
        raise InvalidInput(f"The settings file {path} can be changed by others.", f"chmod go-w {path}")
    if status.st_uid not in (0, os.geteuid()):
        raise InvalidInput(f"The settings file {path} belongs to somebody else.", "Make one of your own.")
    if len(raw) > MEBIBYTE:
        raise InvalidInput(f"The settings file {path} is larger than 1 MiB.")
    return _known(_yaml(raw, path), f"the settings file {path}")


def _yaml(raw: bytes, path: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidInput(f"The settings file {path} is not valid UTF-8.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise InvalidInput(
            f"The settings file {path} is not valid YAML{where}.", "Write one `option: value` a line."
        ) from None


def _known(values: Any, source: str) -> dict[str, Any]:
    """``values`` if it is a mapping of known options."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidInput(f"{source[0].upper()}{source[1:]} holds no options.", "Write one `option: value` a line.")
    for name in values:
        if name not in OPTIONS:
            close = nearest(str(name), OPTIONS)
            hint = f"Did you mean {close}?" if close else "The options are: " + ", ".join(sorted(OPTIONS)) + "."
            raise InvalidInput(f"There is no option {shown(str(name))!r} ({source}).", hint)
    return {str(name): value for name, value in values.items()}


def resolve(layers: Mapping[str, Mapping[str, Any]] | Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Typed values of all options from ``layers``, the first that has one wins; ``None`` counts as absent.

    Everything is checked, also what a higher layer hides, so that a mistake shows when it is made.
    """
    if isinstance(layers, Mapping):
        named = [(str(name), dict(layer)) for name, layer in layers.items()]
    else:
        named = [("given values", dict(layer)) for layer in layers]
    values: dict[str, Any] = {}
    for source, layer in named:
        for name, value in _known(layer, source).items():
            if value is not None:
                values.setdefault(name, convert(OPTIONS[name], value))
    for option in OPTIONS.values():
        if option.name not in values:
            values[option.name] = convert(option, option.default)
    _check_forms(values)
    return values


def default_owner() -> str:
    """The login name as an owner's name."""
    import getpass

    from ._repository import slugify

    try:
        return slugify(getpass.getuser(), "user")
    except (KeyError, OSError):
        return f"user-{os.getuid()}"


# What makes a workspace


@dataclass(frozen=True)
class Settings:
    """The resolved options of scope ``workspace``, and how long a client waits.

    ``hash`` stands for what was asked for, so it does not depend on the machine; ``cap`` fits it to one.
    """

    profile: str = "slim"
    cpus: float = 4.0
    memory: int = 8 * GIBIBYTE
    pids: int = 4096
    kvm: str = "auto"
    docker: str = "auto"
    idle_stop: int = 7200
    ide_port: int = 0
    depth: int = 0
    submodules: bool = False
    lfs: bool = True
    clone_cache: bool = False
    tick: float = 1.0
    disk: int = 20 * GIBIBYTE
    docker_disk: int = 20 * GIBIBYTE
    known_hosts: str = ""
    git_hooks: str = ""
    host_reserve_memory: int = GIBIBYTE
    wait_timeout: int = 600

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """From the values that ``resolve`` returned."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def hash(self) -> str:
        """64 hex digits of what only a new or restarted workspace gets."""
        import hashlib
        import json

        fixed = {name: value for name, value in asdict(self).items() if OPTIONS[name].scope == "workspace"}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

    def cap(self, cpus: float, memory: int, reserve: int | None = None) -> tuple[Settings, list[str]]:
        """Settings for a machine of ``cpus`` and ``memory`` (bytes) less ``reserve``, and a sentence if they differ."""
        reserve = self.host_reserve_memory if reserve is None else reserve
        room = max(memory - reserve, 256 * MEBIBYTE) if memory else self.memory
        fitted = replace(self, cpus=min(self.cpus, cpus or self.cpus), memory=min(self.memory, room))
        changes = []
        machine = []
        if fitted.cpus < self.cpus:
            changes.append(f"{fitted.cpus:g} instead of {self.cpus:g} CPUs")
            machine.append(f"{cpus:g} CPUs")
        if fitted.memory < self.memory:
            changes.append(f"{fitted.memory / GIBIBYTE:.1f} instead of {self.memory / GIBIBYTE:.1f} GiB of memory")
            machine.append(f"{memory / GIBIBYTE:.1f} GiB of memory, of which {reserve / GIBIBYTE:.1f} GiB are reserved")
        if not changes:
            return self, []
        return fitted, [f"The workspace gets {' and '.join(changes)}, because the machine has {' and '.join(machine)}."]

    def tmpfs(self) -> dict[str, str]:
        """Mount options per path (decision A10); Docker's ``Tmpfs`` and Terraform's map take the same strings."""
        private = "nosuid,nodev,mode=0700,uid=1000,gid=1000,size=64m"
        return {
            "/tmp": f"exec,nosuid,nodev,mode=1777,size={self.memory // 4}",  # noqa: S108  (a mount point inside)
            "/run": "nosuid,nodev,noexec,mode=0755,size=64m",
            "/run/spt-flow": private,
            "/run/user/1000": private,
        }

    # What it is rendered to; tests/unit/test_single_source.py holds all of them against each other.

    def environment(self) -> dict[str, str]:
        """The part of the start contract that settings decide, wherever a workspace runs."""
        return {
            "SPT_FLOW_DEPTH": str(self.depth),
            "SPT_FLOW_SUBMODULES": str(int(self.submodules)),
            "SPT_FLOW_LFS": str(int(self.lfs)),
            "SPT_FLOW_KVM": self.kvm,
            "SPT_FLOW_DISK": str(self.disk),
            "SPT_FLOW_DOCKER_DISK": str(self.docker_disk),
            "SPT_FLOW_KNOWN_HOSTS": self.known_hosts,
            "SPT_FLOW_GIT_HOOKS": self.git_hooks,
        }

    def pipeline_environment(self) -> dict[str, str]:
        """What a pipeline sets so that its CI workspaces are made by these settings; what is the default is left out.

        Text of several lines has no place in a list of variables, so ``known_hosts`` stays with the inventory.
        """
        named = {name: (value, getattr(Settings, name)) for name, value in asdict(self).items()}
        return {
            OPTIONS[name].environment: str(value).lower() if isinstance(value, bool) else str(value)
            for name, (value, default) in named.items()
            if value != default and OPTIONS[name].scope == "workspace" and name not in MANY_LINES
        }

    def terraform_variables(self) -> dict[str, str]:
        """The part of the template's variables that settings decide (``templates/coder/spt-flow/variables.tf``).

        All are text, as Coder's API takes them. A limit of processes is the runtime's business there: the provider of
        Terraform has none.
        """
        import json

        return {
            "settings_hash": self.hash(),
            "cpus": f"{self.cpus:g}",
            "memory": str(self.memory // MEBIBYTE),
            "kvm": str(self.kvm != "disabled").lower(),
            "docker": str(self.docker != "disabled").lower(),
            "tmpfs": json.dumps(self.tmpfs(), sort_keys=True),
            "environment": json.dumps(self.environment(), sort_keys=True),
        }

    def devcontainer_arguments(self) -> list[str]:
        """The part of ``devcontainer.json``'s ``runArgs`` that settings decide.

        A quota of processor time instead of ``--cpus``, which engines with fewer refuse.
        """
        period = 100_000
        return [
            f"--cpu-period={period}",
            f"--cpu-quota={round(self.cpus * period)}",
            f"--memory={self.memory}",
            f"--memory-swap={self.memory}",
            f"--pids-limit={self.pids}",
            *(f"--tmpfs={path}:{options}" for path, options in self.tmpfs().items()),
        ]

    def docker_arguments(self) -> dict[str, Any]:
        """The part of Docker's ``HostConfig`` that settings decide."""
        return {
            "NanoCpus": round(self.cpus * 1e9),
            "Memory": self.memory,
            "MemorySwap": self.memory,
            "PidsLimit": self.pids,
            "Tmpfs": self.tmpfs(),
            "PortBindings": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(self.ide_port)}]},
        }
