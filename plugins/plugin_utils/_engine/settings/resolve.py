# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve options from their sources: task, extra variables, environment, settings file, inventory, default."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ....module_utils._node.errors import InvalidInput
from ..common.text import nearest, redact_value
from .options import MEBIBYTE, OPTIONS
from .values import convert


def _check_forms(values: dict[str, Any]) -> None:
    """Refuse names, references, addresses and repositories that nothing may be started with; lower names' case."""
    from ..repository.address import Repository, parse_dotfiles
    from ..repository.names import validate_host, validate_name, validate_ref

    for name in ("workspace", "owner"):
        if values[name]:
            # Coder compares names without regard to case; so does every target.
            values[name] = validate_name(values[name], name).lower()
    validate_ref(values["ref"])
    validate_host(values["default_host"], "default_host")
    parse_hosts(values["credential_hosts"])
    if values["repo"]:
        Repository.parse(values["repo"], values["default_host"])
    if values["dotfiles"]:
        parse_dotfiles(values["dotfiles"], values["default_host"])
    for name in (name for name in OPTIONS if name.startswith("mirror_")):
        _check_address(name, values[name])
    if values["ca_bundle"] and not os.path.isabs(os.path.expanduser(values["ca_bundle"])):
        raise InvalidInput("ca_bundle is not an absolute path.", "Use the absolute path of the file.")
    if re.search(r"[<>]", values["git_name"] + values["git_email"]) or re.search(r"\s", values["git_email"]):
        raise InvalidInput("git_name or git_email contains characters that git does not allow there.")


def parse_hosts(text: str) -> frozenset[str]:
    """Return the hosts of the option credential_hosts, each as ``host`` or ``host:port``, or ``*`` for every host."""
    from ..repository.names import validate_host

    found = set()
    for word in filter(None, re.split(r"[,\s]+", text)):
        if word == "*":
            found.add(word)
            continue
        host, port = validate_host(word, "credential_hosts")
        found.add(host if port in (None, 443) else f"{host}:{port}")
    return frozenset(found)


def _check_address(name: str, text: str) -> None:
    if not text:
        return
    match = re.fullmatch(r"https?://([^/@?#\s]+)(/[A-Za-z0-9._~+%/-]*)?", text)
    if not match or ".." in text:
        raise InvalidInput(f"{name} is not a plain http or https address.", "Remove user names, passwords and queries.")
    from ..repository.names import validate_host

    validate_host(match[1], name)


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the values of ``SPT_FLOW_*``; empty variables count as unset, so that callers may always set them."""
    return {o.name: environ[o.environment] for o in OPTIONS.values() if environ.get(o.environment)}


def user_settings_file() -> str:
    """Return the path of the user's settings file, whether it exists or not."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "spt-flow", "config.yml")


def load_user_settings(path: str = "") -> dict[str, Any]:
    """Return the content of the user's settings file, empty if it does not exist.

    Raise ``InvalidInput`` if it cannot be trusted.
    """
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
        raise InvalidInput(f"The settings file {path} is writable by other users.", f"Run chmod go-w {path}")
    if status.st_uid not in (0, os.geteuid()):
        raise InvalidInput(f"The settings file {path} belongs to another user.", "Create your own.")
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
    """Return ``values`` if it is a mapping of known options."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidInput(
            f"{source[0].upper()}{source[1:]} does not contain options.", "Write one `option: value` a line."
        )
    for name in values:
        if name not in OPTIONS:
            close = nearest(str(name), OPTIONS)
            hint = f"Did you mean {close}?" if close else "The options are: " + ", ".join(sorted(OPTIONS)) + "."
            raise InvalidInput(f"Unknown option {redact_value(str(name))!r} ({source}).", hint)
    return {str(name): value for name, value in values.items()}


def resolve(layers: Mapping[str, Mapping[str, Any]] | Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the typed values of all options. The first of ``layers`` that has a value wins; ``None`` counts as absent.

    All values are validated, even overridden ones, so that errors show as soon as they are made.
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
    """Return the login name as an owner's name."""
    import getpass

    from ..repository.names import slugify

    try:
        return slugify(getpass.getuser(), "user")
    except (KeyError, OSError):
        return f"user-{os.getuid()}"
