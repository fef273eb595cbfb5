# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of the workspace agent, which clients call by exec or in a session. Large modules are imported late."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import access
from .contract import CONTRACT, STEPS, Contract, Failure, Paths
from .record import ENDED, tell

PATIENCE = 5.0
"""Seconds that a new session waits to learn whether its keys are needed."""
STARTING = 600.0
"""Seconds until ``wait`` reports a clone or IDE that is not ready."""

USAGE = """usage: spt-workspace COMMAND
  run                     start everything (the container's main process)
  start                   the same in the background, next to Coder's agent; returns when the IDE answers
  stop                    end what start started
  trust [no]              consent to the repository's postCreateCommand (devcontainer.json) and run it; no: withdraw
  wait                    wait for clone and IDE; print their states; exit with 0 if the IDE answers
  status                  one JSON object: steps, life, IDE, host key, notes
  clone [URL [REF]]       clone the repository now, with the keys of this session; URL if the workspace has none yet
  dotfiles [waiting]      install or update the dotfiles, with the keys of this session; waiting: only if they need keys
  keepalive HOURS [BY]    delay the idle stop for at most 24 hours; 0 withdraws it
  session PUBLIC_KEY      serve one SSH session on stdin and stdout for the holder of the key
  hostkey NAME            print the host key as a known_hosts line for NAME
  credential OPERATION    git's credential helper: asks the user's side of a live session
  verify [--help]         test the image and the workspace; --format table, json or junit; exits with 1 if a check fails
"""


