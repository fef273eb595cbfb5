# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Daily snapshots of home volumes (private to the collection; also installed on hosts as ``spt-flow-snapshots``).

What a node keeps: ``config`` (root-only JSON), the repository's password in a root-only file, and below ``state``
the file ``status.json``:
``{"version": 1, "run": {"started", "ended", "ok", "errors"}, "volumes": {name: {...}}, "verify": {...}}``; times in
epoch seconds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ._disk_image import copy, drop, opened
from ._errors import AuthError, Conflict, FlowError, InvalidInput, NotFound, Unhealthy
from ._snapshot_compare import differences
from ._snapshot_policy import Snapshot, expired, newest_good, orphaned
from ._snapshot_restic import Restic, label_tag
from ._snapshot_volumes import SKIP, VOLUME_NAME, Engine, Volume, by_name, discover, fingerprint, frozen

CONFIG = "/etc/spt-flow/snapshots.json"
MARKS = "spt-flow-snapshots"
"""Volume that Coder workspaces of a node see; the template names it as well."""
HOUR = 3600
STORE_AFTER = 6.5 * 24 * HOUR
"""Seconds after which a volume is stored again though nothing in it has changed."""
CLOCK_SLACK = HOUR
"""Seconds that a snapshot may lie in the future before that counts as a wrong clock."""


@dataclass
class Config:
    """Settings of a node, written by the role ``host_snapshots``. Sizes in bytes, ages in hours or days as named."""

    repository: str
    password_file: str = "/etc/spt-flow/snapshots.password"  # noqa: S105
    state: str = "/var/lib/spt-flow/snapshots"
    lock: str = "/run/lock/spt-flow-snapshots.lock"
    data_root: str = "/var/lib/docker"
    socket: str = "/var/run/docker.sock"
    engine: bool = True
    node: str = field(default_factory=lambda: os.uname().nodename)
    source: str = "auto"
    keep_days: int = 7
    orphan_days: int = 30
    max_age_hours: float = 26
    verify_parts: int = 4
    exclude: tuple[str, ...] = ()
    textfile: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    cache: str = "/var/cache/spt-flow/restic"

    @classmethod
    def load(cls, path: str = CONFIG) -> Config:
        """Read ``path``; a missing or unreadable file and unknown keys are errors."""
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"Cannot read the settings {path}: {error}.", "Run the role host_snapshots on this node."
            ) from error
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise InvalidInput(
                f"Unknown settings in {path}: {', '.join(unknown)}.", "Run the role host_snapshots on this node."
            )
        return cls(**data)

    def restic(self) -> Restic:
        return Restic(self.repository, self.password_file, self.cache, environment=self.environment)

    def volumes(self) -> tuple[list[Volume], str]:
        if not self.engine:
            return by_name(self.data_root), ""
        return discover(Engine(self.socket), self.data_root)


# Password and repository


