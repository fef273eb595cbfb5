# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Create workspaces as volumes and containers of one Docker engine."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ....module_utils._node.errors import Conflict, NotFound, Unhealthy
from ....module_utils._node.labels import LABEL
from ..common.progress import Progress
from ..repository.address import ci_name
from ..workspace.models import Workspace, WorkspaceSpec
from .session import PREFIX, container_name

if TYPE_CHECKING:
    from . import container as docker_container
from .reading import EngineReader

DRAINED = "spt-flow-drained"
"""The volume that marks a drained engine: it survives restarts, and all clients of the engine see it."""


class Creator(EngineReader):
    """Modules that only creation needs are imported late: `up` of a running workspace reads two lists and one file."""

    def admit(self, spec: WorkspaceSpec, fresh: bool) -> None:
        """Raise an error on a drained engine, and on another machine's engine without the image (this machine builds
        its own).
        """
        self._refuse_drained(spec.title)
        if not fresh or self._engine.local or self._has_image(spec):
            return
        from ..image import identity as image_identity

        node = self._location.get("node", "")
        where = node or f"the engine at {self._engine.host}"
        raise Unhealthy(
            f"Cannot create workspace {spec.title}: {image_identity.missing(where, spec.image)}",
            image_identity.install_hint(node),
        )

    def _has_image(self, spec: WorkspaceSpec) -> bool:
        from ....module_utils._node.docker import images as docker_images

        return docker_images.present(self._engine, spec.image, spec.image_hash)

    def _refuse_drained(self, title: str) -> None:
        mark = self.drained()
        if mark:
            node = self._location.get("node", "localhost")
            raise Unhealthy(
                f"Cannot start workspace {title} on {self.place}: it was drained {mark}.",
                f"Use another host, or undrain this one: ansible-playbook spt.flow.undrain -e node={node}",
            )

    def drained(self) -> str:
        """Return since when and by whom the engine is drained, as text, or nothing."""
        try:
            labels = self._engine.get_json(f"/volumes/{DRAINED}").get("Labels") or {}
        except NotFound:
            return ""
        return f"at {labels.get(f'{LABEL}created', '?')} by {labels.get(f'{LABEL}by', '?')}"

    def drain(self, by: str) -> None:
        """Block new starts; running workspaces continue."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        labels = {f"{LABEL}drained": "1", f"{LABEL}created": now, f"{LABEL}by": by}
        self._engine.request_json(
            "POST", "/volumes/create", body={"Name": DRAINED, "Driver": "local", "Labels": labels}
        )

    def undrain(self) -> None:
        """Allow new starts again."""
        with contextlib.suppress(NotFound):
            self._engine.request_json("DELETE", f"/volumes/{DRAINED}")

    def create(self, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        from . import container as docker_container

        spec = self._named(spec) if spec.kind == "dev" else replace(spec, name=spec.name or ci_name(spec.repository))
        plan = docker_container.Plan.of(spec, self.probe_engine(), self._engine.local)
        if spec.kind == "dev":
            labels = {**docker_container.volume_labels(spec, "docker"), f"{LABEL}snapshot": "no"}
            self._volume(f"{PREFIX}{spec.owner}-{spec.name}-docker", labels)
        if plan.settings.clone_cache:
            self._volume(
                docker_container.clone_cache_volume(spec.owner),
                docker_container.volume_labels(replace(spec, name=""), "clones"),
            )
        self._ensure_network()
        self._create_container(container_name(spec.owner, spec.name), spec, plan)
        workspace = self._read(Workspace(spec.owner, spec.name, ""))
        return replace(workspace, notes=(*plan.notes, *self._disk_note()))

    def _named(self, spec: WorkspaceSpec) -> WorkspaceSpec:
        """Claim a name by creating its home volume and reading its labels (docs/decisions/identity-and-names.md)."""
        from . import container as docker_container

        repository = spec.repository
        names = [spec.name] if spec.name else [repository.slug, repository.slug_with_suffix()] if repository else []
        owner = ""
        for name in names:
            claimed = replace(spec, name=name)
            labels = docker_container.volume_labels(claimed, "home")
            has = self._volume(f"{PREFIX}{spec.owner}-{name}-home", labels)
            owner = has.get(f"{LABEL}repo", "")
            if repository is None:
                return _remembered(claimed, has)
            if owner in ("", repository.identity):
                return claimed
        raise Conflict(
            f"Cannot create workspace {names[-1] if names else ''}: the name belongs to {owner}.",
            "Choose another name: -e workspace=name",
        )

    def _volume(self, name: str, labels: Mapping[str, str]) -> dict[str, str]:
        """Create the volume, or find the one that another client created. Return its labels."""
        body = {"Name": name, "Driver": "local", "Labels": dict(labels)}
        made = self._engine.request_json("POST", "/volumes/create", body=body)
        has = made.get("Labels") or {}
        if has.get(f"{LABEL}owner") != labels[f"{LABEL}owner"]:
            whose = f"belongs to {has[f'{LABEL}owner']}" if f"{LABEL}owner" in has else "was not created by spt.flow"
            raise Conflict(f"The volume {name} exists and {whose}.", "Choose another name: -e workspace=name")
        return dict(has)

    def _ensure_network(self) -> None:
        """Create the workspaces' bridge network (docs/decisions/ide-network.md)."""
        from . import container as docker_container

        try:
            self._engine.get_json(f"/networks/{docker_container.NETWORK}")
            return
        except NotFound:
            pass
        options = {
            "com.docker.network.bridge.name": "spt-flow0",
            "com.docker.network.bridge.enable_icc": "false",
        }
        body = {
            "Name": docker_container.NETWORK,
            "CheckDuplicate": True,
            "Driver": "bridge",
            "Options": options,
            "Labels": {f"{LABEL}network": "1"},
        }
        with contextlib.suppress(Conflict):
            self._engine.request_json("POST", "/networks/create", body=body)

    def _create_container(self, name: str, spec: WorkspaceSpec, plan: docker_container.Plan) -> str:
        """Return the id of the new container, or nothing if the name is already taken."""
        from . import container as docker_container

        try:
            made = self._engine.request_json(
                "POST", "/containers/create", {"name": name}, docker_container.container_body(spec, plan)
            )
            return str(made["Id"])
        except Conflict:
            return ""
        except NotFound as error:
            if "image" not in error.details.get("said", "").lower():
                raise
            raise NotFound(
                f"Cannot create workspace {spec.name}: the engine does not have the image {spec.image}.",
                "Build it: ansible-playbook spt.flow.image",
            ) from None

    def _disk_note(self) -> tuple[str, ...]:
        """Return a warning about a nearly full disk (only a local engine's disk is visible)."""
        folder = self.probe_engine().root
        if not (self._engine.local and folder):
            return ()
        try:
            disk = os.statvfs(folder)
        except OSError:
            return ()
        free = disk.f_bavail / max(1, disk.f_blocks)
        if free >= 0.1:
            return ()
        room = disk.f_bavail * disk.f_frsize / 2**30
        return (f"The engine's disk is nearly full: {room:.1f} GiB ({free:.0%}) are left in {folder}.",)


def _remembered(spec: WorkspaceSpec, labels: Mapping[str, str]) -> WorkspaceSpec:
    """Add to ``spec``, which only names a workspace, the repository and the ref of its home."""
    from ..repository.address import Repository

    url = labels.get(f"{LABEL}url", "")
    if not url:
        return spec
    return replace(spec, repository=Repository.parse(url), ref=spec.ref or labels.get(f"{LABEL}ref", ""))