def status(paths: Paths, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what ``status`` prints; works at any moment of a start."""
    contract = Contract.load(paths, environ)
    record = _read(paths.run / "steps.json")
    pending = {"state": "pending", "started": None, "ended": None, "detail": ""}
    return {
        "spt_flow": 1,
        "contract": CONTRACT,
        "boot": record.get("boot", ""),
        "steps": record.get("steps") or dict.fromkeys(STEPS, pending),
        "life": _read(paths.run / "life.json"),
        "ide": {"port": contract.ide_port, "password": access.ide_password(paths)},
        "host_key": access.host_key(paths),
        "directory": contract.directory,
        "kvm": os.access(paths.root / "dev/kvm", os.R_OK | os.W_OK),
        "audited": (paths.run / "audited").exists(),
        "notes": [*record.get("notes", []), *shortages(contract, paths)],
    }


def shortages(contract: Contract, paths: Paths) -> list[str]:
    """Return sentences about disks that are nearly full and required devices that are missing."""
    notes = []
    for place, limit, advice in (
        (paths.root / "tmp", 0.8, "It is memory: remove files there or use /var/tmp."),
        (paths.home, 0.9, "Make room, or the next build fails."),
        (paths.docker_data, 0.9, "'docker system prune' inside the workspace makes room."),
    ):
        try:
            usage = shutil.disk_usage(place)
        except OSError:
            continue
        share = usage.used / (usage.used + usage.free) if usage.used + usage.free else 0.0
        if share > limit:
            notes.append(f"{place} is {share:.0%} full ({usage.free // 2**20} MiB left). {advice}")
    if contract.kvm == "required" and not os.access(paths.root / "dev/kvm", os.R_OK | os.W_OK):
        notes.append("/dev/kvm was required and cannot be opened in this workspace.")
    return notes


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def clone(words: Sequence[str], paths: Paths, environ: Mapping[str, str]) -> int:
    from .clone import Cloner, same_repository
    from .processes import Children

    contract = Contract.load(paths, environ)
    url, ref = (*words, "", "")[:2]
    if url and not contract.repo:
        directory = str(paths.home / contract.workspace)
        contract = replace(contract, repo=url, ref=ref, directory=directory)
        contract.save(paths)
    elif url and not same_repository(contract.repo, url):
        raise Failure("This workspace belongs to another repository.", 7)
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    return in_session("clone", Cloner(contract, paths, Children(), environ, say).run, paths)


def dotfiles(when: Sequence[str], paths: Paths, environ: Mapping[str, str]) -> int:
    from .dotfiles import Dotfiles
    from .processes import Children

    contract = Contract.load(paths, environ)
    if when not in ((), ("waiting",)):
        raise Failure("Wrong argument. Use: spt-workspace dotfiles [waiting]", 2)
    if when and (not contract.dotfiles or settled("dotfiles", paths, PATIENCE).get("state") != "needs-auth"):
        return 0
    if not contract.dotfiles:
        restart = f"ansible-playbook spt.flow.restart -e workspace={contract.workspace}"
        raise Failure(f"This workspace has no dotfiles. Name some: {restart} -e dotfiles=https://host/owner/name", 6)
    return in_session("dotfiles", Dotfiles(contract.dotfiles, paths, Children(), environ).run, paths)


def trust(answer: Sequence[str], paths: Paths, environ: Mapping[str, str]) -> int:
    """Give or withdraw consent. Only a user inside the workspace can do this."""
    from .granting import Granting
    from .processes import Children

    if answer not in ((), ("no",)):
        raise Failure("Wrong argument. Use: spt-workspace trust [no]", 2)
    contract = Contract.load(paths, environ)
    env = access.user_environment(environ, contract, paths)
    granting = Granting(contract, paths, Children(), env)
    granting.trust(not answer)
    if answer:
        print("The repository's commands run no more.", file=sys.stderr)
        return 0
    wishes = granting.read()
    if wishes is None or not wishes.commands:
        names = ", ".join(wishes.environment) if wishes else ""
        variables = f" New shells have its variables: {names}." if names else ""
        sentence = f"You consented; the repository has no postCreateCommand to run.{variables}"
        if wishes is not None:
            return in_session("devcontainer", lambda: sentence, paths)
        print(sentence, file=sys.stderr)
        return 0
    return in_session("devcontainer", lambda: "; ".join(granting.run(wishes, asked=True)), paths)


def in_session(step: str, work: Callable[[], str], paths: Paths) -> int:
    """Run a step with the keys of the caller's session, and report it to the running workspace."""
    tell(paths, {"step": step, "state": "running"})
    state, sentence, code = "failed", f"The step {step} was interrupted.", 1
    try:
        sentence = work()
        state, code = "ok", 0
    except Failure as failure:
        state, sentence, code = failure.state, failure.sentence, failure.status
    except KeyboardInterrupt:
        code = 130
    finally:
        tell(paths, {"step": step, "state": state, "detail": sentence})
    print(sentence, file=sys.stderr)
    return code


def settled(step: str, paths: Paths, patience: float) -> dict[str, Any]:
    """Return the record of ``step`` when it has ended, or its current record after ``patience`` seconds."""
    until = time.monotonic() + patience
    while True:
        record: dict[str, Any] = _read(paths.run / "steps.json").get("steps", {}).get(step, {})
        if record.get("state") in ENDED or time.monotonic() > until:
            return record
        time.sleep(0.1)


def wait(paths: Paths) -> int:
    """Wait for clone and IDE, for clients that cannot follow the container's log (dev containers)."""
    records = {step: settled(step, paths, STARTING) for step in ("clone", "ide")}
    for step, record in records.items():
        print(
            f"{step}: {record.get('state', 'pending')}{', ' if record.get('detail') else ''}{record.get('detail', '')}"
        )
    return 0 if records["ide"].get("state") in ("ok", "skipped") else 8


def run(paths: Paths, environ: Mapping[str, str]) -> int:
    from .supervisor import Supervisor

    return Supervisor(Contract.from_environment(environ), paths, environ).run()


def start(paths: Paths, environ: Mapping[str, str]) -> int:
    from . import background

    def run_in_background(with_agent: Mapping[str, str]) -> int:
        os.environ.update(with_agent)
        return main(["run"], paths)

    return background.start(paths, environ, run_in_background)


def stop(paths: Paths) -> int:
    from . import background

    return background.stop(paths)


def keepalive(arguments: Sequence[str], paths: Paths, environ: Mapping[str, str]) -> int:
    from . import liveness

    try:
        hours = float(arguments[0])
    except ValueError:
        raise Failure("The keep-alive is not a number of hours.", 2) from None
    grant = liveness.grant_keepalive(paths, Contract.load(paths, environ), hours, " ".join(arguments[1:2]))
    tell(paths, {})
    print(json.dumps({"spt_flow": 1, "keepalive": grant}))
    return 0


def credential(operation: str, paths: Paths) -> int:
    from .identity import credentials

    return credentials.git(operation, paths)


def verify(arguments: Sequence[str], paths: Paths, environ: Mapping[str, str]) -> int:
    from .verify import command

    return command.main(arguments, paths, environ)


def main(arguments: Sequence[str], paths: Paths = Paths()) -> int:  # noqa: B008 - frozen
    """Run a command and return its exit status. A failure prints one sentence to stderr."""
    environ = dict(os.environ)
    commands: dict[str, tuple[range, Callable[..., int]]] = {
        "run": (range(1), lambda: run(paths, environ)),
        "start": (range(1), lambda: start(paths, environ)),
        "stop": (range(1), lambda: stop(paths)),
        "trust": (range(2), lambda *words: trust(words, paths, environ)),
        "wait": (range(1), lambda: wait(paths)),
        "status": (range(1), lambda: print(json.dumps(status(paths, environ))) or 0),
        "clone": (range(3), lambda *words: clone(words, paths, environ)),
        "dotfiles": (range(2), lambda *words: dotfiles(words, paths, environ)),
        "keepalive": (range(1, 3), lambda *words: keepalive(words, paths, environ)),
        "session": (range(1, 2), lambda key: access.session(key, paths)),
        "hostkey": (range(1, 2), lambda name: print(access.known_hosts_line(name, paths)) or 0),
        "credential": (range(1, 2), lambda operation: credential(operation, paths)),
        "verify": (range(100), lambda *words: verify(words, paths, environ)),
    }
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    count, command = commands.get(arguments[0] if arguments else "", (range(0), None))
    if command is None or len(arguments) - 1 not in count:
        print(USAGE, end="", file=sys.stderr)
        return 2
    try:
        return command(*arguments[1:])
    except Failure as failure:
        print(f"spt-workspace: {failure.sentence}", file=sys.stderr)
        return failure.status
    except KeyboardInterrupt:
        return 130