def set_password(config: Config, given: str = "") -> bool:
    """Make sure that the password file holds ``given``, or a new random one if there is none. Returns whether it
    changed.

    Another password for a repository that it does not open is refused: the only key to every snapshot would be lost.
    """
    path = Path(config.password_file)
    current = path.read_text().rstrip("\n") if path.exists() else ""
    if current and given in ("", current):
        path.chmod(0o600)
        return False
    fresh = path.with_name(path.name + ".new")
    write(fresh, (given or secrets.token_urlsafe(32)) + "\n", 0o600)
    try:
        if (
            current
            and Restic(config.repository, config.password_file, config.cache, environment=config.environment).exists()
        ):
            Restic(config.repository, str(fresh), config.cache, environment=config.environment).exists()
        fresh.replace(path)
    except AuthError as error:
        raise Conflict(
            f"The new password does not open the repository {config.repository}; the old one was kept.",
            f"Add it first: restic -r {config.repository} -p {config.password_file} key add.",
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
    return True


def init(config: Config) -> bool:
    """Make the repository if it is not there. Returns whether it was made."""
    restic = config.restic()
    if restic.exists():
        return False
    restic.init()
    return True


# The daily run


def run(config: Config, names: tuple[str, ...] = (), clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """Snapshot every wanted volume (or those called ``names``), drop what expired, write the status. Returns the
    status.

    One volume's failure does not stop the others; it is in ``run.errors`` and raises at the end.
    """
    with exclusive(config):
        status = read_status(config)
        status["run"] = {"started": clock(), "ended": None, "ok": False, "errors": []}
        errors: list[str] = status["run"]["errors"]
        try:
            _run(config, names, status, clock)
        except FlowError as error:
            errors.append(error.message)
            raise
        finally:
            status["run"].update(ended=clock(), ok=not errors)
            write_status(config, status, clock())
            publish(config, status)
    if errors:
        raise FlowError(
            f"{len(errors)} of the snapshot steps failed: {errors[0]}", "", {"errors": errors, "status": status}
        )
    return status


def _run(config: Config, names: tuple[str, ...], status: dict[str, Any], clock: Callable[[], float]) -> None:
    restic, errors = config.restic(), status["run"]["errors"]
    volumes, note = config.volumes()
    if note:
        errors.append(note)
    missing = set(names) - {v.name for v in volumes}
    if missing:
        raise NotFound(
            f"No home volume called {', '.join(sorted(missing))} on {config.node}.", "See spt-flow-snapshots status."
        )
    known, stored = restic.snapshots(), False
    for volume in volumes:
        if names and volume.name not in names:
            continue
        record = status["volumes"].setdefault(volume.name, {})
        try:
            with opened(Path(volume.path)):
                stored |= _snapshot(config, volume, record, known, clock, bool(names))
        except (FlowError, OSError) as error:
            record["error"] = str(error)
        if record["error"]:
            errors.append(f"{volume.name}: {record['error']}")
    if not names:
        _tidy(config, volumes, status, clock(), restic.snapshots() if stored else known, trusted=not note)


def _snapshot(
    config: Config,
    volume: Volume,
    record: dict[str, Any],
    known: list[Snapshot],
    clock: Callable[[], float],
    asked: bool,
) -> bool:
    """Store ``volume`` unless nothing in it has changed and nobody ``asked`` for it. Returns whether it was stored."""
    # Before anything is read: what changes from here on changes the next run's fingerprint.
    mark = fingerprint(volume, config.exclude)
    if not asked and unchanged(record, mark, known, volume.name, clock()):
        record.update(error="", last_good=clock(), added=0, seconds=0.0, present=True)
        return False
    record["mark"] = ""
    with frozen(volume, config.source) as (source, kind):
        record.update(store(config, volume, source, kind, known, clock))
    record["mark"] = "" if record["error"] else mark
    return True


def unchanged(record: dict[str, Any], mark: str, known: list[Snapshot], name: str, now: float) -> bool:
    """Whether the newest good snapshot of volume ``name`` still is what the volume holds.

    ``mark`` is the volume's fingerprint, ``record`` what its last snapshot left. A snapshot older than
    ``STORE_AFTER`` is made anew all the same, and so is one dated in the future.
    """
    last = newest_good((s for s in known if s.volume == name), now)
    if last is None or not mark or record.get("error") or record.get("mark") != mark:
        return False
    return str(record.get("last_id", "")).startswith(last.id) and 0 <= now - last.time < STORE_AFTER


def store(
    config: Config, volume: Volume, source: str, kind: str, known: list[Snapshot], clock: Callable[[], float]
) -> dict[str, Any]:
    """Snapshot ``volume`` as it lies at ``source``. Returns its record for the status."""
    began = time.monotonic()
    labels = [label_tag(name, value) for name, value in sorted(volume.labels.items()) if name.startswith("spt.flow.")]
    options = [f"--exclude={os.path.basename(source)}/{pattern.lstrip('/')}" for pattern in config.exclude]
    last = newest_good((s for s in known if s.volume == volume.name), clock())
    if last:
        options += ["--parent", last.id]
    if kind == "reflink":
        options += ["--ignore-inode", "--ignore-ctime"]
    summary = config.restic().backup(source, config.node, [f"volume={volume.name}", *labels], options)
    record = {"source": kind, "seconds": round(time.monotonic() - began, 1), "error": "", "path": volume.path}
    record.update(labels=volume.labels, files=summary["total_files_processed"], size=summary["total_bytes_processed"])
    record.update(added=summary["data_added"], created=volume.created, present=True)
    if summary["errors"]:
        count = len(summary["errors"])
        return {**record, "error": f"{count} entries could not be read, the first: {summary['errors'][0]}"}
    return {**record, "last_good": clock(), "last_id": summary["id"]}


def _tidy(
    config: Config, volumes: list[Volume], status: dict[str, Any], now: float, known: list[Snapshot], trusted: bool
) -> None:
    """Drop what the policy allows; what belongs to volumes that are gone only when the engine itself said so."""
    present = {v.name for v in volumes}
    grouped: dict[str, list[Snapshot]] = {}
    for snapshot in known:
        grouped.setdefault(snapshot.volume, []).append(snapshot)
    gone: list[str] = []
    for name, snapshots in grouped.items():
        dropped = expired(snapshots, now, config.keep_days)
        if trusted and name not in present:
            seen = status["volumes"].get(name, {}).get("last_good") or 0.0
            dropped = orphaned(snapshots, now, config.orphan_days, seen) or dropped
        gone += [s.id for s in dropped]
    config.restic().forget(gone)
    status["run"]["dropped"] = len(gone)
    for name in list(status["volumes"]):
        status["volumes"][name]["present"] = name in present
        status["volumes"][name]["snapshots"] = len(grouped.get(name, ()))
        if name not in present and name not in grouped:
            del status["volumes"][name]


# Status


def read_status(config: Config) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads((Path(config.state) / "status.json").read_text())
    except (OSError, ValueError):
        status = {}
    return {"version": 1, "run": {}, "volumes": {}, "verify": {}, **status}


def assess(config: Config, status: dict[str, Any], volumes: list[Volume], now: float) -> list[str]:
    """What is wrong, as sentences: a volume without a good snapshot of the last ``max_age_hours``, or one dated in
    the future."""
    limit, found = config.max_age_hours * HOUR, []
    for volume in volumes:
        record = status["volumes"].get(volume.name, {})
        last = record.get("last_good")
        age = now - (last if last is not None else volume.created)
        if last is not None and age < -CLOCK_SLACK:
            found.append(f"{volume.name}: its last snapshot is dated in the future; is the clock right?")
        elif age > limit:
            what = "its last good snapshot is" if last is not None else "it has no snapshot and is"
            found.append(f"{volume.name}: {what} {age / HOUR:.0f} h old, the limit is {config.max_age_hours:g} h.")
    if status["verify"].get("ok") is False:
        found.append(f"The last verification failed: {status['verify'].get('error')}")
    return found


def report(config: Config, now: float) -> dict[str, Any]:
    """The status with ages and with ``problems`` (sentences); empty means that every home volume is safe."""
    status = read_status(config)
    volumes, note = config.volumes()
    status["problems"] = assess(config, status, volumes, now) + ([note] if note else [])
    for volume in volumes:
        record = status["volumes"].setdefault(volume.name, {"present": True, "error": "", "labels": volume.labels})
        last = record.get("last_good")
        record["age_hours"] = round(max(0.0, now - last) / HOUR, 2) if last is not None else None
    return status


def write_status(config: Config, status: dict[str, Any], now: float) -> None:
    """Status for people and programs, metrics for Prometheus; each is replaced as a whole."""
    write(Path(config.state) / "status.json", json.dumps(status, indent=1, sort_keys=True) + "\n", 0o644)
    if config.textfile:
        write(Path(config.textfile) / "spt_flow_snapshots.prom", metrics(status, now), 0o644)


def publish(config: Config, status: dict[str, Any]) -> None:
    """Let the dashboard of a Coder workspace tell when its home was last snapshotted.

    Such workspaces see a volume of the node, which they cannot write. It holds a time for each home of a Coder
    workspace, by names that tell nobody whose it is; others' names would.
    """
    if not config.engine:
        return
    with suppress(FlowError, OSError):
        folder = Path(Engine(config.socket).create(MARKS, {"spt.flow.marks": "1"}).path)
        for name, record in status["volumes"].items():
            if "spt.flow.coder" in record.get("labels", {}) and record.get("last_good"):
                stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record["last_good"]))
                write(folder / name, f"{stamp}\n", 0o644)
        for mark in folder.iterdir():
            if mark.name not in status["volumes"]:
                mark.unlink()


