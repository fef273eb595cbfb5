# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roll a template out to a Coder server. Idempotent.

A version's name contains the collection's version and a hash of its content (files and variables), so the name tells
whether it exists. It becomes active only after its import has succeeded. Workspaces keep the version they were built
with until their user restarts them.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ....module_utils._node.errors import FlowError, InvalidInput, Unhealthy
from ..common.progress import Progress
from ..common.version import COLLECTION, release
from ..common.wait import Waiter
from ..settings.workspace import Settings
from ..workspace.models import CONTRACT
from .admin import CoderAdmin
from .client import DEPRECATED, Json
from .jobs import advice, follow, last_lines

LONGEST_DESCRIPTION = 128
DESCRIPTION = "Your repository with VS Code, Docker and KVM on the company's machines. A name is all you need to enter."
LARGEST = 1 << 20
"""Largest archive in bytes that the server accepts (docs/decisions/coder-server-behaviour.md)."""
IMPORT_TIMEOUT = 600.0
LAST_LINES = 8
CREATION_NAMES = {
    "time_til_dormant_ms": "dormant_ttl_ms",
    "time_til_dormant_autodelete_ms": "delete_ttl_ms",
    "use_classic_parameter_flow": "template_use_classic_parameter_flow",
}
"""Field names that differ when a template is created (docs/decisions/coder-server-behaviour.md)."""
PRESET = {"repo": "", "ref": "", "description": "", "icon": "/icon/git.svg"}
"""Keys of a preset besides its name, with their defaults."""
LOCK = ".terraform.lock.hcl"
LEFT_OUT = (".terraform", ".git")
FOLDER = COLLECTION / "templates/coder/spt-flow"
CI_TTL = 1800
"""Seconds after which a CI workspace is stopped and so deleted, regardless of activity."""


@dataclass(frozen=True)
class Wanted:
    """The wanted template. ``settings`` are fields of the API (``default_ttl_ms``, ``description`` …)."""

    name: str
    archive: bytes
    variables: Mapping[str, str]
    settings: Mapping[str, Any]
    release: str

    @property
    def version(self) -> str:
        """Return ``0.1.0-0123456789ab``: the collection's version and the content."""
        return f"{self.release}-{self.content[:12]}"

    @property
    def content(self) -> str:
        """Return the SHA-256 of the archive and the variables."""
        words = json.dumps(dict(self.variables), sort_keys=True).encode()
        return hashlib.sha256(hashlib.sha256(self.archive).digest() + words).hexdigest()


@dataclass
class Rollout:
    """Changes made, or to be made in check mode.

    ``ignored``: settings that the server did not change without a licence.
    """

    changed: bool = False
    version: str = ""
    diff: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)


def ours(settings: Settings, kind: str, name: str, nodes: Mapping[str, str], lock: bytes = b"", **more: str) -> Wanted:
    """The collection's own template for workspaces of ``kind`` (``dev`` or ``ci``), as ``settings`` want them.

    ``nodes`` are addresses of engines by the nodes' names; without any the server's own engine is used. ``lock`` is the
    server's lock file: which providers it has, with their sums, is nothing that the collection knows. ``more`` are
    variables that differ from the usual (``network``, ``runtime``, ``apparmor``, ``subdomain``, ``presets``).
    """
    from ..docker import container as docker_container
    from ..image import identity as image_identity

    image = image_identity.identity(settings.profile)
    variables = {
        **settings.terraform_variables(),
        "kind": kind,
        "contract": CONTRACT,
        "image": image.tag,
        "image_hash": image.hash,
        "nodes": json.dumps(dict(sorted(nodes.items()))),
        "runtime": docker_container.RUNTIME,
        "apparmor": "",
        "subdomain": "false",
        "network": docker_container.NETWORK,
        "ttl": str(CI_TTL),
        "presets": "[]",
        "external_auth": "[]",
        **more,
    }
    ci = kind == "ci"
    ttl = CI_TTL if ci else settings.idle_stop
    about = {
        "display_name": "CI workspace" if ci else "Workspace",
        "description": "For CI jobs. Deleted at its time limit." if ci else DESCRIPTION,
        "icon": "/icon/widgets.svg" if ci else "/icon/devcontainers.svg",
        "default_ttl_ms": ttl * 1000,
        "activity_bump_ms": 0 if ci else ttl * 1000,
        # A cancelled run need not wait for a build that would be deleted anyway.
        "allow_user_cancel_workspace_jobs": ci,
    }
    files = {"seccomp.json": docker_container.SECCOMP.read_bytes(), **({LOCK: lock} if lock else {})}
    archive = pack(FOLDER, files)
    return Wanted(name, archive, variables, about, release())


def presets(given: Sequence[Mapping[str, Any]]) -> str:
    """Return the template's variable for the presets of an inventory. Raise ``InvalidInput`` for an unusable one."""
    found: dict[str, dict[str, str]] = {}
    for one in given:
        unknown = sorted(set(one) - {"name", *PRESET})
        name = str(one.get("name") or "").strip()
        if unknown or not name or name in found or not one.get("repo"):
            raise InvalidInput(
                f"Preset {name or len(found) + 1} of the template is invalid: each needs a name of its own and a repo.",
                f"Other keys are {', '.join(sorted(PRESET))}.",
            )
        found[name] = {"name": name, **{key: str(one.get(key) or default) for key, default in PRESET.items()}}
    return json.dumps(list(found.values()), sort_keys=True)


