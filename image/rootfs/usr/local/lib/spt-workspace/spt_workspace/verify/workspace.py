# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of a workspace. In an image without a workspace most of them are skipped."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import access, guest, hooks, kvm, leaks, machine, microvm, services, tree
from ..clone import same_repository
from ..contract import Failure
from ..processes import describe, end
from ..record import printable
from .place import Place, first, write
from .tools import ANSWER, AUTHOR

BARE = "this is an image without a workspace"
ENGINE_PATIENCE = 60.0
IDE_PATIENCE = 120.0


def spare(sentence: str) -> Failure:
    """Return the failure of a check that cannot run here."""
    return Failure(sentence, state="skipped")


def _steps(place: Place) -> dict[str, Any]:
    if not place.running:
        raise spare(BARE)
    try:
        found = json.loads((place.paths.run / "steps.json").read_text())
    except (OSError, ValueError):
        raise Failure("The record of this start, steps.json, cannot be read.") from None
    return dict(found.get("steps") or {})


def start(place: Place) -> str:
    """Check that every step of the start succeeded, except dotfiles, which are the user's own."""
    steps = _steps(place)
    bad = [
        f"{name}: {step['detail']}" for name, step in steps.items() if step["state"] == "failed" and name != "dotfiles"
    ]
    if bad:
        raise Failure(f"A step of the start failed. {'; '.join(bad)}")
    unready = [name for name, step in steps.items() if step["state"] in ("pending", "running") and name != "dotfiles"]
    if unready:
        raise Failure(f"The workspace is still starting ({', '.join(unready)}). Verify it again when that has ended.")
    return ", ".join(f"{name} {step['state']}" for name, step in steps.items())


def root(place: Place) -> str:
    place.run(["sudo", "--non-interactive", "id", "-u"], expect="0")
    return "sudo makes the user root without a password"


def ide(place: Place) -> str:
    """Check that the IDE answers and its password is in memory only; in an image, start one."""
    if place.running:
        return _running_ide(place)
    folder = place.folder("ide")
    socket = folder / "s"
    argv = ["code-server", "--auth", "none", "--socket", str(socket), "--user-data-dir", str(folder / "data")]
    child = place.children.start([*argv, "--disable-update-check"], place.environ, cwd=str(folder))

    def answers() -> bool:
        if child.poll() is not None:
            raise Failure(f"code-server ended by itself with {describe(child.returncode)}.")
        return socket.exists() and services.answers(services.UnixConnection(socket), "/healthz")

    try:
        _until(answers, IDE_PATIENCE, f"code-server did not answer within {IDE_PATIENCE:.0f} s.")
    finally:
        end(child, signal.SIGKILL)
        child.wait()
        place.children.forget(child)
    version = (place.about.get("ide") or {}).get("code-server", "")
    return f"started and answered: code-server {version}".rstrip()


def _running_ide(place: Place) -> str:
    if place.contract.kind == "ci":
        raise spare("a CI workspace has none")
    address = place.contract.ide_bind if place.contract.ide_bind not in ("0.0.0.0", "") else "127.0.0.1"  # noqa: S104
    if not services.answers(http.client.HTTPConnection(address, place.contract.ide_port, timeout=10), "/healthz"):
        raise Failure(f"The IDE does not answer on port {place.contract.ide_port}; 'spt-workspace status' says why.")
    kind = memory(place.paths.run)
    if kind != "tmpfs":
        raise Failure(f"The IDE's password lies in {place.paths.run}, which is not memory but {kind or 'unknown'}.")
    return "answers, and its password is in memory only"


def memory(path: Path, mounts: str = "/proc/self/mounts") -> str:
    """Return the type of the file system of ``path``."""
    best, kind = "", ""
    for line in Path(mounts).read_text().splitlines():
        _device, point, found, *_rest = line.split()
        if (f"{path}/".startswith(f"{point.rstrip('/')}/")) and len(point) >= len(best):
            best, kind = point, found
    return kind


def _until(done: Callable[[], bool], seconds: float, sentence: str) -> None:
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise Failure(sentence)
        time.sleep(0.2)


def docker(place: Place) -> str:
    """Run a container of the image's own programs, so that nothing is pulled."""
    version = first(place.run(["docker", "--version"]))
    if not place.running:
        raise spare(f"{BARE}, so no engine runs; {version}")
    if not place.contract.docker:
        raise spare(place.contract.docker_reason or "Docker inside is switched off")

    def answers() -> bool:
        try:
            return bool(place.run(["docker", "info"], timeout=30))
        except Failure:
            return False

    _until(answers, ENGINE_PATIENCE, f"Docker inside did not answer within {ENGINE_PATIENCE:.0f} s.")
    archive = place.folder("docker") / "root.tar"
    archive.write_bytes(tree.tar(tree.of(["sh"], folders=("dev", "proc", "sys", "tmp"))))
    tag = f"spt-flow-verify:{os.getpid()}"
    place.run(["docker", "import", str(archive), tag])
    try:
        script = 'echo "the answer is $((6*7))"'
        place.run(["docker", "run", "--rm", "--network", "none", tag, "sh", "-c", script], expect=ANSWER)
    finally:
        place.run(["docker", "image", "rm", tag], good=lambda status: True)
    return f"ran a container: {version}"