def metrics(status: dict[str, Any], now: float) -> str:
    """Prometheus text: per volume the last good snapshot's time, its age at the time of writing and whether the last
    try worked."""
    lines = []
    present = {name: r for name, r in sorted(status["volumes"].items()) if r.get("present", True)}
    for metric, value in (
        ("last_success_timestamp_seconds", lambda r: r.get("last_good")),
        ("age_seconds", lambda r: max(0.0, now - r["last_good"]) if r.get("last_good") is not None else None),
        ("ok", lambda r: int(not r.get("error") and r.get("last_good") is not None)),
        ("size_bytes", lambda r: r.get("size")),
    ):
        lines.append(f"# TYPE spt_flow_snapshot_{metric} gauge")
        for name, record in present.items():
            if value(record) is not None:
                lines.append(f'spt_flow_snapshot_{metric}{{volume="{name}"}} {value(record):.0f}')
    lines += [
        "# TYPE spt_flow_snapshots_run_ok gauge",
        f"spt_flow_snapshots_run_ok {int(bool(status['run'].get('ok')))}",
    ]
    lines += [
        "# TYPE spt_flow_snapshots_verify_ok gauge",
        f"spt_flow_snapshots_verify_ok {int(bool(status['verify'].get('ok')))}",
    ]
    return "\n".join(lines) + "\n"


