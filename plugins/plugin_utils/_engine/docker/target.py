# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Target docker: workspaces as containers of one Docker engine.

The home volume, created first, is the record of identity; names are the lock. Shapes of requests and answers are those
of the Docker Engine API.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ....module_utils._node.docker import http as docker_http
from ....module_utils._node.errors import Conflict, FlowError, NotFound, Unhealthy
from ....module_utils._node.labels import LABEL
from ..common import untrusted
from ..common.progress import Progress
from ..repository.address import ci_name
from ..workspace.models import Session, Workspace, WorkspaceSpec
from . import session as docker_session
from .parse import OLD, _outdated, age, engine_facts, from_container, from_home, with_events
from .session import PREFIX, USER, container_name

if TYPE_CHECKING:
    from ..workspace.target import EngineFacts, ExecResult
    from . import container as docker_container


Workspaces = list[Workspace]
Words = list[str]
Entries = list[dict[str, Any]]
DRAINED = "spt-flow-drained"
"""The volume that marks a drained engine: it outlives restarts, and every client of the engine sees it."""
GRACE = 30
"""Seconds between SIGTERM and SIGKILL (docs/decisions/docker-inside-storage.md)."""
DETAILS_DEADLINE = 1.0
READERS = 16
NOT_MODIFIED = 304
LEFTOVER_AGE = 600.0
"""Seconds that a replaced container may stay beside its running successor before it counts as left over."""