def home(place: Place) -> str:
    if not place.running:
        raise spare(BARE)
    if place.contract.kind == "ci":
        raise spare("a CI workspace keeps nothing")
    where = place.paths.home
    if not os.path.ismount(where):
        raise Failure(f"{where} is not a volume: what is in it goes with the container.")
    kind = memory(where)
    if kind in ("tmpfs", "ramfs"):
        raise Failure(f"{where} is memory ({kind}): what is in it goes with the container.")
    try:
        prepared = float(json.loads((place.paths.state / "home.json").read_text())["prepared"])
    except (OSError, ValueError, KeyError):
        raise Failure(f"{where} was never prepared; is its disk full?") from None
    began = min((step["started"] or time.time()) for step in _steps(place).values() if step["started"])
    kept = f"kept since {time.strftime('%Y-%m-%d %H:%M', time.gmtime(prepared))} UTC, before this start"
    return f"a volume ({kind}), {kept if prepared < began - 1 else 'made at this start'}"


def clone(place: Place) -> str:
    step = _steps(place).get("clone", {})
    if step.get("state") in ("skipped", "needs-auth"):
        raise spare(step["detail"])
    where = place.contract.directory
    argv = ["git", "-C", where]
    place.run([*argv, "status", "--porcelain"])
    said = place.run([*argv, "config", "--get", "remote.origin.url"], good=lambda status: status in (0, 1)).strip()
    wanted = (place.contract.repo, place.contract.repo_id)
    if said and place.contract.repo and not any(same_repository(said, text) for text in wanted):
        raise Failure(f"{where} is a clone of {printable(said)}, not of {place.contract.repo_id}.")
    others = _of_others(where)
    if others:
        raise Failure(f"{where} holds {len(others)} files that are not the user's, the first: {printable(others[0])}.")
    return f"{where} is whole and the user's"


def _of_others(where: str) -> list[str]:
    mine = os.getuid()
    walk = ((folder, name) for folder, folders, files in os.walk(where) for name in (*folders, *files))
    return [path for path in (os.path.join(*pair) for pair in walk) if os.lstat(path).st_uid != mine]


def virtualization(place: Place) -> str:
    """Run guest code; ``kvm-ok`` must agree."""
    state, sentence = kvm.verdict(str(place.paths.root / "dev/kvm"))
    place.run(["kvm-ok"], good=lambda status: (status == 0) is (state == "works"))
    if state == "works":
        return sentence
    if not place.running or place.contract.kvm == "disabled":
        raise spare(sentence if place.contract.kvm != "disabled" else "/dev/kvm was not requested")
    if state in ("absent", "unsupported") and place.contract.kvm != "required":
        raise spare(f"{sentence} Virtual machines run in software emulation.")
    raise Failure(sentence)


def virtual_machine(place: Place) -> str:
    """Boot a virtual machine with QEMU."""
    wanted = os.environ.get("SPT_FLOW_ACCEL", "")
    said: list[str] = []
    booted = machine.run(wanted if wanted in machine.ACCELERATORS else "", place.paths, said.append)
    # The sentence that says why KVM was not used.
    return " ".join([*(text for text in said if "did not answer" in text or "ended with" in text), booted])


def firecracker(place: Place) -> str:
    """Boot a microVM with Firecracker. Skipped where KVM does not work, or boots no Linux with QEMU either."""
    version = first(place.run(["firecracker", "--version"]))
    place.run(["jailer", "--version"])
    state, sentence = kvm.verdict(str(place.paths.root / "dev/kvm"))
    if state != "works":
        raise spare(f"{version} needs KVM, and has no software emulation. {sentence}")
    try:
        return f"{version}. {microvm.run(place.paths, machine.TRIAL)}"
    except Failure as failure:
        if not place.has("qemu-system-x86") or _boots_with_qemu(place):
            raise
        reason = "KVM runs guest code here, but boots no Linux with Firecracker or QEMU"
        raise spare(f"{reason}. {version} has no software emulation. {failure.sentence}") from None


def _boots_with_qemu(place: Place) -> bool:
    initrd = place.folder("firecracker") / "initrd"
    kernel = guest.kernel(place.paths)
    initrd.write_bytes(guest.file_system(kernel))
    try:
        machine.boot("kvm", kernel, initrd, machine.TRIAL)
    except Failure:
        return False
    return True