# Weekly verification


def verify(config: Config, clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """Read data back, then restore the volume that waited longest into a scratch directory and compare every file.

    Returns ``{"ok", "started", "part", "volume", "compared", "error"}`` and raises when something differs.
    """
    with exclusive(config):
        status = read_status(config)
        before = status["verify"]
        part = before.get("part", 0) % config.verify_parts + 1
        result: dict[str, Any] = {"started": clock(), "ok": False, "part": part, "error": ""}
        result["volumes"] = before.get("volumes", {})
        status["verify"] = result
        try:
            config.restic().unlock()
            config.restic().check(part, config.verify_parts)
            _compare_one(config, result, clock)
            result["ok"] = True
        except (FlowError, OSError) as error:
            result["error"] = str(error)
            raise
        finally:
            result["ended"] = clock()
            write_status(config, status, clock())
    return result


def _compare_one(config: Config, result: dict[str, Any], clock: Callable[[], float]) -> None:
    volumes, _note = config.volumes()
    if not volumes:
        return
    done = result["volumes"]
    volume = min(volumes, key=lambda v: (done.get(v.name, 0.0), v.name))
    result["volume"] = volume.name
    scratch = Path(config.state) / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True)
    try:
        began = time.time()
        with opened(Path(volume.path)), frozen(volume, config.source) as (source, kind):
            record = store(config, volume, source, kind, config.restic().snapshots(), clock)
            if record["error"]:
                raise Unhealthy(f"Volume {volume.name} could not be read in full: {record['error']}")
            room(scratch, record["size"], "verify by a scratch restore")
            config.restic().restore(record["last_id"], str(scratch))
            copy = str(scratch / os.path.basename(source))
            since = began if kind == "live" else None
            result["compared"], found = (
                differences(source, copy, since) if not config.exclude else _stored(source, copy)
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if found:
        raise Unhealthy(
            f"The restored copy of {volume.name} differs from it: {'; '.join(found[:3])}.", "", {"differences": found}
        )
    done[volume.name] = clock()


def _stored(source: str, copy: str) -> tuple[int, list[str]]:
    """``differences`` when patterns are excluded: what is absent from the copy by request is no difference."""
    compared, found = differences(source, copy, limit=1_000_000)
    return compared, [line for line in found if not line.endswith((": missing", ": time of change"))]


# Restore


@dataclass(frozen=True)
class Restore:
    """What to bring back. ``path`` (relative to the home) empty means the whole volume; ``into`` empty means chosen
    here.

    ``over`` and ``confirm`` (the volume's name) together allow to replace the contents of a volume that exists.
    """

    volume: str
    snapshot: str = "latest"
    path: str = ""
    into: str = ""
    over: bool = False
    confirm: str = ""


def listing(config: Config, volume: str = "") -> list[dict[str, Any]]:
    """Snapshots, newest first, as plain data."""
    found = [s for s in config.restic().snapshots() if volume in ("", s.volume)]
    return [
        {"id": s.id, "volume": s.volume, "time": s.time, "good": s.good, "labels": dict(s.labels)}
        for s in sorted(found, key=lambda s: (s.volume, -s.time))
    ]


def choose(config: Config, volume: str, wanted: str, now: float) -> Snapshot:
    """The snapshot of ``volume`` called ``wanted``: an id (8 or more characters) or ``latest``, the newest good one."""
    mine = [s for s in config.restic().snapshots() if s.volume == volume]
    if not mine:
        raise NotFound(
            f"There is no snapshot of a volume called {volume} in {config.repository}.",
            "List them: spt-flow-snapshots list.",
        )
    found = newest_good(mine, now) if wanted == "latest" else next((s for s in mine if wanted[:8] == s.id), None)
    if found is None:
        raise NotFound(f"Volume {volume} has no snapshot {wanted}.", f"List them: spt-flow-snapshots list {volume}.")
    return found


def restore(config: Config, what: Restore, plan_only: bool = False) -> dict[str, Any]:
    """Bring back one path or a whole volume. Returns ``{"volume", "snapshot", "into", "path", "created"}``.

    Nothing is ever written through a name that a workspace controls: data goes into a new directory that only root
    can enter,
    is checked there, and is then renamed into place.
    """
    inside = inner_path(what.path) if what.path else ""
    if not VOLUME_NAME.fullmatch(what.volume) or (what.into and not VOLUME_NAME.fullmatch(what.into)):
        raise InvalidInput(f"{what.into or what.volume} is not the name of a volume.")
    engine = Engine(config.socket)
    snapshot = choose(config, what.volume, what.snapshot, time.time())
    if inside:
        return _restore_path(config, engine, what, snapshot, inside, plan_only)
    into = what.into or (
        what.volume if _lookup(engine, what.volume) is None else f"{what.volume}-restored-{snapshot.id}"
    )
    exists = _lookup(engine, into)
    if exists is not None and not (what.over and what.confirm == into):
        raise Conflict(
            f"Volume {into} exists; a snapshot is never restored over it unless that is asked for twice.",
            f"Leave the target out for a new volume, or pass over=true and confirm={into}.",
        )
    _refuse_running(engine, into, exists)
    result = {"volume": what.volume, "snapshot": snapshot.id, "into": into, "path": "", "created": exists is None}
    if not plan_only:
        _restore_volume(config, engine, snapshot, into, exists)
    return result


def _refuse_running(engine: Engine, name: str, volume: Volume | None) -> None:
    users = engine.users(name) if volume else []
    if users:
        raise Conflict(
            f"Volume {name} is in use by {', '.join(users)}.",
            "Stop the workspace first: ansible-playbook spt.flow.stop.",
        )


def _restore_volume(config: Config, engine: Engine, snapshot: Snapshot, into: str, exists: Volume | None) -> None:
    labels = (
        dict(snapshot.labels)
        if into == snapshot.volume
        else {"spt.flow.restored": f"{snapshot.volume}@{snapshot.id}", SKIP: "no"}
    )
    if exists is not None:
        run(config, (into,))
    volume = exists or engine.create(into, labels)
    try:
        _swap(config, snapshot, volume)
    except (FlowError, OSError):
        if exists is None:
            engine.remove(into)
        raise


def _swap(config: Config, snapshot: Snapshot, volume: Volume) -> None:
    """Restore beside the volume's data, then put the new directory in the place of the old one."""
    home = Path(volume.path)
    fresh, old = home.parent / ".spt-flow-restore", home.parent / ".spt-flow-replaced"
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    try:
        config.restic().restore(snapshot.id, str(fresh))
        restored = fresh / home.name
        if restored.is_symlink() or not restored.is_dir():
            raise Unhealthy(f"Snapshot {snapshot.id} holds no directory {home.name}.")
        home.rename(old)
        restored.rename(home)
    except BaseException:
        if old.exists() and not home.exists():
            old.rename(home)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    drop(home)
    shutil.rmtree(old)


def _restore_path(
    config: Config, engine: Engine, what: Restore, snapshot: Snapshot, inside: str, plan_only: bool
) -> dict[str, Any]:
    """Put one path of the snapshot into a new directory ``restored-<snapshot>`` of the volume, owned as the home is."""
    volume = _lookup(engine, what.into or what.volume)
    if volume is None:
        raise NotFound(
            f"There is no volume {what.into or what.volume} to put {inside} into.", "Restore the whole volume instead."
        )
    name = f"restored-{snapshot.id}"
    result = {
        "volume": what.volume,
        "snapshot": snapshot.id,
        "into": volume.name,
        "path": f"{name}/{Path(inside).name}",
        "created": False,
    }
    if plan_only:
        return result
    with opened(Path(volume.path)):
        _restore_into(config, volume, snapshot, inside, name)
    return result


def _restore_into(config: Config, volume: Volume, snapshot: Snapshot, inside: str, name: str) -> None:
    """Restore ``inside`` beside the volume's data, then put it into its directory ``name``."""
    home = os.open(volume.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    staging = Path(volume.path).parent / ".spt-flow-restore"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    try:
        config.restic().restore(snapshot.id, str(staging), f"/{Path(volume.path).name}/{inside}")
        found = staging / Path(volume.path).name / inside
        if not os.path.lexists(found):
            raise NotFound(
                f"Snapshot {snapshot.id} of {snapshot.volume} has no {inside}.", "Paths are relative to the home."
            )
        _place(home, name, found)
    finally:
        os.close(home)
        shutil.rmtree(staging, ignore_errors=True)


def _place(home: int, name: str, found: Path) -> None:
    """Move ``found`` into the directory ``name`` of the open directory ``home``; names are never followed, nothing
    is replaced."""
    owner = os.fstat(home)
    try:
        os.mkdir(name, 0o700, dir_fd=home)
    except FileExistsError:
        raise Conflict(f"The home already has a {name}; nothing was changed.", "Move it away and run again.") from None
    target = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=home)
    try:
        _move(found, target)
        os.fchown(target, owner.st_uid, owner.st_gid)
    except OSError as error:
        # Nobody but root can be in it: half of what was asked for would look like all of it.
        shutil.rmtree(f"/proc/self/fd/{target}/{found.name}", ignore_errors=True)
        with suppress(OSError):
            os.unlink(found.name, dir_fd=target)
        with suppress(OSError):
            os.rmdir(name, dir_fd=home)
        raise FlowError(
            f"Cannot put {found.name} into the home: {error.strerror}. Nothing was changed.", "Make room there."
        ) from error
    finally:
        os.close(target)


def _move(found: Path, target: int) -> None:
    """Move ``found`` into the open directory ``target``, or copy where that has a file system or quota of its own."""
    try:
        os.rename(found, found.name, dst_dir_fd=target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy(str(found), Path(f"/proc/{os.getpid()}/fd/{target}"))


def inner_path(path: str) -> str:
    """``path`` relative to the home; absolute paths of the workspace's home are understood, anything that leaves it
    is refused."""
    text = path[len("/home/coder/") :] if path.startswith("/home/coder/") else path
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or ".." in parts or not parts or "\0" in text:
        raise InvalidInput(
            f"The path {path!r} does not lie in the home.", "Give it relative to /home/coder, without `..`."
        )
    return "/".join(parts)


def _lookup(engine: Engine, name: str) -> Volume | None:
    try:
        return engine.volume(name)
    except NotFound:
        return None


# Small things


def room(directory: Path, wanted: int, purpose: str) -> None:
    """Refuse to ``purpose`` when fewer than ``wanted`` bytes and a tenth are free at ``directory``."""
    free = shutil.disk_usage(directory).free
    if free < wanted * 1.1:
        raise FlowError(
            f"Cannot {purpose}: {wanted >> 20} MiB are needed at {directory}, {free >> 20} MiB are free.",
            "Free space there.",
        )


@contextmanager
def exclusive(config: Config) -> Iterator[None]:
    """One run or verification at a time; the lock goes with the process."""
    Path(config.lock).parent.mkdir(parents=True, exist_ok=True)
    with Path(config.lock).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(
                "Another snapshot run is at work on this node.", "Wait for it: systemctl status spt-flow-snapshots."
            ) from None
        yield


def write(path: Path, text: str, mode: int) -> None:
    """Replace ``path`` by ``text`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(handle, "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
