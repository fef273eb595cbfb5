# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``spt-workspace run``: run the steps in parallel, then supervise the workspace until it stops."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import access, background, devcontainer, home, hooks, liveness, services
from .clone import Cloner
from .contract import Contract, Failure, Paths, reason, write_file
from .dotfiles import Dotfiles
from .granting import Granting
from .identity import registries, relay, signing
from .processes import Children, Service
from .record import Journal, hear

AUDITED = "SPT_FLOW_AUDIT"
"""The node's runtime sets this variable if it records commands that run as root."""


class Supervisor:
    """One start of a workspace. ``run`` returns the exit status of the container's main process."""

    def __init__(
        self,
        contract: Contract,
        paths: Paths,
        environ: Mapping[str, str],
        terminals: Path = Path("/dev/pts"),
        skeletons: tuple[str, ...] = home.SKELETONS,
        docker_argv: Sequence[str] = (),
        stdout: int = 1,
    ) -> None:
        self.contract = contract
        self.paths = paths
        self.children = Children()
        self.journal = Journal(paths, stdout)
        self._environ = environ
        self._env = access.user_environment(environ, contract, paths)
        self._terminals = terminals
        self._skeletons = skeletons
        self._docker_argv = docker_argv
        self._services: dict[str, Service] = {}
        self._cloned = threading.Event()
        self._unread = ""
        self._gpg: relay.Relay | None = None

    def run(self) -> int:
        wake, wakes = os.pipe()
        os.set_blocking(wakes, False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: _poke(wakes))
        try:
            control = self._prepare()
            self._home()
        except (Failure, OSError) as error:
            sentence = error.sentence if isinstance(error, Failure) else f"The workspace cannot start: {reason(error)}."
            self.journal.step("home", "failed", sentence)
            return 8
        self._relay_identity()
        self._announce()
        self._begin("clone", self._clone, self._cloned.set)
        self._begin("docker", self._docker)
        self._begin("ide", self._ide)
        self._begin("devcontainer", self._devcontainer)
        self._begin("dotfiles", self._dotfiles)
        self._live(wake, control)
        self._stop()
        if self.contract.deadline and self.contract.deadline <= time.time():
            background.end_agent(self._environ)
        return 0

    def _prepare(self) -> socket.socket:
        for directory in (self.paths.run, self.paths.runtime):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.journal.start()
        self.contract.save(self.paths)
        if self._environ.get(AUDITED) == "on":
            write_file(self.paths.run / "audited", "")
        place = self.paths.run / "control.sock"
        place.unlink(missing_ok=True)
        control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        control.bind(str(place))
        os.chmod(place, 0o600)
        control.setblocking(False)
        access_thread = threading.Thread(target=self._access, daemon=True)
        access_thread.start()
        # In a thread, because creating the host key takes as long as preparing the home.
        self._access_ready = access_thread
        return control

    def _access(self) -> None:
        try:
            access.prepare(self.contract, self.paths, self._env)
        except (Failure, OSError) as error:
            self.journal.note(error.sentence if isinstance(error, Failure) else f"Cannot prepare SSH: {reason(error)}.")

    def _relay_identity(self) -> None:
        """Give every process the SSH agent and the gpg-agent of the newest session at stable paths."""
        directory = relay.Directory(self.paths)
        try:
            relay.agent(self.paths, directory).start()
        except OSError as error:
            self.journal.note(f"Processes outside of sessions have no SSH agent: {reason(error)}.")
        relay.watch(directory, self._sign, self.children.stopping)

    def _sign(self, answer: dict[str, Any]) -> None:
        """Configure git for a new session; start the relay of the gpg-agent when it is first needed."""
        try:
            signing.apply(answer, self.paths)
            if answer.get("format") == "openpgp" and self._gpg is None:
                self._gpg = signing.gpg_relay(self.paths)
                if self._gpg is not None:
                    self._gpg.start()
        except OSError as error:
            self.journal.note(f"Git does not sign as on your machine: {reason(error)}.")

    def _home(self) -> None:
        self.journal.step("home", "running")
        said = home.prepare_home(self.paths, self._skeletons)
        try:
            hooks.install(self.contract, self.paths)
        except (Failure, OSError) as error:
            self.journal.note(
                error.sentence
                if isinstance(error, Failure)
                else f"Cannot install the operator's git hooks: {reason(error)}."
            )
        self._access_ready.join(30)
        self.journal.step("home", "ok", said)

    def _begin(
        self, name: str, work: Callable[[], tuple[str, str]], after: Callable[[], object] = lambda: None
    ) -> None:
        """Run a step in a thread; ``work`` returns (state, sentence), or an empty state if it has reported itself."""

        def body() -> None:
            try:
                state, sentence = work()
            except Failure as failure:
                state, sentence = failure.state, failure.sentence
            except Exception as error:  # noqa: BLE001 - an unexpected error in one step must not end the others
                state, sentence = "failed", f"The step {name} failed unexpectedly: {type(error).__name__}: {error}."
            try:
                if state and not self.children.stopping.is_set():
                    self.journal.step(name, state, sentence)
            finally:
                after()

        threading.Thread(target=body, name=name, daemon=True).start()

    def _clone(self) -> tuple[str, str]:
        if not self.contract.repo and not self.contract.seed:
            if self.contract.directory:
                Path(self.contract.directory).mkdir(parents=True, exist_ok=True)
            return "skipped", "no repository was named"
        self.journal.step("clone", "running")
        say = lambda line: self.journal.log("clone", line)  # noqa: E731
        cloner = Cloner(self.contract, self.paths, self.children, self._environ, say, self.children.stopping.wait)
        said = cloner.run()
        self._announce()
        return "ok", said

    def _docker(self) -> tuple[str, str]:
        if not self.contract.docker:
            return "skipped", self.contract.docker_reason or "switched off"
        if not self._docker_argv:
            services.check_docker(self.paths)
        try:
            registries.configure(self.paths)
        except OSError as error:
            self.journal.note(f"Docker does not get your logins: {reason(error)}.")
        return self._serve(
            services.docker(self.contract, self.paths, self._env, self.children, self.journal, self._docker_argv)
        )

    def _ide(self) -> tuple[str, str]:
        if self.contract.kind == "ci":
            return "skipped", "a CI workspace has none"
        return self._serve(services.ide(self.contract, self.paths, self._env, self.children, self.journal))

    def _serve(self, service: Service) -> tuple[str, str]:
        self._services[service.name] = service
        service.supervise()
        return "", ""

    def _announce(self) -> devcontainer.Wishes | None:
        """Apply ports and variables of the repository's devcontainer.json; ``None`` without a clone or a file."""
        contract = self.contract
        named = contract.kind != "ci" and (contract.repo or contract.repo_id or contract.seed)
        if not named or not Path(contract.directory, ".git").exists():
            return None
        granting = Granting(contract, self.paths, self.children, self._env)
        try:
            wishes = granting.announce()
        except (Failure, OSError) as error:
            self._unread = error.sentence if isinstance(error, Failure) else f"It cannot be granted: {reason(error)}."
            return None
        self._unread = ""
        if wishes is not None:
            self._env = {**self._env, **wishes.environment}
            self.journal.forward(wishes.ports)
        return wishes

    def _devcontainer(self) -> tuple[str, str]:
        if self.contract.kind == "ci":
            return "skipped", "a CI workspace does not use it"
        self._after_the_rest()
        wishes = self._announce()
        if self._unread:
            return "failed", self._unread
        if wishes is None:
            return "skipped", "the repository has none"
        self.journal.step("devcontainer", "running")
        return "ok", Granting(self.contract, self.paths, self.children, self._env).grant(wishes)

    def _after_the_rest(self) -> None:
        """Wait until clone and IDE have started or failed."""
        while not self._cloned.wait(1) and not self.children.stopping.is_set():
            continue
        while self.contract.kind != "ci" and ("ide" not in self._services or not self._services["ide"].settled.wait(1)):
            if self.children.stopping.is_set() or self.journal.steps["ide"]["state"] == "failed":
                break
            self.children.stopping.wait(0.05)

    def _dotfiles(self) -> tuple[str, str]:
        if not self.contract.dotfiles:
            return "skipped", "none were named"
        self._after_the_rest()
        self.journal.step("dotfiles", "running")
        return "ok", Dotfiles(self.contract.dotfiles, self.paths, self.children, self._env).run()

    def _live(self, wake: int, control: socket.socket) -> None:
        """Check activity and deadline until something ends the workspace."""
        clock = liveness.Liveness(self.contract, time.clock_gettime(time.CLOCK_BOOTTIME), time.time())
        watched: list[int | socket.socket] = [wake, control]
        while True:
            seen = liveness.look(self.paths, self._terminals, self.contract.ide_port)
            verdict = clock.sample(time.clock_gettime(time.CLOCK_BOOTTIME), time.time(), seen)
            if liveness.Liveness.changed(self.journal.life, verdict.record):
                self.journal.record_life(verdict.record)
            if verdict.stop:
                self.journal.log("life", verdict.stop)
                self._tell(verdict.stop)
                return
            ready, _w, _x = select.select(watched, [], [], verdict.wait)
            if wake in ready:
                record = {**verdict.record, "reason": "was told to stop", "since": round(time.time()), "stops_at": None}
                self.journal.record_life(record)
                return
            if control in ready:
                message = hear(control)
                if message:
                    self.journal.step(message["step"], message["state"], message.get("detail", ""))
                if message.get("step") == "clone" and message["state"] == "ok":
                    self._begin("devcontainer", self._devcontainer)
                if message.get("step") == "devcontainer" and message["state"] == "running":
                    self._announce()  # a session has just given its consent

    def _tell(self, sentence: str) -> None:
        """Write one line to every open terminal, without blocking."""
        for terminal in self._terminals.glob("[0-9]*"):
            with contextlib.suppress(OSError):
                descriptor = os.open(terminal, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
                try:
                    os.write(descriptor, f"\r\n{sentence} The workspace ends now.\r\n".encode())
                finally:
                    os.close(descriptor)

    def _stop(self) -> None:
        docker = self._services.get("docker")
        self.children.stop(
            docker.process if docker else None,
            lambda: services.ask_docker_to_end(docker, self.paths) if docker else None,
        )


def _poke(descriptor: int) -> None:
    try:
        os.write(descriptor, b"x")
    except BlockingIOError:
        return  # the pipe is full of earlier wake-ups