def operator_hooks(place: Place) -> str:
    """Check that the operator's hooks are installed and refuse a test commit."""
    if not place.running:
        raise spare(BARE)
    scripts = hooks.listed(place.contract)
    if not scripts:
        raise spare("the operator lists none (git_hooks)")
    there = hooks.folder(place.paths)
    for name, text in scripts.items():
        path = there / "operator" / name
        if not path.is_file() or path.read_text() != text or not os.access(path, os.X_OK):
            raise Failure(f"The operator's hook {name} is missing or was changed; 'restart' brings it back.")
    if place.run(["git", "config", "--get", "core.hooksPath"], good=lambda status: status in (0, 1)).strip() != str(
        there
    ):
        raise Failure("git does not use the operator's hooks: core.hooksPath is set to something else in this home.")
    return f"{', '.join(scripts)} installed; {_refused(place, there, scripts)}"


def _refused(place: Place, there: Path, scripts: dict[str, str]) -> str:
    tried = [name for name in ("pre-commit", "prepare-commit-msg", "commit-msg") if name in scripts]
    if not tried:
        return "none of them runs on a commit"
    folder = place.folder("hooks")
    place.run(["git", "init", "--quiet", str(folder)])
    write(folder / "README", "a test of hooks\n")
    place.run(["git", "add", "README"], folder)
    argv = ["git", *AUTHOR, "commit", "--quiet", "-m", "refuse me"]
    said = place.run(argv, folder, good=lambda status: status != 0, env={"SPT_FLOW_HOOK_TEST": "1"})
    if f"the operator's {tried[0]} ran" not in said:
        raise Failure(f"The test commit was refused, but not by the operator's {tried[0]}: {printable(said)[-200:]}")
    return "a test commit was refused"


def repository_hooks(place: Place) -> str:
    """Check that hooks of a repository do not run when it is cloned or committed to."""
    folder = place.folder("repository-hooks")
    source, copy, sign = folder / "source", folder / "copy", folder / "ran"
    place.run(["git", "init", "--quiet", "-b", "main", str(source)])
    for name in (".git/hooks", ".githooks", ".husky", "hooks"):
        (source / name).mkdir(exist_ok=True)
        for hook in hooks.NAMES:
            write(source / name / hook, f"#!/bin/sh\ntouch '{sign}'\n", 0o755)
    place.run(["git", "add", "."], source)
    aside = ["git", *AUTHOR, "-c", "core.hooksPath=/dev/null", "commit", "--quiet", "-m", "first"]
    place.run(aside, source)
    place.run(["git", "clone", "--quiet", "--", str(source), str(copy)], folder)
    # An operator's hook may refuse this commit, which does not matter here.
    place.run(["git", *AUTHOR, "commit", "--quiet", "--allow-empty", "-m", "second"], copy, good=lambda status: True)
    if sign.exists():
        raise Failure("A hook that came with a repository ran by itself when it was cloned or committed to.")
    return "a repository's own hooks did not run on clone and commit"


def secrets(place: Place) -> str:
    """Search for secrets on disk: in the home, the system's settings, and the files of the start."""
    top = place.paths.root
    places = [str(top / name) for name in ("home", "root", "etc", "srv", "var/tmp", "var/log", "usr/share/spt-flow")]
    places += [str(top / "usr/local/lib/spt-workspace"), str(top / "var/cache/spt-flow-clones")]
    without, clone_config = {str(place.scratch)}, []
    where = place.contract.directory
    if place.running and where and Path(where) != place.paths.home:
        # The repository's own files are not searched, but the clone's configuration is.
        without.add(where)
        clone_config = [os.path.join(where, ".git")]
    password = access.ide_password(place.paths) if place.running else ""
    result = leaks.search([*places, *clone_config], without, [password])
    if result.found:
        named = "; ".join(f"{path} holds {kind}" for path, kind in result.found[:5])
        more = f"; and {len(result.found) - 5} more" if len(result.found) > 5 else ""
        raise Failure(f"{printable(named)}{more}.")
    if not result.in_time:
        raise Failure(f"Only {result.files} files could be searched within the time.")
    return f"none in {result.files} files ({result.unread} are not the user's to read)"


CHECKS: tuple[tuple[str, Callable[[Place], str]], ...] = (
    ("start", start),
    ("home", home),
    ("clone", clone),
    ("sudo", root),
    ("ide", ide),
    ("docker", docker),
    ("kvm", virtualization),
    ("hooks", operator_hooks),
    ("repository-hooks", repository_hooks),
    ("secrets", secrets),
)


def of(place: Place) -> list[tuple[str, Callable[[Place], str]]]:
    """Return the checks; virtual machines are booted only if the image has their programs."""
    machines = [("flow-vm", virtual_machine)] if place.has("qemu-system-x86") else []
    microvms = [("firecracker", firecracker)] if place.has("firecracker") else []
    return [*CHECKS, *machines, *microvms]