class DockerTarget:
    """Implements ``_target.Target`` on the engine that ``host`` (or ``DOCKER_HOST``) names; ``node`` is its machine's
    name in the inventory where it has one.

    What only creating needs is imported there: `up` on what runs reads two lists and one file.
    """

    name = "docker"

    def __init__(self, host: str = "", node: str = "") -> None:
        self._engine = docker_http.connect(host)
        self._place = {"node": node, "engine": host} if node else {}
        self._facts: EngineFacts | None = None

    # Reading

    def probe_engine(self) -> EngineFacts:
        if self._facts is None:
            self._facts = engine_facts(self._engine.get_json("/info"), self._engine.local)
        return self._facts

    def find(self, spec: WorkspaceSpec) -> Workspace | None:
        identity = spec.repository.identity if spec.repository else ""

        def wanted(workspace: Workspace) -> bool:
            return workspace.name == spec.name if spec.name else workspace.repo == identity

        found = next(filter(wanted, self._containers(spec.owner)), None)
        if found is None:
            found = next(filter(wanted, self._homes(spec.owner)), None)
        return replace(found, outdated=_outdated(found, spec)) if found and found.id else found

    def list(self, owner: str = "", kind: str = "", details: bool = False, sizes: bool = False) -> Workspaces:
        found = self._containers(owner)
        names = {workspace.key for workspace in found}
        found += [home for home in self._homes(owner) if home.key not in names]
        if kind:
            found = [workspace for workspace in found if workspace.kind == kind]
        if details:
            found = self._with_details(found)
        return self._with_sizes(found) if sizes else found

    def _containers(self, owner: str = "", key: str = "") -> Workspaces:
        """One list request; a container set aside by ``restart`` counts only when nothing has taken its place."""
        label = f"{LABEL}owner={owner}" if owner else f"{LABEL}owner"
        filters = {"label": [label]} | ({"name": [f"^/{PREFIX}{re.escape(key)}({OLD})?$"]} if key else {})
        found: dict[str, Workspace] = {}
        for entry in sorted(self._entries(filters), key=lambda entry: entry["Names"][0].endswith(OLD)):
            workspace = from_container(entry, time.time())
            if workspace is not None:
                workspace = self._placed(workspace)
                if entry["Names"][0].endswith(OLD):
                    # Whatever it does, it must get its name back before it can be used: `start` does that.
                    workspace = replace(workspace, state="stopped", url="")
                found.setdefault(workspace.key, workspace)
        return list(found.values())

    def _entries(self, filters: Mapping[str, Any]) -> Entries:
        """Containers as the engine lists them, without those that it is removing: these have no name any more."""
        entries = self._engine.get_json("/containers/json", {"all": True, "filters": filters})
        return [entry for entry in entries if entry.get("Names")]

    def _homes(self, owner: str) -> Workspaces:
        label = f"{LABEL}owner={owner}" if owner else f"{LABEL}owner"
        answer = self._engine.get_json("/volumes", {"filters": {"label": [label]}})
        homes = (entry for entry in answer.get("Volumes") or [] if entry["Name"].endswith("-home"))
        return [self._placed(from_home(entry)) for entry in homes]

    def _placed(self, workspace: Workspace) -> Workspace:
        """``workspace`` with where it runs, unless that is this machine."""
        return replace(workspace, node=self._place["node"], engine=self._place["engine"]) if self._place else workspace

    def _read(self, workspace: Workspace) -> Workspace:
        found = self._containers(workspace.owner, workspace.key)
        if not found:
            raise NotFound(f"Workspace {workspace.name} has no container any more.", "Run the command again.")
        return found[0]

    def _with_details(self, workspaces: Workspaces) -> Workspaces:
        """Steps and life from the end of each running workspace's log, many at once, with one deadline for all."""
        from concurrent.futures import ThreadPoolExecutor, wait

        running = [workspace for workspace in workspaces if workspace.state == "running"]
        if not running:
            return workspaces
        pool = ThreadPoolExecutor(min(READERS, len(running)))
        tasks = {workspace.id: pool.submit(self._detailed, workspace) for workspace in running}
        wait(tasks.values(), DETAILS_DEADLINE)
        pool.shutdown(wait=False, cancel_futures=True)
        done = {
            key: task.result()
            for key, task in tasks.items()
            if task.done() and not task.cancelled() and not task.exception()
        }
        return [done.get(workspace.id, workspace) for workspace in workspaces]

    def _detailed(self, workspace: Workspace) -> Workspace:
        lines = self._log_lines(workspace.id, follow=False, tail=80, timeout=DETAILS_DEADLINE)
        return with_events(workspace, lines)

    def _with_sizes(self, workspaces: Workspaces) -> Workspaces:
        volumes = self._engine.get_json("/system/df", {"type": "volume"}).get("Volumes") or []
        sizes = {volume["Name"]: int((volume.get("UsageData") or {}).get("Size", -1)) for volume in volumes}

        def measured(workspace: Workspace) -> dict[str, int]:
            parts = {part: sizes.get(f"{PREFIX}{workspace.key}-{part}", -1) for part in ("home", "docker")}
            return {part: size for part, size in parts.items() if size >= 0}

        return [replace(workspace, size=measured(workspace)) for workspace in workspaces]

    # Creating

    @property
    def place(self) -> str:
        """The machine, as messages call it."""
        return self._place.get("node") or "this machine"

    def admit(self, spec: WorkspaceSpec, fresh: bool) -> None:
        """Refuse on a drained engine, and on another machine's that lacks the image (this one's gets it by itself)."""
        self._refuse_drained(spec.title)
        if not fresh or self._engine.local or self._has_image(spec):
            return
        from ..image import identity as image_identity

        node = self._place.get("node", "")
        where = node or f"the engine at {self._engine.host}"
        raise Unhealthy(
            f"Cannot create workspace {spec.title}: {image_identity.lacks(where, spec.image)}",
            image_identity.bring(node),
        )

    def _has_image(self, spec: WorkspaceSpec) -> bool:
        """Whether the tag exists with the expected hash (docs/decisions/image-identity.md)."""
        try:
            found = self._engine.get_json(f"/images/{spec.image}/json")
        except NotFound:
            return False
        labels = (found.get("Config") or {}).get("Labels") or {}
        return not spec.image_hash or labels.get(f"{LABEL}image") == spec.image_hash

    def _refuse_drained(self, title: str) -> None:
        mark = self.drained()
        if mark:
            node = self._place.get("node", "localhost")
            raise Unhealthy(
                f"Cannot start workspace {title} on {self.place}: it was drained {mark}.",
                f"Take another host, or open this one: ansible-playbook spt.flow.undrain -e node={node}",
            )

    def drained(self) -> str:
        """Since when and by whom the engine is drained, in words; nothing when it is open."""
        try:
            labels = self._engine.get_json(f"/volumes/{DRAINED}").get("Labels") or {}
        except NotFound:
            return ""
        return f"at {labels.get(f'{LABEL}created', '?')} by {labels.get(f'{LABEL}by', '?')}"

    def drain(self, by: str) -> None:
        """Let nothing start here any more; what runs goes on."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        labels = {f"{LABEL}drained": "1", f"{LABEL}created": now, f"{LABEL}by": by}
        self._engine.request_json(
            "POST", "/volumes/create", body={"Name": DRAINED, "Driver": "local", "Labels": labels}
        )

    def undrain(self) -> None:
        """Let workspaces start here again."""
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
        """Create the volume, or find it as somebody else made it; its labels."""
        body = {"Name": name, "Driver": "local", "Labels": dict(labels)}
        made = self._engine.request_json("POST", "/volumes/create", body=body)
        has = made.get("Labels") or {}
        if has.get(f"{LABEL}owner") != labels[f"{LABEL}owner"]:
            whose = f"belongs to {has[f'{LABEL}owner']}" if f"{LABEL}owner" in has else "was not made by spt.flow"
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
        """Id of the new container, nothing when there is one of that name already."""
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
        """A warning while there is still room (only a local engine's disk can be seen)."""
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

    # Running

    def start(self, workspace: Workspace) -> Workspace:
        # Once more: between being admitted and this the image may have been built, and the engine drained.
        self._refuse_drained(workspace.name)
        return self._start(self._undo_restart(workspace))

    def _undo_restart(self, workspace: Workspace) -> Workspace:
        """Where a killed ``restart`` set the old container aside and never started its successor: the old one again."""
        name = container_name(workspace.owner, workspace.name)
        found = self._engine.get_json(f"/containers/{workspace.id}/json")
        old = found["Id"] if found["Name"].endswith(OLD) else ""
        if not old and found["State"]["Status"] == "created":
            with contextlib.suppress(NotFound):
                old = self._engine.get_json(f"/containers/{name}{OLD}/json")["Id"]
                self._remove(workspace.id)
        if not old:
            return workspace
        self._rename(old, name)
        return replace(workspace, id=old)

    def _start(self, workspace: Workspace) -> Workspace:
        try:
            connection, answer = self._engine.request("POST", f"/containers/{workspace.id}/start")
            connection.close()
        except FlowError as error:
            if self._lacks_kvm(error):
                return self._start_without_kvm(workspace)
            raise self._start_error(workspace, error) from None
        if answer.status == NOT_MODIFIED:
            # Not our start: whoever waits must wait for the start that is in the log already.
            raise Conflict(f"Somebody else has just started workspace {workspace.name}.", "Run the command again.")
        return replace(self._read(workspace), notes=workspace.notes)

    def _lacks_kvm(self, error: FlowError) -> bool:
        """Whether a start failed for want of the device, which cannot be looked for on another machine before."""
        from . import container as docker_container

        said = str(error.details.get("said", ""))
        return not self._engine.local and f'"{docker_container.KVM}": no such file' in said

    def _start_without_kvm(self, workspace: Workspace) -> Workspace:
        """The same container made anew without the device."""
        from . import container as docker_container

        found = self._engine.get_json(f"/containers/{workspace.id}/json")
        body, note = docker_container.without_kvm(found, self.place)
        self._remove(workspace.id)
        query = {"name": found["Name"].lstrip("/")}
        made = self._engine.request_json("POST", "/containers/create", query, body)["Id"]
        return self._start(replace(workspace, id=made, notes=(*workspace.notes, note)))

    def _start_error(self, workspace: Workspace, error: FlowError) -> FlowError:
        said = str(error.details.get("said", error.message))
        if "address already in use" in said or "port is already allocated" in said:
            port = re.search(r":(\d+)\b", said)
            return Conflict(
                f"Cannot start workspace {workspace.name}: port {port[1] if port else ''} of this machine is taken.",
                "Free it, or take another one: -e ide_port=0, then restart.",
            )
        if isinstance(error, NotFound):
            return error
        if "status" not in error.details:
            return error
        return Unhealthy(
            f"Cannot start workspace {workspace.name}: {said}.",
            "Its home is untouched. See `docker info`, or restart it: ansible-playbook spt.flow.restart",
        )

    def stop(self, workspace: Workspace) -> Workspace:
        self._stop(workspace.id)
        if workspace.kind == "ci":
            self._gone(workspace.id)
            return replace(workspace, state="stopped")
        return self._read(workspace)

    def _stop(self, identifier: str) -> None:
        self._engine.request_json("POST", f"/containers/{identifier}/stop", {"t": GRACE}, timeout=GRACE + 60)

    def _gone(self, identifier: str, seconds: float = 30.0) -> None:
        """Wait until the engine has removed a container that removes itself."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self._engine.get_json(f"/containers/{identifier}/json")
            except NotFound:
                return
            time.sleep(0.1)
        self._remove(identifier)

    def restart(self, workspace: Workspace, spec: WorkspaceSpec, progress: Progress) -> Workspace:
        """Replace the container; a failure rolls back (docs/decisions/restart.md)."""
        from . import container as docker_container

        name = container_name(workspace.owner, workspace.name)
        spec = self._completed(workspace, spec)
        if not workspace.id:
            return self.start(self.create(spec, progress))
        plan = docker_container.Plan.of(spec, self.probe_engine(), self._engine.local)
        self._set_aside(workspace, spec)
        made = ""
        try:
            self._ensure_network()
            made = self._create_container(name, spec, plan)
            if not made:
                raise _busy(name)
            fresh = self._start(replace(workspace, id=made, notes=plan.notes))
            made = fresh.id
            self._until_usable(fresh, spec)
        except BaseException:
            self._put_back(workspace.id, name, made)
            raise
        self._remove(workspace.id)
        return fresh

    def _set_aside(self, workspace: Workspace, spec: WorkspaceSpec) -> None:
        """Stop the container and call it ``-old``; one that is called so already, beside it, is somebody's restart."""
        name = container_name(workspace.owner, workspace.name)
        if self._is_old(workspace.id):
            self._stop(workspace.id)
            return
        if self._is_ours(f"/containers/{name}{OLD}/json", workspace, "Config"):
            with contextlib.suppress(FlowError):
                self._until_usable(workspace, spec)
            self._remove(name + OLD)
        self._stop(workspace.id)
        self._rename(workspace.id, name + OLD)

    def _put_back(self, identifier: str, name: str, made: str) -> None:
        """Undo a restart, unless somebody else goes on with it: then the container is gone or its name is taken."""
        with contextlib.suppress(NotFound, Conflict):
            old = self._is_old(identifier)
            if made:
                self._remove(made)
            if old:
                self._rename(identifier, name)
            self._engine.request_json("POST", f"/containers/{identifier}/start")

    def _until_usable(self, workspace: Workspace, spec: WorkspaceSpec) -> None:
        from ..common.wait import Waiter
        from ..workspace.readiness import wait_ready

        wait_ready(self, workspace, Progress(), Waiter(spec.settings.wait_timeout, False))

    def _completed(self, workspace: Workspace, spec: WorkspaceSpec) -> WorkspaceSpec:
        """``spec`` with what only the first ``up`` was told (repository, ref, dotfiles, author), from the old one."""
        from ..repository.address import Repository

        known: dict[str, str] = {}
        if workspace.id:
            config = self._engine.get_json(f"/containers/{workspace.id}/json")["Config"]
            known = dict(word.split("=", 1) for word in config.get("Env") or [] if "=" in word)
        url = known.get("SPT_FLOW_REPO", "")
        repository = spec.repository or (Repository.parse(url) if url else None)
        return replace(
            spec,
            name=workspace.name,
            kind=workspace.kind,
            deadline=workspace.deadline,
            repository=repository,
            ref=spec.ref or known.get("SPT_FLOW_REF", ""),
            dotfiles=spec.dotfiles or known.get("SPT_FLOW_DOTFILES", ""),
            git_name=spec.git_name or known.get("SPT_FLOW_GIT_NAME", ""),
            git_email=spec.git_email or known.get("SPT_FLOW_GIT_EMAIL", ""),
        )

    def _is_old(self, identifier: str) -> bool:
        return str(self._engine.get_json(f"/containers/{identifier}/json")["Name"]).endswith(OLD)

    def _rename(self, identifier: str, name: str) -> None:
        try:
            self._engine.request_json("POST", f"/containers/{identifier}/rename", {"name": name})
        except FlowError as error:
            if "same name" in str(error.details.get("said")):
                raise _busy(name) from None
            raise

    def _remove(self, identifier: str) -> None:
        """Remove a container; that it is gone, or somebody else is removing it, is as good."""
        with contextlib.suppress(NotFound, Conflict):
            self._engine.request_json("DELETE", f"/containers/{identifier}", {"force": True}, timeout=120)

    def delete(self, workspace: Workspace) -> None:
        """Container, then inner Docker's volume, then the home, which is the record that there is anything (C7)."""
        name = container_name(workspace.owner, workspace.name)
        for container in (name, name + OLD):
            if self._is_ours(f"/containers/{container}/json", workspace, "Config"):
                self._remove(container)
        for part in ("docker", "home"):
            volume = f"{PREFIX}{workspace.key}-{part}"
            if self._is_ours(f"/volumes/{volume}", workspace, ""):
                self._engine.request_json("DELETE", f"/volumes/{volume}", timeout=600)

    def _is_ours(self, path: str, workspace: Workspace, inner: str) -> bool:
        try:
            found = self._engine.get_json(path)
        except NotFound:
            return False
        labels = (found.get(inner) if inner else found).get("Labels") or {}
        return labels.get(f"{LABEL}owner") == workspace.owner and labels.get(f"{LABEL}workspace") == workspace.name

    def keepalive(self, workspace: Workspace, hours: float, by: str) -> Workspace:
        done = self.exec(workspace, ["spt-workspace", "keepalive", f"{hours:g}", by])
        if done.status:
            said = untrusted.line((done.stderr or done.stdout).strip(), 200)
            raise FlowError(
                f"Cannot keep workspace {workspace.name} alive: {said}",
                "See ansible-playbook spt.flow.logs",
            )
        return self._detailed(workspace)

    def session(self, workspace: Workspace) -> Session:
        done = self.exec(workspace, docker_session.READ)
        if done.status:
            done = self.exec(workspace, ["spt-workspace", "status"])
        try:
            return docker_session.to_session(workspace.url, done.stdout)
        except docker_session.UNREADABLE:
            said = untrusted.line((done.stderr or done.stdout).strip(), 200)
            raise Unhealthy(
                f"Workspace {workspace.name} does not answer: {said}",
                f"Restart it: ansible-playbook spt.flow.restart -e workspace={workspace.name}",
            ) from None

    # Reaching inside

    def logs(self, workspace: Workspace, follow: bool = False, tail: int = 0) -> Iterator[str]:
        return self._log_lines(workspace.id, follow, tail, None if follow else 60.0)

    def _log_lines(self, identifier: str, follow: bool, tail: int, timeout: float | None) -> Iterator[str]:
        if not identifier:
            return
        query = {"stdout": True, "stderr": True, "follow": follow, "tail": tail or "all"}
        connection, answer = self._engine.request("GET", f"/containers/{identifier}/logs", query, timeout=timeout)
        rest = b""
        try:
            for _stream, block in self._engine.frames(answer):
                *lines, rest = (rest + block).split(b"\n")
                if len(rest) > untrusted.LONGEST_LINE:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    yield untrusted.output(line.rstrip(b"\r"))
        finally:
            connection.close()
        if rest:
            yield untrusted.output(rest)

    def exec(
        self, workspace: Workspace, argv: Sequence[str], stdin: bytes = b"", timeout: float = 60.0, user: str = ""
    ) -> ExecResult:
        from ..workspace.target import ExecResult

        ran = self._engine.run(workspace.id, argv, stdin, timeout, user or USER)
        return ExecResult(ran.status, ran.stdout.decode(errors="replace"), ran.stderr.decode(errors="replace"))

    def ready_to_enter(self, progress: Progress, needed: bool = False) -> Words:
        """Nothing: `docker` made the workspace."""
        return []

    def put(self, workspace: Workspace, directory: str, tar: bytes) -> None:
        path = f"/containers/{workspace.id}/archive"
        try:
            self._engine.request_json("PUT", path, {"path": directory}, body=tar, timeout=600)
        except Unhealthy as error:
            if docker_http.NO_SPACE not in error.details.get("said", ""):
                raise
            raise Unhealthy(
                f"Cannot copy {len(tar) / 2**20:.0f} MiB into workspace {workspace.name}: there is no space left.",
                f"Enter without the repository (ansible-playbook spt.flow.up -e workspace={workspace.name}), "
                "make room in the home, and run the command again.",
                error.details,
            ) from None

    # Cleaning

    def sweep(self) -> Iterable[str]:
        """Expired CI workspaces (docs/decisions/ci-self-deletion.md), and leftovers of a killed ``restart``."""
        names = {entry["Names"][0].lstrip("/"): entry for entry in self._entries({"label": [f"{LABEL}owner"]})}
        now = self._engine.clock
        gone = []
        for name, entry in names.items():
            workspace = from_container(entry, now)
            if workspace and workspace.kind == "ci" and _expired(entry, now):
                self._remove(entry["Id"])
                gone.append(workspace.name)
            successor = names.get(name.removesuffix(OLD)) if name.endswith(OLD) else None
            if successor and successor["State"] == "running" and self._replaces(successor):
                self._remove(entry["Id"])
        return gone

    def _replaces(self, entry: Mapping[str, Any]) -> bool:
        """Whether the container beside an ``-old`` one needs it no more: its IDE answers, or it had time enough."""
        if age(entry["Status"]) > LEFTOVER_AGE:
            return True
        lines = self._log_lines(entry["Id"], follow=False, tail=80, timeout=DETAILS_DEADLINE)
        return with_events(Workspace("", "", ""), lines).step("ide").state in ("ok", "skipped")


def _remembered(spec: WorkspaceSpec, labels: Mapping[str, str]) -> WorkspaceSpec:
    """``spec``, which names only a workspace, with the repository and the reference that its home was made for."""
    from ..repository.address import Repository

    url = labels.get(f"{LABEL}url", "")
    if not url:
        return spec
    return replace(spec, repository=Repository.parse(url), ref=spec.ref or labels.get(f"{LABEL}ref", ""))


def _busy(name: str) -> Conflict:
    return Conflict(f"Somebody else is restarting {name}.", "Wait until that is done.")


def _expired(entry: Mapping[str, Any], now: float) -> bool:
    """Whether a CI container has outlived its labels, by its engine's clock alone: clients' clocks may be wrong."""
    from ....module_utils._node.reaper.engine import lifetime

    return now - float(entry.get("Created") or now) >= lifetime(entry.get("Labels") or {})