def deprecated(wanted: Wanted, reason: str) -> Wanted:
    """Return ``wanted`` marked as deprecated, or unchanged without a reason.

    Coder's own deprecation needs a licence, so the mark is in the visible description (read by ``client``).
    """
    if not reason:
        return wanted
    about = dict(wanted.settings)
    about["display_name"] = f"{about.get('display_name', wanted.name)} (deprecated)"
    text = f"{DEPRECATED} {' '.join(reason.split())}"
    if len(text.encode()) >= LONGEST_DESCRIPTION:
        raise InvalidInput(
            f"The reason for deprecating template {wanted.name} has {len(reason)} characters.",
            f"Shorten it to {LONGEST_DESCRIPTION - len(DEPRECATED) - 2}.",
        )
    about["description"] = text
    return replace(wanted, settings=about)


def pack(folder: Path, more: Mapping[str, bytes] | None = None) -> bytes:
    """Return the files below ``folder``, and ``more`` by name, as a reproducible tar.

    Raise ``InvalidInput`` for a template that the server would reject: without a ``.tf`` file at its top, or over 1
    MiB.
    """
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part in LEFT_OUT for part in path.relative_to(folder).parts)
    }
    files |= more or {}
    if not any("/" not in name and name.endswith(".tf") for name in files):
        raise InvalidInput(
            f"{folder} does not have a Terraform file.", "A template is a directory with .tf files at its top."
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(files[name]), 0o644
            tar.addfile(info, io.BytesIO(files[name]))
    if len(buffer.getvalue()) > LARGEST:
        raise InvalidInput(
            f"The template in {folder} is {len(buffer.getvalue()) >> 10} KiB large; the server accepts "
            f"{LARGEST >> 10} KiB.",
            "Remove files that Terraform does not need.",
        )
    return buffer.getvalue()


def roll_out(client: CoderAdmin, wanted: Wanted, check: bool = False, progress: Progress | None = None) -> Rollout:
    """Upload and activate the template. Raise ``FlowError``; the active version does not change then."""
    progress = progress or Progress()
    template = client.template(wanted.name)
    done = Rollout(version=wanted.version)
    before, after = _seen(client, template, wanted), {**wanted.settings, "version": wanted.version}
    done.diff = {"before": before, "after": after}
    done.changed = before != after
    done.actions = _actions(template, before, wanted)
    if check or not done.changed:
        return done
    if before.get("version") != wanted.version:
        version = _imported(client, template, wanted, progress)
        if template is None:
            settings = {CREATION_NAMES.get(name, name): value for name, value in wanted.settings.items()}
            template = client.create_template(wanted.name, version["id"], settings)
        else:
            client.promote(template["id"], version["id"])
    if template is None:
        raise AssertionError("template must be set here")
    changes = {name: value for name, value in wanted.settings.items() if template.get(name) != value}
    if changes:
        template = client.patch_template(template["id"], changes)
    done.ignored = sorted(name for name, value in wanted.settings.items() if template.get(name) != value)
    return done


def _seen(client: CoderAdmin, template: Json | None, wanted: Wanted) -> dict[str, Any]:
    """Return the template's settings that are wanted, and the name of its active version."""
    if template is None:
        return {}
    active = client.template_version(template["active_version_id"])
    found = {name: template.get(name) for name in wanted.settings}
    return {**found, "version": active["name"] if active else ""}


def _actions(template: Json | None, before: Mapping[str, Any], wanted: Wanted) -> list[str]:
    if template is None:
        return ["import", "create"]
    actions = [] if before["version"] == wanted.version else ["import", "activate"]
    return actions + (["change"] if any(before[name] != value for name, value in wanted.settings.items()) else [])


def _imported(client: CoderAdmin, template: Json | None, wanted: Wanted, progress: Progress) -> Json:
    """Return the version, imported now or by an earlier run.

    Raise ``Unhealthy`` with the last log lines if that failed.
    """
    name, version = wanted.version, None
    if template is not None:
        version = client.version_by_name(template["id"], name)
        attempt = 1
        while version is not None and version["job"]["status"] in ("failed", "canceled"):
            # A failed version keeps its name.
            attempt += 1
            name = f"{wanted.version}.{attempt}"
            version = client.version_by_name(template["id"], name)
    if version is None:
        with progress.stage("upload", f"{len(wanted.archive) >> 10} KiB"):
            file_id = client.upload(wanted.archive)
        version = client.create_version(
            file_id, name, template["id"] if template else "", "spt.flow", user_variable_values=wanted.variables
        )
    with progress.stage("import", f"{wanted.name} {name}"):
        return _followed(client, version["id"], wanted, progress)


def _followed(client: CoderAdmin, version_id: str, wanted: Wanted, progress: Progress) -> Json:
    """Wait for an import and show its log as progress. Cancel an import that takes too long."""
    try:
        version = follow(
            "import",
            Waiter(IMPORT_TIMEOUT),
            lambda: client.template_version(version_id),
            lambda after: client.version_logs(version_id, after),
            progress,
        )
    except FlowError:
        client.cancel_version(version_id)
        raise
    if version["job"]["status"] == "succeeded":
        return version
    last = last_lines(client, client.version_logs(version_id), LAST_LINES)
    raise Unhealthy(
        f"Cannot import the template {wanted.name}: {version['job'].get('error') or version['job']['status']}.",
        "\n".join([*advice(*last), "The active version did not change. The last lines of the import:", *last]),
        {"log": last, "error_code": version["job"].get("error_code", "")},
    )
